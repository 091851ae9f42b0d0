"""iCaRL's exemplars: each class is herded once, and later cut to the beginning of its order.

Source: Rebuffi, Kolesnikov, Sperl and Lampert, iCaRL: Incremental Classifier and Representation Learning, CVPR
2017, algorithms 4 and 5 (Welling 2009 for the order, see `replaykit.selectors.herding`).
Keeps: of c classes capacity // c rows each, the first of their herding order. Columns written: ``rank``, int64,
the place of a row in the order of its class.
Probe: features of the arrivals, scaled to length 1; those of stored rows are never asked for.
Cost per add of B rows: features of the arrivals, O(B d capacity / c) to herd; O(capacity).
Law: deterministic.
Departures:
- Rows of a class that is stored already only fill the places that the class has free, herded among themselves (the
  paper has every class once).
- `resize` cuts the classes further; growing (``grow="naive"``) cannot bring rows back, classes to come have more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from replaykit import selectors
from replaykit.plan import Plan, Policy, check_growth, labels
from replaykit.policies.coreset import RANK, check_own_columns, pool_of
from replaykit.policies.keeping import keeping
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe


class ICaRLHerding(Policy):
    """Herded exemplars of every class, cut to prefixes as classes come.

    Args:
        quantity: ``"features"``, or ``"x"`` to herd the inputs themselves.
        normalise: scale every vector to length 1 first, as iCaRL does.

    Raises:
        ValueError: on `add`, more classes than slots.

    Example:
        >>> import torch
        >>> from replaykit import Buffer, policies
        >>> memory = Buffer(4, policies.ICaRLHerding("x", normalise=False))
        >>> memory.add({"x": torch.tensor([[0.0], [1.0], [2.0], [6.0]]), "y": torch.zeros(4, dtype=torch.int64)})
        4
        >>> memory.add({"x": torch.tensor([[5.0], [7.0], [9.0]]), "y": torch.ones(3, dtype=torch.int64)})
        2
        >>> memory["x"].flatten().tolist(), memory["rank"].tolist()
        ([1.0, 2.0, 7.0, 5.0], [1, 0, 0, 1])
    """

    per_task = True
    columns = ("y",)
    writes = (RANK,)

    def __init__(self, quantity: str = "features", normalise: bool = True) -> None:
        if quantity not in ("features", "x"):
            raise ValueError(f"quantity is 'features' or 'x', got {quantity!r}")
        self.selector = selectors.Herding(quantity, normalise)
        self.needs = () if quantity == "x" else (quantity,)
        self.prefers = () if quantity == "features" else (quantity,)

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        y = labels(arrivals)
        check_own_columns(arrivals, {RANK})
        held = np.sort(store.filled)
        stored, rank = _column(store, "y", held), _column(store, RANK, held)
        share = _share(store.capacity, np.union1d(stored, y))
        pool = pool_of(arrivals, torch.ones(len(y), dtype=torch.float64), 0, probe)
        stays = np.flatnonzero(rank < share)
        rows, ranks = [stays], [rank[stays]]
        for label in np.unique(y).tolist():
            taken = min(int((stored == label).sum()), share)
            members = np.flatnonzero(y == label)
            try:
                chosen, _ = self.selector.select(pool.subset(torch.from_numpy(members)), share - taken, rng)
            except ValueError as error:
                raise ValueError(f"{error} (class {label})") from error
            rows.append(len(held) + members[chosen.cpu().numpy()])
            ranks.append(taken + np.arange(len(chosen)))
        return keeping(store, held, np.concatenate(rows), {RANK: torch.from_numpy(np.concatenate(ranks))})

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        check_growth(store, capacity, grow)
        held = np.sort(store.filled)
        if len(held) == 0:
            return held
        return held[_column(store, RANK, held) < _share(capacity, np.unique(_column(store, "y", held)))]


def _share(capacity: int, classes: IntArray) -> int:
    if len(classes) > capacity:
        raise ValueError(
            f"{len(classes)} classes need at least as many slots, the memory has {capacity}; make it larger"
        )
    return capacity // max(len(classes), 1)


def _column(store: Store, name: str, held: IntArray) -> IntArray:
    if len(held) == 0:
        return held
    column: IntArray = store.host(name)[held].astype(np.int64)
    return column
