"""Reservoir sampling: a uniform sample of everything offered, in one pass.

Source: Vitter, Random Sampling with a Reservoir, ACM TOMS 1985 (Algorithm R).
Keeps: the count `store.seen`; after growing by ``"bernoulli"``, a rate. Columns written: none. Probe: none.
Cost per add of B rows: O(B) time, no state.
Law: after n rows, all subsets of `capacity` rows are equally likely.
Departures:
- The batch form draws for all B rows at once and lets the last writer of a slot win, which leaves the same
  memory as B single steps with the same draws.
- Shrinking keeps a uniform subset: the law holds for the new capacity.
- Growing cannot bring back dropped rows, so no way of growing is exact unless nothing was dropped yet, and it
  is refused unless named. ``grow="naive"`` stores every row until the new slots are taken: the rows that come
  then are stored with probability 1, those before with old capacity / seen. ``grow="bernoulli"`` (Gemulla,
  Lehner and Haas, Maintaining bounded-size sample synopses of evolving datasets, VLDB Journal 2008) drops to
  K ~ Binomial(seen, q) rows, q = old capacity / seen, or drops nothing if K is larger, and stores each new row
  with probability q until the new slots are taken: rows before and after are equally likely up to that
  truncation, which costs the earlier ones a factor of about 1 - 0.4 · sqrt((1 - q) / old capacity).
- Released codes draw from a wrong number of outcomes; ``compat=`` gives their laws (the classes below).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from replaykit.draws import distinct
from replaykit.plan import Plan, Policy, check_growth, row_count
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe

Compat: TypeAlias = Literal["mer", "agem", "frozen_count"]

_SMALL = 32  # rows
_SHIFT = {None: 0, "mer": 1, "agem": -1, "frozen_count": 0}


class Reservoir(Policy):
    """Every row offered so far is stored with probability capacity / seen; all subsets are equally likely.

    Args:
        compat: the acceptance of a released code instead of capacity / i for row i (from 1):
            ``"mer"`` capacity / (i + 1), the code of MER (Riemer et al. 2019);
            ``"agem"`` capacity / (i - 1), the code of A-GEM and of tiny episodic memories (Chaudhry et al.
            2019), and of the baseline of PRS: the first row after the fill is always stored;
            ``"frozen_count"`` capacity / rows before the batch, for all its rows that come after the fill
            (MIR, ASER): then the memory depends on how the stream is cut.
    """

    writes = ()

    def __init__(self, *, compat: Compat | None = None) -> None:
        if compat not in _SHIFT:
            raise ValueError(f"compat is None, 'mer', 'agem' or 'frozen_count', got {compat!r}")
        self.compat = compat
        self.reset()

    def reset(self) -> None:
        self.rate: float | None = None  # acceptance of a memory that grew, until it is full

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        n, seen, capacity = row_count(arrivals), store.seen, store.capacity
        if len(store) == capacity:
            return Plan.of(accepted(n, seen, capacity, rng, compat=self.compat))
        free = store.free(n)
        if self.rate is not None:
            return Plan.of(self._thinned(n, free.tolist(), store, rng))
        if len(free) == n:
            return Plan(np.arange(n), free, distinct=True)
        writers = dict(zip(free.tolist(), range(len(free)), strict=True))
        return Plan.of(writers | accepted(n, seen, capacity, rng, len(free), self.compat))

    def _thinned(self, n: int, free: list[int], store: Store, rng: np.random.Generator) -> dict[int, int]:
        """Slots taken by a batch that finds a grown memory: at the rate until it is full, then as ever."""
        assert self.rate is not None
        room = store.capacity - len(store)
        writers: dict[int, int] = {}
        for row in range(n):
            if rng.random() < self.rate:
                writers[free[len(writers)]] = row
            if len(writers) == room:
                self.rate = None
                return writers | accepted(n, store.seen, store.capacity, rng, row + 1, self.compat)
        return writers

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        check_growth(store, capacity, grow, ("naive", "bernoulli"))
        keep = stored = len(store)
        if capacity > store.capacity and store.seen > stored:
            if grow == "naive":
                self.rate = None
            elif self.rate is None and stored:
                self.rate = stored / store.seen
                keep = min(stored, int(rng.binomial(store.seen, self.rate)))
        if keep >= capacity:
            keep, self.rate = capacity, None
        return np.sort(store.filled if keep == stored else store.filled[distinct(stored, keep, rng)])

    def state_dict(self) -> dict[str, Any]:
        return {} if self.rate is None else {"rate": self.rate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        rate = state.get("rate")
        if state.keys() - {"rate"} or not (rate is None or (isinstance(rate, float) and 0 < rate < 1)):
            raise ValueError(f"not the state of a Reservoir: {dict(state)!r}")
        self.rate = rate


def accepted(
    n: int, seen: int, capacity: int, rng: np.random.Generator, first: int = 0, compat: Compat | None = None
) -> dict[int, int]:
    """Slots that Algorithm R overwrites, and for each the last of the rows first..n-1 that goes there.

    Row b is arrival number seen + b + 1 and draws one of that many outcomes; the first `capacity` are slots.
    """
    draws = rng.random(n - first)
    outcomes, step = seen + first + 1 + _SHIFT[compat], 1
    if compat == "frozen_count":
        outcomes, step = seen + first, 0
    if len(draws) > _SMALL:
        draws *= outcomes + step * np.arange(len(draws), dtype=np.float64)
        rows = (draws < capacity).nonzero()[0]
        return dict(zip(draws[rows].astype(np.int64).tolist(), (rows + first).tolist(), strict=True))
    # The same arithmetic on Python's doubles: faster for the small batches of online learning.
    writers = {}
    for row, draw in enumerate(draws.tolist(), first):
        outcome = draw * outcomes
        if outcome < capacity:
            writers[int(outcome)] = row
        outcomes += step
    return writers
