"""Rainbow Memory: per class, rows spread evenly from the most certain to the most uncertain.

    u(x) = 1 - max_c S_c / T,   S_c = how many of T perturbed copies of x the model calls c

Per class the candidates are sorted by u and k / classes equally spaced ones are kept; slots that are left
over (from rounding, and from classes with fewer rows than their share) go to random other rows.

Source: Bang, Kim, Yoo, Ha and Choi, Rainbow Memory: Continual Learning with a Memory of Diverse Samples,
CVPR 2021, and its released code.
Weights returned: ones. Order: class by class in ascending label, within a class ascending in u, then the
random rows.
Cost: O(n log n), and T forward passes over the pool for the uncertainty (`uncertainty_from_votes`).

Departures:
- Spacing: `linspace_ranks` holds both ends, the most certain and the most uncertain row. The paper's rule
  (`paper_ranks`) leaves out the most certain, the code's (`release_ranks`) stops short of the uncertain end.
- u takes T values at most, and the code's unstable sort decides between equal ones. Here the more confident
  row comes first if the pool knows confidences, then the smaller row.
- Uncertainty counts from the first task on; `random_first` gives the code's first task, random in each class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from replaykit.draws import distinct
from replaykit.selectors.pool import Pool, Selection, finite, take_count
from replaykit.store import IntArray

#: (n, k) to k increasing ranks below n, for 1 <= k <= n. Rank 0 is the most certain row.
Spacing: TypeAlias = Callable[[int, int], IntArray]


def linspace_ranks(n: int, k: int) -> IntArray:
    """k of n ranks at equal distances, both ends included; the most certain for k = 1."""
    return np.rint(np.linspace(0, n - 1, k)).astype(np.int64)


def paper_ranks(n: int, k: int) -> IntArray:
    """Ranks floor(j n / k), j = 1..k, counted from 1: the most uncertain is included."""
    return np.arange(1, k + 1) * n // k - 1


def release_ranks(n: int, k: int) -> IntArray:
    """The first k of every floor(n / k)-th rank from the most certain on, as in the released code."""
    return np.arange(k) * (n // k)


@dataclass
class Rainbow:
    """Rainbow Memory's choice of rows.

    Args:
        spacing: ranks to keep of a class: `linspace_ranks`, `paper_ranks` or `release_ranks`.
        quantity: the pool's uncertainty [n], or [n, 2] with a confidence beside it that decides ties (the
            first two results of `uncertainty_from_votes`, stacked).
        random_first: as long as no row of the pool comes from the memory (`stored`, bool [n], is false
            everywhere), draw at random in each class without looking at the uncertainty.
        compat: the release: `release_ranks` and `random_first`.
    """

    spacing: Spacing = linspace_ranks
    quantity: str = "uncertainty"
    random_first: bool = False
    compat: bool = False
    needs: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.compat:
            self.spacing, self.random_first = release_ranks, True
        self.needs = (self.quantity, "stored") if self.random_first else (self.quantity,)

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        """min(k, n) rows and weights of 1.

        Raises:
            ValueError: no labels; an uncertainty that is not finite or not [n] or [n, 2].
        """
        k = take_count(k, pool.n, "Rainbow")
        if pool.y is None:
            raise ValueError("Rainbow needs labels; build the pool with y")
        if k == 0:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
        device = pool.y.device
        y = pool.y.cpu().numpy()
        if self.random_first and not bool(pool.tensor("stored").any()):
            order = rng.permutation(pool.n)
            rows = spaced(y[order], order, k, _first_ranks, rng)
        else:
            order = certain_first(self._uncertainty(pool))
            rows = spaced(y[order], order, k, self.spacing, rng)
        return torch.from_numpy(rows).to(device), torch.ones(k, dtype=torch.float64, device=device)

    def _uncertainty(self, pool: Pool) -> Tensor:
        u = finite(pool.tensor(self.quantity).detach(), "Rainbow", self.quantity)
        if u.ndim == 1:
            return u[:, None]
        if u.shape[1:] != (2,):
            raise ValueError(f"Rainbow: {self.quantity} [n] or [n, 2] expected, got {list(u.shape)}")
        return u


def certain_first(uncertainty: Tensor) -> IntArray:
    """Order [n] by ascending uncertainty [n, 1], or [n, 2]: then by descending confidence, then by row."""
    columns = uncertainty.cpu().double().numpy().T
    order: IntArray = np.lexsort((*(-column for column in columns[:0:-1]), columns[0]))
    return order


def spaced(y: IntArray, rows: IntArray, k: int, spacing: Spacing, rng: np.random.Generator) -> IntArray:
    """k of the given rows [n], whose labels are y [n]: equally many spaced ones of each class, then random ones.

    Args:
        rows: in the order to be spaced over.
        k: at most n.
    """
    labels = np.unique(y)
    chosen: list[IntArray] = []
    for label in labels:
        members = np.flatnonzero(y == label)
        quota = min(k // len(labels), len(members))
        if quota:
            chosen.append(members[spacing(len(members), quota)])
    taken = np.concatenate([np.empty(0, np.int64), *chosen])
    rest = np.setdiff1d(np.arange(len(y)), taken)
    # In row order, so that the draw does not depend on the order of equal uncertainties.
    rest = rest[np.argsort(rows[rest])]
    free = rest[distinct(len(rest), k - len(taken), rng)]
    picked: IntArray = rows[np.concatenate([taken, free])]
    return picked


def _first_ranks(n: int, k: int) -> IntArray:
    return np.arange(k)


@torch.no_grad()
def uncertainty_from_votes(
    predict: Callable[[Tensor], Tensor],
    x: Tensor,
    perturbations: Sequence[Callable[[Tensor], Tensor]],
    chunk: int = 1024,
) -> tuple[Tensor, Tensor, Tensor]:
    """Uncertainty u [n], mean probability of the winning class [n] (float64), and votes [n, c] (int16).

    Args:
        predict: inputs [b, ...] to logits [b, c], in evaluation mode.
        x: inputs [n, ...].
        perturbations: T functions from a batch to a perturbed batch, ready for the model; each is applied
            once. Random ones carry their own generator and see the rows in order.
        chunk: rows per forward pass.

    Raises:
        ValueError: no perturbation, no row, or logits with NaN.
    """
    if not perturbations or not len(x):
        raise ValueError(
            f"uncertainty needs rows and perturbations, got {len(x)} rows and {len(perturbations)} perturbations"
        )
    sums: list[Tensor] = []
    votes: list[Tensor] = []
    for perturb in perturbations:
        logits = torch.cat([predict(perturb(part)) for part in torch.split(x, chunk)])
        if bool(logits.isnan().any()):
            raise ValueError("uncertainty: the logits hold NaN; look for a diverged model")
        if not votes:
            votes = [torch.zeros(logits.shape, dtype=torch.int16, device=logits.device)]
            sums = [torch.zeros(logits.shape, dtype=torch.float64, device=logits.device)]
        votes[0].scatter_add_(1, logits.argmax(1, keepdim=True), votes[0].new_ones(len(logits), 1))
        sums[0] += logits.double().softmax(1)
    winner = votes[0].argmax(1, keepdim=True)
    confidence = sums[0].gather(1, winner)[:, 0] / len(perturbations)
    return vote_uncertainty(votes[0]), confidence, votes[0]


def vote_uncertainty(votes: Tensor) -> Tensor:
    """1 - largest share of the votes [n, c], float64 [n]."""
    counts = votes.double()
    return 1 - counts.max(1).values / counts.sum(1)
