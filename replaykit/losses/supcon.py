"""Supervised contrastive loss of replayed rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from replaykit.contrastive import supervised_contrastive
from replaykit.losses.base import Draw, Model, check_temperature, coefficient
from replaykit.losses.features import Features, FeatureSource


class SupCon:
    """`weight` times the supervised contrastive loss among the features of the drawn rows.

    Draws have views of their own: with two or more, a row that is drawn again is its own positive, seen in another
    way. `replaykit.strategies.SCR` contrasts stream and memory together.

    Source: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020; see `replaykit.contrastive`.

    Args:
        weight: coefficient of the term.
        temperature: of the similarities.
        draws: memory batches contrasted with each other, each with a forward pass of its own.
        features: see `replaykit.losses.Features`.
        projection: a module from features [n, d] to what is contrasted; put its parameters into the optimiser.
    """

    columns: tuple[str, ...] = ("x", "y")

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 0.07,
        draws: int = 1,
        features: FeatureSource = None,
        projection: nn.Module | None = None,
    ) -> None:
        if draws < 1:
            raise ValueError(f"draws is a number of memory batches >= 1, got {draws}")
        self.weight, self.draws = coefficient("weight", weight), draws
        self.temperature = check_temperature("temperature", temperature)
        self.embedding, self.projection = Features(features), projection

    def __call__(self, model: Model, draw: Draw) -> Tensor:
        if self.weight == 0:
            return torch.zeros(())
        batches = [draw() for _ in range(self.draws)]
        z = torch.cat([self.embedding(model, batch) for batch in batches])
        if self.projection is not None:
            z = self.projection(z)
        y = torch.cat([batch["y"] for batch in batches])
        return self.weight * supervised_contrastive(z, y, self.temperature)
