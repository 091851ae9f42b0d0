"""The two pictures of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def accuracy_matrix(path: Path, matrix: Sequence[Sequence[float]], title: str) -> None:
    """Accuracy on each task (column) after each task (row), in percent."""
    values = 100 * np.asarray(matrix)
    rows, columns = values.shape
    figure, axes = plt.subplots(figsize=(1.6 + 0.55 * columns, 1.4 + 0.45 * rows))
    image = axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    for row in range(rows):
        for column in range(columns):
            value = values[row, column]
            shade = "black" if value > 60 else "white"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=shade)
    axes.set(xlabel="accuracy on task", ylabel="after task", title=title)
    axes.set_xticks(range(columns), [str(i + 1) for i in range(columns)])
    axes.set_yticks(range(rows), [str(i + 1) for i in range(rows)])
    figure.colorbar(image, ax=axes, label="%")
    _save(figure, path)


def memory_classes(path: Path, history: Sequence[Mapping[int, int]], classes: int, title: str) -> None:
    """How many rows of each class the memory held after each task, stacked."""
    counts = np.array([[held.get(label, 0) for label in range(classes)] for held in history], np.int64)
    figure, axes = plt.subplots(figsize=(2.5 + 0.6 * len(history), 3.2))
    bottom = np.zeros(len(history))
    colours = plt.get_cmap("tab20" if classes > 10 else "tab10")
    for label in range(classes):
        colour = colours(label % colours.N)
        axes.bar(range(1, len(history) + 1), counts[:, label], bottom=bottom, color=colour, label=str(label))
        bottom += counts[:, label]
    axes.set(xlabel="after task", ylabel="rows in the memory", title=title)
    axes.set_xticks(range(1, len(history) + 1))
    if classes <= 20:
        axes.legend(title="class", fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    part = path.with_name(f"part.{path.name}")
    figure.savefig(part, dpi=130, bbox_inches="tight")
    plt.close(figure)
    os.replace(part, path)
