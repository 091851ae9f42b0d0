"""Prioritised replay: rows of high loss come more often.

Source: Schaul, Quan, Antonoglou and Silver, Prioritized Experience Replay, ICLR 2016, section 3.3, the
proportional variant; for losses of a classifier instead of temporal-difference errors.
Keeps: the notes ``priority`` of each slot (8 bytes), and two trees that follow from them (32 to 64 bytes a slot,
not saved). Needs: `Buffer.observe` after each step, as the Replay plugin calls it.
Cost: O((k + n) log capacity) for n draws, k rows written or observed since the last one; one pass over the notes
after a resize, a resumption, or 256 writes without a draw.
Law: one draw gives row i with probability P(i) = (p_i + epsilon)^alpha / Σ (p + epsilon)^alpha, where p_i is the
loss that the row had when it was last replayed. Without replacement: successive sampling with these weights.
Departures:
- A row that was never replayed has the largest priority among the stored rows that were, at the time of the first
  draw that it takes part in (1 if there is none); in the paper it is the largest one of all time.
- Rows are drawn independently; the authors draw one from each of n equal parts of the total.
- Nothing is computed of rows that are not replayed, so a priority may be old.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from replaykit.retrieval.segment_tree import FloatArray, SegmentTree
from replaykit.store import Batch, IntArray, Store

_PRIORITY = "priority"
_BOUNDS = (1e-280, 1e280)  # of weights, whatever the exponent
IMPORTANCE = "importance"


class Prioritised:
    """Rows in proportion to (last loss + epsilon)^alpha.

    Args:
        alpha: 0 is uniform, 1 proportional to the loss.
        beta: adds a column ``importance`` to drawn batches, (rows · P(i))^-beta divided by the largest of the
            batch: the weights with which a loss (`WeightedCrossEntropy`, which divides by their sum) compensates
            for the choice, fully at 1. None: no such column.
        epsilon: what a row of loss 0 has as its priority.
        replace: draw with replacement.

    Published: alpha 0.6, beta from 0.4 to 1, for reinforcement learning.
    """

    def __init__(
        self, alpha: float = 0.6, *, beta: float | None = None, epsilon: float = 1e-6, replace: bool = False
    ) -> None:
        for name, value in (("alpha", alpha), ("beta", beta or 0.0)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is an exponent, a finite number >= 0, got {value}")
        if not (math.isfinite(epsilon) and epsilon > 0):
            raise ValueError(f"epsilon is a priority, a finite number > 0, got {epsilon}")
        self.alpha, self.beta, self.epsilon, self.replace = alpha, beta, epsilon, replace
        self._forget()

    @property
    def gives(self) -> tuple[str, ...]:
        """Columns that it adds to a batch."""
        return () if self.beta is None else (IMPORTANCE,)

    def rows(self, store: Store, n: int, rng: np.random.Generator) -> IntArray:
        tree = self._followed(store)
        if self.replace:
            return tree.find(rng.random(n))
        if n >= len(store):
            return np.array(store.filled)
        return _distinct(tree, n, rng)

    def observe(self, store: Store, slots: IntArray, losses: FloatArray) -> None:
        """The last losses [k] of replayed rows become their priorities.

        Raises:
            ValueError: a negative loss.
        """
        if losses.min() < 0:
            raise ValueError(f"priorities are losses >= 0, got {losses.min()}; use another loss for the rows")
        store.note(_PRIORITY, math.inf)[slots] = losses
        store.touch(slots)

    def beside(self, store: Store, slots: IntArray) -> Batch:
        if self.beta is None:
            return {}
        chances = self._followed(store)[slots]
        # The number of rows and the total weight cancel.
        return {IMPORTANCE: torch.from_numpy((chances.min() / chances) ** self.beta).float()}

    # -- the trees --------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes its own trees."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self) -> None:
        self._notes: FloatArray | None = None
        self._mark = -1
        self._weights = self._largest = SegmentTree(np.zeros(1))

    def _followed(self, store: Store) -> SegmentTree:
        """The tree of weights for the store as it is now."""
        notes = store.note(_PRIORITY, math.inf)
        self._mark, changed = store.touched(self._mark if notes is self._notes else -1)
        self._notes = notes
        whole = changed is None
        slots = np.arange(store.capacity) if changed is None else np.unique(changed)
        if not len(slots):
            return self._weights
        filled, unknown = store.is_filled(slots), np.isinf(notes[slots])
        # First without the rows that were never replayed: they take their priority from the others.
        known = np.where(filled & ~unknown, notes[slots], -1.0)
        if whole:
            self._weights = SegmentTree(self._weight(known))
            self._largest = SegmentTree(np.maximum(known, 0), np.maximum)
        else:
            self._weights.update(slots, self._weight(known))
            self._largest.update(slots, np.maximum(known, 0))
        new = slots[filled & unknown]
        if len(new):
            notes[new] = self._largest.root if self._weights.root > 0 else 1.0
            self._weights.update(new, self._weight(notes[new]))
            self._largest.update(new, notes[new])
        return self._weights

    def _weight(self, priorities: FloatArray) -> FloatArray:
        """Weights [k] of priorities [k], 0 for -1: no row."""
        with np.errstate(over="ignore"):
            weights = (np.maximum(priorities, 0) + self.epsilon) ** self.alpha
        bounded: FloatArray = np.where(priorities < 0, 0.0, np.clip(weights, *_BOUNDS))
        return bounded


def _distinct(tree: SegmentTree, n: int, rng: np.random.Generator) -> IntArray:
    """`n` distinct places: the first distinct ones of a sequence of independent draws.

    Where a few weights outdo the others the sequence would be long: places that are taken leave the tree
    meanwhile.
    """
    taken = _first_distinct(tree.find(rng.random(n)))
    if len(taken) == n:
        return taken
    weights: list[FloatArray] = []
    part, parts = taken, [taken]
    while True:
        weights.append(tree[part])
        tree.update(part, np.zeros(len(part)))
        missing = n - sum(map(len, parts))
        if not missing:
            break
        part = _first_distinct(tree.find(rng.random(missing)))
        parts.append(part)
    slots = np.concatenate(parts)
    tree.update(slots, np.concatenate(weights))
    return slots


def _first_distinct(drawn: IntArray) -> IntArray:
    return np.fromiter(dict.fromkeys(drawn.tolist()), np.int64)
