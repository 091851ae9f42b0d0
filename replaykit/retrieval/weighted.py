"""Replay in proportion to a column."""

from __future__ import annotations

import numpy as np

from replaykit.draws import weighted
from replaykit.store import IntArray, Store


class Weighted:
    """Probability proportional to a non-negative column; rows of weight 0 are never drawn.

    Without replacement: successive sampling (Efraimidis and Spirakis 2006). Cost O(stored rows).

    Raises:
        ValueError: negative, NaN or infinite weights, or none above zero.
    """

    def __init__(self, column: str = "weight", replace: bool = False) -> None:
        self.column, self.replace = column, replace
        self.columns = (column,)

    def rows(self, store: Store, n: int, rng: np.random.Generator) -> IntArray:
        slots = store.filled
        weights = store.host(self.column)[slots].astype(np.float64)
        if weights.ndim != 1 or not np.isfinite(weights).all() or weights.min() < 0 or weights.max() == 0:
            raise ValueError(
                f"column {self.column!r} must hold one finite weight >= 0 a row, at least one of them above 0"
            )
        return slots[weighted(weights, n, rng, self.replace)]
