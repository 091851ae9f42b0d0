"""Cross-entropy of replayed rows, plain or with the weights of a coreset."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from replaykit.losses.base import Draw, Model, coefficient, outputs


class CrossEntropy:
    """`weight` times the mean cross-entropy of one draw, over all outputs."""

    columns: tuple[str, ...] = ("x", "y")

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = coefficient("weight", weight)

    def __call__(self, model: Model, draw: Draw) -> Tensor:
        if self.weight == 0:
            return torch.zeros(())
        batch = draw()
        return self.weight * functional.cross_entropy(outputs(model, batch), batch["y"])


class WeightedCrossEntropy:
    """Cross-entropy of one draw with the weights that the memory holds: Σ wᵢ CEᵢ / Σ wᵢ.

    The weights are normalised within the draw, so only their ratios matter; when all are 0, so is the loss.

    Args:
        weight: coefficient of the term.
        column: the column of non-negative weights [n], as coreset methods write it.
    """

    def __init__(self, weight: float = 1.0, column: str = "weight") -> None:
        self.weight, self.column = coefficient("weight", weight), column
        self.columns: tuple[str, ...] = ("x", "y", column)

    def __call__(self, model: Model, draw: Draw) -> Tensor:
        if self.weight == 0:
            return torch.zeros(())
        batch = draw()
        losses = functional.cross_entropy(outputs(model, batch), batch["y"], reduction="none")
        weights = batch[self.column].to(losses.dtype)
        return self.weight * (weights @ losses) / weights.sum().clamp_min(torch.finfo(losses.dtype).tiny)
