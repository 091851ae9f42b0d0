"""Importance sampling: rows drawn in proportion to a score, with weights that undo the preference.

With replacement, k draws of chances p: the mean of x_i / (n p_i) over the draws estimates the mean of x
without bias, the sum of x_i / (k p_i) its sum. Without replacement, inclusion probabilities π that sum to k:
the sum of x_i / π_i estimates the sum of x (Horvitz and Thompson 1952).

Source: Katharopoulos and Fleuret, Not All Samples Are Created Equal, ICML 2018 (the score ‖g‖ minimises the
variance of the mean gradient); Madow, On the Theory of Systematic Sampling, 1949.
Weights: w_i / π_i, where w_i is what the row stood for in the pool.
Departures: chances are mixed with the uniform ones, p <- (1 - rho) p + rho / n, so that 1 / (n p) <= 1 / rho.
Rows of a selection are distinct, so `Importance` draws without replacement: systematic sampling over the rows
in random order, with rows of k p >= 1 taken for certain.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replaykit.selectors.pool import Dense, Pool, Selection, finite, take_count
from replaykit.store import IntArray

Floats = NDArray[np.float64]


def chances(scores: Floats, rho: float = 0.1) -> Floats:
    """Draw chances [n] of scores [n]: (1 - rho) score / Σ score + rho / n; uniform if all scores are 0.

    Raises:
        ValueError: negative, NaN or infinite scores, or a rho outside [0, 1].
    """
    if not 0 <= rho <= 1:
        raise ValueError(f"importance: rho must be in [0, 1], got {rho}")
    scores = np.asarray(scores, np.float64)
    if not np.isfinite(scores).all() or (scores < 0).any():
        raise ValueError("importance: scores must be finite and >= 0")
    n, largest = len(scores), scores.max(initial=0.0)
    if largest == 0:
        return np.full(n, 1 / max(n, 1))
    scaled = scores / largest
    mixed: Floats = (1 - rho) * scaled / scaled.sum() + rho / n
    return mixed


def with_replacement(p: Floats, k: int, rng: np.random.Generator) -> tuple[IntArray, Floats]:
    """k draws of chances p [n]: rows [k] and weights 1 / (n p), whose mean estimates a mean."""
    rows = np.searchsorted(np.cumsum(p), rng.random(k) * p.sum(), side="right")
    rows = np.minimum(rows, np.flatnonzero(p)[-1] if k else 0)
    return rows, 1 / (len(p) * p[rows])


def inclusion_probabilities(p: Floats, k: int) -> Floats:
    """π [n] in proportion to p, capped at 1, that sum to k <= n.

    Rows of chance 0 get their part only when the others are too few.
    """
    p = np.asarray(p, np.float64)
    pi = np.zeros(len(p))
    open_ = p > 0
    if open_.sum() < k:
        pi[open_] = 1
        pi[~open_] = (k - open_.sum()) / (~open_).sum()
        return pi
    left = float(k)
    while left > 0:
        part = left * p / p[open_].sum()
        full = open_ & (part >= 1)
        if not full.any():
            pi[open_] = part[open_]
            break
        pi[full] = 1
        open_ &= ~full
        left = k - float((pi == 1).sum())
    return pi


def systematic(pi: Floats, rng: np.random.Generator) -> IntArray:
    """Σ π distinct rows, row i among them with probability π_i <= 1 [n], in random order.

    Raises:
        ValueError: probabilities outside [0, 1], or a sum that is not a whole number.
    """
    k = round(pi.sum())
    if len(pi) and (pi.min() < 0 or pi.max() > 1 or abs(pi.sum() - k) > 1e-6):
        raise ValueError(f"systematic: probabilities in [0, 1] with a whole sum are needed, got {pi.sum()}")
    certain = np.flatnonzero(pi == 1)
    order = rng.permutation(np.flatnonzero((pi > 0) & (pi < 1)))
    few = k - len(certain)
    reached = np.cumsum(pi[order])
    ticks = (rng.random() + np.arange(few)) * (reached[-1] / few if few else 1.0)
    places = np.minimum(np.searchsorted(reached, ticks, side="right"), np.arange(-few, 0) + len(order))
    rows: IntArray = rng.permutation(np.concatenate([certain, order[_apart(places)]]))
    return rows


def _apart(places: IntArray) -> IntArray:
    """Ascending places made distinct: two ticks can only meet through rounding."""
    steps = np.arange(len(places))
    apart: IntArray = np.maximum.accumulate(places - steps) + steps
    return apart


def effective_sample_size(weights: Tensor) -> float:
    """(Σ w)² / Σ w²: how many equally weighted rows would have the variance of these [k]."""
    total, squares = float(weights.double().sum()), float(weights.double().square().sum())
    return total * total / squares if squares > 0 else 0.0


class Importance:
    """Rows drawn without replacement in proportion to (score × weight) of the pool.

    Args:
        quantity: scores [n], >= 0, or vectors, of which the norms are taken (optimal for a mean gradient).
        rho: part of the chances that is uniform.
    """

    def __init__(self, quantity: str = "gradients", rho: float = 0.1) -> None:
        self.needs = (quantity,)
        self.rho = rho

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        k = take_count(k, pool.n, "Importance")
        scores = finite(_scores(pool, self.needs[0]), "Importance", self.needs[0]).double()
        weight = pool.weight.to(scores.device)
        p = chances((scores * weight).cpu().numpy(), self.rho)
        pi = inclusion_probabilities(p, k)
        rows = systematic(pi, rng)
        chosen = torch.from_numpy(rows).to(scores.device)
        return chosen, weight[chosen] / torch.from_numpy(pi[rows]).to(scores.device)


def _scores(pool: Pool, name: str) -> Tensor:
    """A number a row as it is, the norm of anything longer."""
    vectors = pool.vectors(name)
    if isinstance(vectors, Dense) and vectors.values.shape[1] == 1:
        return vectors.values[:, 0]
    return vectors.norms()
