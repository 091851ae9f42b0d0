"""What a continual-learning run is judged by.

Everything is computed from accuracies a[t, i] in [0, 1]: on the test data of task i, after step t. The
accuracy matrix [T, T] has one row a task; a denser record has several rows a task, and `current` [P] names
the task in training at each row. Entries nobody measured are NaN and may stand only where they are not read.

The words mean different things in different papers, so each function states its definition. Sources:
Lopez-Paz and Ranzato, Gradient Episodic Memory, NeurIPS 2017 (average accuracy, backward transfer); Chaudhry
et al., Riemannian Walk, ECCV 2018 (forgetting); Caccia et al., New Insights on Reducing Abrupt Representation
Change, ICLR 2022 (anytime accuracy); De Lange et al., Continual Evaluation for Lifelong Learning, ICLR 2023
(worst-case accuracy).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from replaykit.buffer import Buffer

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


@torch.no_grad()
def accuracy(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    view: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> float:
    """Share of rows whose largest logit is their label, in eval mode; each module's mode is put back.

    Args:
        x, y: inputs [n, ...] and labels [n]; chunks of `batch_size` rows travel to `device`.
        view: what the model sees of raw inputs (scaling, normalisation); by default the inputs themselves.

    Raises:
        ValueError: no rows.
    """
    if len(y) == 0:
        raise ValueError("accuracy of no rows is undefined; give at least one")
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        hits = 0
        for images, labels in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
            images, labels = images.to(device), labels.to(device)
            logits = model(images if view is None else view(images))
            hits += int((logits.argmax(1) == labels).sum())
    finally:
        for module, training in modes.items():
            module.training = training
    return hits / len(y)


def average_accuracy(accuracies: ArrayLike, rows: Sequence[int] | None = None) -> float:
    """Mean over tasks of the last row a[T, i].

    Args:
        accuracies: [P, T].
        rows: test rows of each task [T]; given, every sample counts the same instead of every task.
    """
    final = _record(accuracies)[-1]
    if rows is None:
        return _finite(final.mean())
    weights = np.asarray(rows, np.float64)
    if weights.shape != final.shape or (weights <= 0).any():
        raise ValueError(f"rows must be {len(final)} counts above 0, one a task, got {list(rows)}")
    return _finite(final @ weights / weights.sum())


def forgetting(matrix: ArrayLike, first: bool = False) -> float:
    """Mean over all tasks but the last of (best accuracy since the task was learned, before the end) - final.

    max over i <= t < T of a[t, i], minus a[T, i]: it is negative for a task that ends at its best.
    With `first`, a[i, i] takes the place of the best, which is minus the backward transfer (the definition
    of Avalanche's forgetting). 0.0 for a single task.
    """
    a = _square(matrix)
    last = len(a) - 1
    if last == 0:
        return 0.0
    reference = [a[i, i] if first else a[i:last, i].max() for i in range(last)]
    return _finite(np.mean(np.array(reference) - a[last, :last]))


def backward_transfer(matrix: ArrayLike) -> float:
    """Mean over all tasks but the last of a[T, i] - a[i, i]; 0.0 for a single task."""
    a = _square(matrix)
    last = len(a) - 1
    return _finite((a[last, :last] - a.diagonal()[:last]).mean()) if last else 0.0


def average_anytime_accuracy(accuracies: ArrayLike, current: ArrayLike | None = None) -> float:
    """AAA: mean over all rows of the average accuracy on the tasks seen by then (tasks 0 .. current).

    Args:
        accuracies: [P, T], one row an evaluation.
        current: the task in training at each row [P], non-decreasing; by default row t is task t.
    """
    a, task = _points(accuracies, current)
    return _finite(np.mean([row[: k + 1].mean() for row, k in zip(a, task, strict=True)]))


def worst_case_accuracy(accuracies: ArrayLike, current: ArrayLike | None = None) -> float:
    """WC-ACC at the last row, with k = tasks seen: a[P, k] / k + (1 - 1/k) · mean of earlier tasks' minima.

    The minimum of a task runs over all rows strictly after it ended, those whose `current` is a later task.
    The more rows a task has, the smaller the result: state how often was evaluated.

    Args: see `average_anytime_accuracy`.
    """
    a, task = _points(accuracies, current)
    k = int(task[-1])
    if k == 0:
        return _finite(a[-1, 0])
    minima = [a[task > i, i].min() for i in range(k)]
    return _finite((a[-1, k] + k * np.mean(minima)) / (k + 1))


def memory_report(buffer: Buffer) -> dict[str, Any]:
    """What is in a memory: ``rows capacity seen bytes``, and where the columns exist

    - ``classes`` and ``tasks``: how many rows carry each value of ``y`` (a multi-hot row counts for each of
      its labels) and of ``t``;
    - ``age``: mean, least and greatest number of rows offered since a row of ``id`` was, where ``id`` is its
      place in the stream.
    """
    report: dict[str, Any] = {
        "rows": len(buffer),
        "capacity": buffer.capacity,
        "seen": buffer.seen,
        "bytes": buffer.nbytes,
    }
    held = buffer.store.columns if len(buffer) else {}
    for name, column in (("classes", "y"), ("tasks", "t")):
        if column in held:
            report[name] = _histogram(buffer[column])
    if "id" in held:
        age = buffer.seen - 1 - buffer["id"].cpu().numpy()
        report["age"] = {"mean": float(age.mean()), "least": int(age.min()), "greatest": int(age.max())}
    return report


def _histogram(values: Tensor) -> dict[int, int]:
    if values.ndim == 2:
        numbers = values.sum(0).tolist()
        return {label: int(number) for label, number in enumerate(numbers) if number}
    labels, counts = np.unique(values.cpu().numpy(), return_counts=True)
    return dict(zip(map(int, labels), map(int, counts), strict=True))


def _record(accuracies: ArrayLike) -> Floats:
    a = np.asarray(accuracies, np.float64)
    if a.ndim != 2 or a.size == 0:
        raise ValueError(f"accuracies must be a table [evaluations, tasks], got shape {a.shape}")
    if ((a < 0) | (a > 1)).any():
        raise ValueError(f"accuracies must lie in [0, 1], got {np.nanmin(a)} to {np.nanmax(a)}")
    return a


def _square(matrix: ArrayLike) -> Floats:
    a = _record(matrix)
    if a.shape[0] != a.shape[1]:
        raise ValueError(f"needs one row a task [T, T], got {a.shape}; pass the rows at the ends of tasks")
    return a


def _points(accuracies: ArrayLike, current: ArrayLike | None) -> tuple[Floats, Ints]:
    a = _record(accuracies)
    task = np.arange(len(a)) if current is None else np.asarray(current, np.int64)
    if task.shape != (len(a),) or task[0] < 0 or task[-1] >= a.shape[1] or (np.diff(task) < 0).any():
        raise ValueError(
            f"current must be {len(a)} non-decreasing task numbers below {a.shape[1]}, got {task.tolist()}"
        )
    return a, task


def _finite(value: Any) -> float:
    if not np.isfinite(value):
        raise ValueError("the metric reads an accuracy that was never measured (NaN)")
    return float(value)
