"""Memories of rows chosen by what the model answers: `Coreset` with scores of the literature.

What a class keeps and its source are told in the selector's module, the columns and the frame (budget, candidates,
recent) in `replaykit.policies.coreset`. Cost: a forward pass of the memory and the candidates. Probe: logits;
`Forgetting` reads a column instead.
Departures: the papers prune whole data sets, or choose what to label; scores of rows that were learned long ago
are taken anew with the present model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from replaykit import selectors
from replaykit.plan import Plan
from replaykit.policies.coreset import Budget, Coreset
from replaykit.selectors.forgetting import checked_counts
from replaykit.selectors.ranking import Order, highest
from replaykit.store import Batch, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe


class EL2N(Coreset):
    """Rows of the largest error of the probabilities (Paul et al. 2021); `order` and `skip` leave outliers out.

    Arguments of `selectors.EL2N` and `Coreset`.
    """

    def __init__(
        self,
        order: Order = highest,
        skip: int = 0,
        *,
        budget: Budget = "per_class",
        candidates: int | None = None,
        recent: int = 0,
    ) -> None:
        super().__init__(selectors.EL2N(order=order, skip=skip), budget, candidates, recent)


class LeastConfidence(Coreset):
    """Rows whose largest probability is smallest (Settles 2009).

    Arguments of `selectors.LeastConfidence` and `Coreset`.
    """

    def __init__(
        self,
        skip: int = 0,
        *,
        budget: Budget = "per_class",
        candidates: int | None = None,
        recent: int = 0,
    ) -> None:
        super().__init__(selectors.LeastConfidence(skip=skip), budget, candidates, recent)


class Margin(Coreset):
    """Rows whose two largest probabilities are closest (Settles 2009).

    Arguments of `selectors.Margin` and `Coreset`.
    """

    def __init__(
        self,
        skip: int = 0,
        *,
        budget: Budget = "per_class",
        candidates: int | None = None,
        recent: int = 0,
    ) -> None:
        super().__init__(selectors.Margin(skip=skip), budget, candidates, recent)


class Entropy(Coreset):
    """Rows of the highest entropy of the probabilities (Settles 2009).

    Arguments of `selectors.Entropy` and `Coreset`.
    """

    def __init__(
        self,
        skip: int = 0,
        *,
        budget: Budget = "per_class",
        candidates: int | None = None,
        recent: int = 0,
    ) -> None:
        super().__init__(selectors.Entropy(skip=skip), budget, candidates, recent)


class Forgetting(Coreset):
    """Rows forgotten most often while the model trained (Toneva et al. 2019).

    Args:
        column: of the stream, with the counts of its rows (see `selectors.ForgettingCounts`); stored rows keep
            theirs.
        order, skip: of `selectors.Forgetting`.
        budget, candidates, recent: of `Coreset`.
    """

    def __init__(
        self,
        column: str = "forgetting",
        order: Order = highest,
        skip: int = 0,
        *,
        budget: Budget = "per_class",
        candidates: int | None = None,
        recent: int = 0,
    ) -> None:
        super().__init__(selectors.Forgetting(column, order, skip), budget, candidates, recent)
        self.column = column

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        if self.column in arrivals:
            checked_counts(arrivals[self.column], self.column)
        return super().plan(arrivals, store, rng, probe)
