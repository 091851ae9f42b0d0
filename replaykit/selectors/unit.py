"""Vectors scaled to length 1, without forming them."""

from __future__ import annotations

import torch
from torch import Tensor

from replaykit.selectors.pool import Vectors


class Unit:
    """v / ‖v‖ as `Vectors`; a vector shorter than 1e-8 has no direction and becomes 0."""

    def __init__(self, vectors: Vectors) -> None:
        self.vectors = vectors
        norms = vectors.norms()
        self.inverse = torch.where(norms < 1e-8, 0.0, 1 / norms)

    def __len__(self) -> int:
        return len(self.vectors)

    def gram(self) -> Tensor:
        return self.vectors.gram() * self.inverse[:, None] * self.inverse

    def gram_rows(self, index: Tensor) -> Tensor:
        return self.vectors.gram_rows(index).mul_(self.inverse[index, None]).mul_(self.inverse)

    def gram_times(self, weights: Tensor) -> Tensor:
        return self.vectors.gram_times(weights * self.inverse) * self.inverse

    def norms(self) -> Tensor:
        return (self.inverse > 0).to(self.inverse.dtype)

    def rows(self, index: Tensor) -> Unit:
        return Unit(self.vectors.rows(index))

    def to(self, dtype: torch.dtype) -> Unit:
        return Unit(self.vectors.to(dtype))
