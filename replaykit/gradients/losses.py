"""Losses that return one value a row: functions (outputs, batch) -> [n].

Row i may depend on output i and batch row i only. Any such function serves; these are the usual ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from replaykit.store import WIDTH, Batch

RowLoss: TypeAlias = Callable[[Tensor, Batch], Tensor]


def cross_entropy(column: str = "y", label_smoothing: float = 0.0, mask: Tensor | str | None = None) -> RowLoss:
    """Cross-entropy of logits [n, C] with the integer labels of a column.

    Args:
        mask: bool [C], or the name of a column that holds bool [n, C]: logits where it is False take no part
            (each row under the head of its own task).
    """

    def rows(outputs: Tensor, batch: Batch) -> Tensor:
        if mask is not None:
            kept = batch[mask] if isinstance(mask, str) else mask.to(outputs.device)
            outputs = outputs.masked_fill(~kept, -1e4)
        return F.cross_entropy(outputs, batch[column].long(), reduction="none", label_smoothing=label_smoothing)

    return rows


def squared_error(column: str = "logits", mask_value: float | None = -1000.0) -> RowLoss:
    """Mean over the C outputs of the squared difference to stored logits [n, C] (DER's distillation).

    A model whose head has grown since is compared on the classes that were stored; rows that were stored
    without logits (``logits_width`` 0) have loss 0. Outputs of a head that is narrower than the widest one stored
    are filled up with zeros.

    Args:
        mask_value: a stored logit of this value marks a unit that was switched off, and so not stored (Avalanche's
            `IncrementalClassifier` writes -1000); None if the model has no such units.
    """

    def rows(outputs: Tensor, batch: Batch) -> Tensor:
        stored, width = batch[column], batch.get(column + WIDTH)
        c = stored.shape[1]
        outputs = F.pad(outputs, (0, max(0, c - outputs.shape[1])))[:, :c]
        squares = (outputs - stored.to(outputs.dtype)).square()
        valid = torch.ones_like(stored, dtype=torch.bool) if mask_value is None else stored != mask_value
        if width is not None:
            valid = valid & (torch.arange(c, device=stored.device) < width[:, None])
        return squares.where(valid, 0.0).sum(1) / valid.sum(1).clamp(min=1)

    return rows


def weighted(*terms: tuple[float, RowLoss]) -> RowLoss:
    """Sum of row losses with coefficients: ``weighted((0.2, squared_error()), (0.5, cross_entropy()))``."""

    def rows(outputs: Tensor, batch: Batch) -> Tensor:
        coefficient, loss = terms[0]
        total = coefficient * loss(outputs, batch)
        for coefficient, loss in terms[1:]:
            total = total + coefficient * loss(outputs, batch)
        return total

    return rows
