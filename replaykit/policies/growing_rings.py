"""Rings of classes that are met as they come: quotas shrink, every class keeps its newest rows."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from replaykit.plan import Plan, check_book
from replaykit.store import IntArray, Store


class GrowingRings:
    """The slots of each class, oldest row first. Rows never move: a ring is an order of slots."""

    def __init__(self, lazy: bool) -> None:
        self.lazy = lazy
        self.rings: dict[int, deque[int]] = {}
        self._shares: tuple[int, dict[int, int]] = (0, {})

    def plan(self, groups: list[int], store: Store) -> Plan:
        self._check(groups, store)
        room = _Room(store, len(groups))
        writers: dict[int, int] = {}
        for row, group in enumerate(groups):
            if group not in self.rings:
                for slot in self._welcome(group, store.capacity):
                    room.give_back(slot)
                    writers.pop(slot, None)
            slot = self._slot_for(group, store.capacity, room)
            self.rings[group].append(slot)
            writers[slot] = row
        plan = Plan.of(writers)
        if room.released:
            # Also those that are taken again: the order in which slots were filled then is that of single steps.
            freed: IntArray = np.array(sorted(room.released), np.int64)
            plan = Plan(plan.source, plan.slot, release=freed[store.is_filled(freed)], distinct=True)
        return plan

    def resize(self, before: int, after: int) -> IntArray:
        if self.rings:
            quota_of(after, len(self.rings))
        for group, share in self.shares(after).items():
            while not self.lazy and len(self.rings[group]) > share:
                self.rings[group].popleft()
        for _ in range(sum(map(len, self.rings.values())) - after):
            self._largest(after).popleft()
        keep = np.sort(np.array([slot for ring in self.rings.values() for slot in ring], np.int64))
        new = {slot: number for number, slot in enumerate(keep.tolist())}
        self.rings = {group: deque(new[slot] for slot in ring) for group, ring in self.rings.items()}
        return keep

    def shares(self, capacity: int) -> dict[int, int]:
        """Quota of each class met so far; what is left over goes to the lowest ones, a slot each."""
        if len(self._shares[1]) != len(self.rings) or self._shares[0] != capacity:
            quota, left = divmod(capacity, max(1, len(self.rings)))
            ranked = enumerate(sorted(self.rings))
            self._shares = capacity, {group: quota + (rank < left) for rank, group in ranked}
        return self._shares[1]

    def state_dict(self) -> dict[str, Any]:
        return {
            "rings": {group: torch.tensor(list(ring), dtype=torch.int64) for group, ring in self.rings.items()}
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        rings = state.get("rings")
        if set(state) != {"rings"} or not isinstance(rings, dict):
            raise ValueError(f"not the state of growing rings: it has {sorted(map(str, state))}")
        for group, slots in rings.items():
            if not isinstance(group, int) or not isinstance(slots, Tensor) or slots.dtype != torch.int64:
                raise ValueError(f"corrupt state: the slots of class {group!r} are not a vector of int64")
        listed = [slot for slots in rings.values() for slot in slots.tolist()]
        if len(set(listed)) != len(listed) or min(listed, default=0) < 0:
            raise ValueError("corrupt state: slots that are negative, or in two rings")
        self.rings = {group: deque(slots.tolist()) for group, slots in rings.items()}
        self._shares = (0, {})

    # -- inside -----------------------------------------------------------------------------------

    def _check(self, groups: list[int], store: Store) -> None:
        check_book(sum(map(len, self.rings.values())), store)
        quota_of(store.capacity, len(self.rings.keys() | set(groups)))

    def _welcome(self, group: int, capacity: int) -> list[int]:
        """Open a ring; returns the slots that the others give up for it."""
        self.rings[group] = deque()
        if self.lazy:
            return []
        shares = self.shares(capacity)
        return [ring.popleft() for name, ring in self.rings.items() for _ in range(len(ring) - shares[name])]

    def _slot_for(self, group: int, capacity: int, room: _Room) -> int:
        ring, share = self.rings[group], self.shares(capacity)[group]
        if room and (self.lazy or len(ring) < share):
            return room.take()
        if len(ring) < share:
            ring = self._largest(capacity)
        return ring.popleft()

    def _largest(self, capacity: int) -> deque[int]:
        """The ring that gives way: the longest, of those the one most over its quota, of those the lowest."""
        shares = self.shares(capacity)
        return self.rings[max(self.rings, key=lambda g: (len(self.rings[g]), -shares[g], -g))]


class _Room:
    """The empty slots of a store while a plan is made, lowest first."""

    def __init__(self, store: Store, rows: int) -> None:
        self.released: set[int] = set()
        self._heap: list[int] = store.free(rows).tolist()

    def __bool__(self) -> bool:
        return bool(self._heap)

    def take(self) -> int:
        return heapq.heappop(self._heap)

    def give_back(self, slot: int) -> None:
        heapq.heappush(self._heap, slot)
        self.released.add(slot)


def quota_of(capacity: int, classes: int) -> int:
    """Slots of a ring, at least 1."""
    if classes > capacity:
        raise ValueError(
            f"{classes} classes for {capacity} slots leave a quota of 0; use at least {classes} slots"
        )
    return capacity // classes
