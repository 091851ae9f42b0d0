"""The samplers by keys: every row gets a random key, and the rows with the largest keys stay.

A new row replaces the stored row with the smallest key, if its own is larger. Only the smallest keys matter for
that, so a heap of the smallest sixteenth of them is kept on the host: O(log capacity) for a row that enters, O(1)
for one that does not, and one pass over the key column each time the heap runs empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heapreplace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from replaykit.plan import NOTHING, Plan, Policy, check_growth
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe

KEY = "key"
_FEW = 64  # keys


class LargestKeys(Policy):
    """Keeps the rows with the largest keys. A subclass says how keys are drawn."""

    writes = (KEY,)

    def __init__(self) -> None:
        self.reset()

    def draw(self, arrivals: Batch, rng: np.random.Generator) -> NDArray[np.float64]:
        """One key for each row [n], independent of the memory; input is checked before anything is drawn."""
        raise NotImplementedError

    def reset(self) -> None:
        # What is below can be had again from the key column: the heap holds (key, slot) of all stored rows
        # with keys up to `_bound`, and is valid for the store and count of `_at` only.
        self._low: list[tuple[float, int]] = []
        self._bound = np.inf
        self._at: tuple[int, int] | None = None

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        if KEY in arrivals:
            raise ValueError(f"column {KEY!r} is written by this policy; rename the one of the batch")
        drawn = self.draw(arrivals, rng)
        keys, at = drawn.tolist(), (id(store), store.seen)
        writers: dict[int, int] = {}
        if len(store) < store.capacity:
            free = store.free(len(keys)).tolist()
            writers = dict(zip(free, range(len(free)), strict=True))
        if len(store) + len(writers) == store.capacity:
            if writers or at != self._at:
                self._collect(store, drawn, writers)
            for row in range(len(writers), len(keys)):
                if keys[row] > self._low[0][0]:
                    writers[self._replace(keys[row])] = row
                    if not self._low:
                        self._collect(store, drawn, writers)
            self._at = (id(store), store.seen + len(keys))
        plan = Plan.of(writers)
        if plan is not NOTHING:
            plan.columns = {KEY: torch.from_numpy(drawn[plan.source])}
        return plan

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        check_growth(store, capacity, grow)
        self.reset()
        if len(store) <= capacity:
            return np.sort(store.filled)
        return np.sort(store.filled[largest(stored_keys(store), capacity)])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.reset()

    # -- the smallest keys ------------------------------------------------------------------------

    def _replace(self, key: float) -> int:
        """The slot of the smallest key, now taken by a larger one."""
        if key <= self._bound:
            return heapreplace(self._low, (key, self._low[0][1]))[1]
        return heappop(self._low)[1]

    def _collect(self, store: Store, drawn: NDArray[np.float64], writers: dict[int, int]) -> None:
        """Take up the smallest keys of a memory that will be full once `writers` have written."""
        keys = np.empty(store.capacity)
        keys[store.filled] = stored_keys(store)
        keys[list(writers)] = drawn[list(writers.values())]
        few = max(_FEW, store.capacity // 16)
        slots, self._bound = np.arange(store.capacity), np.inf
        if few < store.capacity:
            slots = np.argpartition(keys, few)[:few]
            self._bound = float(keys[slots].max())
        self._low = list(zip(keys[slots].tolist(), slots.tolist(), strict=True))
        heapify(self._low)


def stored_keys(store: Store) -> NDArray[np.float64]:
    """Keys of the filled slots, in the order of `store.filled`."""
    if len(store) == 0:
        return np.empty(0)
    keys: NDArray[np.float64] = store.host(KEY)[store.filled]
    return keys


def largest(keys: NDArray[np.float64], k: int) -> IntArray:
    """Positions of the k largest keys, in ascending order of position."""
    if k >= len(keys):
        return np.arange(len(keys))
    return np.sort(np.argpartition(keys, len(keys) - k)[len(keys) - k :])
