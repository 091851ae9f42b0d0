"""Greedy bilevel coreset of large pools: a linear model on Nyström features instead of the kernel itself.

    φ(x) = K_LL^{-1/2} k_L(x),    q landmarks L drawn from the pool

A linear softmax model on φ is the kernel model of `proxy` with the kernel <φ(x), φ(z)>, so greedy search,
implicit scores and weights are those of `Bilevel`.

Source: Borsos, Tagliasacchi and Krause, Semi-supervised Batch Active Learning via Bilevel Optimization,
arXiv:2010.09654, and the released code of Borsos et al., NeurIPS 2020.
Cost: O(n q^2) once for the features, then O(n q c) per row instead of O(n^2 c). Bytes: n q features.

Departures: the model is fitted to its optimum by Newton steps instead of 7,500 steps of Adam; selected rows
have no augmented copies; the outer loss is taken over the whole pool, not over 30,000 rows of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from replaykit.draws import distinct
from replaykit.selectors.bilevel import Bilevel
from replaykit.selectors.gram import FactorGram, Gram
from replaykit.selectors.kernels import Kernel, chunks
from replaykit.selectors.pool import Dense, Pool, finite, working_dtype


@dataclass
class Nystrom(Bilevel):
    """`Bilevel` with a low-rank kernel.

    Args:
        landmarks: rows q of the pool that span the features.
        floor: smaller eigenvalues of K_LL are raised to it.
    """

    landmarks: int = 2000
    floor: float = 1e-7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.landmarks < 1 or not self.floor > 0:
            raise ValueError(f"Nystrom: landmarks >= 1 and floor > 0 expected, got {self.landmarks}, {self.floor}")
        if self.kernel is None:
            raise ValueError("Nystrom: needs a kernel, such as RBF(); inner products need no landmarks")

    def gram(self, pool: Pool, rng: np.random.Generator) -> Gram:
        assert self.kernel is not None
        x = finite(pool.tensor(self.quantity).detach().to(working_dtype(pool.n)), "Nystrom", self.quantity)
        kernel = self.kernel.fit(x)
        chosen = np.sort(distinct(pool.n, min(self.landmarks, pool.n), rng))
        marks = x.index_select(0, torch.from_numpy(chosen).to(x.device))
        return FactorGram(Dense(nystrom_features(kernel, x, marks, self.floor, self.max_bytes)))


def nystrom_features(
    kernel: Kernel, x: Tensor, landmarks: Tensor, floor: float = 1e-7, max_bytes: int = 1 << 30
) -> Tensor:
    """Vectors [n, q] whose inner products approximate the kernel of rows x [n, ...].

    With all rows as landmarks and eigenvalues above the floor the approximation is exact.

    Raises:
        ValueError: the kernel of the landmarks [q, ...] is not finite or not positive semi-definite.
    """
    square = finite(kernel(landmarks), "Nystrom", "the kernel")
    values, vectors = torch.linalg.eigh(square.double())
    if values[0] < -1e-6 * square.diagonal().sum():
        raise ValueError(
            f"Nystrom: the kernel of the landmarks has the eigenvalue {values[0].item():.1e}, so it is not a "
            "kernel; use a positive semi-definite one (Linear, RBF, an NTK)"
        )
    root = (vectors / values.clamp(min=floor).sqrt()) @ vectors.T
    root = root.to(x.dtype)
    row_bytes = len(landmarks) * x.element_size()
    return torch.cat([kernel(x[rows], landmarks) @ root for rows in chunks(len(x), row_bytes, max_bytes)])
