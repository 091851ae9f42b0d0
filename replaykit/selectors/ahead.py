"""Rows of a matrix for a greedy walk, fetched ahead of their turn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from replaykit.selectors.rows import MAX_BYTES


class Ahead:
    """One row at a time, computed many at a time.

    A product with one row reads all vectors; a product with 64 reads them once as well and takes a fraction
    of 64 times as long. So when a row is asked for that is not at hand, those with the highest scores now
    are computed with it. The answers do not depend on it.

    Args:
        compute: row numbers [m] to rows [m, n].
        n: length of a row.
        block: rows to compute at a time.
        max_bytes: hold no more than this, but at least one row.
    """

    def __init__(
        self, compute: Callable[[Tensor], Tensor], n: int, block: int = 32, max_bytes: int = MAX_BYTES
    ) -> None:
        self.block = max(1, min(block, max_bytes // (8 * max(n, 1))))
        self._compute = compute
        self._known: dict[int, Tensor] = {}

    def row(self, j: Tensor, scores: Tensor) -> Tensor:
        """Row j [] of the matrix [n], to be read only, given how likely each row is to come soon [n]."""
        if int(j) not in self._known:
            others = scores.topk(min(self.block, len(scores))).indices
            index = torch.cat([j.reshape(1), others[others != j][: self.block - 1]])
            self._known = dict(zip(index.tolist(), self._compute(index), strict=True))
        return self._known[int(j)]
