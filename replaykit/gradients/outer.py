"""Blocks whose gradients are sums of outer products: linear layers, convolutions, embeddings.

With tokens t (positions of a sequence or an image, calls of a shared layer; one for a plain linear layer),
output gradients b and inputs u, a row's gradient is G_i = Σ_t b_it u_itᵀ, and without forming it

    <G_i, G_j> = Σ_ts (b_it · b_js) (u_it · u_js + 1)          (the 1 is the bias).

This costs T²(o + i) multiplications a pair against o·i for formed gradients and T·o·i to form one; the
cheaper way is taken.

Source: Goodfellow, Efficient Per-Example Gradient Computations, 2015 (one token); Li et al., Large Language
Models Can Be Strong Differentially Private Learners, ICLR 2022 (tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from replaykit.gradients.blocks import ALL, Block, cast_factor
from replaykit.gradients.budget import Budget

Tokens: TypeAlias = tuple[Tensor, Tensor]


class Outer(Block):
    """Sums of outer products over tokens.

    Args:
        names: of the weight, and of the bias if there is one.
        calls: for each call of the layer, what was recorded of its output gradient and input [n, ...].
        shape: tokens T over all calls, and the widths o and i (of one group).
        groups: of a grouped layer, whose weight is block-diagonal.
        tokens: makes (b [r, T, o], u [r, T, i]) of r recorded rows, [r, T, groups, ·] for a grouped layer;
            without it the recordings have that form.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        calls: list[Tokens],
        shape: tuple[int, int, int],
        groups: int = 1,
        tokens: Callable[[Tensor, Tensor], Tokens] | None = None,
    ) -> None:
        self.T, self.o, self.i = shape
        sizes = (groups * self.o * self.i, groups * self.o)[: len(names)]
        super().__init__(names, sizes, calls[0][0])
        self.calls, self.groups, self._tokens = calls, groups, tokens
        self.bias = len(names) == 2

    @property
    def nbytes(self) -> int:
        return sum(b.nbytes + a.nbytes for b, a in self.calls)

    def take(self, index: Tensor | slice) -> Outer:
        calls = [(b[index], a[index]) for b, a in self.calls]
        return type(self)(self.names, calls, (self.T, self.o, self.i), self.groups, self._tokens)

    def factors(self, rows: slice = ALL) -> Tokens:
        """(b, u) of some rows, all calls joined along the tokens."""
        calls = [(b[rows], a[rows]) for b, a in self.calls]
        if self._tokens is not None:
            calls = [self._tokens(b, a) for b, a in calls]
        if len(calls) == 1:
            return calls[0]
        return torch.cat([b for b, _ in calls], 1), torch.cat([u for _, u in calls], 1)

    def outer_product(self) -> tuple[Tensor, Tensor] | None:
        """r [n, o] and h [n, i (+ 1)] if every gradient is r_i ⊗ h_i, else None."""
        if type(self) is not Outer or self.T > 1 or self.groups > 1:
            return None
        b, u = (factor[:, 0] for factor in self.factors())
        return b, torch.cat([u, u.new_ones(len(u), 1)], 1) if self.bias else u

    def parts(self, rows: slice = ALL) -> tuple[Tensor, ...]:
        b, u = self.factors(rows)
        if self.groups > 1:
            weight = torch.einsum("rtgo,rtgi->rgoi", b, u)
        elif self.T == 1:
            weight = b.transpose(1, 2) * u
        else:
            weight = torch.bmm(b.transpose(1, 2), u)
        return (weight.flatten(1), b.sum(1).flatten(1))[: len(self.names)]

    def forming(self) -> int:
        return self.size * self.dtype.itemsize + self._making_tokens()

    def _making_tokens(self) -> int:
        """Bytes that `factors` takes for one row: a padded input on the way, copies at the end."""
        if self._tokens is None and len(self.calls) == 1:
            return 0
        return 2 * self.groups * self.T * (self.o + self.i) * self.dtype.itemsize

    # -- without forming the gradients ------------------------------------------------------------

    def squares(self, budget: Budget) -> Tensor:
        if self.T == 1 and self.groups == 1:
            b, u = self.factors()
            return b.square().sum((1, 2)) * self._self_agreement(u)
        kernel = 3 * self.T**2 * self.dtype.itemsize + self._making_tokens()
        dear = self.T * (self.o + self.i) >= self.o * self.i or kernel > budget.product
        if self.groups > 1 or dear:
            return super().squares(budget)
        squares = []
        for rows in budget.pieces(self.n, kernel):
            b, u = self.factors(rows)
            products = torch.bmm(b, b.transpose(1, 2))
            agreement = torch.bmm(u, u.transpose(1, 2))
            squares.append(products.mul_(agreement.add_(float(self.bias))).sum((1, 2)))
        return torch.cat(squares)

    def add_products(self, other: Block, out: Tensor, budget: Budget) -> None:
        if not isinstance(other, Outer) or not self._ghost(other, out, budget):
            super().add_products(other, out, budget)
            return
        rows, columns = budget.tiles(self.n, other.n, *self._tile(other, out))
        for r in rows:
            b, u = (_flat(factor, out.dtype) for factor in self.factors(r))
            for c in columns:
                b_, u_ = (_flat(factor, out.dtype) for factor in other.factors(c))
                products = (b @ b_.T).mul_(self._agreement(u, u_))
                if self.T * other.T > 1:
                    products = products.view(-1, self.T, b_.shape[0] // other.T, other.T).sum((1, 3))
                out[r, c] += products

    def add_dots(self, directions: Mapping[str, Tensor], out: Tensor, budget: Budget) -> None:
        if self.T > 1 or self.groups > 1:
            super().add_dots(directions, out, budget)
            return
        k = out.shape[1]
        weight = directions[self.names[0]].reshape(k * self.o, self.i)
        for rows in budget.pieces(self.n, 2 * k * self.o * self.dtype.itemsize + self._making_tokens()):
            b, u = (factor[:, 0] for factor in self.factors(rows))
            out[rows] += torch.einsum("nko,no->nk", (u @ weight.T).view(-1, k, self.o), b)
            if self.bias:
                out[rows] += b @ directions[self.names[1]].T

    def weighted_sum(self, weights: Tensor, budget: Budget) -> dict[str, Tensor]:
        if self.groups > 1:
            return super().weighted_sum(weights, budget)
        weight, bias = weights.new_zeros(self.o, self.i), weights.new_zeros(self.o)
        for rows in budget.pieces(self.n, self._making_tokens() + self.T * self.o * self.dtype.itemsize):
            b, u = self.factors(rows)
            scaled = (b * weights[rows, None, None]).flatten(0, 1)
            weight += scaled.T @ u.flatten(0, 1)
            bias += scaled.sum(0)
        return dict(zip(self.names, (weight.flatten(), bias), strict=False))

    def _agreement(self, u: Tensor, v: Tensor) -> Tensor:
        """u_t · v_s (+ 1) of flat tokens [t, i] and [s, i]: [t, s]."""
        products = u @ v.T
        return products.add_(1) if self.bias else products

    def _self_agreement(self, u: Tensor) -> Tensor:
        """u_i · u_i (+ 1) [n] of single tokens [n, 1, i]."""
        return u.square().sum((1, 2)) + float(self.bias)

    @property
    def _compared(self) -> int:
        """Multiplications to compare the inputs of two tokens."""
        return self.i

    def _tile(self, other: Outer, out: Tensor) -> tuple[int, int, int]:
        """Bytes for a row on the left, for one on the right, and for a pair."""
        scale = cast_factor(self.dtype, out.dtype)
        cast = out.element_size() if scale > 1 else 0
        left = self._making_tokens() + self.T * (self.o + self._compared) * cast
        right = other._making_tokens() + other.T * (other.o + self._compared) * cast
        return left, right, 3 * self.T * other.T * out.element_size()

    def _ghost(self, other: Outer, out: Tensor, budget: Budget) -> bool:
        """Whether products are cheaper without forming the gradients: multiplications are counted."""
        if self.groups > 1 or 2 * self._tile(other, out)[2] > budget.product:
            return False
        pairs, tokens = self.n * other.n, self.n * self.T + other.n * other.T
        form = tokens * self.o * self._compared + pairs * self.size
        return pairs * self.T * other.T * (self.o + self._compared) <= form


class Lookup(Outer):
    """An embedding: the input of a token is the unit vector of its index, kept as the index [n, T]."""

    def parts(self, rows: slice = ALL) -> tuple[Tensor, ...]:
        b, index = self.factors(rows)
        weight = b.new_zeros(b.shape[0], self.i, self.o)
        weight.scatter_add_(1, index.expand_as(b), b)
        return (weight.flatten(1),)

    def squares(self, budget: Budget) -> Tensor:
        if self.T == 1:
            return self.factors()[0].square().sum((1, 2))
        kernel, squares = 3 * self.T**2 * self.dtype.itemsize + self._making_tokens(), []
        if kernel > budget.product:
            return Block.squares(self, budget)
        for rows in budget.pieces(self.n, kernel):
            b, index = self.factors(rows)
            products = torch.bmm(b, b.transpose(1, 2))
            squares.append(products.mul_(index == index.transpose(1, 2)).sum((1, 2)))
        return torch.cat(squares)

    def add_dots(self, directions: Mapping[str, Tensor], out: Tensor, budget: Budget) -> None:
        k = out.shape[1]
        weight = directions[self.names[0]].reshape(k, self.i, self.o)
        row = (k + 1) * self.T * self.o * self.dtype.itemsize + self._making_tokens()
        for rows in budget.pieces(self.n, row):
            b, index = self.factors(rows)
            out[rows] += torch.einsum("knto,nto->nk", weight[:, index[:, :, 0]], b)

    def weighted_sum(self, weights: Tensor, budget: Budget) -> dict[str, Tensor]:
        weight = weights.new_zeros(self.i, self.o)
        for rows in budget.pieces(self.n, self._making_tokens() + self.T * self.o * self.dtype.itemsize):
            b, index = self.factors(rows)
            weight.index_add_(0, index.flatten(), (b * weights[rows, None, None]).flatten(0, 1))
        return {self.names[0]: weight.flatten()}

    def _agreement(self, u: Tensor, v: Tensor) -> Tensor:
        return u == v.T

    @property
    def _compared(self) -> int:
        return 1


def _flat(factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Tokens [r, T, w] as [r·T, w]; indices stay integers."""
    factor = factor.flatten(0, 1)
    return factor.to(dtype) if factor.is_floating_point() else factor
