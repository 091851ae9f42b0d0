"""Memories of rows chosen by features: selectors of the literature at their published settings.

What a class keeps, its source and its cost are told in the selector's module, the columns and the frame (budget,
candidates, recent) in `replaykit.policies.coreset`. Stored rows take part in every selection with the weight that
they were given. Probe: features (or the quantity given; any of them may be "x").
Departures: the papers select once, from a whole data set; here a selection sees the memory and what came since.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from replaykit import selectors
from replaykit.policies.coreset import Budget, Coreset
from replaykit.selectors.facility_location import Similarity
from replaykit.selectors.greedy import Engine, lazy, naive
from replaykit.selectors.k_center import First, nearest_to_mean
from replaykit.selectors.moderate import moderate
from replaykit.selectors.similarity import cosine


class Herding(Coreset):
    """Rows whose mean feature is close to that of their class (Welling 2009); re-selected whenever it is full.

    For exemplars that are never chosen anew see `ICaRLHerding`. Arguments of `selectors.Herding` and `Coreset`.
    """

    def __init__(
        self,
        quantity: str = "features",
        normalise: bool = True,
        *,
        budget: Budget = "per_class",
        candidates: int | None = None,
        recent: int = 0,
    ) -> None:
        super().__init__(selectors.Herding(quantity, normalise), budget, candidates, recent)


class KCenter(Coreset):
    """Rows to which no other is far (Gonzalez 1985; Sener and Savarese 2018).

    Arguments of `selectors.KCenter` and `Coreset`.
    """

    def __init__(
        self,
        quantity: str = "features",
        first: First = nearest_to_mean,
        *,
        budget: Budget = "per_class",
        candidates: int | None = None,
        recent: int = 0,
    ) -> None:
        super().__init__(selectors.KCenter(quantity, first), budget, candidates, recent)


class FacilityLocation(Coreset):
    """Rows such that every row has somebody similar (Wei, Iyer and Bilmes 2015).

    Arguments of `selectors.FacilityLocation` and `Coreset`.
    """

    def __init__(
        self,
        quantity: str = "features",
        similarity: Similarity = cosine,
        engine: Engine = lazy,
        *,
        budget: Budget = "per_class",
        candidates: int | None = None,
        recent: int = 0,
    ) -> None:
        super().__init__(selectors.FacilityLocation(quantity, similarity, engine), budget, candidates, recent)


class GraphCut(Coreset):
    """Rows similar to all and dissimilar to each other (Wei, Iyer and Bilmes 2015).

    Arguments of `selectors.GraphCut` and `Coreset`.
    """

    def __init__(
        self,
        quantity: str = "features",
        similarity: Similarity = cosine,
        lam: float = 2.0,
        engine: Engine = naive,
        *,
        budget: Budget = "per_class",
        candidates: int | None = None,
        recent: int = 0,
    ) -> None:
        super().__init__(selectors.GraphCut(quantity, similarity, lam, engine), budget, candidates, recent)


class LogDeterminant(Coreset):
    """Rows whose similarities span a large volume.

    Arguments of `selectors.LogDeterminant` and `Coreset`.
    """

    def __init__(
        self,
        quantity: str = "features",
        similarity: Similarity = cosine,
        eps: float = 1.0,
        engine: Engine = naive,
        *,
        budget: Budget = "per_class",
        candidates: int | None = None,
        recent: int = 0,
    ) -> None:
        super().__init__(selectors.LogDeterminant(quantity, similarity, eps, engine), budget, candidates, recent)


class Moderate(Coreset):
    """Rows neither close to the centre of their class nor far from it (Xia et al. 2023).

    Arguments of `selectors.Moderate` and `Coreset`.
    """

    def __init__(
        self,
        quantity: str = "features",
        rule: Callable[[Tensor, int], Tensor] = moderate,
        *,
        budget: Budget = "per_class",
        candidates: int | None = None,
        recent: int = 0,
    ) -> None:
        super().__init__(selectors.Moderate(quantity, rule), budget, candidates, recent)
