"""GradMatch and GCR: few weighted gradients that sum to what all of them sum to.

    min over S, w_S >= 0:  ‖ Σ_i w_i g_i - Σ_{j in S} v_j g_j ‖² + lam ‖v‖²

solved by orthogonal matching pursuit, class by class: target and atoms of one class only.

Source: Killamsetty et al., GRAD-MATCH: Gradient Matching based Data Subset Selection, ICML 2021, algorithm 2
(w_i = 1); Tiwari, Killamsetty, Iyer and Shenoy, GCR: Gradient Coreset Based Replay Buffer Selection for
Continual Learning, CVPR 2022, algorithm 2 (w_i is what the row stood for; g is the gradient of the replay
loss, which the pool supplies).
Weights: v. A row's v replaces its w, so that a pool of one row gives back its weight. Budgets of the classes
follow their numbers of rows, by largest remainder.
Cost and bytes: as `replaykit.selectors.matching_pursuit`, on each class.
Departures: lam is in units of the mean squared length of the class's gradients (mean norm, squared), so that
0.5 means the same early and late in training. When the residual is spent before the budget, the class is
filled with the rows of the largest products with it, at the mean positive weight (the release: weight 1);
a class whose gradients are all zero is filled in order, at equal weights that sum to the class's.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from replaykit.selectors.ahead import Ahead
from replaykit.selectors.matching_pursuit import Pursuit, pursue
from replaykit.selectors.pool import Pool, Selection, Vectors, checked_vectors, take_count
from replaykit.selectors.quotas import Shares, by_class, proportional
from replaykit.selectors.rows import MAX_BYTES


def grad_approx(
    vectors: Vectors,
    weight: Tensor,
    k: int,
    lam: float = 0.5,
    eps: float = 0.0,
    relative: bool = True,
    max_bytes: int = MAX_BYTES,
) -> Pursuit:
    """Rows [k] and weights [k] whose weighted sum is close to the weighted sum of all.

    Args:
        vectors: gradients.
        weight: of the rows in the target, >= 0 [n].
        lam: ridge on the weights.
        eps: stop the pursuit when the squared residual is no more than this.
        relative: lam and eps are in units of the squared mean norm of the gradients.
        max_bytes: hold k rows of inner products if they take no more than this, else compute anew.
    """
    if not (0 <= lam < math.inf and 0 <= eps < math.inf):
        raise ValueError(f"grad_approx: lam and eps must be >= 0 and finite, got lam={lam}, eps={eps}")
    norms = vectors.norms()
    n = len(norms)
    k = take_count(k, n, "grad_approx")
    unit = float(norms.double().mean().square()) if relative and n else 1.0
    products = vectors.gram_times(weight.to(norms))
    target = float(products.double() @ weight.to(norms.device, torch.float64))
    fits = k * max(n, 1) * norms.element_size() <= max_bytes
    found = pursue(
        Ahead(vectors.gram_rows, n, block=32, max_bytes=max_bytes).row,
        products,
        k,
        target,
        lam * unit,
        eps * unit,
        None if fits else vectors.gram_times,
    )
    if found.pursued or k == 0:
        return found
    share = float(weight.double().sum()) / k
    return found._replace(weights=torch.full_like(found.weights, share))


class GradMatch:
    """Gradient matching of unweighted rows, class by class if the pool has labels.

    Args:
        quantity: of the pool, as vectors.
        lam: ridge on the weights, in units of the squared mean norm of the gradients.
        eps: stop the pursuit when the squared residual, in the same units, is no more than this.
        mean: match the mean of the gradients, not their sum; then weights sum to about 1 a class.
        relative: False for lam and eps in absolute units.
        shares: of the classes.
        max_bytes: hold the inner products of the chosen rows if they take no more than this.
    """

    def __init__(
        self,
        quantity: str = "gradients",
        lam: float = 0.5,
        eps: float = 0.0,
        mean: bool = False,
        relative: bool = True,
        shares: Shares = proportional,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.needs = (quantity,)
        self.lam, self.eps, self.relative = lam, eps, relative
        self.mean, self.shares, self.max_bytes = mean, shares, max_bytes

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        return by_class(self._within, pool, k, rng, type(self).__name__, self.shares)

    def _within(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        vectors = checked_vectors(pool, self.needs[0], type(self).__name__)
        weight = self._target(pool)
        found = grad_approx(vectors, weight, k, self.lam, self.eps, self.relative, self.max_bytes)
        return found.rows, found.weights

    def _target(self, pool: Pool) -> Tensor:
        weight = torch.ones_like(pool.weight)
        return weight / max(1, pool.n) if self.mean else weight


class GCR(GradMatch):
    """GradApprox of GCR: gradient matching of weighted rows; the pool is the old coreset and the candidates.

    Args:
        quantity: gradients of the replay loss (alpha · MSE to stored logits + beta · cross-entropy).
        lam: ridge on the weights, in units of the squared mean norm of the gradients.
        eps: stop the pursuit when the squared residual, in the same units, is no more than this.
        relative: False for lam and eps in absolute units.
        shares: of the classes.
        max_bytes: hold the inner products of the chosen rows if they take no more than this.
    """

    def __init__(
        self,
        quantity: str = "gradients",
        lam: float = 0.5,
        eps: float = 0.0,
        relative: bool = True,
        shares: Shares = proportional,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        super().__init__(quantity, lam, eps, False, relative, shares, max_bytes)

    def _target(self, pool: Pool) -> Tensor:
        return pool.weight
