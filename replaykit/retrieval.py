"""Which rows of a memory to replay. A retrieval answers with slots; the store reads them.

Every retrieval returns filled slots only and, when fewer rows are stored than asked for, all of them
once (unless it draws with replacement).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from replaykit.draws import distinct, weighted
from replaykit.store import IntArray, Store


class Retrieval(Protocol):
    def rows(self, store: Store, n: int, rng: np.random.Generator) -> IntArray:
        """Slots [<= n] of a store that holds at least one row."""
        ...


class Uniform:
    """Every stored row with the same probability: O(n), whatever the capacity.

    Args:
        replace: draw with replacement (as MER does). Without it rows of one draw are distinct.
    """

    def __init__(self, replace: bool = False) -> None:
        self.replace = replace

    def rows(self, store: Store, n: int, rng: np.random.Generator) -> IntArray:
        if self.replace:
            picks = (rng.random(n) * len(store)).astype(np.int64)
        elif n >= len(store):
            picks = np.arange(len(store))
        else:
            picks = distinct(len(store), n, rng)
        slots: IntArray = store.filled.take(picks)
        return slots


class ClassBalanced:
    """Uniform over the classes present, then uniform within the class (CBRS's weighted replay).

    P(one draw gives row i) = 1 / (classes · rows of i's class). Without replacement the rows of one draw
    follow successive sampling with these weights (keys of Efraimidis and Spirakis). Cost O(stored rows).

    Args:
        column: the integer column to balance: labels, task labels, any group.
        replace: draw with replacement.

    Source: Chrysakis and Moens, Online Continual Learning from Imbalanced Data, ICML 2020, section 3.2.
    """

    def __init__(self, column: str = "y", replace: bool = False) -> None:
        self.column, self.replace = column, replace

    def rows(self, store: Store, n: int, rng: np.random.Generator) -> IntArray:
        slots = store.filled
        _, group, count = np.unique(store.host(self.column)[slots], return_inverse=True, return_counts=True)
        return slots[weighted(1.0 / count[group], n, rng, self.replace)]


class Weighted:
    """Probability proportional to a non-negative column; rows of weight 0 are never drawn.

    Without replacement: successive sampling (Efraimidis and Spirakis 2006). Cost O(stored rows).

    Raises:
        ValueError: negative, NaN or infinite weights, or none above zero.
    """

    def __init__(self, column: str = "weight", replace: bool = False) -> None:
        self.column, self.replace = column, replace

    def rows(self, store: Store, n: int, rng: np.random.Generator) -> IntArray:
        slots = store.filled
        weights = store.host(self.column)[slots].astype(np.float64)
        if weights.ndim != 1 or not np.isfinite(weights).all() or weights.min() < 0 or weights.max() == 0:
            raise ValueError(
                f"column {self.column!r} must hold one finite weight >= 0 a row, at least one of them above 0"
            )
        return slots[weighted(weights, n, rng, self.replace)]
