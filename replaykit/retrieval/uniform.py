"""Uniform replay."""

from __future__ import annotations

import numpy as np

from replaykit.draws import distinct
from replaykit.store import IntArray, Store


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
