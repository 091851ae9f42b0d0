"""CBRS: class counts as equal as the stream allows, and within each class a uniform sample of it.

Source: Chrysakis and Moens, Online Continual Learning from Imbalanced Data, ICML 2020, Algorithm 1.
Keeps: the slots of each class, the rows offered of each class, and the set of full classes.
Columns written: none. Probe: none. Their weighted replay is `retrieval.ClassBalanced`.
Cost per add of B rows: O(B) time; state 8 bytes a stored row and O(classes).
Law: after the memory is filled, the class counts are the max-min fair allocation of the slots over the rows
offered of each class (up to one row among classes that tie), in whatever order the classes come; the rows
stored of a class are a uniform subset of its offered rows. One class alone: Algorithm R, draw for draw.
Departures:
- A class can become full only once the memory is filled (`full_from="filled"`). The literal reading, from the
  first item on, locks the first classes at the few rows they have (`full_from="first_item"`).
- The count of a class includes the row being offered, which the uniform law needs.
- A row of a full class draws its slot and its acceptance at once: a place below the rows offered of its
  class, stored if that place exists.
- `resize`: shrinking drops uniform rows of the largest classes, so the law holds for the new capacity.
  Growing (``grow="naive"``) stores every row until the memory is filled again and forgets which classes were
  full: counts level out again, but rows of before and after are not equally likely.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from replaykit.plan import Plan, Policy, labels
from replaykit.policies.slots_by_class import SlotsByClass, checked_counts, checked_keys
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe


class ClassBalancedReservoir(Policy):
    """Class-balancing reservoir sampling (CBRS).

    With more classes than slots every class holds at most one row, and a class whose last row was evicted
    would have to be accepted with probability 0: it never returns. `plan` warns once, when the classes first
    outnumber the slots; `readmit_extinct=True` lets such a class start anew.

    Args:
        column: integer column with the class of a row.
        full_from: when the largest class starts to count as full: once the memory is filled, or from the
            first item (the literal reading, for comparisons only).
        readmit_extinct: a class without stored rows is no longer full.

    Attributes:
        slots: which slots hold which class; `slots.counts()` are the class counts.
        offered: rows offered of each class so far.
        full: classes that are, or have been, a largest one.
    """

    writes = ()

    def __init__(
        self,
        column: str = "y",
        *,
        full_from: Literal["filled", "first_item"] = "filled",
        readmit_extinct: bool = False,
    ) -> None:
        if full_from not in ("filled", "first_item"):
            raise ValueError(f"full_from is 'filled' or 'first_item', got {full_from!r}")
        self.column, self.full_from, self.readmit_extinct = column, full_from, readmit_extinct
        self.columns = (column,)
        self.reset()

    def reset(self) -> None:
        self.slots: SlotsByClass[int] = SlotsByClass()
        self.offered: dict[int, int] = {}
        self.full: set[int] = set()

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        y = labels(arrivals, self.column).tolist()
        self.slots.check(store)
        self._warn_of_classes(y, store.capacity)
        free = store.free(len(y)).tolist()
        for label, slot in zip(y, free, strict=False):
            self._fill(label, slot)
        if free and len(self.slots) == store.capacity:
            self.full.update(self.slots.largest)
        writers = dict(zip(free, range(len(free)), strict=True))
        for row, u in enumerate(rng.random(len(y) - len(free)).tolist(), len(free)):
            place = self._offer(y[row], u)
            if place is not None:
                writers[place] = row
        return Plan.of(writers)

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        self.slots.check_resize(store, capacity, grow)
        self._warn_of_classes((), capacity, store.capacity)
        while len(self.slots) > capacity:
            label, place = self.slots.draw_largest(rng.random())
            self.slots.remove(label, place)
            self.full.add(label)
            self._forget_extinct(label)
        if len(self.slots) == capacity:
            self.full.update(self.slots.largest)
        elif self.full_from == "filled":
            self.full.clear()
        return self.slots.compact()

    def state_dict(self) -> dict[str, Any]:
        return {
            "slots": self.slots.state_dict(),
            "offered": dict(self.offered),
            "full": sorted(self.full),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        checked_keys(state, {"slots", "offered", "full"}, type(self).__name__)
        slots, offered = (
            SlotsByClass.from_state(state["slots"], int),
            checked_counts(state["offered"], "offered"),
        )
        full = state["full"]
        if not isinstance(full, list) or not all(isinstance(c, int) and c in offered for c in full):
            raise ValueError("corrupt state: the full classes are not a list of classes that were offered")
        if any(n > offered.get(label, 0) for label, n in slots.counts().items()):
            raise ValueError("corrupt state: more rows of a class are stored than were offered")
        self.slots, self.offered, self.full = slots, offered, set(full)

    # -- one row ----------------------------------------------------------------------------------

    def _fill(self, label: int, slot: int) -> None:
        self.offered[label] = self.offered.get(label, 0) + 1
        self.slots.add(label, slot)
        if self.full_from == "first_item" and self.slots.count(label) == self.slots.most:
            self.full.add(label)

    def _offer(self, label: int, u: float) -> int | None:
        """The slot that a row takes in a filled memory, if any; `u` is uniform on [0, 1)."""
        slots = self.slots
        self.offered[label] = offered = self.offered.get(label, 0) + 1
        if label in self.full:
            place = int(u * offered)
            return slots.of(label)[place] if place < slots.count(label) else None
        level = slots.most
        victim, place = slots.draw_largest(u)
        slot = slots.remove(victim, place)
        slots.add(label, slot)
        if slots.most < level:
            self.full.update(slots.largest)
        elif slots.count(label) == level:
            self.full.add(label)
        self._forget_extinct(victim)
        return slot

    def _forget_extinct(self, label: int) -> None:
        if self.readmit_extinct and label not in self.slots:
            self.full.discard(label)

    def _warn_of_classes(self, y: Iterable[int], capacity: int, before: int | None = None) -> None:
        known = len(self.offered)
        classes = known + sum(label not in self.offered for label in set(y))
        if classes > capacity and known <= (before or capacity) and not self.readmit_extinct:
            warnings.warn(
                f"CBRS has {classes} classes for {capacity} slots: a class that loses its last row can never "
                "return; use more slots, or readmit_extinct=True",
                stacklevel=4,
            )
