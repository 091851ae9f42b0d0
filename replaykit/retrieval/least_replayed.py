"""Replay whose use wears off: a row counts less each time it was replayed.

Source: the replay counts and the utility that decays with repetition of the survey literature: weight = utility ·
decay^count.
Keeps: the notes ``replayed`` of each slot, which the buffer counts (8 bytes a slot).
Cost: O(stored rows).
Law: successive sampling (Efraimidis and Spirakis 2006) with the weights u_i · decay^(times replayed). With decay 0
the rows that were replayed least come first, and u decides among those that were replayed equally often. Rows of
utility 0 come when the others are used up, each with the same probability.
Departures: a row that is written starts with count 0, so a new row is among the first to be replayed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from replaykit.store import REPLAYED, IntArray, Store


class LeastReplayed:
    """Rows that were replayed seldom.

    Args:
        decay: factor of the weight for each time that a row was replayed: 1 leaves the utility as it is, 0 takes
            the least replayed rows.
        column: a non-negative column of utilities u (``"loss"``, ``"weight"``); default: all the same.

    Raises:
        ValueError: utilities that are negative, NaN or infinite.
    """

    counts = True

    def __init__(self, decay: float = 0.5, *, column: str | None = None) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"decay is a factor for each replay, in [0, 1], got {decay}")
        self.decay, self.column = decay, column
        self.columns = () if column is None else (column,)

    def rows(self, store: Store, n: int, rng: np.random.Generator) -> IntArray:
        slots = store.filled
        if n >= len(slots):
            return np.array(slots)
        count: NDArray[np.float64] = store.note(REPLAYED, 0.0)[slots]
        # Gumbel noise on log weights: successive sampling, and no weight is too small for a logarithm.
        noise = rng.gumbel(size=len(slots))
        keys = noise + self._log_utility(store)
        if self.decay == 0:
            return slots[np.lexsort((-noise, -keys, count))[:n]]
        keys += count * np.log(self.decay)
        if np.isneginf(keys).any():
            return slots[np.lexsort((-noise, -keys))[:n]]
        top = np.argpartition(-keys, n)[:n]
        return slots[top[np.argsort(-keys[top])]]

    def _log_utility(self, store: Store) -> NDArray[np.float64]:
        if self.column is None:
            return np.zeros(len(store))
        utility = store.host(self.column)[store.filled].astype(np.float64)
        if utility.ndim != 1 or not np.isfinite(utility).all() or utility.min() < 0:
            raise ValueError(f"column {self.column!r} must hold one finite utility >= 0 a row")
        with np.errstate(divide="ignore"):
            logs: NDArray[np.float64] = np.log(utility)
        return logs
