"""The rows of an experience as batches of columns, without a training loader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from replaykit.avalanche.dataset import Kept, NotTensors, column_names, tensor_rows
from replaykit.loader import reader
from replaykit.store import Batch


def experience_batches(dataset: Any, chunk: int | None, kept: Kept) -> Iterator[Batch]:
    """All rows of a data set in order, `chunk` at a time (default: one batch), as columns x, y, ...

    Samples pass through the evaluation transforms: what is stored must not be one random view for ever.
    """
    dataset = dataset.eval()
    if len(dataset) == 0:
        return
    size = chunk or len(dataset)
    try:
        data = tensor_rows(dataset, kept)
    except NotTensors:
        yield from _collated(dataset, size)
        return
    names, read = column_names(dataset, len(data.columns)), reader(data.columns)
    rows = np.arange(len(data)) if data.rows is None else data.rows
    for start in range(0, len(rows), size):
        yield dict(zip(names, read(rows[start : start + size]), strict=True))


def _collated(dataset: Any, size: int) -> Iterator[Batch]:
    # A generator of its own, because an iterator of DataLoader draws a seed.
    loader = DataLoader(dataset, size, collate_fn=dataset.collate_fn, generator=torch.Generator())
    for mbatch in loader:
        yield dict(zip(column_names(dataset, len(mbatch)), mbatch, strict=True))
