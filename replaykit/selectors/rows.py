"""A matrix by its rows: held when it fits into a number of bytes, computed when asked for otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from replaykit.selectors.pool import Vectors

#: Bytes that a selector may hold unless it is told otherwise.
MAX_BYTES = 2 * 2**30

# Rows worked on at a time: what stays in a core's cache, or enough to fill an accelerator.
_PIECE = {"cpu": 2**19}
_DEVICE_PIECE = 2**28


class Symmetric:
    """The entries of a symmetric matrix as a function of their row numbers.

    Args:
        entries: row numbers [m], and column numbers [c] or None for all of them, to entries [m, c or n].
    """

    def __init__(self, entries: Callable[[Tensor, Tensor | None], Tensor]) -> None:
        self._entries = entries

    def __call__(self, index: Tensor, among: Tensor | None = None) -> Tensor:
        return self._entries(index, among)


class Rows:
    """Rows of a square matrix [n, n].

    Args:
        n: number of rows.
        compute: row numbers [m] to rows [m, n].
        like: a tensor of the dtype and device of the rows.
        max_bytes: hold the whole matrix if it takes no more than this, and work on pieces no larger.
        hold: hold it at all.
    """

    def __init__(
        self,
        n: int,
        compute: Callable[[Tensor], Tensor],
        like: Tensor,
        max_bytes: int = MAX_BYTES,
        hold: bool = True,
    ) -> None:
        self.n, self.dtype, self.device = n, like.dtype, like.device
        row = max(1, n * like.element_size())
        piece = _PIECE.get(like.device.type, _DEVICE_PIECE)
        self.piece = max(1, min(piece, max_bytes) // row)
        self._compute = compute
        self.matrix: Tensor | None = None
        if hold and 0 < n * row <= max_bytes:
            self.matrix = _empty(n, like)
            if isinstance(compute, Symmetric):
                _fill_by_halves(self.matrix, compute, max(1, math.isqrt(2 * piece // like.element_size())))
            else:
                # Products of many rows at a time are the efficient ones.
                for index in torch.split(torch.arange(n, device=like.device), 16 * self.piece):
                    self.matrix[index[0] : index[-1] + 1] = compute(index)

    @classmethod
    def of(cls, matrix: Tensor) -> Rows:
        """A given matrix, as it is."""
        rows = cls(len(matrix), matrix.__getitem__, matrix, hold=False)
        rows.matrix = matrix
        return rows

    def __call__(self, index: Tensor) -> Tensor:
        """A copy of some rows [m, n]."""
        return self._compute(index) if self.matrix is None else self.matrix.index_select(0, index)

    def row(self, j: Tensor) -> Tensor:
        """One row [n], to be read only."""
        return self._compute(j.reshape(1))[0] if self.matrix is None else self.matrix[j]

    def pieces(self, index: Tensor) -> Iterator[Tensor]:
        """Some rows [m, n], a piece at a time, each good for writing until the next one comes."""
        if self.matrix is None:
            yield from map(self._compute, torch.split(index, self.piece))
            return
        room = self.matrix.new_empty(min(self.piece, len(index)), self.n)
        for part in torch.split(index, self.piece):
            yield torch.index_select(self.matrix, 0, part, out=room[: len(part)])


def _empty(n: int, like: Tensor) -> Tensor:
    """Room for a matrix [n, n]."""
    if like.is_cpu and like.dtype in (torch.float32, torch.float64):
        # NumPy asks for huge pages, which torch does not: the first write costs a fraction.
        return torch.from_numpy(np.empty((n, n), np.float32 if like.dtype is torch.float32 else np.float64))
    return like.new_empty(n, n)


def _fill_by_halves(matrix: Tensor, entries: Symmetric, side: int) -> None:
    """Compute the tiles above the diagonal, and write each of them twice."""
    parts = torch.split(torch.arange(len(matrix), device=matrix.device), side)
    for i, index in enumerate(parts):
        rows = slice(i * side, i * side + len(index))
        for j, among in enumerate(parts[i:], i):
            columns = slice(j * side, j * side + len(among))
            tile = entries(index, among)
            matrix[rows, columns] = tile
            if j > i:
                matrix[columns, rows] = tile.T


def squared_distances(vectors: Vectors, index: Tensor, squares: Tensor, among: Tensor | None = None) -> Tensor:
    """Squared distances of the rows `index` [m] to all, [m, n], or to `among` [c].

    ‖a‖² + ‖b‖² - 2 a·b cannot tell points apart that are closer than its rounding error; those get the
    distance 0, so that duplicates are duplicates.

    Args:
        squares: squared norms of all vectors [n].
    """
    scale = squares[index, None] + (squares if among is None else squares[among])
    distances = vectors.gram_rows(index, among).mul_(-2).add_(scale)
    noise = scale.mul_(8 * torch.finfo(squares.dtype).eps)
    return torch.where(distances > noise, distances, distances.new_zeros(()))
