"""A probe whose gradients are a column, for policies whose numbers are to be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from replaykit import Batch


class GivenGradients:
    """Gradients are the vectors of column ``g``."""

    def gradients(self, batch: Batch) -> _Vectors:
        return _Vectors(batch["g"])


class _Vectors:
    def __init__(self, g: Tensor) -> None:
        self.g = g

    @property
    def degenerate(self) -> int:
        return int((self.g.norm(dim=1) < 1e-8).sum())

    def gram(self) -> Tensor:
        return self.g @ self.g.T

    def cosine(self, other: _Vectors) -> Tensor:
        return torch.nn.functional.cosine_similarity(self.g[:, None], other.g[None], dim=2)


def vectors(g: Sequence[Sequence[float]] | Tensor, first: int = 0) -> Batch:
    """Rows with these gradients, numbered from `first` on."""
    return {"id": torch.arange(first, first + len(g)), "g": torch.as_tensor(g, dtype=torch.float64)}


def plane(*degrees: float) -> Tensor:
    """Unit vectors [n, 2] at these angles."""
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1)
