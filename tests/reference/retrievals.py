"""The loops of the retrievals as their sources say it, row by row."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def cosine_distances(features: Sequence[Sequence[float]], labels: Sequence[int]) -> list[float]:
    """Of each row to the mean feature of its class."""
    distances = []
    for row, label in zip(features, labels, strict=True):
        members = [other for other, y in zip(features, labels, strict=True) if y == label]
        mean = [sum(entries) / len(members) for entries in zip(*members, strict=True)]
        dot = sum(a * b for a, b in zip(row, mean, strict=True))
        lengths = np.sqrt(sum(a * a for a in row)) * np.sqrt(sum(b * b for b in mean))
        distances.append(1 - dot / lengths)
    return distances


def grasp(
    distances: dict[int, float],
    labels: dict[int, int],
    rows: int,
    orders: list[list[int]],
    draws: list[list[float]],
) -> list[int]:
    """Rows chosen one by one; `distances` changes. In each round the classes have their turn in a given order.

    Args:
        orders: classes in the order of their turns, for each round.
        draws: a number of [0, 1) for each turn.
    """
    taken: list[int] = []
    for order, us in zip(orders, draws, strict=True):
        for label, u in zip(order, us, strict=True):
            if len(taken) == rows:
                return taken
            members = [row for row in labels if labels[row] == label]
            left = [row for row in members if row not in taken]
            chances = [1 / (distances[row] + 1e-7) for row in left]
            place, below = 0, chances[0]
            while u * sum(chances) >= below:
                place += 1
                below += chances[place]
            taken.append(left[place])
            distances[left[place]] += max(distances[row] for row in members)
    return taken


def largest_remainders(shares: Sequence[float], n: int) -> list[int]:
    """Whole parts first, then one more for the largest remainders, the first of equal ones first."""
    from fractions import Fraction

    exact = [Fraction(share) * n / sum(map(Fraction, shares)) for share in shares]
    parts = [int(part) for part in exact]
    while sum(parts) < n:
        behind = [part - given for part, given in zip(exact, parts, strict=True)]
        parts[behind.index(max(behind))] += 1
    return parts


def shared_out(ratios: Sequence[float], stored: Sequence[int], n: int) -> list[int]:
    """Parts of n rows for each source in fixed ratios; a source that has too few gives all, until it fits."""
    parts = [0] * len(ratios)
    fixed: set[int] = set()
    while True:
        left = n - sum(parts[i] for i in fixed)
        free = [i for i in range(len(ratios)) if i not in fixed and ratios[i] > 0]
        if not free or not left:
            return parts
        for i, part in zip(free, largest_remainders([ratios[i] for i in free], left), strict=True):
            parts[i] = part
        short = [i for i in free if parts[i] > stored[i]]
        if not short:
            return parts
        for i in free:
            if parts[i] >= stored[i]:
                fixed.add(i)
                parts[i] = stored[i]
            else:
                parts[i] = 0


def tallied(values: NDArray[np.int64]) -> dict[int, int]:
    return dict(zip(*(part.tolist() for part in np.unique(values, return_counts=True)), strict=True))
