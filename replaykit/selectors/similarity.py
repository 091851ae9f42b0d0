"""Similarities of vectors that facility location, graph cut and log-determinant accept.

A similarity takes vectors and returns a function from row numbers [m] to rows [m, n] of the matrix, so that
no more of the matrix is made than is needed. If it is `Symmetric`, one half of a matrix that is held is made.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from replaykit.selectors.pool import Vectors
from replaykit.selectors.rows import Symmetric, squared_distances
from replaykit.selectors.unit import Unit


def cosine(vectors: Vectors) -> Callable[[Tensor], Tensor]:
    """(1 + cos) / 2, in [0, 1] and positive semi-definite; the cosine with a zero vector (norm < 1e-8) is 0."""
    unit = Unit(vectors)

    def rows(index: Tensor, among: Tensor | None = None) -> Tensor:
        return unit.gram_rows(index, among).clamp_(-1, 1).add_(1).div_(2)

    return Symmetric(rows)


def gaussian(vectors: Vectors, width: float | None = None) -> Callable[[Tensor], Tensor]:
    """exp(-‖a - b‖² / (2 width²)); by default width² is the mean squared distance between two vectors."""
    squares = vectors.norms().square()
    if width is None:
        n = max(1, len(vectors))
        mean = vectors.gram_times(torch.full_like(squares, 1 / n)).mean()
        variance = (2 * (squares.mean() - mean)).clamp(min=torch.finfo(squares.dtype).tiny)
    else:
        variance = torch.as_tensor(width**2, dtype=squares.dtype, device=squares.device)

    def rows(index: Tensor, among: Tensor | None = None) -> Tensor:
        return squared_distances(vectors, index, squares, among).div_(-2 * variance).exp_()

    return Symmetric(rows)
