"""Rows of a batch: how many, which ones, and which of them go together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from replaykit.store import Batch, IntArray, describe


def only_x(batch: Batch) -> Tensor:
    """The column ``x``, as the model's input."""
    if "x" not in batch:
        raise ValueError(f"the batch has no column 'x', only {sorted(batch)}; give inputs=")
    if batch["x"].dtype == torch.uint8:
        raise ValueError(
            "column 'x' holds uint8: give inputs= (a Probe: prepare=), a function that makes the model's input "
            "of it, with the normalisation that the model is trained with"
        )
    return batch["x"]


def row_count(batch: Batch) -> int:
    """Number of rows; raises `ValueError` if the columns disagree."""
    lengths = {value.shape[0] if isinstance(value, Tensor) and value.ndim else -1 for value in batch.values()}
    if len(lengths) != 1 or -1 in lengths:
        raise ValueError(f"a batch is a dict of tensors of equal first dimension, got {describe(batch)}")
    return lengths.pop()


def take(batch: Batch, rows: Tensor) -> Batch:
    return {name: value.index_select(0, rows.to(value.device)) for name, value in batch.items()}


def moved(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device, in tensors that autograd may save whatever mode they were made in."""
    with torch.inference_mode(False):
        return {name: value.to(device, copy=value.is_inference()) for name, value in batch.items()}


def together(n: int, groups: Tensor | None) -> list[Tensor]:
    """Numbers of the n rows, split into those that may share a pass through the model.

    Raises:
        ValueError: not one group number a row.
    """
    if groups is None:
        return [torch.arange(n)] if n else []
    if groups.shape != (n,):
        raise ValueError(f"groups need one number a row, shape [{n}], got {list(groups.shape)}")
    labels = groups.cpu().numpy()
    return [torch.from_numpy(np.flatnonzero(labels == label)) for label in np.unique(labels)]


def row_numbers(index: Tensor | IntArray | Sequence[int], n: int) -> Tensor:
    """Row numbers int64 on the host, of numbers or a bool mask."""
    numbers = torch.as_tensor(np.asarray(index.cpu() if isinstance(index, Tensor) else index))
    if numbers.dtype == torch.bool:
        if numbers.shape != (n,):
            raise ValueError(f"a mask of rows has shape [{n}], got {list(numbers.shape)}")
        return numbers.nonzero().flatten()
    numbers = numbers.long()
    if numbers.numel() and (int(numbers.min()) < 0 or int(numbers.max()) >= n):
        raise IndexError(f"row numbers must be in [0, {n}), got {numbers.tolist()}")
    return numbers


def run_of(rows: Tensor) -> slice | None:
    """Row numbers as a slice, if they are consecutive: reading and writing a run needs no numbers."""
    if not len(rows):
        return slice(0, 0)
    first = int(rows[0])
    whole = torch.arange(first, first + len(rows), device=rows.device)
    return slice(first, first + len(rows)) if torch.equal(rows, whole) else None


def cut(rows: Tensor, step: int) -> list[Tensor]:
    """Row numbers in chunks of at most `step`."""
    return [rows[start : start + step] for start in range(0, len(rows), step)]


def columns(batch: Batch) -> tuple[tuple[str, torch.Size, torch.dtype], ...]:
    """The form of one row of a batch."""
    return tuple((name, value.shape[1:], value.dtype) for name, value in batch.items())
