"""The two pictures of a run, and that of a comparison."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def accuracy_matrix(path: Path, matrix: Sequence[Sequence[float]], title: str, after: Sequence[int]) -> None:
    """Accuracy on each task (column) after the tasks of these numbers (rows), in percent."""
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
    axes.set_yticks(range(rows), [str(task) for task in after])
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


def comparison(path: Path, records: Sequence[Mapping[str, Any]], title: str) -> None:
    """Accuracy of methods, every seed a point, and the seconds of a run, of them those of selection.

    Args:
        records: methods in the order from top to bottom, each with the texts of its strategy, policy, retrieval
            and loss, and of accuracy, seconds and selection_seconds the values of its seeds and their mean.
    """
    axes = ("strategy", "policy", "retrieval", "loss")
    names = _distinct([[record[axis] for axis in axes] for record in records])
    places = np.arange(len(records))
    figure, (left, right) = plt.subplots(
        1, 2, sharey=True, figsize=(10, 1.3 + 0.32 * len(records)), width_ratios=(3, 2), layout="constrained"
    )
    for place, record in zip(places, records, strict=True):
        accuracy = record["accuracy"]
        values, mean = 100 * np.asarray(accuracy["values"]), 100 * accuracy["mean"]
        left.errorbar(mean, place, xerr=100 * (accuracy["deviation"] or 0), color="#1f4e79", capsize=3, lw=1.5)
        left.plot([mean, mean], [place - 0.28, place + 0.28], color="#1f4e79", lw=2.5, solid_capstyle="butt")
        left.scatter(values, np.full(len(values), place), s=26, color="#e07b39", ec="white", lw=0.5, zorder=3)
    total, choosing = (
        np.array([record[name]["mean"] or 0.0 for record in records]) for name in ("seconds", "selection_seconds")
    )
    right.barh(places, choosing, height=0.6, color="#1f4e79", label="selection")
    right.barh(places, np.maximum(total - choosing, 0), 0.6, left=choosing, color="#c9d6e2", label="the rest")
    left.set(xlabel="average accuracy, %: seeds, mean ± deviation")
    left.set_yticks(places, names)
    left.set_ylim(len(records) - 0.4, -0.6)
    right.set(xlabel="seconds of training a run")
    right.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(axis="x", color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def _distinct(rows: Sequence[Sequence[str]]) -> list[str]:
    """The words of each row that are not the same in all rows."""
    varied = [place for place, words in enumerate(zip(*rows, strict=True)) if len({*words} - {"-"}) > 1] or [0]
    return [", ".join(row[place] for place in varied if row[place] != "-") for row in rows]


def _save(figure: Any, path: Path) -> None:
    part = path.with_name(f"part.{path.name}")
    figure.savefig(part, dpi=130, bbox_inches="tight")
    plt.close(figure)
    os.replace(part, path)
