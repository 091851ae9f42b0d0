"""PRS: label counts drawn towards a target share of the memory, for rows that carry several labels.

Source: Kim, Jeong and Kim, Imbalanced Continual Learning with Partitioning Reservoir Sampling, ECCV 2020.
Keeps: the slots of each distinct label set, and the rows offered of each label. Columns written: none.
Probe: none.
Cost per add of B rows: O(B · labels seen), a sum; for each accepted row O(labels seen), and with several labels
a row O(distinct label sets that carry the label that loses a row · their labels). State 8 bytes a stored row,
and the distinct label sets.
Law: label i has the target p_i = n_i^rho / sum of n_j^rho over all labels seen. A row is let in with the
mean chance min(1, p_i M / n_i) of its labels, weighted by the softmax of -n_i (the rarest label decides); the
label that loses a row is drawn from the softmax of the surplus l_i - p_i sum l; of its rows, those that carry
fewest labels without surplus are candidates, of these those that leave the counts nearest to their targets,
of these one uniformly.
Departures from the released code (``compat="official"`` follows the code instead in all of these):
- The row being offered is counted before it is judged, so one label alone is Algorithm R.
- Of equally good candidates one is drawn uniformly; the code takes the lowest slot, which freezes the others.
- Candidates are compared whatever their distance; the code gives up on distances of `capacity` and more.
- Targets are over all labels seen; the code's are over the labels now stored, and a label that was evicted
  completely keeps its last target.
- Rows without a label are refused; the code stores them while there is room and can never evict them. (Where
  nothing else is stored the code fails; here one of them is evicted.)
- Softmaxes are in float64 in both; the code's are in float32.
- Distances that differ by less than rounding tie.
- `resize`: shrinking evicts rows by the rule above; growing (``grow="naive"``) stores every labelled row
  until the new slots are taken.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from replaykit.plan import Plan, Policy
from replaykit.policies.label_sets import Labels, LabelSets, distances, label_sets, least_protected
from replaykit.policies.slots_by_class import SlotsByClass, checked_counts, checked_keys
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe

_ROUNDING = 1e-12  # of a sum of counts
MAX_RHO = 10.0  # n ** rho stays a float for any stream


class PartitioningReservoir(Policy):
    """Partitioning reservoir sampling (PRS).

    Args:
        column: an integer column [n], one label a row, or a {0, 1} matrix [n, c] of any dtype.
        rho: power of allocation: 0 equal shares, 1 shares of the stream, below 0 the tail is favoured.
        compat: ``"official"`` for the behaviour of the released code.

    Attributes:
        slots: which slots hold which label set; `slots.counts()` are the counts of the sets.
        offered: rows offered with each label so far, in order of appearance.
        stored: rows stored with each of these labels.
    """

    writes = ()

    def __init__(self, column: str = "y", rho: float = 0.0, *, compat: Literal["official"] | None = None) -> None:
        if not abs(rho) <= MAX_RHO:
            raise ValueError(f"rho is a power between -{MAX_RHO:g} and {MAX_RHO:g}, got {rho}")
        if compat not in (None, "official"):
            raise ValueError(f"compat is None or 'official', got {compat!r}")
        self.column, self.rho, self.compat = column, rho, compat
        self.columns = (column,)
        self.reset()

    def reset(self) -> None:
        self.slots: SlotsByClass[Labels] = SlotsByClass()
        self.offered: dict[int, int] = {}
        self.stored: dict[int, int] = {}
        self._power: dict[int, float] = {}  # offered ** rho
        self._kept_share: dict[int, float] = {}  # targets as the official code keeps them
        self._sets = LabelSets()

    def shares(self) -> dict[int, float]:
        """Target share p_i of the memory for each label seen."""
        if self.compat:
            return dict(self._kept_share)
        total = self._total_power()
        return {label: power / total for label, power in self._power.items()}

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        keys = label_sets(arrivals, self.column)
        self.slots.check(store)
        free, writers = iter(store.free(len(keys)).tolist()), {}
        for row, key in enumerate(keys):
            slot = self._offer(key, store.capacity, free, rng)
            if slot is not None:
                writers[slot] = row
        return Plan.of(writers)

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        self.slots.check_resize(store, capacity, grow)
        while len(self.slots) > capacity:
            self._sample_out(capacity, rng)
        return self.slots.compact()

    def state_dict(self) -> dict[str, Any]:
        return {
            "slots": self.slots.state_dict(),
            "offered": dict(self.offered),
            "shares": dict(self._kept_share),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        checked_keys(state, {"slots", "offered", "shares"}, type(self).__name__)
        slots: SlotsByClass[Labels] = SlotsByClass.from_state(state["slots"], tuple)
        offered, shares = checked_counts(state["offered"], "offered"), state["shares"]
        stored = dict.fromkeys(offered, 0)
        for key, count in slots.counts().items():
            for label in key:
                stored[label] = stored.get(label, 0) + count
        if any(count > offered.get(label, 0) for label, count in stored.items()):
            raise ValueError("corrupt state: more rows with a label are stored than were offered")
        if not isinstance(shares, Mapping) or shares.keys() != (offered.keys() if self.compat else set()):
            raise ValueError(f"the saved targets do not fit a policy with compat={self.compat!r}")
        self.reset()
        self.slots, self.offered, self.stored, self._kept_share = slots, offered, stored, dict(shares)
        self._power = {label: n**self.rho for label, n in offered.items()}
        for key in slots.counts():
            self._sets.add(key)

    # -- one row ----------------------------------------------------------------------------------

    def _offer(self, key: Labels, capacity: int, free: Iterator[int], rng: np.random.Generator) -> int | None:
        """The slot that a row takes, if any."""
        if self.compat:
            return self._offer_official(key, capacity, free, rng)
        if not key:
            return None
        self._count(key)
        if len(self.slots) < capacity:
            slot = next(free)
        elif rng.random() < self._chance(key, capacity):
            slot = self._sample_out(capacity, rng)
        else:
            return None
        self._enter(key, slot)
        return slot

    def _offer_official(
        self, key: Labels, capacity: int, free: Iterator[int], rng: np.random.Generator
    ) -> int | None:
        slot = None
        if len(self.slots) < capacity:
            slot = next(free)
        elif key:
            offered = [self.offered.get(label, 0) for label in key]
            share = [self._kept_share.get(label, 0.0) for label in key]
            if rng.random() < acceptance(offered, share, capacity):
                slot = self._sample_out(capacity, rng)
        self._count(key)
        if slot is not None:
            self._enter(key, slot)
        self._keep_shares(key)
        return slot

    def _count(self, key: Labels) -> None:
        for label in key:
            if label not in self.offered:
                self.offered[label] = self.stored[label] = 0
            self.offered[label] = n = self.offered[label] + 1
            self._power[label] = n**self.rho

    def _total_power(self) -> float:
        return sum(self._power.values()) if self.rho else float(len(self._power))

    def _chance(self, key: Labels, capacity: int) -> float:
        total = self._total_power()
        if len(key) == 1:  # the same, without the lists
            return self._power[key[0]] * capacity / (total * self.offered[key[0]])
        share = [self._power[label] / total for label in key]
        return acceptance([self.offered[label] for label in key], share, capacity)

    def _enter(self, key: Labels, slot: int) -> None:
        self.slots.add(key, slot)
        self._sets.add(key)
        for label in key:
            self.stored[label] += 1

    def _sample_out(self, capacity: int, rng: np.random.Generator) -> int:
        """Take a row out of the book; returns its slot."""
        keys: list[Labels] = self._candidates(capacity, rng) if any(self.stored.values()) else [()]
        if self.compat:
            slot, key = min((min(self.slots.of(key)), key) for key in keys)
            place = self.slots.of(key).index(slot)
        else:
            key, place = self._uniform(keys, rng)
        for label in key:
            self.stored[label] -= 1
        slot = self.slots.remove(key, place)
        if key not in self.slots:
            self._sets.remove(key)
        return slot

    def _uniform(self, keys: list[Labels], rng: np.random.Generator) -> tuple[Labels, int]:
        ends = list(accumulate(self.slots.count(key) for key in keys))
        place = int(rng.random() * ends[-1])
        chosen = bisect_right(ends, place)
        return keys[chosen], place - (ends[chosen - 1] if chosen else 0)

    def _candidates(self, capacity: int, rng: np.random.Generator) -> list[Labels]:
        """The label sets one of whose rows is to go, in ascending order."""
        share = self.shares()
        excess = surplus(self.stored, share)
        keys = self._sets.carrying(self._draw_label(excess, rng))
        if len(keys) == 1:
            return keys
        keys = least_protected(keys, {label for label, beyond in excess.items() if beyond <= 0})
        away = distances(keys, self.stored, share, only_stored=self.compat is not None)
        nearest = min(away) + _ROUNDING * sum(self.stored.values())
        if self.compat and min(away) >= capacity:
            nearest = math.inf
        return sorted(key for key, far in zip(keys, away, strict=True) if far <= nearest)

    def _draw_label(self, excess: dict[int, float], rng: np.random.Generator) -> int:
        """One of the labels that are stored, from the softmax of their surplus."""
        present = [label for label, count in self.stored.items() if count]
        top = max(excess[label] for label in present)
        ends = list(accumulate(math.exp(excess[label] - top) for label in present))
        return present[bisect_right(ends, rng.random() * ends[-1])]

    def _keep_shares(self, key: Labels) -> None:
        for label in key:
            self._kept_share.setdefault(label, 0.0)
        present = [label for label, count in self.stored.items() if count]
        total = sum(self._power[label] for label in present)
        for label in present:
            self._kept_share[label] = self._power[label] / total


def acceptance(offered: Sequence[int], share: Sequence[float], capacity: int) -> float:
    """Probability of letting in a row, from the rows offered with its labels [k] and their targets [k]."""
    chances = [1.0 if n <= p * capacity else p * capacity / n for n, p in zip(offered, share, strict=True)]
    rarest = min(offered)
    weights = [math.exp(rarest - n) for n in offered]
    return sum(w * chance for w, chance in zip(weights, chances, strict=True)) / sum(weights)


def surplus(stored: Mapping[int, int], share: Mapping[int, float]) -> dict[int, float]:
    """How many rows with each label are stored beyond its target."""
    total = sum(stored.values())
    return {label: count - share[label] * total for label, count in stored.items()}
