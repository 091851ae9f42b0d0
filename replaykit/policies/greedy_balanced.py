"""GDumb's sampler: each class up to an equal share of the slots, first come, first kept.

Source: Prabhu, Torr, Dokania, GDumb: A Simple Approach that Questions Our Progress in Continual Learning,
ECCV 2020, "greedy balancing sampler". (The dumb learner, trained from scratch on the memory, is a strategy.)
Keeps: the slots of each class. Columns written: none. Probe: none.
Cost per add of B rows: O(B) time, O(classes) for each row that evicts; state 8 bytes a stored row.
Law: a row is stored if its class is absent or holds fewer rows than floor(capacity / classes stored).
Randomness enters only with an eviction, so one class alone is its first `capacity` rows; the memory depends
on the order of the stream.
Departures:
- The classes stored are counted before the new row's class, as in the common code; a class whose last row is
  evicted (more classes than slots) is no longer counted, and enters anew if it comes back.
- `resize`: shrinking evicts by the sampler's own rule; growing (``grow="naive"``) raises the share, which the
  following rows fill.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from replaykit.plan import Plan, Policy, labels
from replaykit.policies.slots_by_class import SlotsByClass, checked_keys
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe


class GreedyBalanced(Policy):
    """Greedy class-balanced sampling, the sampler of GDumb.

    Eviction takes a uniform row of the class that holds most; of several, the one that entered first.

    Args:
        column: integer column with the class of a row.

    Attributes:
        slots: which slots hold which class; `slots.counts()` are the class counts.
    """

    writes = ()

    def __init__(self, column: str = "y") -> None:
        self.column = column
        self.columns = (column,)
        self.reset()

    def reset(self) -> None:
        self.slots: SlotsByClass[int] = SlotsByClass()

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        y = labels(arrivals, self.column).tolist()
        self.slots.check(store)
        slots, free, writers = self.slots, iter(store.free(len(y)).tolist()), {}
        for row, label in enumerate(y):
            count = slots.count(label)
            if count and count >= store.capacity // slots.classes:
                continue
            slot = self._evict(rng) if len(slots) == store.capacity else next(free)
            slots.add(label, slot)
            writers[slot] = row
        return Plan.of(writers)

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        self.slots.check_resize(store, capacity, grow)
        while len(self.slots) > capacity:
            self._evict(rng)
        return self.slots.compact()

    def state_dict(self) -> dict[str, Any]:
        return {"slots": self.slots.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        checked_keys(state, {"slots"}, type(self).__name__)
        self.slots = SlotsByClass.from_state(state["slots"], int)

    def _evict(self, rng: np.random.Generator) -> int:
        counts, most = self.slots.counts(), self.slots.most
        first = next(label for label in counts if counts[label] == most)
        return self.slots.remove(first, int(rng.random() * most))
