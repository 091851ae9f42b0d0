"""Label noise. The true labels are the caller's and stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from replaykit.benchmarks.scenarios import IntArray, Labels, Seed, as_labels

# The confusions that the field uses for asymmetric noise on these sets (Patrini et al., CVPR 2017).
CIFAR10_FLIPS: Mapping[int, int] = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
MNIST_FLIPS: Mapping[int, int] = {2: 7, 3: 8, 5: 6, 6: 5, 7: 1}


def noisy_labels(
    y: Labels,
    rate: float,
    kind: Literal["symmetric", "asymmetric"] = "symmetric",
    seed: Seed = 0,
    flips: Mapping[int, int] | None = None,
) -> IntArray:
    """A copy of the labels [n] in which the fraction `rate` of every class is wrong, exact within 1.

    Args:
        y: true labels [n].
        rate: fraction of wrong labels in a class, in [0, 1]. A changed label differs from the true one.
        kind: symmetric noise draws the wrong label uniformly among the other classes of 0..max(y); asymmetric
            noise turns class c into `flips[c]`.
        seed: an integer or a generator.
        flips: for asymmetric noise; classes it does not name stay clean. Default: c to c + 1, the last to 0.

    Raises:
        ValueError: a rate outside [0, 1], an unknown kind, fewer than two classes, flips of a class to itself
            or to no class.
    """
    labels = as_labels(y)
    classes = int(labels.max()) + 1 if len(labels) else 0
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is a fraction in [0, 1], got {rate}; 40 % is 0.4")
    if kind not in ("symmetric", "asymmetric"):
        raise ValueError(f"kind is 'symmetric' or 'asymmetric', got {kind!r}")
    if kind == "symmetric" and flips is not None:
        raise ValueError("flips belong to asymmetric noise; pass kind='asymmetric'")
    if classes < 2 and rate > 0:
        raise ValueError(f"wrong labels need at least two classes, the labels have {classes}")
    if kind == "asymmetric":
        flips = _checked_flips(flips, classes)
    rng = np.random.default_rng(seed)
    noisy: IntArray = labels.copy()
    for label in range(classes):
        if flips is not None and label not in flips:
            continue
        rows = np.flatnonzero(labels == label)
        wrong = rng.permutation(rows)[: round(rate * len(rows))]
        if flips is not None:
            noisy[wrong] = flips[label]
        else:
            # One of the C - 1 steps around the circle of classes: never back to the true one.
            noisy[wrong] = (label + rng.integers(1, classes, len(wrong))) % classes
    return noisy


def _checked_flips(flips: Mapping[int, int] | None, classes: int) -> Mapping[int, int]:
    if flips is None:
        return {label: (label + 1) % classes for label in range(classes)}
    for label, other in flips.items():
        if label == other or not (0 <= label < classes and 0 <= other < classes):
            raise ValueError(f"flip {label} -> {other}: both must be classes in 0..{classes - 1}, and differ")
    return flips
