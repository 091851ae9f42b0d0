"""Merge-reduce: a coreset of an endless stream in a fixed number of slots.

A slot holds a coreset of size / slots rows and counts the batches that it stands for. Every new batch is
reduced to a slot of its own; when there is one slot too many, two neighbours are merged and reduced again.
The counts grow like those of a binary counter, so a row is re-selected O(log batches) times.

Source: Borsos, Mutny and Krause, Coresets via Bilevel Optimization, NeurIPS 2020, and the
released `cl_streaming`. In a merge each row counts as many times in the outer loss as its slot has batches
(otherwise the newest rows take over); the published runs also replay it with that weight.
Works on row numbers: the rows themselves stay where they are. At most `size` rows are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from replaykit.selectors.pool import Pool, Selector


class Slot(NamedTuple):
    """Rows [s] of a pool in selection order, their weights [s] of mean 1, and the batches they stand for."""

    rows: Tensor
    weights: Tensor
    batches: int


def merge_reduce(
    slots: Sequence[Slot],
    arrivals: Tensor,
    pool: Pool,
    selector: Selector,
    size: int,
    count: int,
    rng: np.random.Generator,
) -> list[Slot]:
    """The slots after one more batch.

    Args:
        slots: at most `count`, oldest first; their rows are rows of `pool`.
        arrivals: rows [b] of `pool` that form the batch.
        pool: everything stored and everything that arrives. Its own weights are not used.
        size: rows kept over all slots.
        count: number of slots.

    Raises:
        ValueError: fewer rows than slots, or more slots given than `count`.
    """
    if not 1 <= count <= size:
        raise ValueError(f"merge_reduce: 1 <= slots <= size expected, got {count} slots for {size} rows")
    if len(slots) > count:
        raise ValueError(f"merge_reduce: {len(slots)} slots given, {count} allowed; merge them first")
    ones = torch.ones(len(arrivals), dtype=torch.float64)
    new = [*slots, _reduced(arrivals, ones, 1, pool, selector, size // count, rng)]
    first = merge_position([slot.batches for slot in new], count)
    if first is None:
        return new
    old = new[first : first + 2]
    rows = torch.cat([slot.rows for slot in old])
    stands_for = torch.tensor([float(slot.batches) for slot in old for _ in slot.rows], dtype=torch.float64)
    batches = sum(slot.batches for slot in old)
    new[first : first + 2] = [_reduced(rows, stands_for, batches, pool, selector, size // count, rng)]
    return new


def merge_position(batches: Sequence[int], count: int) -> int | None:
    """i if slots i and i + 1 are to be merged; None while there are no more than `count`."""
    if len(batches) <= count:
        return None
    last = len(batches) - 2
    if count == 1 or batches[-2] < batches[-3]:
        return last
    equal = [i for i in range(last + 1) if batches[i] == batches[i + 1]]
    return min(equal, key=lambda i: batches[i], default=last)


def _reduced(
    rows: Tensor, weight: Tensor, batches: int, pool: Pool, selector: Selector, k: int, rng: np.random.Generator
) -> Slot:
    part = pool.subset(rows)
    part.weight = weight
    chosen, weights = selector.select(part, k, rng)
    return Slot(rows.index_select(0, chosen.to(rows.device)), weights, batches)
