"""A choice among stored rows and arrivals, numbered together, as the plan that carries it out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from replaykit.plan import Plan
from replaykit.store import Batch, IntArray, Store


def keeping(
    store: Store,
    held: IntArray,
    chosen: IntArray,
    columns: Batch,
    arrivals: IntArray | None = None,
) -> Plan:
    """The plan after which the memory holds the chosen rows, with these columns, and none of the others.

    Rows that stay keep their slots; those that enter fill the lowest slots that are free then.

    Args:
        held: all filled slots [h]; row i < h is the stored row of slot ``held[i]``.
        chosen: the rows to keep [k], distinct; row h + j is an arrival.
        columns: one row for each chosen row, written beside those that enter and revised in those that stay.
        arrivals: which rows of the batch the rows h, h + 1, ... are; by default 0, 1, ...
    """
    new = chosen >= len(held)
    entering, staying = np.flatnonzero(new), np.flatnonzero(~new)
    source = chosen[entering] - len(held)
    gone = np.delete(held, chosen[staying])
    free = np.sort(np.concatenate([gone, store.free(len(source))]))
    return Plan(
        source=source if arrivals is None else arrivals[source],
        slot=free[: len(source)],
        columns=_rows(columns, entering),
        release=gone if len(gone) else None,
        revise=(held[chosen[staying]], _rows(columns, staying)) if len(staying) and columns else None,
        distinct=True,
    )


def _rows(columns: Batch, index: IntArray) -> dict[str, Tensor]:
    rows = torch.from_numpy(index)
    return {name: column[rows] for name, column in columns.items()}
