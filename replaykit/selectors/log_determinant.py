"""Log-determinant: the subset that spans the largest volume.

    f(S) = log det(K_SS + eps I)        gain of j = log(k_jj + eps - k_jS (K_SS + eps I)^-1 k_Sj)

Source: Kulesza and Taskar, Determinantal Point Processes for Machine Learning, 2012, section 5.2.1; Chen,
Zhang and Zhou, Fast Greedy MAP Inference for Determinantal Point Process, NeurIPS 2018 (the Cholesky form).
f is submodular for a positive semi-definite K, and monotone if eps >= 1.
Cost: O(n |S|) a step; bytes: k rows [k, n]. Weights: ones.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from replaykit.selectors.facility_location import Similarity, square
from replaykit.selectors.graph_cut import symmetric
from replaykit.selectors.greedy import Engine, naive
from replaykit.selectors.pool import Pool, Selection, checked_vectors, take_count
from replaykit.selectors.rows import MAX_BYTES, Rows
from replaykit.selectors.similarity import cosine


class Volume:
    """log det(K_SS + eps I) as a set function that grows by rows of a Cholesky factor.

    Args:
        kernel: positive semi-definite [n, n].
        k: number of rows that will be added at most.
        eps: ridge, >= 0.
        selector: name for messages.

    Raises:
        ValueError: on construction or while it grows: a kernel that is not positive semi-definite.
    """

    def __init__(self, kernel: Rows, k: int, eps: float, selector: str = "log_determinant") -> None:
        self.kernel, self.eps, self.selector = kernel, eps, selector
        everything = torch.arange(kernel.n, device=kernel.device)
        parts = zip(torch.split(everything, kernel.piece), kernel.pieces(everything), strict=True)
        self.left = torch.cat([piece.gather(1, index[:, None])[:, 0] for index, piece in parts]) + eps
        self.factor = self.left.new_zeros(k, kernel.n)
        self.size = 0
        self.chosen = torch.zeros(kernel.n, dtype=torch.bool, device=kernel.device)
        # What rounding leaves of nothing; above 0, since a gain of -inf is that of a row that was taken.
        number = torch.finfo(kernel.dtype)
        self.nothing = max(1000 * number.eps * (float(self.left.abs().max()) if kernel.n else 1.0), number.tiny)
        self._check()

    @property
    def device(self) -> torch.device:
        return self.kernel.device

    def __len__(self) -> int:
        return self.kernel.n

    def gains(self, index: Tensor) -> Tensor:
        return self.left[index].clamp(min=self.nothing).log()

    def add(self, row: Tensor) -> None:
        held = self.factor[: self.size]
        # Without a ridge, a row in the span of the others adds no direction.
        if self.left[row] > self.nothing:
            column = (self.kernel.row(row) - held[:, row] @ held) / self.left[row].sqrt()
            self.factor[self.size] = column
            self.left -= column.square()
        self.chosen[row] = True
        self.size += 1
        self._check()

    def _check(self) -> None:
        """What is left of k_jj given S is a variance, the ridge apart."""
        variance = self.left.masked_fill(self.chosen, math.inf) - self.eps
        if len(variance) and variance.min() < -self.nothing:
            raise ValueError(
                f"{self.selector}: the kernel is not positive semi-definite "
                f"(a variance of {variance.min():.2e} is left); use another kernel"
            )


def log_determinant(
    kernel: Tensor, k: int, eps: float = 1.0, engine: Engine = naive, rng: np.random.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """The rows [k] of a greedy maximisation and what each added to f [k].

    Args:
        kernel: positive semi-definite [n, n].
        eps: ridge, >= 0.
        engine: of `replaykit.selectors.greedy`; the naive one costs no more than the others here.
        rng: for the stochastic engine.

    Raises:
        ValueError: a matrix that is not square, symmetric and positive semi-definite, NaN or infinity, a
            negative eps or k.
    """
    square(kernel, "log_determinant")
    symmetric(kernel, "log_determinant")
    k = take_count(k, len(kernel), "log_determinant")
    return engine(Volume(Rows.of(kernel), k, _ridge(eps)), k, rng)


class LogDeterminant:
    """Log-determinant over a quantity of the pool.

    Args:
        quantity: of the pool, as vectors.
        similarity: a positive semi-definite kernel of vectors; (1 + cosine) / 2 by default.
        eps: ridge, >= 0; from 1 on no row can hurt.
        engine: of `replaykit.selectors.greedy`.
        max_bytes: for the rows of the matrix worked on at a time.
    """

    def __init__(
        self,
        quantity: str = "features",
        similarity: Similarity = cosine,
        eps: float = 1.0,
        engine: Engine = naive,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.needs = (quantity,)
        self.similarity, self.eps, self.engine, self.max_bytes = similarity, _ridge(eps), engine, max_bytes

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        k = take_count(k, pool.n, "LogDeterminant")
        vectors = checked_vectors(pool, self.needs[0], "LogDeterminant")
        rows = Rows(pool.n, self.similarity(vectors), vectors.norms(), self.max_bytes, hold=False)
        chosen, _ = self.engine(Volume(rows, k, self.eps, "LogDeterminant"), k, rng)
        return chosen, torch.ones(len(chosen), dtype=torch.float64, device=chosen.device)


def _ridge(eps: float) -> float:
    if not 0 <= eps < math.inf:
        raise ValueError(f"log_determinant: eps must be a number >= 0, got {eps}")
    return eps
