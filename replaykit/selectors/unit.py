"""Vectors scaled to length 1, without forming them."""

from __future__ import annotations

import torch
from torch import Tensor

from replaykit.selectors.outer_products import OuterProducts
from replaykit.selectors.pool import Dense, Vectors


class Unit:
    """v / ‖v‖ as `Vectors`; a vector shorter than 1e-8 has no direction and becomes 0."""

    def __init__(self, vectors: Vectors) -> None:
        self.vectors = vectors
        norms = vectors.norms()
        self.inverse = torch.where(norms < 1e-8, 0.0, 1 / norms)
        # n factors scaled once, where there are any, instead of n² products.
        self._scaled = vectors.scaled(self.inverse) if isinstance(vectors, Dense | OuterProducts) else None

    def __len__(self) -> int:
        return len(self.vectors)

    def gram(self) -> Tensor:
        if self._scaled is not None:
            return self._scaled.gram()
        return self.vectors.gram() * self.inverse[:, None] * self.inverse

    def gram_rows(self, index: Tensor, among: Tensor | None = None) -> Tensor:
        if self._scaled is not None:
            return self._scaled.gram_rows(index, among)
        inverse = self.inverse if among is None else self.inverse[among]
        return self.vectors.gram_rows(index, among).mul_(self.inverse[index, None]).mul_(inverse)

    def gram_times(self, weights: Tensor) -> Tensor:
        return self.vectors.gram_times(weights * self.inverse) * self.inverse

    def norms(self) -> Tensor:
        return (self.inverse > 0).to(self.inverse.dtype)

    def rows(self, index: Tensor) -> Unit:
        return Unit(self.vectors.rows(index))

    def to(self, dtype: torch.dtype) -> Unit:
        return Unit(self.vectors.to(dtype))
