"""Orthogonal matching pursuit with non-negative weights, on inner products alone.

    min over S, w_S >= 0:  ½ ‖Σ_{j in S} w_j a_j - t‖² + lam/2 ‖w_S‖²,    |S| <= k

Each step takes the atom with the largest product with the residual and solves for all weights again.

Source: Pati, Rezaiifar and Krishnaprasad 1993; Rubinstein, Zibulevsky and Elad, Efficient Implementation of
the K-SVD Algorithm using Batch Orthogonal Matching Pursuit, 2008 (the atoms are met only through AᵀA and
Aᵀt). The weights are true non-negative least squares, see `replaykit.selectors.nnls`.
Cost of step m: O(n m) and a warm-started solve of m variables. Bytes: k rows of AᵀA.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from replaykit.selectors.facility_location import square
from replaykit.selectors.nnls import ActiveSet
from replaykit.selectors.pool import finite, take_count
from replaykit.selectors.ties import first_max, rounding


class Pursuit(NamedTuple):
    """What a matching pursuit found."""

    rows: Tensor
    """Atoms in the order of selection, int64 [k]."""
    weights: Tensor
    """Their weights, float64 [k]; 0 for an atom that later ones made useless."""
    residual: float
    """‖Σ w_j a_j - t‖² of the pursued atoms, before any filling."""
    pursued: int
    """How many atoms the pursuit took; the rest of the rows fill the budget."""


def matching_pursuit(
    gram: Tensor, products: Tensor, k: int, target: float, lam: float = 0.0, eps: float = 0.0
) -> Pursuit:
    """Atoms and weights, exactly min(k, n) of them.

    When the residual is spent, the budget is filled with the atoms of the largest products with it; they
    get the mean of the positive weights.

    Args:
        gram: inner products of the atoms [n, n].
        products: of the atoms with the target [n].
        target: squared norm of the target.
        lam: ridge on the weights.
        eps: stop the pursuit when the squared residual is no more than this.

    Raises:
        ValueError: shapes that do not match, NaN or infinity, a negative k, lam or eps.
    """
    square(gram, "matching_pursuit")
    if products.shape != (len(gram),):
        raise ValueError(f"matching_pursuit: {list(gram.shape)} products of {list(products.shape)} atoms")
    finite(products, "matching_pursuit", "product")

    def row(j: Tensor, scores: Tensor) -> Tensor:
        return gram[j]

    return pursue(row, products, k, target, lam, eps)


def pursue(
    row: Callable[[Tensor, Tensor], Tensor],
    products: Tensor,
    k: int,
    target: float,
    lam: float = 0.0,
    eps: float = 0.0,
    combine: Callable[[Tensor], Tensor] | None = None,
) -> Pursuit:
    """As `matching_pursuit`, with the Gram matrix as functions.

    Args:
        row: its row j, given the present scores [n] of all atoms.
        combine: its product with weights [n]; used instead of holding the rows of the chosen atoms.
    """
    if not (lam >= 0 and eps >= 0 and math.isfinite(lam + eps + target)):
        raise ValueError(
            f"matching_pursuit: lam and eps must be >= 0 and the target finite, got lam={lam}, eps={eps} and a "
            f"squared target of {target}; scale vectors down whose products overflow"
        )
    n = len(products)
    k = take_count(k, n, "matching_pursuit")
    noise = rounding(products)
    problem = ActiveSet(k, noise=1e-12 if products.dtype == torch.float64 else 1e-6)
    held = products.new_empty(0 if combine else k, n)
    rows = torch.empty(k, dtype=torch.int64, device=products.device)
    taken = torch.zeros(n, dtype=torch.bool, device=products.device)
    scores, residual, m = products, max(target, 0.0), 0
    floor = max(eps, float(torch.finfo(products.dtype).eps) * target)
    while m < k and residual > floor:
        best = first_max(scores.masked_fill(taken, -math.inf), noise)
        if scores[best] <= noise:
            break
        inner = row(best, scores)
        rows[m] = best
        taken[best] = True
        if combine is None:
            held[m] = inner
        column = inner[rows[: m + 1]].double().cpu()
        column[-1] += lam
        problem.append(column, float(products[best]))
        m += 1
        weights = problem.solve().to(products.device, products.dtype)
        if combine is None:
            scores = products - weights @ held[:m]
        else:
            scores = products - combine(torch.zeros_like(products).index_copy(0, rows[:m], weights))
        w = problem.weights
        residual = max(target + problem.value() - lam * float(w @ w), 0.0)
    rest = torch.sort(scores.masked_fill(taken, -math.inf), descending=True, stable=True).indices
    rows[m:] = rest[: k - m]
    return Pursuit(rows, _filled(problem.weights, k).to(products.device), residual, m)


def _filled(weights: Tensor, k: int) -> Tensor:
    """Weights of the pursued atoms, and their mean positive value for the rest: float64 [k]."""
    positive = weights[weights > 0]
    fill = float(positive.mean()) if len(positive) else 0.0
    return torch.cat([weights, weights.new_full((k - len(weights),), fill)])
