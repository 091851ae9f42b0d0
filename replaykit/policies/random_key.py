"""Reservoir sampling by random keys: the uniform sample that can be merged.

Source: the random-sort form of reservoir sampling (Efraimidis and Spirakis, Weighted Random Sampling with a
Reservoir, IPL 2006, with equal weights); Avalanche's ReservoirSamplingBuffer is one.
Keeps: the smallest keys on the host, recomputed from the column when needed. Columns written: ``key``, float64.
Probe: none.
Cost per add of B rows: O(B) draws, O(log capacity) for each row that enters; one pass over the keys in
capacity / 16 entries.
Law: every row has an independent uniform key and the rows with the largest keys are stored, so that after n rows
all subsets of `capacity` rows are equally likely. Sorted by key, the stored rows are in uniform random order.
Departures:
- float64 keys. float32 keys lie on a grid of 2^-24: ties come up after some 10^7 rows and favour early ones.
- Shrinking drops the smallest keys, which is exact. Growing is refused unless nothing was dropped yet;
  ``grow="naive"`` stores every row until the new slots are taken, as Avalanche does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from replaykit.plan import row_count
from replaykit.policies.largest_keys import KEY, LargestKeys, largest, stored_keys
from replaykit.store import Batch

if TYPE_CHECKING:
    from replaykit.buffer import Buffer


class RandomKeyReservoir(LargestKeys):
    """Every row offered so far is stored with probability capacity / seen; `merge` joins two such memories."""

    def draw(self, arrivals: Batch, rng: np.random.Generator) -> NDArray[np.float64]:
        return rng.random(row_count(arrivals))


def merge(into: Buffer, other: Buffer) -> int:
    """Make `into` the memory of both streams; returns how many rows of `other` it took.

    The streams must be disjoint and the memories drawn with different seeds: then `into` is what one memory that
    saw both streams would be. `other` is not changed. O(capacity).

    Raises:
        TypeError: a buffer with another policy.
        ValueError: columns that differ, columns with rows of different widths, memories with the same keys, or one
            that dropped rows which the merged memory might need. Nothing has changed then.
    """
    for buffer in (into, other):
        if not isinstance(buffer.policy, RandomKeyReservoir):
            raise TypeError(f"merge joins memories of RandomKeyReservoir, got {buffer!r}")
        if buffer.seen > len(buffer) < into.capacity:
            raise ValueError(
                f"{buffer!r} dropped rows that belong to a sample of {into.capacity}; resize({len(buffer)}) "
                "the memory that takes them first"
            )
        if buffer.store.widths:
            raise ValueError(f"columns {sorted(buffer.store.widths)} hold rows of different widths, cannot merge")
    if len(other) == 0:
        return 0
    if len(into) and into.store.columns.keys() != other.store.columns.keys():
        raise ValueError(
            f"the memories have columns {sorted(into.store.columns)} and {sorted(other.store.columns)}, "
            "only equal ones can merge"
        )
    mine, theirs = stored_keys(into.store), stored_keys(other.store)
    if len(np.intersect1d(mine, theirs)):
        raise ValueError("the two memories share keys: give Buffer(seed=...) a different seed for each stream")
    kept = largest(np.concatenate([mine, theirs]), into.capacity)
    rows = kept[kept >= len(mine)] - len(mine)
    batch = other.read(other.store.filled[rows], [name for name in other.store.columns if name != KEY])
    into.store.check(batch)
    leaving = np.setdiff1d(np.arange(len(mine)), kept)
    slots = np.concatenate([into.store.filled[leaving], into.store.free(len(rows) - len(leaving))])
    into.store.write(slots, batch, beside={KEY: torch.from_numpy(theirs[rows])})
    into.store.seen += other.seen
    return len(rows)
