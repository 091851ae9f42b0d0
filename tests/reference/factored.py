"""Last-layer gradients r ⊗ [h, 1] kept as factors: the smallest class that satisfies `Vectors`."""

from __future__ import annotations

import torch
from torch import Tensor


class Factored:
    def __init__(self, residual: Tensor, feature: Tensor) -> None:
        self.r, self.h = residual, feature

    def __len__(self) -> int:
        return len(self.r)

    def gram_rows(self, index: Tensor, among: Tensor | None = None) -> Tensor:
        r, h = (self.r, self.h) if among is None else (self.r[among], self.h[among])
        return (self.r[index] @ r.T).mul_((self.h[index] @ h.T).add_(1))

    def gram(self) -> Tensor:
        return self.gram_rows(torch.arange(len(self)))

    def gram_times(self, weights: Tensor) -> Tensor:
        scaled = self.r * weights[:, None]
        total, bias = scaled.T @ self.h, scaled.sum(0)
        return ((self.h @ total.T + bias) * self.r).sum(1)

    def norms(self) -> Tensor:
        return self.r.norm(dim=1) * (self.h.square().sum(1) + 1).sqrt()

    def rows(self, index: Tensor) -> Factored:
        return type(self)(self.r[index], self.h[index])

    def to(self, dtype: torch.dtype) -> Factored:
        return type(self)(self.r.to(dtype), self.h.to(dtype))

    def dense(self) -> Tensor:
        one = torch.ones_like(self.h[:, :1])
        return (self.r[:, :, None] * torch.cat([self.h, one], 1)[:, None]).flatten(1)
