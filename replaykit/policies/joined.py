"""Stored rows and arrivals as one batch, for policies that compare them under a model."""

from __future__ import annotations

import torch
from torch import Tensor

from replaykit.store import WIDTH, Batch, IntArray, Store


def joined(store: Store, slots: IntArray, arrivals: Batch) -> Batch:
    """The rows of `slots` [k, ...], then the arrivals [n, ...], on the devices of the arrivals.

    Only columns that both have, with rows of one shape; without slots the arrivals themselves. A column that may
    grow (logits of a head that gained classes) is filled up with zeros where rows are narrower, or were stored
    without it, and ``<name>_width`` then says how much of a row is valid.
    """
    if len(slots) == 0:
        return arrivals
    names = [
        name
        for name, rows in arrivals.items()
        if name in store.columns and (store.columns[name].row == rows.shape[1:] or _grows(store, name, rows))
    ]
    held = store.read(slots, names)
    batch: Batch = {}
    for name, rows in arrivals.items():
        if _grows(store, name, rows):
            batch |= _padded(name, held, rows.detach(), len(slots))
        elif name in names:
            batch[name] = torch.cat((held[name].to(rows.device), rows.detach()))
    return batch


def _grows(store: Store, name: str, rows: Tensor) -> bool:
    return name in store.growing and rows.ndim > 1


def _padded(name: str, held: Batch, new: Tensor, k: int) -> Batch:
    """A column of k stored rows and of new ones [n, w, ...], with the widths of rows if they are not all alike."""
    old = held[name].to(new.device) if name in held else new.new_zeros(k, 0, *new.shape[2:])
    if name + WIDTH not in held and old.shape[1] == new.shape[1]:
        return {name: torch.cat((old, new))}
    widest = max(old.shape[1], new.shape[1])
    width = held.get(name + WIDTH, torch.full((k,), old.shape[1])).to(new.device)
    return {
        name: torch.cat((_widened(old, widest), _widened(new, widest))),
        name + WIDTH: torch.cat((width, width.new_full((len(new),), new.shape[1]))),
    }


def _widened(rows: Tensor, width: int) -> Tensor:
    """Rows [n, w, ...] filled up with zeros to [n, width, ...]."""
    return torch.cat((rows, rows.new_zeros(len(rows), width - rows.shape[1], *rows.shape[2:])), 1)
