"""Memories that store everything until a batch finds no room, and then select among all they hold and the batch.

The rows that came since the last selection lie in the memory itself, marked by the column ``recent``, so that they
count in its bytes and are replayed like the others. A selection leaves `recent` slots free at least, for the
next ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from replaykit.plan import Plan, Policy, row_count
from replaykit.policies.joined import joined
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe

RECENT = "recent"


class SelectWhenFull(Policy):
    """A subclass says which rows a selection keeps."""

    writes = (RECENT,)

    def __init__(self, recent: int) -> None:
        if recent < 0:
            raise ValueError(f"recent is a number of slots >= 0, got {recent}")
        self.recent = recent
        self.reset()

    def choose(
        self, candidates: Batch, selected: int, room: int, rng: np.random.Generator, probe: Probe
    ) -> IntArray:
        """At most `room` candidates [n, ...] to keep, by number.

        Args:
            candidates: the rows that went through a selection before, then those that came since, in the order
                in which they are stored, then the arrivals.
            selected: how many there are of the first kind.
        """
        raise NotImplementedError

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        room = store.capacity - self.recent
        if room < 1:
            raise ValueError(
                f"recent={self.recent} slots for new rows leave none for selected ones in a memory of "
                f"{store.capacity}; make it larger, or use a smaller recent"
            )
        if RECENT in arrivals:
            raise ValueError(f"column {RECENT!r} is written by this policy; rename the one of the batch")
        n = row_count(arrivals)
        free = store.free(n)
        if len(free) == n:
            return Plan(np.arange(n), free, {RECENT: torch.ones(n, dtype=torch.bool)}, distinct=True)
        recent = _recent(store)
        slots = np.concatenate((store.filled[~recent], store.filled[recent]))
        selected = int((~recent).sum())
        assert probe is not None
        kept = self.choose(joined(store, slots, arrivals), selected, room, rng, probe)
        return _selection(store, slots, selected, np.sort(kept))


def selected(store: Store) -> IntArray:
    """The slots of rows that a selection has kept; all filled slots while there was none."""
    settled = store.filled[~_recent(store)]
    return settled if len(settled) else store.filled


def _selection(store: Store, slots: IntArray, selected: int, kept: IntArray) -> Plan:
    """The plan that keeps some of the rows of `slots` and, numbered after them, of the arrivals."""
    stays = np.zeros(len(slots), bool)
    stays[kept[kept < len(slots)]] = True
    source, release = kept[kept >= len(slots)] - len(slots), np.sort(slots[~stays])
    free = np.union1d(release, store.free(store.capacity))[: len(source)]
    known = slots[selected:][stays[selected:]]
    return Plan(
        source,
        free,
        {RECENT: torch.zeros(len(source), dtype=torch.bool)},
        release=release,
        revise=(known, {RECENT: torch.zeros(len(known), dtype=torch.bool)}),
        distinct=True,
    )


def _recent(store: Store) -> NDArray[np.bool_]:
    """Which of the filled slots hold rows that no selection has seen, in the order of `store.filled`."""
    if len(store) == 0:
        return np.empty(0, bool)
    recent: NDArray[np.bool_] = store.host(RECENT)[store.filled]
    return recent
