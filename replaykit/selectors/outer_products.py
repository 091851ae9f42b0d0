"""Vectors that are outer products, such as the gradients of a last linear layer, by their factors."""

from __future__ import annotations

import torch
from torch import Tensor


class OuterProducts:
    """r_i ⊗ h_i as `Vectors`: <g_i, g_j> = (r_i · r_j)(h_i · h_j).

    Args:
        r: [n, c].
        h: [n, d]; the last column of a layer with a bias is 1.
    """

    def __init__(self, r: Tensor, h: Tensor) -> None:
        self.r, self.h = r, h

    def __len__(self) -> int:
        return len(self.r)

    def gram(self) -> Tensor:
        return (self.h @ self.h.T).mul_(self.r @ self.r.T)

    def gram_rows(self, index: Tensor, among: Tensor | None = None) -> Tensor:
        r, h = (self.r, self.h) if among is None else (self.r[among], self.h[among])
        return (self.h[index] @ h.T).mul_(self.r[index] @ r.T)

    def gram_times(self, weights: Tensor) -> Tensor:
        total = (self.r * weights[:, None]).T @ self.h
        return ((self.h @ total.T) * self.r).sum(1)

    def norms(self) -> Tensor:
        return (self.r.square().sum(1) * self.h.square().sum(1)).sqrt()

    def rows(self, index: Tensor) -> OuterProducts:
        return OuterProducts(self.r[index], self.h[index])

    def to(self, dtype: torch.dtype) -> OuterProducts:
        return OuterProducts(self.r.to(dtype), self.h.to(dtype))

    def scaled(self, factor: Tensor) -> OuterProducts:
        """Every vector times its factor [n]."""
        return OuterProducts(self.r * factor[:, None], self.h)
