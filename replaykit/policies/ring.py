"""Ring buffers: an equal share of the slots for each class (or task), first in, first out.

Source: Chaudhry et al., On Tiny Episodic Memories in Continual Learning, 2019, Algorithm 3 (one ring a class);
Lopez-Paz and Ranzato, Gradient Episodic Memory, NeurIPS 2017 (one ring a task: ``group="t"``).
Keeps: rows offered of each declared group, or the slots of each group from oldest to newest (8 bytes a row).
Columns written: none. Probe: none.
Cost per add of B rows: O(B) time; O(capacity) for a new group, and while slots that it has freed are empty.
Law: deterministic. A group holds its last min(offered, quota) rows, however the stream is cut.
Departures:
- With a declared number of groups the slots beyond groups · quota stay empty, as published. When groups are met
  as they come, the quota shrinks with each of them, a group keeps its newest rows, and the slots left over go to
  the groups of lowest number, one each.
- ``lazy=True`` lets groups keep more than their quota until another needs the room. Then the oldest row of the
  largest group leaves (of those that tie, one that is over its quota, the lowest).
- `resize`: each group keeps its newest rows, as many as the new quota allows. Growing (``grow="naive"``) cannot
  bring older rows back: a group has fewer than its quota until more of it have come, always its last ones.
- ``compat="gem"`` is the ring of the official GEM code. The part of a batch that does not fit before the end of
  the ring is dropped, not wrapped; one write position serves all tasks and goes on from task to task. So a ring
  does not hold the last rows of its task. Slots that GEM never writes are read there; here they are empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from replaykit.plan import Plan, Policy, check_book, check_growth, labels
from replaykit.policies.growing_rings import GrowingRings, quota_of
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe


class RingBuffer(Policy):
    """First in, first out within each class, every class with the same quota.

    Args:
        classes: number of classes, when it is known; class c then owns the slots from c · quota on, quota =
            ⌊capacity / classes⌋, and row j of it goes to slot c · quota + j mod quota. None: classes are met as
            they come.
        group: the integer column that says which ring a row belongs to; ``"t"`` for a ring a task.
        lazy: keep rows beyond the quota while there is room (for classes that are met as they come).
        compat: ``"gem"`` for the ring of the official GEM code (give the number of tasks as `classes`). Rows of
            one `add` that follow each other with the same task are one batch of GEM's.

    Raises:
        ValueError: on `add`, more classes than slots (a quota of 0), or labels that are not below `classes`.
    """

    writes = ()

    def __init__(
        self,
        classes: int | None = None,
        *,
        group: str = "y",
        lazy: bool = False,
        compat: Literal["gem"] | None = None,
    ) -> None:
        if classes is not None and classes < 1:
            raise ValueError(f"classes is a number of classes >= 1, got {classes}")
        if lazy and classes is not None:
            raise ValueError("lazy=True is for classes that are met as they come; leave classes=None")
        if compat not in (None, "gem"):
            raise ValueError(f"compat is None or 'gem', got {compat!r}")
        if compat == "gem" and classes is None:
            raise ValueError("compat='gem' has rings of fixed size: pass the number of groups as classes=")
        self.classes, self.group, self.lazy, self.compat = classes, group, lazy, compat
        self.columns = (group,)
        self.reset()

    def reset(self) -> None:
        self._rings: _FixedRings | _GemRings | GrowingRings
        if self.classes is None:
            self._rings = GrowingRings(self.lazy)
        elif self.compat == "gem":
            self._rings = _GemRings(self.classes)
        else:
            self._rings = _FixedRings(self.classes)

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        groups = labels(arrivals, self.group, self.classes).tolist()
        return self._rings.plan(groups, store)

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        check_growth(store, capacity, grow)
        return self._rings.resize(store.capacity, capacity)

    def state_dict(self) -> dict[str, Any]:
        return self._rings.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rings.load_state_dict(state)


class _FixedRings:
    """One ring for each declared class, at a fixed place."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.written: dict[int, int] = {}  # rows that went round each ring

    def plan(self, groups: list[int], store: Store) -> Plan:
        quota = quota_of(store.capacity, self.classes)
        check_book(sum(min(written, quota) for written in self.written.values()), store)
        writers: dict[int, int] = {}
        for row, group in enumerate(groups):
            written = self.written.get(group, 0)
            writers[group * quota + written % quota] = row
            self.written[group] = written + 1
        return Plan.of(writers)

    def resize(self, before: int, after: int) -> IntArray:
        old, new = quota_of(before, self.classes), quota_of(after, self.classes)
        keep: IntArray = np.full(self.classes * new, -1, np.int64)
        for group, written in self.written.items():
            kept = min(written, old, new)
            # Unrolled from the oldest row that stays: the first slots of a ring are not its oldest ones.
            keep[group * new : group * new + kept] = group * old + np.arange(written - kept, written) % old
            self.written[group] = kept
        return keep

    def state_dict(self) -> dict[str, Any]:
        return {"written": dict(self.written)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        written = state.get("written")
        if set(state) != {"written"} or not isinstance(written, dict):
            raise ValueError(f"not the state of rings of declared classes: it has {sorted(map(str, state))}")
        for group, n in written.items():
            if not (isinstance(group, int) and isinstance(n, int) and 0 <= group < self.classes and n > 0):
                raise ValueError(f"corrupt state: {n!r} rows of class {group!r} of {self.classes}")
        self.written = dict(written)


class _GemRings:
    """GEM's rings: one write position for all of them, and no wrapping inside a batch."""

    def __init__(self, tasks: int) -> None:
        self.tasks, self.position = tasks, 0

    def plan(self, groups: list[int], store: Store) -> Plan:
        quota = quota_of(store.capacity, self.tasks)
        writers: dict[int, int] = {}
        row = 0
        for task, run in groupby(groups):
            n = len(list(run))
            fitting = min(n, quota - self.position)
            start = task * quota + self.position
            writers.update(zip(range(start, start + fitting), range(row, row + fitting), strict=True))
            self.position = (self.position + fitting) % quota
            row += n
        return Plan.of(writers)

    def resize(self, before: int, after: int) -> IntArray:
        raise ValueError("compat='gem' cannot change its capacity; build a new memory")

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        position = state.get("position")
        if set(state) != {"position"} or not isinstance(position, int) or position < 0:
            raise ValueError(f"not the state of GEM's rings: {dict(state)!r}")
        self.position = position
