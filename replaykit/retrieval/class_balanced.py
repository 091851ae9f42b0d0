"""Class-balanced replay."""

from __future__ import annotations

import numpy as np

from replaykit.draws import weighted
from replaykit.retrieval.base import groups_of
from replaykit.store import IntArray, Store


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
        self.columns = (column,)

    def rows(self, store: Store, n: int, rng: np.random.Generator) -> IntArray:
        slots = store.filled
        _, group, count = np.unique(groups_of(store, self.column), return_inverse=True, return_counts=True)
        return slots[weighted(1.0 / count[group], n, rng, self.replace)]
