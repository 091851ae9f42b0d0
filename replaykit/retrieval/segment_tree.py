"""A complete binary tree over the slots: the sum, or the largest, of any block of values.

Every inner node is computed from its two children, never by adding differences, so a tree that was updated is
equal to the last bit to one that is built anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from replaykit.store import IntArray

FloatArray: TypeAlias = NDArray[np.float64]


class SegmentTree:
    """A tree over n values; O(k log n) to change k of them.

    Args:
        values: one a slot [n], n >= 1; places that are not there count as 0.
        combine: a node of its two children: ``np.add`` or ``np.maximum``.
    """

    def __init__(
        self, values: FloatArray, combine: Callable[[FloatArray, FloatArray], FloatArray] = np.add
    ) -> None:
        self.size = 1 << (len(values) - 1).bit_length()
        self.combine = combine
        self.nodes = np.zeros(2 * self.size)
        self.nodes[self.size : self.size + len(values)] = values
        width = self.size
        while width > 1:
            children = self.nodes[width : 2 * width]
            self.nodes[width // 2 : width] = combine(children[0::2], children[1::2])
            width //= 2

    @property
    def root(self) -> float:
        """All values combined."""
        return float(self.nodes[1])

    def __getitem__(self, places: IntArray) -> FloatArray:
        values: FloatArray = self.nodes[self.size + places]
        return values

    def update(self, places: IntArray, values: FloatArray) -> None:
        """Set the values at some places [k], all different."""
        if not len(places):
            return
        node = places + self.size
        self.nodes[node] = values
        for _ in range(self.size.bit_length() - 1):
            node = node >> 1
            self.nodes[node] = self.combine(self.nodes[2 * node], self.nodes[2 * node + 1])

    def find(self, u: FloatArray) -> IntArray:
        """For a tree of sums: the places [k] at fractions `u` [k] of [0, 1) of a total above 0: O(k log n)."""
        rest, node = u * self.nodes[1], np.ones(len(u), np.int64)
        for _ in range(self.size.bit_length() - 1):
            node *= 2
            left = self.nodes[node]
            # Rounding may leave a rest as large as the sum of both: never go where there is nothing.
            right = (rest >= left) & (self.nodes[node + 1] > 0)
            rest = np.where(right, rest - left, rest)
            node += right
        return node - self.size
