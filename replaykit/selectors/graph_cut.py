"""Graph cut: rows similar to everybody and dissimilar to each other.

    f(S) = lam Σ_i Σ_{j in S} w_i s_ij - Σ_{l, j in S} s_lj

Source: Iyer and Bilmes, Submodular Optimization with Submodular Cover and Submodular Knapsack Constraints,
NeurIPS 2013; Kothawade et al., PRISM, AAAI 2022. For similarities >= 0, f is submodular, and monotone if
lam >= 2 (with weights of at least 1).
Cost: one pass over the matrix, then O(n) a step; bytes: a row of the matrix. Weights: ones.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from replaykit.selectors.facility_location import Similarity, square
from replaykit.selectors.greedy import Engine, naive
from replaykit.selectors.pool import Pool, Selection, checked_vectors, checked_weight, take_count
from replaykit.selectors.rows import MAX_BYTES, Rows
from replaykit.selectors.similarity import cosine


class Cut:
    """The graph cut as a set function that grows: every gain is at hand, adding a row updates them.

    Args:
        similarity: symmetric [n, n].
        weight: of those to be similar to [n].
        lam: worth of similarity to everybody.
    """

    def __init__(self, similarity: Rows, weight: Tensor, lam: float) -> None:
        self.similarity = similarity
        weight = weight.to(similarity.device, similarity.dtype)
        everything = torch.arange(similarity.n, device=similarity.device)
        cover, own = [], []
        for index, piece in zip(
            torch.split(everything, similarity.piece), similarity.pieces(everything), strict=True
        ):
            cover.append(piece @ weight)
            own.append(piece.gather(1, index[:, None])[:, 0])
        self.gain = lam * torch.cat(cover) - torch.cat(own)

    @property
    def device(self) -> torch.device:
        return self.similarity.device

    def __len__(self) -> int:
        return self.similarity.n

    def gains(self, index: Tensor) -> Tensor:
        return self.gain[index]

    def add(self, row: Tensor) -> None:
        self.gain.sub_(self.similarity.row(row), alpha=2)


def graph_cut(
    similarity: Tensor,
    k: int,
    lam: float = 2.0,
    engine: Engine = naive,
    rng: np.random.Generator | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The rows [k] of a greedy maximisation and what each added to f [k].

    Args:
        similarity: symmetric, >= 0 [n, n].
        lam: worth of similarity to everybody.
        engine: of `replaykit.selectors.greedy`; the naive one costs no more than the others here.
        rng: for the stochastic engine.
        weight: of those to be similar to, >= 0 [n]; ones by default.

    Raises:
        ValueError: a matrix that is not square and symmetric, NaN, infinite or negative entries, a negative
            weight or k.
    """
    square(similarity, "graph_cut")
    n = len(similarity)
    if n and similarity.min() < 0:
        raise ValueError(f"graph_cut: similarities must be >= 0, got {similarity.min().item()}")
    symmetric(similarity, "graph_cut")
    weight = torch.ones(n) if weight is None else checked_weight(weight, "graph_cut")
    return engine(Cut(Rows.of(similarity), weight, lam), take_count(k, n, "graph_cut"), rng)


class GraphCut:
    """Graph cut over a quantity of the pool.

    Args:
        quantity: of the pool, as vectors.
        similarity: non-negative similarity of vectors; (1 + cosine) / 2 by default.
        lam: worth of similarity to everybody; at 2 and above no row can hurt.
        engine: of `replaykit.selectors.greedy`.
        max_bytes: for the rows of the matrix worked on at a time.
    """

    def __init__(
        self,
        quantity: str = "features",
        similarity: Similarity = cosine,
        lam: float = 2.0,
        engine: Engine = naive,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.needs = (quantity,)
        self.similarity, self.lam, self.engine, self.max_bytes = similarity, lam, engine, max_bytes

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        k = take_count(k, pool.n, "GraphCut")
        vectors = checked_vectors(pool, self.needs[0], "GraphCut")
        rows = Rows(pool.n, self.similarity(vectors), vectors.norms(), self.max_bytes, hold=False)
        chosen, _ = self.engine(Cut(rows, pool.weight, self.lam), k, rng)
        return chosen, torch.ones(len(chosen), dtype=torch.float64, device=chosen.device)


def symmetric(matrix: Tensor, selector: str) -> None:
    """Check that a matrix is symmetric up to rounding.

    Raises:
        ValueError: it is not.
    """
    if len(matrix) and (matrix - matrix.T).abs().max() > 1e-4 * matrix.abs().max():
        raise ValueError(f"{selector}: the matrix is not symmetric; pass (s + s.T) / 2")
