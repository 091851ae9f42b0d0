"""Facility location: a subset in which every candidate has somebody similar.

    f(S) = Σ_i w_i max_{j in S} s_ij,    f(∅) = 0,    s >= 0

Source: survey of submodular selection in Wei, Iyer and Bilmes, Submodularity in Data Subset Selection and
Active Learning, ICML 2015, section 2; greedy engines in `replaykit.selectors.greedy`.
Cost: a step of the naive engine reads the whole matrix, one of the stochastic engine n/k · ln(1/eps) rows.
Bytes: the matrix [n, n] if it fits into `max_bytes`, else its rows are computed when they are needed.
Weights returned: ones. A weighted pool weighs the sum over i.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from replaykit.selectors.greedy import Engine, lazy
from replaykit.selectors.pool import Pool, Selection, Vectors, checked_vectors, checked_weight, take_count
from replaykit.selectors.rows import MAX_BYTES, Rows
from replaykit.selectors.similarity import cosine

Similarity: TypeAlias = Callable[[Vectors], Callable[[Tensor], Tensor]]


class Coverage:
    """Σ_i w_i max(s_ij over j in S, floor) as a set function that grows.

    Args:
        similarity: row j says how well j stands for everybody [n, n].
        weight: of those to be stood for [n].
        floor: similarity to nobody, no larger than any entry.
    """

    def __init__(self, similarity: Rows, weight: Tensor, floor: float = 0.0) -> None:
        self.similarity = similarity
        self.weight = weight.to(similarity.device, similarity.dtype)
        self.best = torch.full_like(self.weight, floor)
        # A sum is several times faster than a product with ones.
        self.equal = bool((self.weight == 1).all())

    @property
    def device(self) -> torch.device:
        return self.similarity.device

    def __len__(self) -> int:
        return self.similarity.n

    def gains(self, index: Tensor) -> Tensor:
        gains = [self._weighed(piece.sub_(self.best).clamp_(min=0)) for piece in self.similarity.pieces(index)]
        return torch.cat(gains)

    def _weighed(self, more: Tensor) -> Tensor:
        return more.sum(1) if self.equal else more @ self.weight

    def add(self, row: Tensor) -> None:
        torch.maximum(self.best, self.similarity.row(row), out=self.best)


def facility_location(
    similarity: Tensor,
    k: int,
    engine: Engine = lazy,
    rng: np.random.Generator | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The rows [k] of a greedy maximisation and what each added to f [k].

    Args:
        similarity: >= 0 [n, n]; row j says how well candidate j stands for everybody. It is not copied.
        engine: `naive`, `lazy` or `stochastic` of `replaykit.selectors.greedy`.
        rng: for the stochastic engine.
        weight: of those to be stood for, >= 0 [n]; ones by default.

    Raises:
        ValueError: a matrix that is not square, NaN, infinite or negative entries, a negative weight or k.
    """
    square(similarity, "facility_location")
    n = len(similarity)
    if n and similarity.min() < 0:
        raise ValueError(f"facility_location: similarities must be >= 0, got {similarity.min().item()}")
    weight = torch.ones(n) if weight is None else checked_weight(weight, "facility_location")
    k = take_count(k, n, "facility_location")
    return engine(Coverage(Rows.of(similarity), weight), k, rng)


class FacilityLocation:
    """Facility location over a quantity of the pool.

    Args:
        quantity: of the pool, as vectors.
        similarity: non-negative similarity of vectors; (1 + cosine) / 2 by default.
        engine: `lazy`, `naive`, or `stochastic` (with another eps: ``partial(stochastic, eps=0.1)``).
        max_bytes: hold the similarity matrix if it takes no more than this.
    """

    def __init__(
        self,
        quantity: str = "features",
        similarity: Similarity = cosine,
        engine: Engine = lazy,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.needs = (quantity,)
        self.similarity, self.engine, self.max_bytes = similarity, engine, max_bytes

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        k = take_count(k, pool.n, "FacilityLocation")
        vectors = checked_vectors(pool, self.needs[0], "FacilityLocation")
        rows = Rows(pool.n, self.similarity(vectors), vectors.norms(), self.max_bytes)
        chosen, _ = self.engine(Coverage(rows, pool.weight), k, rng)
        return chosen, torch.ones(len(chosen), dtype=torch.float64, device=chosen.device)


def square(matrix: Tensor, selector: str) -> None:
    """Check that a matrix is square and finite.

    Raises:
        ValueError: it is not.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{selector}: expected a square matrix [n, n], got {list(matrix.shape)}")
    # NaN and infinity survive a sum; only an overflow needs the full look.
    if not bool(matrix.sum().isfinite()) and not bool(matrix.isfinite().all()):
        raise ValueError(f"{selector}: the matrix holds NaN or infinity")
