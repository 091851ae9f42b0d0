"""A-Chao: a sample of fixed size in which a row is included with probability proportional to its weight.

Source: Chao, A General Purpose Unequal Probability Sampling Plan, Biometrika 1982.
Keeps: the total weight offered, which slots hold overweight rows and which do not. Columns written: none.
Probe: none. Columns read: ``weight``.
Cost per add of B rows: O(B) time, O(log capacity) for each overweight row; state 8 bytes a stored row.
Law: P(row i is stored) = min(1, weight_i · r), with the one r that makes these probabilities add up to the
capacity. Rows with probability 1 are *overweight*: they are stored with certainty, and become ordinary rows as
the total grows. Equal weights: Algorithm R. This is not the law of `EfraimidisSpirakis`.
Departures:
- Overweight rows are held in a heap by weight, so that those which become ordinary are found without a search.
- Shrinking draws the rows that stay by systematic sampling in random order with the ratios of new to old
  probability, so that the law holds for the new capacity. Growing is refused unless nothing was dropped yet.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from replaykit.plan import Plan, Policy, weights
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe

_Rows = list[tuple[float, int]]  # (weight, slot)


class Chao(Policy):
    """Weighted reservoir with inclusion probabilities proportional to weight.

    Args:
        column: column with the weight of a row, finite and above 0.
    """

    writes = ()

    def __init__(self, column: str = "weight") -> None:
        self.column = column
        self.columns = (column,)
        self.reset()

    def reset(self) -> None:
        self._heavy: _Rows = []  # a heap of the overweight rows, all of them stored
        self._light: array[int] = array("q")  # slots of the other stored rows
        self._rest = 0.0  # weight of all rows offered that are not overweight

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        w = weights(arrivals, self.column).tolist()
        if len(self._heavy) + len(self._light) != len(store):
            raise ValueError(
                f"this policy knows a memory with {len(self._heavy) + len(self._light)} rows, this one has "
                f"{len(store)}; give every Buffer a policy object of its own"
            )
        free = store.free(len(w)).tolist()
        writers: dict[int, int] = {}
        for row, slot in enumerate(free):
            heappush(self._heavy, (w[row], slot))
            writers[slot] = row
        for row, (u, v) in enumerate(rng.random((len(w) - len(free), 2)).tolist(), len(free)):
            taken = self._offer(w[row], store.capacity, u, v)
            if taken is not None:
                writers[taken] = row
        return Plan.of(writers)

    def _offer(self, weight: float, capacity: int, u: float, v: float) -> int | None:
        """The slot that a row takes in a full memory, if any; `u` and `v` are uniform on [0, 1)."""
        lighter, heavy = self._settle(capacity, weight)
        per_weight = (capacity - len(self._heavy) - heavy) / self._rest
        inclusion = 1.0 if heavy else per_weight * weight
        slot = None
        if u < inclusion:
            slot = self._evict(lighter, per_weight, inclusion, v)
            if heavy:
                heappush(self._heavy, (weight, slot))
            else:
                self._light.append(slot)
        self._light.extend(place for _, place in lighter)
        return slot

    def _settle(self, capacity: int, weight: float | None = None) -> tuple[_Rows, bool]:
        """Find out which rows are overweight now, with a new one of some weight.

        Returns the stored rows that no longer are, and whether the new one is.
        """
        heavy, lighter = self._heavy, []
        count = len(heavy) + (weight is not None)
        while count:
            new = weight is not None and (not heavy or weight <= heavy[0][0])
            smallest = weight if new and weight is not None else heavy[0][0]
            if smallest * (capacity - count + 1) > self._rest + smallest:
                break
            self._rest += smallest
            count -= 1
            if new:
                weight = None
            else:
                lighter.append(heappop(heavy))
        return lighter, weight is not None

    def _evict(self, lighter: _Rows, per_weight: float, inclusion: float, v: float) -> int:
        """Take one stored row out for a row that was accepted, and return its slot; `v` is uniform on [0, 1).

        A row that was certain until now leaves with what its probability lacks to 1; the others, whose
        probabilities all fell by the same factor, share what is left equally.
        """
        left, v = inclusion, inclusion * v
        for position, (weight, _) in enumerate(lighter):
            lack = 1.0 - per_weight * weight
            if v < lack or (not self._light and position == len(lighter) - 1):
                return lighter.pop(position)[1]
            left, v = left - lack, v - lack
        last = len(self._light) - 1
        position = min(int(v / left * (last + 1)), last) if v < left else last
        slot = self._light[position]
        self._light[position] = self._light[last]
        self._light.pop()
        return slot

    # -- its life ---------------------------------------------------------------------------------

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        stored = len(store)
        if capacity > store.capacity and store.seen > stored:
            raise ValueError(
                f"growing from {store.capacity} to {capacity} slots has no law for weighted inclusion, whatever "
                f"grow={grow!r}; build a new memory and add to it"
            )
        if stored > capacity:
            self._shrink(stored, capacity, rng)
        keep = np.sort(np.array([slot for _, slot in self._heavy] + self._light.tolist(), np.int64))
        new = {slot: number for number, slot in enumerate(keep.tolist())}
        self._heavy = [(weight, new[slot]) for weight, slot in self._heavy]
        heapify(self._heavy)
        self._light = array("q", [new[slot] for slot in self._light])
        return keep

    def _shrink(self, stored: int, capacity: int, rng: np.random.Generator) -> None:
        """Keep each ordinary row with the ratio of its new inclusion probability to its old one."""
        before = (stored - len(self._heavy)) / self._rest if self._light else math.inf
        lighter, _ = self._settle(capacity)
        room = capacity - len(self._heavy)
        after = room / self._rest
        slots = np.array([slot for _, slot in lighter] + self._light.tolist())
        ratio = np.array([after * weight for weight, _ in lighter] + [after / before] * len(self._light))
        order = rng.permutation(len(slots))
        ends = np.cumsum(ratio[order])
        ends *= room / ends[-1]
        # Points at distance 1 fall into distinct intervals, which are no longer than 1 (but for rounding).
        chosen: IntArray = np.empty(0, np.int64)
        while len(np.unique(chosen)) != room:
            chosen = np.searchsorted(ends, rng.random() + np.arange(room), side="right")
        self._light = array("q", slots[order[chosen]].tolist())

    def state_dict(self) -> dict[str, Any]:
        return {
            "rest": self._rest,
            "heavy_weights": torch.tensor([weight for weight, _ in self._heavy], dtype=torch.float64),
            "heavy_slots": torch.tensor([slot for _, slot in self._heavy], dtype=torch.int64),
            "light_slots": torch.tensor(self._light.tolist(), dtype=torch.int64),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        names = {"heavy_weights": torch.float64, "heavy_slots": torch.int64, "light_slots": torch.int64}
        if state.keys() != names.keys() | {"rest"}:
            raise ValueError(f"not the state of Chao: it has {sorted(state)}")
        for name, dtype in names.items():
            if not isinstance(state[name], Tensor) or state[name].ndim != 1 or state[name].dtype != dtype:
                raise ValueError(f"corrupt state: {name} is not a vector of {dtype}")
        heavy, slots, light = (state[name].tolist() for name in names)
        rest = state["rest"]
        if len(heavy) != len(slots) or len({*slots, *light}) != len(slots) + len(light):
            raise ValueError("corrupt state: overweight rows without weight, or slots that are repeated")
        if not isinstance(rest, float) or not 0 <= rest < math.inf or not all(w > 0 for w in heavy):
            raise ValueError("corrupt state: weights that are not finite and above 0")
        self._heavy, self._light, self._rest = list(zip(heavy, slots, strict=True)), array("q", light), rest
        heapify(self._heavy)
