"""LABRS: a reservoir that evicts by loss and by the size of the class at once.

Source: Buzzega, Boschini, Porrello, Calderara, Rethinking Experience Replay: a Bag of Tricks for Continual
Learning, ICPR 2020, loss-aware balanced reservoir sampling.
Keeps: the count `store.seen`. Columns written: ``loss`` (float32) when a probe makes it; otherwise it comes with
the arrivals. Probe: none, or the losses of arrivals that have no such column.
Cost per add of B rows: O(B), and O(capacity) for each row that is accepted into a full memory.
Law: a row is accepted with probability capacity / seen. It then replaces row i with probability in proportion to
u_i - min u, uniformly when all are equal, where s = -L (``keep="high"``) or L (``keep="low"``) of the last known
losses L, b_i counts the stored rows with the label of i, and

    ``scaling="product"``   u = s / (2 · mean |s| · mean b) + b / 2   (the authors' code and the published numbers)
    ``scaling="ratio"``     u = s · Σ b / Σ |s| + b                   (the paper's text)

Departures:
- One draw a row decides acceptance and, rescaled, the victim.
- Losses are those of the training step: of the training view, from the weights before the update. Where all are
  0, the class sizes decide alone.
- `resize`: shrinking evicts rows by the same law, one after the other; growing (``grow="naive"``) appends until
  the new slots are taken.
- ``compat="mammoth"`` accepts with probability capacity / (seen - 1), as that framework and the authors' code do:
  the first row after the fill always enters.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from replaykit.policies.evict_by_loss import Compat, EvictByLoss, FloatArray, Keep, above_least
from replaykit.policies.loss_aware import checked_keep, evictable
from replaykit.store import IntArray


class LABRS(EvictByLoss):
    """Loss-aware balanced reservoir sampling.

    Args:
        keep: which losses stay: ``"high"``, hard rows, as published; ``"low"``, easy ones.
        scaling: how losses and class sizes are made comparable.
        column: integer column with the class of a row.
        compat: ``"mammoth"`` for the acceptance of that framework and of the authors' code.
    """

    def __init__(
        self,
        keep: Keep = "high",
        *,
        scaling: Literal["product", "ratio"] = "product",
        column: str = "y",
        compat: Compat | None = None,
    ) -> None:
        if scaling not in ("product", "ratio"):
            raise ValueError(f"scaling is 'product' or 'ratio', got {scaling!r}")
        self.groups = (column,)
        super().__init__(compat)
        self.keep, self.scaling, self.column = checked_keep(keep), scaling, column

    def weights(self, losses: FloatArray, groups: list[IntArray], entering: list[int] | None) -> FloatArray:
        _, label, count = np.unique(groups[0], return_inverse=True, return_counts=True)
        b = count[label].astype(np.float64)
        s = evictable(losses, self.keep)
        size = float(np.abs(s).mean())
        if size == 0:
            return above_least(b)
        if self.scaling == "product":
            return above_least(s / (2 * size * b.mean()) + b / 2)
        return above_least(s * (b.mean() / size) + b)
