"""BRS: reservoir acceptance, eviction from the class that holds most.

Source: Buzzega, Boschini, Porrello, Calderara, Rethinking Experience Replay: a Bag of Tricks for Continual
Learning, ICPR 2020, "balanced reservoir sampling". The forced path and the bug are those of the sampling
that the mammoth framework calls balancoir.
Keeps: the slots of each class, and the count `store.seen`. Columns written: none. Probe: none.
Cost per add of B rows: O(B) time (`forced`: plus one sort of the class counts, and one after each write);
state 8 bytes a stored row.
Law: a row is accepted with probability capacity / seen whatever its class, so rare classes are not protected
(for that, `ClassBalancedReservoir`); a class that is not among the largest never loses a row.
Departures:
- Ties: if the class of the new row is among the largest, it replaces a row of its own class; then the largest
  count never grows once the memory is filled. Otherwise the tied classes are equally likely.
- One draw a row decides acceptance and, rescaled, the victim.
- ``compat="mammoth"`` books every write of the fill as an eviction of class 0, as mammoth has done since January
  2025: class 0 looks `capacity` rows smaller than it is, so it is let in whenever another class is stored, and
  is evicted only when no other is. Ties go to the lowest label. Not reproduced: the modulo bias of the victim
  within its class, and that a label beyond the end of its table of counts is always let in.
- `resize`: shrinking drops uniform rows of the largest classes; growing (``grow="naive"``) appends until the
  new slots are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from replaykit.plan import Plan, Policy, labels
from replaykit.policies.slots_by_class import SlotsByClass, checked_keys
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe


class BalancedReservoir(Policy):
    """Balanced reservoir sampling (BRS).

    Args:
        column: integer column with the class of a row.
        forced: also store a row whose class holds fewer rows than the median of the classes present
            (balancoir); a class that is not stored always does.
        compat: ``"mammoth"`` for the book-keeping error of the released balancoir, which implies `forced`.

    Attributes:
        slots: which slots hold which class; `slots.counts()` are the class counts.
    """

    writes = ()

    def __init__(
        self, column: str = "y", *, forced: bool = False, compat: Literal["mammoth"] | None = None
    ) -> None:
        if compat not in (None, "mammoth"):
            raise ValueError(f"compat is None or 'mammoth', got {compat!r}")
        self.column, self.forced, self.compat = column, forced or compat == "mammoth", compat
        self.columns = (column,)
        self.reset()

    def reset(self) -> None:
        self.slots: SlotsByClass[int] = SlotsByClass()

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        y = labels(arrivals, self.column).tolist()
        self.slots.check(store)
        free = store.free(len(y)).tolist()
        for label, slot in zip(y, free, strict=False):
            self.slots.add(label, slot)
        writers = dict(zip(free, range(len(free)), strict=True))
        capacity = store.capacity
        middle: float | None = None  # median count, until a write changes it
        for row, u in enumerate(rng.random(len(y) - len(free)).tolist(), len(free)):
            offered = store.seen + row + 1
            outcome = u * offered
            if outcome < capacity:
                fraction = outcome / capacity
            elif self.forced:
                middle = self._median() if middle is None else middle
                if self._booked_count(y[row]) >= middle:
                    continue
                fraction = (outcome - capacity) / (offered - capacity)
            else:
                continue
            writers[self._replace(y[row], fraction)] = row
            middle = None
        return Plan.of(writers)

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        self.slots.check_resize(store, capacity, grow)
        while len(self.slots) > capacity:
            self.slots.remove(*self.slots.draw_largest(rng.random()))
        return self.slots.compact()

    def state_dict(self) -> dict[str, Any]:
        return {"slots": self.slots.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        checked_keys(state, {"slots"}, type(self).__name__)
        self.slots = SlotsByClass.from_state(state["slots"], int)

    # -- one row ----------------------------------------------------------------------------------

    def _replace(self, label: int, u: float) -> int:
        """The slot that an accepted row takes from the largest class; `u` is uniform on [0, 1)."""
        slots = self.slots
        if self.compat == "mammoth":
            victim = self._mammoth_victim()
            place = int(u * slots.count(victim))
        elif slots.count(label) == slots.most:
            victim, place = label, int(u * slots.most)
        else:
            victim, place = slots.draw_largest(u)
        if victim == label:
            return slots.of(label)[place]
        slot = slots.remove(victim, place)
        slots.add(label, slot)
        return slot

    def _median(self) -> float:
        counts = self._booked()
        return median(counts.values()) if counts else 0

    def _booked(self) -> dict[int, int]:
        """The counts that the forced path compares: in mammoth's, class 0 is never above 0."""
        counts = self.slots.counts()
        if self.compat == "mammoth":
            counts.pop(0, None)
        return counts

    def _booked_count(self, label: int) -> int:
        return 0 if self.compat == "mammoth" and label == 0 else self.slots.count(label)

    def _mammoth_victim(self) -> int:
        counts = self._booked()
        return min(counts, key=lambda label: (-counts[label], label), default=0)
