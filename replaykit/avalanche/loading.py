"""Exchanging Avalanche's per-sample loader for one that slices tensors: same batches, same order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader, MultiDatasetSampler
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import default_collate

from replaykit.avalanche.dataset import Kept, NotTensors, TensorRows, tensor_rows
from replaykit.loader import Batches, SlicingLoader, index_arrays
from replaykit.store import IntArray

# A column up to this size moves to an accelerator whole and once; a larger one batch by batch.
MOVED_BYTES = 2 << 30


def sliced(loader: Any, device: torch.device, kept: Kept) -> SlicingLoader:
    """A loader of the same batches, drawing the same random numbers.

    Raises:
        NotTensors: the loader or its data set cannot be exchanged; the message says why.
    """
    batches: Batches
    if type(loader) is DataLoader:
        if loader.batch_sampler is None:
            raise NotTensors("the loader does not form batches")
        _check(loader.collate_fn, loader.persistent_workers)
        data, batches, generator = tensor_rows(loader.dataset, kept), loader.batch_sampler, loader.generator
    elif isinstance(loader, MultiDatasetDataLoader):
        options = loader.loader_kwargs
        _check(options.get("collate_fn", default_collate), options.get("persistent_workers", False))
        data = _joined([tensor_rows(dataset, kept) for dataset in loader.datasets])
        batches, generator = _Batches(loader), options.get("generator")
    else:
        raise NotTensors(f"the loader is a {type(loader).__name__}")
    columns = [_placed(column, device, kept) for column in data.columns]
    return SlicingLoader(columns, batches, data.rows, generator)


def _check(collate: Any, persistent: bool) -> None:
    if collate is not default_collate:
        raise NotTensors("the loader has its own collate function")
    if persistent:
        raise NotTensors("the loader keeps its workers, which draw their seed only once")


def _joined(parts: list[TensorRows]) -> TensorRows:
    if len(parts) == 1:
        return parts[0]
    columns = [part.gathered() for part in parts]
    kinds = {tuple((column.dtype, column.shape[1:]) for column in part) for part in columns}
    if len(kinds) > 1:
        raise NotTensors("the loader joins data sets of different columns")
    return TensorRows([torch.cat(column) for column in zip(*columns, strict=True)], None)


def _placed(column: Tensor, device: torch.device, kept: Kept) -> Tensor:
    if column.device == device or column.untyped_storage().nbytes() > MOVED_BYTES:
        return column
    if column.stride(0) == 0:
        return column[:1].to(device).expand_as(column)
    moved: Tensor = kept.get((column, device), lambda: column.to(device))
    return moved


class _Batches:
    """The index lists of a loader of several data sets, drawn for every pass as its own iterator does."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Sequence[int] | IntArray]:
        loader = self.loader
        samplers = loader._create_samplers(
            loader.datasets, loader.batch_sizes, loader.distributed_sampling, loader.loader_kwargs
        )
        if len(samplers) == 1 and not loader.never_ending:
            return index_arrays(samplers[0])
        return iter(
            MultiDatasetSampler(
                loader.datasets,
                samplers,
                termination_dataset_idx=loader.termination_dataset,
                oversample_small_datasets=loader.oversample_small_datasets,
                never_ending=loader.never_ending,
            )
        )
