"""Reservoir sampling: a uniform sample of everything offered, in one pass.

Source: Vitter, Random Sampling with a Reservoir, ACM TOMS 1985 (Algorithm R).
Keeps: nothing but the count `store.seen`. Columns written: none. Probe: none.
Cost per add of B rows: O(B) time, no state.
Departures: the batch form draws for all B rows at once and lets the last writer of a slot win, which leaves
the same memory as B single steps with the same draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from replaykit.plan import Plan, Policy, row_count
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe


_SMALL = 32  # rows


class Reservoir(Policy):
    """Every row offered so far is stored with probability capacity / seen; all subsets are equally likely."""

    def plan(
        self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None
    ) -> Plan:
        n, seen, capacity = row_count(arrivals), store.seen, store.capacity
        if len(store) == capacity:
            return Plan.of(accepted(n, seen, capacity, rng))
        free = store.free(n)
        if len(free) == n:
            return Plan(np.arange(n), free)
        writers = dict(zip(free.tolist(), range(len(free)), strict=True))
        return Plan.of(writers | accepted(n, seen, capacity, rng, first=len(free)))

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        raise NotImplementedError


def accepted(n: int, seen: int, capacity: int, rng: np.random.Generator, first: int = 0) -> dict[int, int]:
    """Slots that Algorithm R overwrites, and for each the last of the rows first..n-1 that goes there.

    Row b is arrival number seen + b + 1 and draws one of that many outcomes; the first `capacity` are slots.
    """
    draws = rng.random(n - first)
    if len(draws) > _SMALL:
        draws *= np.arange(seen + first + 1, seen + n + 1, dtype=np.float64)
        rows = (draws < capacity).nonzero()[0]
        return dict(zip(draws[rows].astype(np.int64).tolist(), (rows + first).tolist(), strict=True))
    # The same arithmetic on Python's doubles: faster for the small batches of online learning.
    writers = {}
    for number, draw in enumerate(draws.tolist(), seen + first + 1):
        outcome = draw * number
        if outcome < capacity:
            writers[int(outcome)] = number - seen - 1
    return writers
