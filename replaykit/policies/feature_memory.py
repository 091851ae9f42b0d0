"""What the memories that choose by features have in common: a share of the slots for each class, filled first.

A class stores its first rows until its share is filled; then its law says whose place a new row takes. With a
declared number of classes the share is ⌊capacity / classes⌋ and slots beyond stay empty. Classes that are met
as they come share all slots: ⌊capacity / classes met⌋ each, what is left over goes to the lowest ones, one
each, and a class that has more than its share gives rows up when another is met.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replaykit.plan import Plan, Policy, check_book, check_growth, labels
from replaykit.policies.growing_rings import quota_of
from replaykit.policies.slots_by_class import checked_keys
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe

FloatArray: TypeAlias = NDArray[np.float64]
Held: TypeAlias = Mapping[str, NDArray[Any]]

FEATURE = "stored_feature"


class Group:
    """The rows of one class while a batch is planned; place i of every array belongs to slot `slots[i]`.

    Attributes:
        slots: slots of the class, in the order in which they were taken.
        features: of its rows, float64 [places, d]; those from len(slots) on are not taken yet.
        changed: places whose own columns are no longer those of the store.

    Args:
        held: own columns of the class as they are stored [len(slots), ...].
        places: slots that the class may come to have.
    """

    def __init__(self, slots: list[int], held: Held, places: int) -> None:
        self.slots = slots
        self.features: FloatArray = with_room(held[FEATURE], places)
        self.changed: set[int] = set()

    def seed(self, slot: int, feature: FloatArray) -> None:
        """A row takes a place of its own."""
        self.features[len(self.slots)] = feature
        self.slots.append(slot)

    def offer(self, feature: FloatArray) -> int | None:
        """A row comes to a class whose share is filled; returns the place that it takes over, if any."""
        raise NotImplementedError

    def drift(self, fresh: FloatArray) -> None:
        """The features of the stored rows [len(slots), d] have become `fresh` under a new model."""
        self.features[: len(self.slots)] = fresh
        self.changed.update(range(len(self.slots)))

    def shrink(self, share: int) -> list[int]:
        """Give places up until `share` are left; returns their slots."""
        raise NotImplementedError

    def keep(self, kept: IntArray) -> list[int]:
        """Close the ranks: places `kept` (ascending) become 0, 1, ...; returns the slots of the others."""
        new = {place: number for number, place in enumerate(kept.tolist())}
        freed = [slot for place, slot in enumerate(self.slots) if place not in new]
        self.features[: len(kept)] = self.features[kept]
        self.slots[:] = [self.slots[place] for place in new]
        self.changed = {new[place] for place in self.changed if place in new}
        return freed


G = TypeVar("G", bound=Group)


class FeatureMemory(Policy, Generic[G]):
    """A share of the slots for each class. A subclass says by its `Group` which rows a class keeps."""

    needs = ("features",)
    columns = ("y",)
    writes: tuple[str, ...] = (FEATURE,)

    def __init__(self, classes: int | None, refresh_every: int | None) -> None:
        if classes is not None and classes < 1:
            raise ValueError(f"classes is a number of classes >= 1, got {classes}")
        if refresh_every is not None and refresh_every < 1:
            raise ValueError(f"refresh_every is a number of rows >= 1, got {refresh_every}")
        self.classes, self.refresh_every = classes, refresh_every
        self.reset()

    def reset(self) -> None:
        self.slots: dict[int, list[int]] = {}  # of each class, in the order in which they were taken

    def group(self, label: int, slots: list[int], held: Held, places: int, dtype: torch.dtype) -> G:
        """A class of which the store holds some rows, or none yet; `dtype` is that of the model's features."""
        raise NotImplementedError

    def nothing(self, width: int) -> Held:
        """Own columns without a row."""
        return {FEATURE: np.empty((0, width))}

    def rows(self, at: Sequence[tuple[G, int]], dtype: torch.dtype) -> Batch:
        """Own columns for the given places of groups."""
        features = np.array([group.features[place] for group, place in at])
        return {FEATURE: torch.from_numpy(features).to(dtype)}

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        y: list[int] = labels(arrivals, "y", self.classes).tolist()
        self._check(y, arrivals, store)
        assert probe is not None
        features, dtype = features_of(probe, arrivals, store)
        refreshing = self._refreshes(store, len(y))
        # A class that is met may take slots of every other one.
        everyone = refreshing or not self.slots.keys() >= set(y)
        groups = self._groups(store, self.slots if everyone else set(y), Counter(y))
        if refreshing:
            _refresh(groups.values(), store, probe)
        seats, shares = _Seats(store, len(y)), self._shares(store.capacity)
        for row, (label, feature) in enumerate(zip(y, features, strict=True)):
            if label not in groups:
                self.slots[label] = []
                shares = self._shares(store.capacity)
                nothing = self.nothing(len(feature))
                places = min(len(y) - row, shares[label])
                groups[label] = self.group(label, self.slots[label], nothing, places, dtype)
                for slots in self._shrink(groups, shares):
                    seats.leave(slots)
            group = groups[label]
            if len(group.slots) < shares[label]:
                group.seed(seats.take(row), feature)
                continue
            place = group.offer(feature)
            if place is not None:
                group.features[place] = feature
                seats.writers[group.slots[place]] = row
        return self._plan(groups, seats, y, dtype, store)

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        self._check_book(store)
        check_growth(store, capacity, grow)
        quota_of(capacity, self.classes or max(1, len(self.slots)))
        shares = self._shares(capacity)
        crowded = [label for label, slots in self.slots.items() if len(slots) > shares[label]]
        if crowded:
            groups = self._groups(store, crowded, {})
            self._shrink(groups, shares)
            revise = self._revised(groups, (), store.columns[FEATURE].dtype)
            if revise is not None:
                store.revise(*revise)
        return self._renumber()

    def state_dict(self) -> dict[str, Any]:
        return {
            "slots": {label: torch.tensor(slots, dtype=torch.int64) for label, slots in self.slots.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        checked_keys(state, {"slots"}, type(self).__name__)
        self.slots = self._checked_slots(state["slots"])

    # -- inside -----------------------------------------------------------------------------------

    def _check(self, y: list[int], arrivals: Batch, store: Store) -> None:
        for name in self.writes:
            if name in arrivals:
                raise ValueError(f"column {name!r} is written by this policy; rename the one of the batch")
        self._check_book(store)
        quota_of(store.capacity, self.classes or len(self.slots.keys() | set(y)))

    def _check_book(self, store: Store) -> None:
        check_book(sum(map(len, self.slots.values())), store)

    def _shares(self, capacity: int) -> dict[int, int]:
        """Slots that each class met so far may take."""
        if self.classes is not None:
            return dict.fromkeys(self.slots, capacity // self.classes)
        share, left = divmod(capacity, max(1, len(self.slots)))
        return {label: share + (rank < left) for rank, label in enumerate(sorted(self.slots))}

    def _refreshes(self, store: Store, n: int) -> bool:
        """Whether a batch of n rows holds a row whose number is a multiple of `refresh_every`."""
        every = self.refresh_every
        return every is not None and len(store) > 0 and store.seen // every < (store.seen + n) // every

    def _groups(self, store: Store, wanted: Iterable[int], more: Mapping[int, int]) -> dict[int, G]:
        """Classes as they are stored, each with room for `more[label]` new rows, up to its share."""
        known = [label for label in wanted if label in self.slots]
        if not known:
            return {}
        slots = np.array([slot for label in known for slot in self.slots[label]], np.int64)
        held = {name: _on_host(rows) for name, rows in store.read(slots, self.writes).items()}
        groups, start, shares = {}, 0, self._shares(store.capacity)
        for label in known:
            end = start + len(self.slots[label])
            rows = {name: column[start:end] for name, column in held.items()}
            places = min(end - start + more.get(label, 0), shares[label])
            groups[label] = self.group(label, self.slots[label], rows, places, store.columns[FEATURE].dtype)
            start = end
        return groups

    def _shrink(self, groups: Mapping[int, G], shares: Mapping[int, int]) -> list[list[int]]:
        """Let classes that have more than their share give rows up; returns the slots that become free."""
        return [g.shrink(shares[label]) for label, g in groups.items() if len(g.slots) > shares[label]]

    def _plan(
        self, groups: Mapping[int, G], seats: _Seats, y: list[int], dtype: torch.dtype, store: Store
    ) -> Plan:
        plan = Plan(distinct=True, revise=self._revised(groups, seats.writers, dtype))
        if seats.writers:
            plan.slot, plan.source = np.array(list(seats.writers.items()), np.int64).T.copy()
            entered = ((groups[y[row]], slot) for slot, row in seats.writers.items())
            plan.columns = self.rows([(group, group.slots.index(slot)) for group, slot in entered], dtype)
        if seats.freed:
            # Also those that are taken again: the order in which slots were filled then is that of single steps.
            freed: IntArray = np.array(sorted(seats.freed), np.int64)
            plan.release = freed[store.is_filled(freed)]
        return plan

    def _revised(
        self, groups: Mapping[int, G], entering: Container[int], dtype: torch.dtype
    ) -> tuple[IntArray, Batch] | None:
        """The slots whose row stays while its own columns change, and the new values."""
        changed = ((group, place) for group in groups.values() for place in group.changed)
        at = [(group, place) for group, place in changed if group.slots[place] not in entering]
        if not at:
            return None
        return np.array([group.slots[place] for group, place in at], np.int64), self.rows(at, dtype)

    def _renumber(self) -> IntArray:
        """Move the rows that are left to the slots 0, 1, ...; returns the old slot of each new one."""
        keep = np.sort(np.array([slot for slots in self.slots.values() for slot in slots], np.int64))
        new = {slot: number for number, slot in enumerate(keep.tolist())}
        self.slots = {label: [new[slot] for slot in slots] for label, slots in self.slots.items()}
        return keep

    def _checked_slots(self, saved: Any) -> dict[int, list[int]]:
        if not isinstance(saved, Mapping):
            raise ValueError("corrupt state: the slots are not a dict of classes")
        for label, slots in saved.items():
            if not isinstance(label, int) or label < 0 or (self.classes is not None and label >= self.classes):
                raise ValueError(f"corrupt state: {label!r} is not a class of {self.classes or 'a stream'}")
            if not isinstance(slots, Tensor) or slots.ndim != 1 or slots.dtype != torch.int64:
                raise ValueError(f"corrupt state: the slots of class {label} are not a vector of int64")
        listed = [slot for slots in saved.values() for slot in slots.tolist()]
        if len(set(listed)) != len(listed) or min(listed, default=0) < 0:
            raise ValueError("corrupt state: slots that are negative, or in two classes")
        return {label: slots.tolist() for label, slots in saved.items()}


class _Seats:
    """Who sits where once a batch is in: its rows by slot, and the empty slots, lowest first."""

    def __init__(self, store: Store, rows: int) -> None:
        self.writers: dict[int, int] = {}
        self.freed: set[int] = set()
        self._empty: list[int] = store.free(rows).tolist()

    def take(self, row: int) -> int:
        slot = heapq.heappop(self._empty)
        self.writers[slot] = row
        return slot

    def leave(self, slots: Iterable[int]) -> None:
        for slot in slots:
            heapq.heappush(self._empty, slot)
            self.freed.add(slot)
            self.writers.pop(slot, None)


# -- features -------------------------------------------------------------------------------------


def features_of(
    probe: Probe, rows: Batch, store: Store, slots: IntArray | None = None
) -> tuple[FloatArray, torch.dtype]:
    """Features of rows under the model, float64 [n, d] on the host, and the dtype in which it gives them.

    Args:
        slots: where the rows are stored, unless they are arrivals.

    Raises:
        ValueError: they hold NaN or infinity, or are unlike those that the memory holds.
    """
    given = probe.features(rows).detach()
    held = store.columns.get(FEATURE)
    if held is not None and (given.shape[1:] != held.row or given.dtype != held.dtype):
        raise ValueError(
            f"the memory holds features {list(held.row)} of {held.dtype}, the model now gives "
            f"{list(given.shape[1:])} of {given.dtype}; name a layer that does not change, "
            "Probe(model, features=...), or clear() the memory"
        )
    features: FloatArray = given.to("cpu", torch.float64).numpy()
    wrong = np.flatnonzero(~np.isfinite(features).all(1))
    if len(wrong):
        where = f"rows {_some(wrong)}" if slots is None else f"the rows in slots {_some(slots[wrong])}"
        raise ValueError(
            f"the features of {where} hold NaN or infinity; leave such rows out of the batch, or, if its rows "
            "are in order, look at the model's parameters"
        )
    return features, given.dtype


def _refresh(groups: Iterable[Group], store: Store, probe: Probe) -> None:
    """Look at all stored rows with the present model, at once."""
    groups = list(groups)
    slots = np.array([slot for group in groups for slot in group.slots], np.int64)
    rows = store.read(slots, [name for name in store.columns if name not in store.own])
    fresh, _ = features_of(probe, rows, store, slots)
    start = 0
    for group in groups:
        end = start + len(group.slots)
        group.drift(fresh[start:end])
        start = end


# -- distances ------------------------------------------------------------------------------------
#
# Ties are common: a mean of two rows is as far from one as from the other. Rounding must not decide them, so
# distances that differ by no more than its effect are equal. `unit` is the relative error of coordinates.


def nearest(squared: FloatArray, point: FloatArray, unit: float) -> int:
    """The smallest of squared distances [n] to a point [d]; of those that tie, the first."""
    least = float(squared.min())
    return int((squared <= least + _rounding(least, point, unit)).argmax())


def farthest(squared: FloatArray, point: FloatArray, unit: float) -> int:
    """The largest of squared distances [n] to a point [d]; of those that tie, the first."""
    most = float(squared.max())
    return int((squared >= most - _rounding(most, point, unit)).argmax())


def is_closer(feature: FloatArray, stored: FloatArray, centre: FloatArray, unit: float) -> bool:
    """Whether a feature is strictly closer to the centre than the stored one."""
    new, away = feature - centre, stored - centre
    old = float(away @ away)
    return float(new @ new) < old - _rounding(old, centre, unit)


def squared_distances(rows: FloatArray, point: FloatArray) -> FloatArray:
    """Squared Euclidean distances [n] of rows [n, d] to a point [d]."""
    away = rows - point
    squared: FloatArray = np.einsum("ij,ij->i", away, away)
    return squared


def _rounding(squared: float, point: FloatArray, unit: float) -> float:
    """Bound on the rounding of a squared distance to the point."""
    distance = math.sqrt(squared)
    return 8 * unit * distance * (distance + math.sqrt(point @ point))


# -- inside ---------------------------------------------------------------------------------------


def with_room(rows: NDArray[Any], places: int) -> NDArray[Any]:
    """Rows [n, ...] followed by so many more that there are `places`."""
    if len(rows) >= places:
        return rows
    room = np.empty((places, *rows.shape[1:]), rows.dtype)
    room[: len(rows)] = rows
    return room


def _on_host(rows: Tensor) -> NDArray[Any]:
    if rows.is_floating_point():
        rows = rows.to("cpu", torch.float64)
    array: NDArray[Any] = rows.cpu().numpy()
    return array


def _some(numbers: IntArray) -> str:
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"{numbers[:5].tolist()}{more}"
