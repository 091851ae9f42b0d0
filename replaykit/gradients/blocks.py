"""Per-sample gradients of one layer, kept as small as the layer allows.

A block holds the gradients of n rows with respect to the parameters of one layer and answers the questions
that gradient-based selection asks. The answers here form the gradients, a few rows at a time; `outer.py`
avoids that for layers whose gradients are sums of outer products.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from replaykit.gradients.budget import Budget

ALL = slice(None)


class Block:
    """Gradients of n rows with respect to the parameters `names` of one layer, of `sizes` entries each."""

    def __init__(self, names: tuple[str, ...], sizes: tuple[int, ...], like: Tensor) -> None:
        self.names, self.sizes, self.n, self.dtype = names, sizes, like.shape[0], like.dtype
        self.size = sum(sizes)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        raise NotImplementedError

    def parts(self, rows: slice = ALL) -> tuple[Tensor, ...]:
        """The gradients of some rows themselves [r, size], one tensor for each name."""
        raise NotImplementedError

    def forming(self) -> int:
        """Bytes that `parts` takes for one row."""
        return self.size * self.dtype.itemsize

    def take(self, index: Tensor | slice) -> Block:
        """The block of some rows."""
        raise NotImplementedError

    def squares(self, budget: Budget) -> Tensor:
        """Squared norms [n]."""
        squares = []
        for rows in budget.pieces(self.n, 2 * self.forming()):
            squares.append(sum_of([part.square().sum(1) for part in self.parts(rows)]))
        return torch.cat(squares)

    def add_products(self, other: Block, out: Tensor, budget: Budget) -> None:
        """Add the inner products with another block of the same layer to `out` [n, m], in its dtype."""
        scale = cast_factor(self.dtype, out.dtype)
        left, right = self.forming() * scale, other.forming() * scale
        rows, columns = budget.tiles(self.n, other.n, left, right, out.element_size())
        for r in rows:
            mine = [part.to(out.dtype) for part in self.parts(r)]
            for c in columns:
                for a, b in zip(mine, other.parts(c), strict=True):
                    out[r, c] += a @ b.to(out.dtype).T

    def add_dots(self, directions: Mapping[str, Tensor], out: Tensor, budget: Budget) -> None:
        """Add the products with k directions, {name: [k, size]}, to `out` [n, k]."""
        for rows in budget.pieces(self.n, self.forming()):
            for name, part in zip(self.names, self.parts(rows), strict=True):
                out[rows] += part @ directions[name].T

    def weighted_sum(self, weights: Tensor, budget: Budget) -> dict[str, Tensor]:
        """Σ_i weights_i G_i, {name: [size]}."""
        total = {name: weights.new_zeros(size) for name, size in zip(self.names, self.sizes, strict=True)}
        for rows in budget.pieces(self.n, self.forming()):
            for name, part in zip(self.names, self.parts(rows), strict=True):
                total[name] += weights[rows] @ part
        return total


class Direct(Block):
    """The gradients themselves, for layers with few parameters and for those of unknown form."""

    def __init__(self, names: tuple[str, ...], parts: tuple[Tensor, ...]) -> None:
        super().__init__(names, tuple(part.shape[1] for part in parts), parts[0])
        self._parts = parts

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self._parts)

    def parts(self, rows: slice = ALL) -> tuple[Tensor, ...]:
        return tuple(part[rows] for part in self._parts)

    def forming(self) -> int:
        return 0  # they are there already

    def take(self, index: Tensor | slice) -> Direct:
        return Direct(self.names, tuple(part[index] for part in self._parts))


def sum_of(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def cast_factor(given: torch.dtype, wanted: torch.dtype) -> int:
    """How much larger rows get when they are also held in the wanted dtype."""
    return 1 if given == wanted else 1 + -(-wanted.itemsize // given.itemsize)
