"""Shapley values of rows in a K-nearest-neighbour classifier.

The utility of a set S of rows for one query is the share of its K votes that are right,

    v(S) = (1/K) · (rows with the query's label among the min(K, |S|) nearest of S),

and the Shapley value of a row is its mean contribution to v over all orders in which the n rows may enter. With
a_m = 1 if the m-th nearest row has the query's label, a_{n+1} = 0, and nearest rows first,

    s_m = s_{m+1} + (a_m - a_{m+1}) / max(K, m),     Σ_m s_m = v(all rows).

Source: Jia et al., Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms, VLDB 2019, theorem 1,
and for n < K, where the value is a_m / K.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from replaykit.store import IntArray

# Equal sums of values differ by rounding (about 1e-15); different ones by far more than this grid.
_GRID = 2.0**40


def knn_shapley(query: Tensor, query_y: Tensor, features: Tensor, y: Tensor, neighbours: int) -> Tensor:
    """Values float64 [q, n] of n rows for each of q queries: O(q n d + q n log n).

    Of rows at the same Euclidean distance the first is the nearer one.

    Args:
        query, query_y: features [q, d] and labels [q] of the queries.
        features, y: features [n, d] and labels [n] of the rows.
        neighbours: K.

    Raises:
        ValueError: features that are not finite.
    """
    # Not by matrix products: they leave a distance of about 1e-8 between equal rows, and so an order.
    distance = torch.cdist(query.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    if not bool(distance.isfinite().all()):
        raise ValueError("features are NaN or infinite: look at the inputs and the learning rate")
    nearest = distance.argsort(dim=1, stable=True)
    matches = y[nearest] == query_y[:, None]
    return torch.empty_like(distance).scatter_(1, nearest, sorted_shapley(matches, neighbours))


def sorted_shapley(matches: Tensor, neighbours: int) -> Tensor:
    """Values float64 [q, n] of rows that are sorted, nearest first, by whether they have the query's label."""
    a = matches.double()
    place = torch.arange(1, a.shape[1] + 1, device=a.device)
    steps = (a - torch.nn.functional.pad(a[:, 1:], (0, 1))) / place.clamp(min=neighbours)
    return steps.flip(1).cumsum(1).flip(1)


def ranked(values: Tensor) -> IntArray:
    """Positions of sums of values [n], the largest first; of those that only rounding tells apart the first."""
    return np.argsort(-np.rint(values.cpu().numpy() * _GRID), kind="stable")
