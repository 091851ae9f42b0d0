"""From labels to tasks: pure functions that return one list of row numbers a task.

Every random choice comes from `seed`: an integer, or a generator to draw from. Rows keep their order in the
data within a task unless said otherwise, so shuffle before training; data files are often sorted by class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

IntArray: TypeAlias = NDArray[np.int64]
Labels: TypeAlias = Tensor | NDArray[Any] | Sequence[int]
Seed: TypeAlias = int | np.random.Generator
Groups: TypeAlias = Sequence[Sequence[int]]
Order: TypeAlias = Sequence[int] | Literal["seed"] | None


def as_labels(y: Labels) -> IntArray:
    """Labels [n] as an int64 array.

    Raises:
        TypeError: not integers.
        ValueError: not of shape [n], or negative.
    """
    array = y.cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"labels must be integers, got {array.dtype}")
    if array.ndim != 1 or (array.size and array.min() < 0):
        raise ValueError(f"labels must be of shape [n] and not negative, got shape {array.shape}: {array}")
    return array.astype(np.int64, copy=False)


def class_groups(classes: int, tasks: int | Groups, order: Order = None, seed: Seed = 0) -> list[list[int]]:
    """The classes of every task: `tasks` equal groups of consecutive classes of the order, or given groups.

    Args:
        classes: number of classes C.
        tasks: number of tasks, or the groups themselves (classes that no group names are left out).
        order: the classes in their order of appearance; None is 0..C-1, ``"seed"`` a random order.
        seed: used for ``"seed"`` alone.

    Raises:
        ValueError: classes that do not divide into the tasks, an order that is no permutation, groups that
            are empty, overlap or name an unknown class.
    """
    if not isinstance(tasks, int):
        return _checked_groups(tasks, order, classes)
    if isinstance(order, str) and order != "seed":
        raise ValueError(f"order is None, 'seed' or a list of the classes, got {order!r}")
    if isinstance(order, str):
        listed = np.random.default_rng(seed).permutation(classes).tolist()
    else:
        listed = list(range(classes)) if order is None else [int(c) for c in order]
    if sorted(listed) != list(range(classes)):
        raise ValueError(f"order must name each of the classes 0..{classes - 1} once, got {listed}")
    if tasks < 1 or classes % tasks:
        raise ValueError(
            f"{classes} classes do not divide into {tasks} tasks; take a number that divides them, or in Python "
            "give the groups: tasks=[[0, 1, 2], ...]"
        )
    size = classes // tasks
    return [listed[start : start + size] for start in range(0, classes, size)]


def _checked_groups(groups: Groups, order: Order = None, classes: int | None = None) -> list[list[int]]:
    if order is not None:
        raise ValueError("given groups fix the order of the classes; drop order=")
    listed = [[int(c) for c in group] for group in groups]
    named = [c for group in listed for c in group]
    if not all(listed) or len(set(named)) != len(named):
        raise ValueError(f"every task needs classes of its own, got {listed}")
    if not listed or min(named) < 0 or (classes is not None and max(named) >= classes):
        known = "classes >= 0" if classes is None else f"classes in 0..{classes - 1}"
        raise ValueError(f"groups must name {known}, got {listed}")
    return listed


def class_incremental(y: Labels, tasks: int | Groups, order: Order = None, seed: Seed = 0) -> list[IntArray]:
    """Rows of every task, each class in one task; arguments as for `class_groups`, C = largest label + 1.

    Use given groups to cut training and test labels alike.
    """
    labels = as_labels(y)
    if isinstance(tasks, int):
        groups = class_groups(int(labels.max()) + 1 if len(labels) else 0, tasks, order, seed)
    else:  # a test set may lack classes that the groups name
        groups = _checked_groups(tasks, order)
    return [np.flatnonzero(np.isin(labels, group)) for group in groups]


def domain_incremental(n: int, tasks: int, seed: Seed = 0) -> list[IntArray]:
    """`n` rows dealt at random into `tasks` disjoint parts, equal within 1; all classes in every task.

    Raises:
        ValueError: fewer rows than tasks, or no task.
    """
    if not 1 <= tasks <= n:
        raise ValueError(f"cannot deal {n} rows into {tasks} tasks with at least one row each")
    dealt = np.random.default_rng(seed).permutation(n)
    return [np.sort(part) for part in np.array_split(dealt, tasks)]


def blurry(y: Labels, groups: Groups, share: float, seed: Seed = 0) -> list[IntArray]:
    """Class-incremental with blurry boundaries: a class gives the fraction `share` of its rows away.

    Of the n rows of a class, (1 - share)·n go to the task of its group and share·n / (T - 1) to each other
    task, every number exact within 1 and every row in exactly one task. Source: Bang et al., Rainbow Memory,
    CVPR 2021 (Blurry-M, share = M / 100). Departure: their released split draws the rows of each other task
    independently, so that some repeat and some are never seen.

    Raises:
        ValueError: a share outside [0, 1), or groups as in `class_groups`.
    """
    labels = as_labels(y)
    groups = _checked_groups(groups)
    if not 0 <= share < 1:
        raise ValueError(f"share is a fraction in [0, 1), got {share}; 10 % is 0.1")
    if len(groups) == 1 and share > 0:
        raise ValueError("with one task there is no other task to share with; use share=0")
    rng = np.random.default_rng(seed)
    parts: list[list[IntArray]] = [[] for _ in groups]
    for own, group in enumerate(groups):
        others = [task for task in range(len(groups)) if task != own]
        for label in group:
            rows = rng.permutation(np.flatnonzero(labels == label))
            given = round(share * len(rows))
            parts[own].append(rows[given:])
            if others:
                # Parts differ by one row at most; shuffled, so that no task always gets the longer ones.
                dealt = np.array_split(rows[:given], len(others))
                for task, part in zip(rng.permutation(others), dealt, strict=True):
                    parts[task].append(part)
    return [np.sort(np.concatenate(part)) for part in parts]


def imbalanced_blocks(
    y: Labels,
    groups: Groups = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9)),
    sizes: Sequence[int] = (200, 200, 200, 200, 2000),
    seed: int = 0,
) -> list[IntArray]:
    """The imbalanced stream of Borsos et al.: a random sample of each group of classes, in turn.

    Rows of a block are in the order of the stream. Source: Borsos, Mutny, Krause, Coresets via Bilevel
    Optimization for Continual Learning and Streaming, NeurIPS 2020 (Split-MNIST, imbalanced), with the draws
    of the released code: one legacy NumPy generator for all blocks, each block then shuffled by a fresh one
    of the same seed. ``sizes=(1000,) * 5`` is their balanced stream.

    Raises:
        ValueError: one size for each group is missing, or a group has fewer rows than asked for.
    """
    labels = as_labels(y)
    if len(groups) != len(sizes):
        raise ValueError(f"one size for each group, got {len(groups)} groups and sizes {list(sizes)}")
    draw = np.random.RandomState(seed)
    blocks = []
    for group, size in zip(_checked_groups(groups), sizes, strict=True):
        rows = np.flatnonzero(np.isin(labels, group))
        if not 1 <= size <= len(rows):
            raise ValueError(f"cannot draw {size} rows of classes {group}, which have {len(rows)}")
        chosen = draw.choice(rows, size, replace=False)
        order = np.arange(size)
        np.random.RandomState(seed).shuffle(order)
        blocks.append(chosen[order])
    return blocks
