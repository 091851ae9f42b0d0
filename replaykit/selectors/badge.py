"""BADGE: rows whose gradients are large and different, drawn by k-means++ seeding.

Source: Ash et al., Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds, ICLR 2020,
algorithm 1; Arthur and Vassilvitskii, k-means++: The Advantages of Careful Seeding, SODA 2007.
The gradient is that of the last layer under the *predicted* label, (p - e_ŷ) ⊗ h, which is never formed.
Cost: O(n (c + d)) a step. Bytes: O(n). Weights: ones.
Departures: the first row is the one of the largest norm, as in the authors' code (k-means++ draws it
uniformly); when no distance is left, rows are drawn uniformly, where their code stops in a debugger. For
labelled replay the gradients of the true label can be taken: ``BADGE("gradients")``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from replaykit.selectors.outer_products import OuterProducts
from replaykit.selectors.pool import (
    Pool,
    Selection,
    Vectors,
    as_vectors,
    checked_vectors,
    finite,
    take_count,
    working_dtype,
)
from replaykit.selectors.rows import squared_distances
from replaykit.selectors.ties import first_max, rounding


def seeding_probabilities(squared: Tensor) -> Tensor:
    """Chances [n] of the next seed, float64: in proportion to squared distances; uniform if all are 0.

    Rows that cannot be drawn have a distance of -inf.
    """
    chances = squared.double().clamp(min=0)
    if chances.sum() == 0:
        chances = (squared >= 0).double()
    return chances / chances.sum()


def kmeans_plus_plus(
    points: Tensor | Vectors, k: int, rng: np.random.Generator, first: int | None = None
) -> tuple[Tensor, Tensor]:
    """Rows [k] drawn one after the other, and the potential Σ_i min_j ‖v_i - v_j‖² after each of them [k].

    Args:
        points: [n, d], or vectors known by their inner products.
        first: the first row; that of the largest norm by default.

    Raises:
        ValueError: NaN or infinity, a negative k, or a first row that does not exist.
    """
    vectors = as_vectors(points)
    n = len(vectors)
    k = take_count(k, n, "kmeans_plus_plus")
    squares = finite(vectors.norms(), "kmeans_plus_plus", "points").square()
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=squares.device), squares[:0]
    if first is None:
        first = int(first_max(squares, rounding(squares)))
    if not 0 <= first < n:
        raise ValueError(f"kmeans_plus_plus: the first row must be in [0, {n}), got {first}")
    nearest = torch.full_like(squares, math.inf)
    row = torch.tensor(first, device=squares.device)
    rows, potentials = [row], []
    while True:
        nearest = torch.minimum(nearest, squared_distances(vectors, row.reshape(1), squares)[0])
        nearest[row] = -math.inf
        potentials.append(nearest.clamp(min=0).sum())
        if len(rows) == k:
            return torch.stack(rows), torch.stack(potentials)
        row = _draw(seeding_probabilities(nearest), rng)
        rows.append(row)


def _draw(probabilities: Tensor, rng: np.random.Generator) -> Tensor:
    """A position [] drawn from probabilities [n]; never one of probability 0."""
    reached = probabilities.cumsum(0)
    # The last position that can be drawn answers for what rounding leaves beyond the sum.
    last = probabilities.nonzero()[-1, 0]
    draw = torch.tensor([rng.random()], dtype=torch.float64, device=reached.device) * reached[-1]
    return torch.searchsorted(reached, draw, right=True)[0].minimum(last)


class BADGE:
    """BADGE over the last layer's gradients.

    Args:
        quantity: vectors of the pool to take; by default the gradients under the predicted label, from the
            pool's logits [n, c] and features [n, d].
    """

    def __init__(self, quantity: str | None = None) -> None:
        self.quantity = quantity
        self.needs = ("logits", "features") if quantity is None else (quantity,)

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        k = take_count(k, pool.n, "BADGE")
        if self.quantity is None:
            vectors: Vectors = _predicted(pool)
        else:
            vectors = checked_vectors(pool, self.quantity, "BADGE")
        rows, _ = kmeans_plus_plus(vectors, k, rng)
        return rows, torch.ones(len(rows), dtype=torch.float64, device=rows.device)


def _predicted(pool: Pool) -> OuterProducts:
    dtype = working_dtype(pool.n)
    error = finite(pool.tensor("logits").to(dtype).softmax(1), "BADGE", "logits").clone()
    features = finite(pool.tensor("features").to(dtype).flatten(1), "BADGE", "features")
    predicted = error.argmax(1, keepdim=True)
    return OuterProducts(error.scatter_add_(1, predicted, -torch.ones_like(error[:, :1])), features)
