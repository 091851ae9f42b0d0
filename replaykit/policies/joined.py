"""Rows of several batches, or of the memory and the arrivals, as one batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from replaykit.plan import row_count
from replaykit.store import WIDTH, Batch, IntArray, Store


def joined(store: Store, slots: IntArray, arrivals: Batch) -> Batch:
    """The rows of `slots` [k, ...], then the arrivals [n, ...], on the devices of the arrivals.

    Only columns that both have, with rows of one shape, and those that may grow (see `together`); without slots
    the arrivals themselves.
    """
    if len(slots) == 0:
        return arrivals
    growing = [name for name, rows in arrivals.items() if name in store.growing and rows.ndim > 1]
    names = [
        name
        for name, rows in arrivals.items()
        if name in store.columns and (store.columns[name].row == rows.shape[1:] or name in growing)
    ]
    return together([store.read(slots, names), {name: rows.detach() for name, rows in arrivals.items()}], growing)


def together(parts: Sequence[Batch], growing: Collection[str]) -> Batch:
    """The rows of all parts, one after the other, of the columns that all have, on the devices of the last part.

    Args:
        growing: columns [n, w, ...] that may differ in w (logits of a head that gained classes), or be missing.
            They are filled up with zeros, and ``<name>_width`` then says how much of a row is valid.
    """
    batch: Batch = {}
    for name, rows in {name: rows for part in parts for name, rows in part.items()}.items():
        if name in growing:
            batch |= _padded(name, parts, rows)
        elif name.removesuffix(WIDTH) not in growing and all(name in part for part in parts):
            batch[name] = torch.cat([part[name].to(rows.device) for part in parts])
    return batch


def _padded(name: str, parts: Sequence[Batch], like: Tensor) -> Batch:
    """A column that grows, and the widths of its rows if they are not all alike."""
    columns = [
        part[name].to(like.device) if name in part else like.new_zeros(row_count(part), 0, *like.shape[2:])
        for part in parts
    ]
    widths = [column.shape[1] for column in columns]
    if len(set(widths)) == 1 and not any(name + WIDTH in part for part in parts):
        return {name: torch.cat(columns)}
    held = [
        part.get(name + WIDTH, torch.full((row_count(part),), w)) for part, w in zip(parts, widths, strict=True)
    ]
    return {
        name: torch.cat([_widened(column, max(widths)) for column in columns]),
        name + WIDTH: torch.cat([width.to(like.device) for width in held]),
    }


def _widened(rows: Tensor, width: int) -> Tensor:
    """Rows [n, w, ...] filled up with zeros to [n, width, ...]."""
    return torch.cat((rows, rows.new_zeros(len(rows), width - rows.shape[1], *rows.shape[2:])), 1)
