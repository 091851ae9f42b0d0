"""Memories of rows chosen by gradients: selectors of the literature at their published settings.

What a class keeps, its source and its cost are told in the selector's module, the columns and the frame (budget,
candidates, recent) in `replaykit.policies.coreset`. Stored rows take part in every selection with the weight that
they were given. Probe: gradients (of the last layer, as published, if the probe has ``layers="last"``); BADGE:
logits and features.
Departures: the papers select once, from a whole data set; here a selection sees the memory and what came since.
"""

from __future__ import annotations

from replaykit import selectors
from replaykit.policies.coreset import Budget, Coreset
from replaykit.selectors.greedy import Engine, lazy
from replaykit.selectors.ranking import Order, highest


class GradMatch(Coreset):
    """Rows whose weighted gradients sum to what all of them sum to (Killamsetty et al. 2021, ICML).

    Old rows count as one row each; `GCR` counts them with their weights. Arguments of `selectors.GradMatch` and
    `Coreset`.
    """

    def __init__(
        self,
        quantity: str = "gradients",
        lam: float = 0.5,
        eps: float = 0.0,
        mean: bool = False,
        relative: bool = True,
        *,
        budget: Budget = "per_class",
        candidates: int | None = None,
        recent: int = 0,
    ) -> None:
        super().__init__(selectors.GradMatch(quantity, lam, eps, mean, relative), budget, candidates, recent)


class CRAIG(Coreset):
    """Rows that stand for those with similar gradients, and for how many (Mirzasoleiman et al. 2020).

    Arguments of `selectors.CRAIG` and `Coreset`.
    """

    def __init__(
        self,
        quantity: str = "gradients",
        engine: Engine = lazy,
        *,
        budget: Budget = "per_class",
        candidates: int | None = None,
        recent: int = 0,
    ) -> None:
        super().__init__(selectors.CRAIG(quantity, engine), budget, candidates, recent)


class GraNd(Coreset):
    """Rows of the largest gradients (Paul et al. 2021); `order` and `skip` leave outliers out.

    Arguments of `selectors.GraNd` and `Coreset`.
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
        super().__init__(selectors.GraNd(order=order, skip=skip), budget, candidates, recent)


class BADGE(Coreset):
    """Rows whose gradients are large and different, by k-means++ seeding (Ash et al. 2020).

    Arguments of `selectors.BADGE` and `Coreset`.
    """

    def __init__(
        self,
        quantity: str | None = None,
        *,
        budget: Budget = "per_class",
        candidates: int | None = None,
        recent: int = 0,
    ) -> None:
        super().__init__(selectors.BADGE(quantity), budget, candidates, recent)


class Importance(Coreset):
    """Rows drawn by the norms of their gradients, with weights that undo it (Katharopoulos and Fleuret 2018).

    Arguments of `selectors.Importance` and `Coreset`.
    """

    def __init__(
        self,
        quantity: str = "gradients",
        rho: float = 0.1,
        *,
        budget: Budget = "per_class",
        candidates: int | None = None,
        recent: int = 0,
    ) -> None:
        super().__init__(selectors.Importance(quantity, rho), budget, candidates, recent)
