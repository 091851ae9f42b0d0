"""Fewer rows of a data set: a share of every class, or long-tailed classes.

Every function returns row numbers in ascending order, and draws from `seed` alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from replaykit.benchmarks.scenarios import IntArray, Labels, Seed, as_labels


def subset(y: Labels, per_class: int | None = None, fraction: float | None = None, seed: Seed = 0) -> IntArray:
    """A random part of every class: `per_class` rows, or the `fraction` (rounded, at least 1) of its rows.

    Raises:
        ValueError: both or none given, a fraction outside (0, 1], a class with fewer rows than asked for.
    """
    labels = as_labels(y)
    if (per_class is None) == (fraction is None):
        raise ValueError(f"give per_class or fraction, got per_class={per_class} and fraction={fraction}")
    if fraction is not None and not 0 < fraction <= 1:
        raise ValueError(f"fraction is in (0, 1], got {fraction}")
    counts = np.bincount(labels)
    if per_class is not None:
        wanted = np.where(counts > 0, per_class, 0)
    else:
        wanted = np.where(counts > 0, np.maximum(1, np.rint(counts * (fraction or 0))), 0)
    return take_per_class(labels, wanted.astype(np.int64).tolist(), seed)


def exponential_profile(classes: int, head: int, factor: float) -> list[int]:
    """Rows of every class in a long tail: class c has head · factor^(-c / (C - 1)), rounded down, at least 1.

    Source: Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019.

    Raises:
        ValueError: a factor below 1, or no head.
    """
    if factor < 1 or head < 1:
        raise ValueError(f"the head has {head} rows and is {factor} times the tail; both must be at least 1")
    steps = np.arange(classes) / max(classes - 1, 1)
    # The nudge keeps an exact quotient (1000 / 10) from being rounded down by its last bit.
    sizes = np.floor(head * factor**-steps + 1e-9)
    return [max(1, int(size)) for size in sizes]


def long_tailed(y: Labels, profile: float | Sequence[int], seed: Seed = 0) -> IntArray:
    """A random part of every class with long-tailed class sizes.

    Args:
        y: labels [n].
        profile: the imbalance factor, head size over tail size, for an exponential profile whose head is
            class 0 and has as many rows as the smallest class of `y`; or the number of rows of every class.
        seed: an integer or a generator.

    Raises:
        ValueError: a factor below 1, a profile of another length, more rows than a class has.
    """
    labels = as_labels(y)
    counts = np.bincount(labels)
    if isinstance(profile, int | float):
        sizes = exponential_profile(len(counts), int(counts.min()), float(profile))
    else:
        sizes = [int(size) for size in profile]
    if len(sizes) != len(counts):
        raise ValueError(f"the profile has {len(sizes)} class sizes, the labels have {len(counts)} classes")
    return take_per_class(labels, sizes, seed)


def take_per_class(labels: IntArray, sizes: Sequence[int], seed: Seed) -> IntArray:
    """`sizes[c]` random rows of every class c."""
    rng = np.random.default_rng(seed)
    parts = []
    for label, size in enumerate(sizes):
        rows = np.flatnonzero(labels == label)
        if not 0 <= size <= len(rows):
            raise ValueError(f"cannot take {size} rows of class {label}, which has {len(rows)}")
        parts.append(rng.choice(rows, size, replace=False, shuffle=False))
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)
