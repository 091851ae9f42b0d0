"""Moderate coreset: rows neither close to their class centre nor far from it.

Source: Xia et al., Moderate Coreset: A Universal Method of Data Selection for Real-world Data-efficient Deep
Learning, ICLR 2023, section 3.
Keeps: within each class, the rows in the middle of the ranking by distance to the mean of the class. Weights:
ones.
Departures: the ranking is done class by class, as the paper says; the released code takes one window over the
whole data set and the median of each feature as the centre. `nearest_to_median` measures the distance to the
median in value, the default in ranks; the two differ when distances are skewed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from replaykit.selectors.pool import Pool, Selection, Vectors, checked_vectors, finite, take_count
from replaykit.selectors.quotas import Shares, by_class, proportional
from replaykit.selectors.ranking import lowest, middle


def moderate(distances: Tensor, k: int) -> Tensor:
    """Rows in the window of min(k, n) ranks round the middle of the distances [n], its centre first."""
    return middle(finite(distances, "moderate", "distance"), k)


def nearest_to_median(distances: Tensor, k: int) -> Tensor:
    """The min(k, n) rows whose distance [n] is nearest to the median distance, nearest first."""
    if len(distances) == 0:
        return distances.new_empty(0, dtype=torch.int64)
    median = distances.double().quantile(0.5)
    return lowest((finite(distances, "moderate", "distance") - median).abs(), k)


def centre_distances(vectors: Vectors) -> Tensor:
    """Distances [n] of the vectors to their mean, from inner products alone."""
    squares = vectors.norms().square()
    weights = torch.full_like(squares, 1 / max(1, len(vectors)))
    products = vectors.gram_times(weights)
    return (squares - 2 * products + products.mean()).clamp(min=0).sqrt()


class Moderate:
    """Moderate coreset over a quantity of the pool, class by class if the pool has labels.

    Args:
        quantity: of the pool, as vectors.
        rule: `moderate` (a window of ranks) or `nearest_to_median`.
        shares: of the classes.
    """

    def __init__(
        self,
        quantity: str = "features",
        rule: Callable[[Tensor, int], Tensor] = moderate,
        shares: Shares = proportional,
    ) -> None:
        self.needs = (quantity,)
        self.rule, self.shares = rule, shares

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        return by_class(self._within, pool, k, rng, "Moderate", self.shares)

    def _within(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        distances = centre_distances(checked_vectors(pool, self.needs[0], "Moderate"))
        rows = self.rule(distances, take_count(k, pool.n, "Moderate"))
        return rows, torch.ones(len(rows), dtype=torch.float64, device=rows.device)
