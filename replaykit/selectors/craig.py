"""CRAIG: rows whose weighted gradients stand for the sum of all gradients.

    ‖Σ_i w_i g_i - Σ_{j in S} γ_j g_j‖  <=  L(S) = Σ_i w_i min_{j in S} ‖g_i - g_j‖,
    γ_j = Σ of w_i over the rows whose nearest chosen row is j

L is minimised by greedy facility location on the similarity D - ‖g_i - g_j‖; the order of selection does not
depend on D.

Source: Mirzasoleiman, Bilmes and Leskovec, Coresets for Data-efficient Training of Machine Learning Models,
ICML 2020, sections 3.2 and 3.3.
Keeps: class by class if the pool has labels. Weights: γ; they sum to the weight of the pool.
Cost and bytes: as `replaykit.selectors.facility_location`.
Departures: a chosen row always stands for itself, so that duplicates that fill a budget keep their weight;
w_i are the pool's weights, which the paper has not.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from replaykit.selectors.facility_location import Coverage, square
from replaykit.selectors.greedy import Engine, lazy
from replaykit.selectors.pool import Pool, Selection, checked_vectors, checked_weight, take_count
from replaykit.selectors.quotas import Shares, by_class, proportional
from replaykit.selectors.rows import MAX_BYTES, Rows, Symmetric, squared_distances


def craig(
    distances: Tensor,
    k: int,
    engine: Engine = lazy,
    rng: np.random.Generator | None = None,
    weight: Tensor | None = None,
    enough: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [k], their weights γ [k], and the bound L after each of them [k].

    Args:
        distances: between all rows, not squared [n, n].
        engine: `naive`, `lazy` or `stochastic` of `replaykit.selectors.greedy`.
        rng: for the stochastic engine.
        weight: of the rows, >= 0 [n]; ones by default.
        enough: stop before k rows when L is no more than this.

    Raises:
        ValueError: a matrix that is not square, NaN, infinite or negative entries, a negative weight or k.
    """
    square(distances, "craig")
    n = len(distances)
    if n and distances.min() < 0:
        raise ValueError(f"craig: distances must be >= 0, got {distances.min().item()}")
    weight = torch.ones(n) if weight is None else checked_weight(weight, "craig")
    ceiling = distances.max().item() if n else 0.0
    nearness = Rows(n, lambda index: distances[index].neg_(), distances, hold=False)
    return _represent(nearness, weight, ceiling, take_count(k, n, "craig"), engine, rng, enough)


class CRAIG:
    """CRAIG over gradients of the pool, class by class if the pool has labels.

    Args:
        quantity: of the pool, as vectors.
        engine: `lazy`, `naive` or `stochastic`.
        shares: of the classes.
        max_bytes: hold the distances of a class if they take no more than this.
    """

    def __init__(
        self,
        quantity: str = "gradients",
        engine: Engine = lazy,
        shares: Shares = proportional,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.needs = (quantity,)
        self.engine, self.shares, self.max_bytes = engine, shares, max_bytes

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        return by_class(self._within, pool, k, rng, "CRAIG", self.shares)

    def _within(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        vectors = checked_vectors(pool, self.needs[0], "CRAIG")
        norms = vectors.norms()
        squares = norms.square()
        k = take_count(k, pool.n, "CRAIG")

        def nearness(index: Tensor, among: Tensor | None = None) -> Tensor:
            return squared_distances(vectors, index, squares, among).sqrt_().neg_()

        # No distance exceeds the diameter of the ball that holds all vectors.
        ceiling = 2 * norms.max().item() if pool.n else 0.0
        rows, weights, _ = _represent(
            Rows(pool.n, Symmetric(nearness), norms, self.max_bytes), pool.weight, ceiling, k, self.engine, rng
        )
        return rows, weights


def _represent(
    nearness: Rows,
    weight: Tensor,
    ceiling: float,
    k: int,
    engine: Engine,
    rng: np.random.Generator | None,
    enough: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    coverage = Coverage(nearness, weight, floor=-ceiling)
    rows, gains = engine(coverage, k, rng)
    bound = (ceiling * coverage.weight.sum().double() - gains.cumsum(0)).clamp(min=0)
    if enough is not None:
        rows = rows[: int((bound > enough).sum()) + 1]
    return rows, stood_for(nearness, rows, weight), bound[: len(rows)]


def stood_for(nearness: Rows, rows: Tensor, weight: Tensor) -> Tensor:
    """Weight of those whose nearest chosen row is each of `rows` [k], float64 [k]; ties to the earlier row."""
    best = torch.full((nearness.n,), -math.inf, dtype=nearness.dtype, device=nearness.device)
    owner = torch.zeros(nearness.n, dtype=torch.int64, device=nearness.device)
    for place, row in enumerate(rows):
        near = nearness.row(row)
        closer = near > best
        best = torch.where(closer, near, best)
        owner = torch.where(closer, place, owner)
    owner[rows] = torch.arange(len(rows), device=nearness.device)
    weights = torch.zeros(len(rows), dtype=torch.float64, device=nearness.device)
    if len(rows):
        weights.index_add_(0, owner, weight.to(nearness.device, torch.float64))
    return weights
