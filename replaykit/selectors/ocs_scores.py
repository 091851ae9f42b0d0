"""Scores of Online Coreset Selection (OCS): how well a row's gradient stands for its batch and serves old tasks.

With gradients g_1 .. g_n of n rows, their mean ḡ, and the mean gradient r of some reference rows,

    similarity  S_i = cos(g_i, ḡ)
    diversity   V_i = -1/(n-1) · Σ_{j≠i} cos(g_i, g_j)
    affinity    A_i = cos(g_i, r)
    score           = S_i + V_i + τ A_i,        without the last term where there is no reference.

All cosines with one row are inner products with one direction, Σ_j cos(g_i, g_j) = <g_i, Σ_j g_j / ‖g_j‖> / ‖g_i‖,
so n rows need their norms, two weighted sums of gradients and the products with two or three directions: O(n)
instead of the O(n²) of a Gram matrix, which for the few rows of a mini-batch is cheaper all the same (`of_gram`).

A gradient shorter than 1e-8 has no direction: all its cosines are 0.

Source: Yoon, Madaan, Yang and Hwang, Online Coreset Selection for Rehearsal-based Continual Learning, ICLR 2022.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replaykit.gradients.cosines import inverse_lengths
from replaykit.gradients.result import DEGENERATE, PerSampleGradients
from replaykit.store import IntArray

FloatArray: TypeAlias = NDArray[np.float64]

# Cosines closer than this count as equal: rounding in float32 tells equal ones apart by less.
RESOLUTION = 2.0**-18


def similarity(gradients: PerSampleGradients) -> Tensor:
    """Cosines [n] with the mean gradient."""
    return gradients.cosine(gradients.mean())


def diversity(gradients: PerSampleGradients, with_self: bool = False) -> Tensor:
    """Minus the mean cosine with the other rows [n]; 0 for a single row.

    Args:
        with_self: the mean over all n rows, the row itself among them, as in the authors' code: (n-1)/n of the
            paper's value, minus 1/n.
    """
    directions = _units(gradients)
    return _diversity(gradients.cosine(directions) * directions.norm(), gradients.norms(), with_self)


def affinity(gradients: PerSampleGradients, reference: Tensor) -> Tensor:
    """Cosines [n] with a reference gradient [p]."""
    return gradients.cosine(reference)


def scores(
    gradients: PerSampleGradients, tau: float = 0.0, reference: Tensor | None = None, with_self: bool = False
) -> FloatArray:
    """S + V + τ A of n rows [n], on the host; S + V without a reference gradient [p].

    The cosines are asked for together. So rows that do not fit into the working memory at once go through the
    model once for the norms, once for each of the two sums, and once for all products.

    Raises:
        ValueError: a reference of another length than the gradients; losses or gradients that are not finite.
    """
    norms, units = gradients.norms(), _units(gradients)
    directions = [gradients.mean(), units]
    if reference is not None:
        if reference.shape != units.shape:
            raise ValueError(f"the reference has shape {list(reference.shape)}, a gradient {list(units.shape)}")
        directions.append(reference.to(units))
    cosines = gradients.cosine(torch.stack(directions)).double()
    total = cosines[:, 0] + _diversity(cosines[:, 1] * units.norm(), norms, with_self)
    if reference is not None:
        total = total + tau * cosines[:, 2]
    array: FloatArray = total.cpu().numpy()
    return array


def of_gram(gram: FloatArray, n: int, tau: float = 0.0) -> FloatArray:
    """The same scores of the first n rows of a Gram matrix [n + m, n + m]; the other m are the reference rows."""
    m = len(gram) - n
    inverse = inverse_lengths(gram.diagonal()[:n])
    weights = np.zeros((n + m, 3))  # of ḡ, of the sum of all directions, and of r
    weights[:n, 0], weights[:n, 1], weights[n:, 2] = 1 / n, inverse, 1 / max(m, 1)
    products = gram @ weights
    own, units, reference = products[:n].T * inverse
    total: FloatArray = own * _inverse_root(products[:n, 0].mean())
    if n > 1:
        total += ((inverse > 0) - units) / (n - 1)
    if m:
        total += tau * _inverse_root(products[n:, 2].mean()) * reference
    return total


def best_first(scores: FloatArray, tau: float = 0.0) -> IntArray:
    """Rows [n] from the highest score to the lowest; of those that only rounding tells apart, the first.

    Args:
        tau: coefficient of the affinity in the scores: τ large cosines have τ large rounding errors.
    """
    steps: FloatArray = np.rint(scores / (RESOLUTION * (2 + tau)))
    return np.argsort(-steps, kind="stable")


def _units(gradients: PerSampleGradients) -> Tensor:
    """Σ_j g_j / ‖g_j‖ [p]."""
    norms = gradients.norms()
    return gradients.weighted_sum(torch.where(norms < DEGENERATE, 0.0, 1 / norms.clamp(min=DEGENERATE)))


def _diversity(cosines: Tensor, norms: Tensor, with_self: bool) -> Tensor:
    """Of each row's sum of cosines with all rows [n], itself among them."""
    n = len(cosines)
    if with_self or n == 1:
        return -cosines / n if with_self else torch.zeros_like(cosines)
    return ((norms >= DEGENERATE).to(cosines) - cosines) / (n - 1)


def _inverse_root(square: float) -> float:
    """1 / length of a mean gradient, of its square."""
    return 0.0 if square < DEGENERATE**2 else square**-0.5
