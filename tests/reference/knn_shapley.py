"""Shapley values of a K-nearest-neighbour classifier by their definition, in exact fractions."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from math import comb, dist

Point = Sequence[float]


def utility(rows: Sequence[int], matches: Sequence[bool], k: int) -> Fraction:
    """Share of the K votes that are right, when these rows (numbered from the nearest on) are all there is."""
    return Fraction(sum(matches[row] for row in sorted(rows)[:k]), k)


def by_subsets(matches: Sequence[bool], k: int) -> list[Fraction]:
    """Value of each row: its mean contribution to the utility over all orders of entering.

    matches: whether the m-th nearest row has the query's label.
    """
    n = len(matches)
    values = []
    for row in range(n):
        others = [other for other in range(n) if other != row]
        value = Fraction(0)
        for size in range(n):
            gains = (utility([*s, row], matches, k) - utility(s, matches, k) for s in combinations(others, size))
            value += sum(gains, Fraction(0)) / (n * comb(n - 1, size))
        values.append(value)
    return values


def recursion(matches: Sequence[bool], k: int) -> list[Fraction]:
    """The same by the published recursion, from the farthest row to the nearest."""
    n = len(matches)
    values = [Fraction(0)] * n
    values[-1] = Fraction(int(matches[-1]), max(k, n))
    for m in range(n - 1, 0, -1):
        step = Fraction(int(matches[m - 1]) - int(matches[m]), k) * Fraction(min(k, m), m)
        values[m - 1] = values[m] + step
    return values


def of_rows(query: Point, label: int, rows: Sequence[Point], labels: Sequence[int], k: int) -> list[Fraction]:
    """Values of rows for one query, in the order of the rows."""
    nearest = sorted(range(len(rows)), key=lambda row: dist(query, rows[row]))
    sorted_values = recursion([labels[row] == label for row in nearest], k)
    values = [Fraction(0)] * len(rows)
    for row, value in zip(nearest, sorted_values, strict=True):
        values[row] = value
    return values
