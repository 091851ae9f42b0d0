"""The k vectors that point in the most different directions: those with the smallest sum of pairwise cosines.

For unit vectors u_i the sum over all pairs of a set is the squared length of its sum s = Σ u_i, so that what a
change of the set costs can be read from the products <u_i, s>, the row sums of the table of cosines.
"""

from __future__ import annotations

import math
from itertools import chain, combinations

import numpy as np

from replaykit.gradients.cosines import Numbers
from replaykit.store import IntArray

_FEW, _SETS = 22, 200_000  # vectors, and sets of them, that are tried one by one
_GAIN = 1e-9


def least_similar(table: Numbers, k: int) -> IntArray:
    """`k` of n vectors with the smallest sum of pairwise cosines, in ascending order.

    The best of all sets for n <= 22 if there are at most 200,000; else the set that is left after dropping, one
    by one, the vector that is most similar to the others, improved by exchanges until none lowers the sum.
    Ties: the lowest place. Cost O(n²), and O(k (n - k)) for each exchange.

    Args:
        table: cosines [n, n].
    """
    n = len(table)
    if k >= n:
        return np.arange(n)
    if n <= _FEW and math.comb(n, k) <= _SETS:
        return best_of_all(table, k)
    return exchanged(table, dropped(table, k))


def total(table: Numbers, chosen: IntArray) -> float:
    """Sum of all pairwise cosines of some vectors, each with itself included."""
    return float(table[np.ix_(chosen, chosen)].sum())


def best_of_all(table: Numbers, k: int) -> IntArray:
    """The best set of all; of equal ones the first in the order of their places."""
    n = len(table)
    count = math.comb(n, k)
    sets = np.fromiter(chain.from_iterable(combinations(range(n), k)), np.int64, count * k).reshape(count, k)
    inside = np.zeros((count, n))
    np.put_along_axis(inside, sets, 1.0, axis=1)
    best: IntArray = sets[int(((inside @ table) * inside).sum(1).argmin())]
    return best


def dropped(table: Numbers, k: int) -> IntArray:
    """What is left after dropping the vector with the largest product with the sum of all, until k are left."""
    left = np.ones(len(table), bool)
    products = table.sum(1)
    for _ in range(len(table) - k):
        out = int(np.where(left, products, -np.inf).argmax())
        left[out] = False
        products -= table[:, out]
    return np.flatnonzero(left)


def exchanged(table: Numbers, chosen: IntArray) -> IntArray:
    """The set after the best exchange of one of its vectors with another, again and again while the sum falls."""
    inside = np.zeros(len(table), bool)
    inside[chosen] = True
    products = table[:, chosen].sum(1)
    own = table.diagonal()
    while not inside.all():
        out, into = np.flatnonzero(inside), np.flatnonzero(~inside)
        change = (own - 2 * products)[out][:, None] + (own + 2 * products)[into] - 2 * table[np.ix_(out, into)]
        best = int(change.argmin())
        if change.flat[best] >= -_GAIN:
            break
        i, j = out[best // len(into)], into[best % len(into)]
        inside[[i, j]] = False, True
        products += table[:, j] - table[:, i]
    return np.flatnonzero(inside)
