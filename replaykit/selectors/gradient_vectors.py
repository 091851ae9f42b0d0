"""Per-sample gradients as the vectors that selectors ask."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from replaykit.selectors.outer_products import OuterProducts

_NORM_ROWS = 64


class Gradients(Protocol):
    """What `replaykit.gradients` returns, as far as selectors need it."""

    def __len__(self) -> int: ...

    def norms(self) -> Tensor: ...

    def inner(self, other: Any, dtype: torch.dtype | None = None) -> Tensor: ...

    def weighted_sum(self, weights: Tensor) -> Tensor: ...

    def rows(self, index: Tensor) -> Gradients: ...

    def outer_product(self) -> tuple[Tensor, Tensor] | None: ...


def gradient_vectors(gradients: Gradients) -> GradientVectors | OuterProducts:
    """Gradients as `Vectors`, by their two factors if they are of one layer and at hand."""
    factors = gradients.outer_product()
    return GradientVectors(gradients) if factors is None else OuterProducts(*factors)


class GradientVectors:
    """Gradients as `Vectors`.

    Inner products and norms are computed in the dtype asked for; a weighted sum is formed in the model's,
    which is what its products are exact to.

    Args:
        gradients: of n rows.
        dtype: of the answers; the gradients' own by default.
    """

    def __init__(self, gradients: Gradients, dtype: torch.dtype | None = None) -> None:
        self.gradients, self.dtype = gradients, dtype
        self._norms: Tensor | None = None

    def __len__(self) -> int:
        return len(self.gradients)

    def gram(self) -> Tensor:
        return self.gradients.inner(self.gradients, self.dtype)

    def gram_rows(self, index: Tensor, among: Tensor | None = None) -> Tensor:
        others = self.gradients if among is None else self.gradients.rows(among)
        return self.gradients.rows(index).inner(others, self.dtype)

    def gram_times(self, weights: Tensor) -> Tensor:
        return self.gradients.inner(self.gradients.weighted_sum(weights)).to(self.dtype or weights.dtype)

    def norms(self) -> Tensor:
        if self._norms is None:
            own = self.gradients.norms()
            self._norms = own if self.dtype in (None, own.dtype) else self._precise(own)
        return self._norms

    def rows(self, index: Tensor) -> GradientVectors:
        return GradientVectors(self.gradients.rows(index), self.dtype)

    def to(self, dtype: torch.dtype) -> GradientVectors:
        return self if dtype is self.dtype else GradientVectors(self.gradients, dtype)

    def _precise(self, own: Tensor) -> Tensor:
        """Norms that agree with the inner products to the last digits of the dtype."""
        squares = []
        for index in torch.split(torch.arange(len(self), device=own.device), _NORM_ROWS):
            part = self.gradients.rows(index)
            squares.append(part.inner(part, self.dtype).diagonal().clamp(min=0))
        return torch.cat(squares).sqrt() if squares else own.to(self.dtype)
