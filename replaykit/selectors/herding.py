"""Herding: rows whose running mean stays close to the mean of all.

    row j of the order = argmin_i ‖ μ - (φ_i + Σ_{l<j} φ_l) / j ‖,    not yet taken

Source: Welling, Herding Dynamical Weights to Learn, ICML 2009; Rebuffi et al., iCaRL, CVPR 2017, algorithm 4.
Keeps: class by class if the pool has labels, equal shares. The order is a ranking: a prefix is the herding of
that size. Weights: ones.
Cost: O(n d) a step; bytes: three numbers a row.
Departures: the mean is weighted by the pool's weights, so that a memory's rows stand for what they stood for.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from replaykit.selectors.pool import (
    Pool,
    Selection,
    Vectors,
    as_vectors,
    checked_vectors,
    checked_weight,
    finite,
    take_count,
)
from replaykit.selectors.quotas import Shares, by_class, equal
from replaykit.selectors.ties import first_max, rounding
from replaykit.selectors.unit import Unit


def herding(features: Tensor | Vectors, k: int, weight: Tensor | None = None) -> Tensor:
    """Rows [min(k, n)] in the order of herding.

    Args:
        features: [n, d] or vectors known by their inner products, as they are (normalise them before).
        weight: of the rows in the mean, >= 0 [n]; equal by default.

    Raises:
        ValueError: NaN or infinity, a negative weight or k.
    """
    vectors = as_vectors(features)
    n = len(vectors)
    k = take_count(k, n, "herding")
    squares = finite(vectors.norms(), "herding", "features").square()
    share = torch.ones_like(squares) if weight is None else checked_weight(weight, "herding").to(squares)
    share = share / share.sum() if share.sum() > 0 else torch.full_like(squares, 1 / max(n, 1))
    mean = vectors.gram_times(share)
    tolerance = rounding(torch.cat([squares, mean]))
    # j² times the squared distance, without what is the same for all.
    chosen = torch.zeros_like(squares)
    open_ = torch.zeros_like(squares)
    rows = []
    for j in range(1, k + 1):
        scores = 2 * j * mean - squares - 2 * chosen + open_
        best = first_max(scores, j * tolerance)
        chosen += vectors.gram_rows(best.reshape(1))[0]
        open_[best] = -math.inf
        rows.append(best)
    return torch.stack(rows) if rows else torch.empty(0, dtype=torch.int64, device=squares.device)


class Herding:
    """Herding over a quantity of the pool, class by class if the pool has labels.

    Args:
        quantity: of the pool, as vectors.
        normalise: scale every vector to length 1 first, as iCaRL does.
        shares: of the classes.
    """

    def __init__(
        self,
        quantity: str = "features",
        normalise: bool = True,
        shares: Shares = equal,
    ) -> None:
        self.needs = (quantity,)
        self.normalise, self.shares = normalise, shares

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        return by_class(self._within, pool, k, rng, "Herding", self.shares)

    def _within(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        vectors = checked_vectors(pool, self.needs[0], "Herding")
        rows = herding(Unit(vectors) if self.normalise else vectors, k, pool.weight)
        return rows, torch.ones(len(rows), dtype=torch.float64, device=rows.device)
