"""Kernels of the proxy models: linear and Gaussian. The neural tangent kernels are in `ntk`.

A kernel is called with rows ``a [n, ...]`` and ``b [m, ...]`` and returns ``[n, m]`` in the dtype and on the
device of `a`; without `b` it compares `a` with itself and the result is exactly symmetric. `fit` returns the
kernel with its data-dependent constants settled, so that blocks computed later belong to one function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Kernel(Protocol):
    def fit(self, x: Tensor) -> Kernel:
        """The kernel with constants that depend on the data [n, ...] settled."""
        ...

    def __call__(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        """Values [n, m] for all pairs of rows."""
        ...


@dataclass(frozen=True)
class Linear:
    """``bias + <a, b>``."""

    bias: float = 0.0

    def __post_init__(self) -> None:
        if not self.bias >= 0:
            raise ValueError(f"Linear: bias must be >= 0 for a positive kernel, got {self.bias}")

    def fit(self, x: Tensor) -> Linear:
        return self

    def features(self, x: Tensor) -> Tensor:
        """Explicit vectors [n, d] whose inner products are the kernel."""
        flat = x.flatten(1)
        if self.bias == 0:
            return flat
        return torch.cat([flat, flat.new_full((len(flat), 1), math.sqrt(self.bias))], dim=1)

    def __call__(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        if b is None:
            flat = a.flatten(1)
            return symmetric(flat @ flat.T).add_(self.bias)
        return (a.flatten(1) @ b.flatten(1).T).add_(self.bias)


@dataclass(frozen=True)
class RBF:
    """``exp(-|a - b|^2 / (2 bandwidth^2))``.

    Args:
        bandwidth: in the units of the data. None: the median distance between the rows given to `fit`.
        max_bytes: of each block of differences; results do not depend on it.
    """

    bandwidth: float | None = None
    max_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        if self.bandwidth is not None and not 0 < self.bandwidth < math.inf:
            raise ValueError(f"RBF: bandwidth must be positive and finite, got {self.bandwidth}")

    def fit(self, x: Tensor) -> RBF:
        return RBF(median_distance(x), self.max_bytes) if self.bandwidth is None else self

    def __call__(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        if self.bandwidth is None:
            raise ValueError("RBF: no bandwidth yet; give one, or call fit(x) for the median distance")
        factor, left, right = -0.5 / self.bandwidth**2, a, a if b is None else b
        values = left.new_empty((len(left), len(right)))
        for rows in chunks(len(left), len(right) * left.element_size(), self.max_bytes):
            torch.mul(squared_distances(left[rows], right), factor, out=values[rows]).exp_()
        if b is None:
            symmetric(values).fill_diagonal_(1)
        return values


def median_distance(x: Tensor, most: int = 2000) -> float:
    """Median Euclidean distance over distinct pairs of rows [n, ...], those at distance 0 left out.

    Of more than `most` rows, that many evenly spaced ones are used. 1.0 when no two rows differ.
    """
    if len(x) > most:
        x = x[torch.linspace(0, len(x) - 1, most, device=x.device).long()]
    squares = squared_distances(x, x)
    pairs = squares[torch.triu_indices(len(x), len(x), 1, device=x.device).unbind()]
    # What rounding leaves between equal rows is not a distance.
    floor = 64 * torch.finfo(squares.dtype).eps * squares.max() if len(pairs) else 0
    pairs = pairs[pairs > floor]
    return float(pairs.median().sqrt()) if len(pairs) else 1.0


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances [n, m] of rows [n, ...] and [m, ...], at least 0."""
    # A common shift costs nothing and saves the digits that a large mean would take.
    center = b.flatten(1).mean(0)
    a, b = a.flatten(1) - center, b.flatten(1) - center
    inner = a @ b.T
    return inner.mul_(-2).add_(a.square().sum(1)[:, None]).add_(b.square().sum(1)).clamp_(min=0)


def symmetric(values: Tensor) -> Tensor:
    """Copy the upper triangle [n, n] onto the lower one, in place."""
    upper = values.triu(1)
    return values.triu_().add_(upper.T)


def chunks(n: int, row_bytes: int, max_bytes: int) -> list[slice]:
    """Consecutive slices that cover n rows, each within the budget or of a single row."""
    step = max(1, max_bytes // max(row_bytes, 1))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]
