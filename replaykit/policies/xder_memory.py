"""The memory of X-DER: written at the end of every task, random rows, an equal share for each class.

Source: Boschini et al., Class-Incremental Continual Learning into the eXtended DER-verse, TPAMI 2022, as in the
authors' code. Its logits are made by `replaykit.strategies.XDER`; the policy is good for any update at the end of
an experience.
Keeps: nothing. Columns written: none. Probe: not needed.
Cost per add of n rows: O(n log n + capacity) time.
Law: with C classes met so far, each stored class keeps its first ⌊capacity / C⌋ rows in the order of slots. The
classes of the arrivals divide all other slots equally; what is left over goes to classes drawn at random, one slot
each. Rows of a class are a uniform sample without replacement of those offered and lie in random order, so the
survivors of later tasks are uniform too. Slots that a class cannot fill stay empty until the next task.
Departures:
- A class that comes again keeps its rows, up to its new quota; arrivals fill it up. (The authors' code has no such
  class.)
- The rows of a class are drawn from all arrivals, not taken from the first batches of a pass in random order.
- `resize`: every class keeps its first ⌊capacity / C⌋ rows, spare slots go to the lowest labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from replaykit.draws import distinct
from replaykit.plan import Plan, Policy, check_growth, labels
from replaykit.selectors.quotas import equal, largest_remainder
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe


class XDERMemory(Policy):
    """Every class keeps a share of random rows; those of the last task keep what the others leave.

    Raises:
        ValueError: on `add`, labels that are not integers >= 0, or more classes than slots.

    Example:
        >>> import torch
        >>> from replaykit import Buffer, policies
        >>> memory = Buffer(10, policies.XDERMemory())
        >>> for task in range(2):
        ...     stayed = memory.add({"y": torch.arange(100) % 2 + 2 * task})
        >>> torch.bincount(memory["y"]).tolist()
        [2, 2, 3, 3]
    """

    columns = ("y",)
    writes = ()
    per_task = True

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        y = labels(arrivals)
        slots, held = _stored(store)
        new = np.unique(y)
        known = len(np.union1d(new, held))
        share = check_slots(store.capacity, known)
        returning = np.isin(held, new)
        stays = ~returning & (rank_in_group(held) < share)
        quota = _shared(store.capacity - int(stays.sum()), len(new), rng)
        # Rows of a class that comes again are in line before its arrivals.
        stays |= returning & (rank_in_group(held) < quota[np.searchsorted(new, held) % len(new)])
        room = quota - np.bincount(np.searchsorted(new, held[stays & returning]), minlength=len(new))
        order = rng.permutation(len(y))
        group = np.searchsorted(new, y[order])
        source = order[rank_in_group(group) < room[group]]
        left = slots[~stays]
        slot = np.sort(np.concatenate([left, store.free(len(source))]))[: len(source)]
        release = np.setdiff1d(left, slot)
        return Plan(source, slot, release=release if len(release) else None, distinct=True)

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        check_growth(store, capacity, grow)
        if len(store) == 0:
            return store.filled
        slots, held = _stored(store)
        _, group, count = np.unique(held, return_inverse=True, return_counts=True)
        check_slots(capacity, len(count))
        return slots[rank_in_group(held) < largest_remainder(capacity, equal(count), count)[group]]


def check_slots(capacity: int, classes: int) -> int:
    """Slots of a class, or `ValueError` when there is not one for each."""
    if classes > capacity:
        raise ValueError(f"{classes} classes share {capacity} slots; make a memory of at least {classes} slots")
    return capacity // classes


def rank_in_group(groups: IntArray) -> IntArray:
    """Place of every row among the rows of its group, from 0 [n]."""
    order = np.argsort(groups, kind="stable")
    count = np.unique(groups, return_counts=True)[1]
    rank = np.empty(len(groups), np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(np.cumsum(count) - count, count)
    return rank


def _shared(slots: int, classes: int, rng: np.random.Generator) -> IntArray:
    """Slots of each class [c], as equal as can be, the larger shares drawn at random."""
    each, spare = divmod(slots, classes)
    quota: IntArray = np.full(classes, each, np.int64)
    quota[distinct(classes, spare, rng)] += 1
    return quota


def _stored(store: Store) -> tuple[IntArray, IntArray]:
    """Filled slots in ascending order, and their labels."""
    slots = np.sort(store.filled)
    if len(slots) == 0:
        return slots, np.empty(0, np.int64)
    return slots, store.host("y")[slots].astype(np.int64)
