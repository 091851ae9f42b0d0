"""Stored rows and arrivals as one batch, for policies that compare them under a model."""

from __future__ import annotations

import torch

from replaykit.store import Batch, IntArray, Store


def joined(store: Store, slots: IntArray, arrivals: Batch) -> Batch:
    """The rows of `slots` [k, ...], then the arrivals [n, ...], on the devices of the arrivals.

    Only columns that both have, with rows of one shape; without slots the arrivals themselves.
    """
    if len(slots) == 0:
        return arrivals
    names = [
        name
        for name, rows in arrivals.items()
        if name in store.columns and store.columns[name].row == rows.shape[1:]
    ]
    held = store.read(slots, names)
    return {name: torch.cat((held[name].to(arrivals[name].device), arrivals[name].detach())) for name in names}
