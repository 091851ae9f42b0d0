"""Loaders that slice batches out of whole tensors instead of collating samples one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from replaykit.store import IntArray

Columns: TypeAlias = Sequence[Tensor]
Batches: TypeAlias = Iterable[Sequence[int] | IntArray]


class SlicingLoader:
    """Batches given by their indices: the same as torch's `DataLoader` collates, without the samples.

    Every pass draws one number from `generator` before anything else, which is what an iterator of
    `DataLoader` does: a run that exchanges one loader for the other goes on with the same random numbers.

    Args:
        columns: tensors [n, ...]. A batch is a list with the chosen rows of each.
        batches: index lists of one pass, iterated anew for every pass; such as a `BatchSampler`.
        rows: the rows [m] of the columns that the indices count, for a subset; default: all.
        generator: of the number drawn; default: torch's global one.
    """

    def __init__(
        self,
        columns: Columns,
        batches: Batches,
        rows: IntArray | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.batches, self.rows, self.generator = batches, rows, generator
        self.read = reader(columns)

    def __len__(self) -> int:
        """Batches in a pass; `TypeError` when `batches` does not know."""
        return len(cast(Sized, self.batches))

    def __iter__(self) -> Iterator[list[Tensor]]:
        torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        for where in index_arrays(self.batches):
            yield self.read(where if self.rows is None else self.rows.take(where))


class ShuffledLoader:
    """Passes over whole tensors in an order that depends on nothing but the seed and the number of the epoch.

    One iteration is what is left of one epoch. The position, `epoch` and `batch`, counts the batches handed
    out; a loader built with the position of another hands out what that one would have handed out next.

    Args:
        columns: tensors [n, ...]. A batch is a list with some rows of each.
        batch_size: rows of a batch; the last one of an epoch may be shorter.
        seed: of the order.
        drop_last: leave out the last batch when it is short.
        start_epoch, start_batch: where to start, to resume in the middle of an epoch.

    Raises:
        ValueError: columns of different lengths, a batch size below 1, or a position that does not exist.
    """

    def __init__(
        self,
        columns: Columns,
        batch_size: int,
        seed: int,
        drop_last: bool = False,
        start_epoch: int = 0,
        start_batch: int = 0,
    ) -> None:
        self.read = reader(columns)
        if batch_size < 1:
            raise ValueError(f"batch_size is a number of rows >= 1, got {batch_size}")
        self.n, self.batch_size, self.seed, self.drop_last = len(columns[0]), batch_size, seed, drop_last
        if start_epoch < 0 or not 0 <= start_batch <= len(self):
            raise ValueError(
                f"an epoch has {len(self)} batches; there is no batch {start_batch} of epoch {start_epoch}"
            )
        self.epoch, self.batch = start_epoch, start_batch

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.n // self.batch_size if self.drop_last else -(-self.n // self.batch_size)

    def order(self, epoch: int) -> IntArray:
        """The permutation [n] of an epoch."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.n)

    def __iter__(self) -> Iterator[list[Tensor]]:
        order = self.order(self.epoch)
        while self.batch < len(self):
            start = self.batch * self.batch_size
            self.batch += 1
            yield self.read(order[start : start + self.batch_size])
        self.epoch, self.batch = self.epoch + 1, 0


def index_arrays(batches: Batches) -> Iterator[IntArray]:
    """The index lists of one pass as arrays."""
    sampler = getattr(batches, "sampler", None)
    if type(batches) is BatchSampler and (
        type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and sampler.generator is None)
    ):
        # These draw all their random numbers from a seed of their own, so that the order may be asked for at
        # once. Another sampler might draw from a generator that training uses in between.
        order = np.fromiter(sampler, np.int64, len(sampler))
        end = len(batches) * batches.batch_size
        for start in range(0, end, batches.batch_size):
            yield order[start : start + batches.batch_size]
        return
    for batch in batches:
        yield np.asarray(batch, dtype=np.int64)


def reader(columns: Columns) -> Callable[[IntArray], list[Tensor]]:
    """A function that copies rows [k] out of every column, to where the column lies.

    Raises:
        ValueError: no columns, or columns of different lengths.
    """
    lengths = [len(column) for column in columns]
    if len(set(lengths)) != 1:
        raise ValueError(f"columns must have the same number of rows, got {lengths}")
    if any(column.device.type != "cpu" for column in columns):
        return lambda rows: _select(columns, rows)
    try:
        arrays = [column.detach().numpy() for column in columns]
    except TypeError:  # a dtype that NumPy lacks
        return lambda rows: _select(columns, rows)
    # NumPy copies rows faster than torch does on the CPU.
    return lambda rows: [torch.from_numpy(array.take(rows, axis=0)) for array in arrays]


def _select(columns: Columns, rows: IntArray) -> list[Tensor]:
    where: dict[Any, Tensor] = {}
    for column in columns:
        if column.device not in where:
            where[column.device] = torch.from_numpy(rows).to(column.device, non_blocking=True)
    return [column.index_select(0, where[column.device]) for column in columns]
