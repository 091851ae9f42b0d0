"""k-center greedy: the next row is the one farthest from all that were chosen.

Source: Gonzalez, Clustering to Minimize the Maximum Intercluster Distance, 1985; Sener and Savarese, Active
Learning for Convolutional Neural Networks, ICLR 2018, algorithm 1.
Guarantee: the radius, the largest distance of a row to its nearest centre, is at most twice the optimum.
Cost: O(n d) a step; bytes: 32 rows of distances at most. Weights: ones.
Departures: without given centres the first is the row nearest to the mean, which makes the result
deterministic; `first_row` and `random_row` are the other customs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from replaykit.selectors.ahead import Ahead
from replaykit.selectors.pool import Pool, Selection, Vectors, as_vectors, checked_vectors, finite, take_count
from replaykit.selectors.rows import MAX_BYTES, squared_distances
from replaykit.selectors.ties import first_max, rounding

First: TypeAlias = Callable[[Vectors, np.random.Generator], int]


def nearest_to_mean(vectors: Vectors, rng: np.random.Generator) -> int:
    """The row nearest to the mean of all."""
    squares = vectors.norms().square()
    towards = 2 * vectors.gram_times(torch.full_like(squares, 1 / len(vectors)))
    return int(first_max(towards - squares, rounding(torch.cat([squares, towards]))))


def first_row(vectors: Vectors, rng: np.random.Generator) -> int:
    """Row 0."""
    return 0


def random_row(vectors: Vectors, rng: np.random.Generator) -> int:
    """Any row."""
    return int(rng.integers(len(vectors)))


def k_center(
    points: Tensor | Vectors, k: int, first: int = 0, centres: Tensor | None = None, max_bytes: int = MAX_BYTES
) -> tuple[Tensor, Tensor]:
    """Rows [k] in the order of selection, and the radius after each of them [k].

    Args:
        points: [n, d], or vectors known by their inner products.
        first: the first row, if there are no centres yet.
        centres: rows that are centres already [m]; they are not returned.
        max_bytes: for the rows of distances held at a time.

    Raises:
        ValueError: NaN or infinity, a negative k, or a first row that does not exist.
    """
    vectors = as_vectors(points)
    n = len(vectors)
    squares = finite(vectors.norms(), "k_center", "points").square()
    held = torch.tensor(sorted(set([] if centres is None else centres.tolist())), dtype=torch.int64)
    held = held.to(squares.device)
    k = min(take_count(k, n, "k_center"), n - len(held))
    if n and not 0 <= first < n:
        raise ValueError(f"k_center: the first row must be in [0, {n}), got {first}")
    ahead = Ahead(lambda index: squared_distances(vectors, index, squares), n, max_bytes=max_bytes)
    nearest = torch.full_like(squares, math.inf)
    for centre in held:
        nearest = torch.minimum(nearest, squared_distances(vectors, centre.reshape(1), squares)[0])
    nearest[held] = -math.inf
    tolerance = rounding(squares)
    rows, radii = [], []
    for step in range(k):
        given = step == 0 and len(held) == 0
        best = torch.tensor(first, device=squares.device) if given else first_max(nearest, tolerance)
        nearest = torch.minimum(nearest, ahead.row(best, nearest))
        nearest[best] = -math.inf
        rows.append(best)
        radii.append(nearest.max().clamp(min=0))
    if not rows:
        return held[:0], squares[:0]
    return torch.stack(rows), torch.stack(radii).sqrt()


class KCenter:
    """k-center greedy over a quantity of the pool.

    Args:
        quantity: of the pool, as vectors.
        first: chooses the first row: `nearest_to_mean`, `first_row` or `random_row`.
        max_bytes: for the rows of distances held at a time.
    """

    def __init__(
        self, quantity: str = "features", first: First = nearest_to_mean, max_bytes: int = MAX_BYTES
    ) -> None:
        self.needs = (quantity,)
        self.first, self.max_bytes = first, max_bytes

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        vectors = checked_vectors(pool, self.needs[0], "KCenter")
        first = self.first(vectors, rng) if pool.n else 0
        rows, _ = k_center(vectors, take_count(k, pool.n, "KCenter"), first, max_bytes=self.max_bytes)
        return rows, torch.ones(len(rows), dtype=torch.float64, device=rows.device)
