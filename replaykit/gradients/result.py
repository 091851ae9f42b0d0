"""The gradients of n rows, known by what can be asked about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from replaykit.gradients.blocks import Block
from replaykit.gradients.budget import Budget
from replaykit.gradients.objective import Layout, refuse_nan
from replaykit.gradients.rows import run_of
from replaykit.gradients.sketch import add_sketch
from replaykit.store import IntArray

Blocks: TypeAlias = dict[str, Block]
DEGENERATE = 1e-8


class PerSampleGradients:
    """Gradients [n, p] of the losses of n rows, held as factors and never formed unless asked for.

    Made by `per_sample_gradients` and `last_layer_gradients`. Flat gradients follow the order of the model's
    ``named_parameters()``. Everything is computed when first asked for, in chunks within the budget.

    Raises:
        ValueError: from any question, if the losses or the answer hold NaN or infinity, or if the budget is
            too small for one row (the message says how many bytes are needed).
        RuntimeError: from any question, if the model has changed since.
    """

    def __init__(self, layout: Layout, n: int, like: Tensor, budget: Budget) -> None:
        self.layout, self._n, self._budget = layout, n, budget
        self._like = like.detach().new_empty(0)
        self._norms: Tensor | None = None

    # What subclasses provide: the rows of each chunk, and the blocks of a chunk.

    def _chunks(self) -> list[Tensor]:
        raise NotImplementedError

    def _blocks(self, chunk: int) -> Blocks:
        raise NotImplementedError

    def rows(self, index: Tensor | IntArray | Sequence[int]) -> PerSampleGradients:
        """The gradients of some rows, given by number or by a bool mask [n]."""
        raise NotImplementedError

    # -- questions --------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._n

    @property
    def p(self) -> int:
        """Number of parameters."""
        return self.layout.size

    def norms(self) -> Tensor:
        """Euclidean norms [n]."""
        if self._norms is None:
            squares = self._empty(self._n)
            for chunk, rows in enumerate(self._chunks()):
                blocks = self._blocks(chunk)
                for block in blocks.values():
                    squares[rows] += block.squares(self._budget)
                del blocks
            self._norms = refuse_nan(squares.clamp(min=0).sqrt(), "norms of per-sample gradients")
        return self._norms

    @property
    def degenerate(self) -> int:
        """Rows whose gradient is shorter than 1e-8: their cosines are 0 by rule, and mean nothing."""
        return int((self.norms() < DEGENERATE).sum())

    def inner(
        self, other: PerSampleGradients | Tensor | Sequence[Tensor], dtype: torch.dtype | None = None
    ) -> Tensor:
        """Inner products with other gradients [n, m], one flat direction [n], or k of them [n, k].

        Args:
            other: gradients with respect to the same parameters, a direction [p], or several as a tensor
                [k, p] or a list.
            dtype: in which products with other gradients are computed; the model's by default.

        Raises:
            ValueError: different parameters, or a direction of another length.
        """
        if isinstance(other, PerSampleGradients):
            self._same_parameters(other)
            return refuse_nan(self._products(other, dtype), "inner products of per-sample gradients")
        directions, single = self._directions(other)
        products = refuse_nan(self._dots(directions), "products of per-sample gradients with a direction")
        return products[:, 0] if single else products

    def outer_product(self) -> tuple[Tensor, Tensor] | None:
        """r [n, c] and h [n, d] if every gradient is r_i ⊗ h_i and the factors are held, else None.

        That is a single linear layer without tokens; the last column of h is 1 if it has a bias.
        """
        return None

    def gram(self, dtype: torch.dtype | None = None) -> Tensor:
        """All inner products [n, n]."""
        return self.inner(self, dtype)

    def cosine(
        self, other: PerSampleGradients | Tensor | Sequence[Tensor], dtype: torch.dtype | None = None
    ) -> Tensor:
        """Cosines, in the shapes of `inner`; 0 where either norm is below 1e-8 (see `degenerate`)."""
        mine = self.norms()
        products = self.inner(other, dtype)
        if isinstance(other, PerSampleGradients):
            lengths = other.norms()
        else:
            directions, single = self._directions(other)
            lengths = torch.linalg.vector_norm(directions, dim=1)
            lengths = lengths[0] if single else lengths
        shape = (-1, 1) if products.ndim == 2 else (-1,)
        scale = (_inverse(mine).reshape(shape) * _inverse(lengths)).to(products.dtype)
        return (products * scale).clamp(-1, 1)

    def project(self, k: int, seed: int, kind: str = "gaussian") -> Tensor:
        """Sketch [n, k] by a random map that is fixed by the seed; inner products are kept on average.

        Args:
            kind: "gaussian" or "rademacher" (dense, O(p k) a row), "count" (count-sketch, O(p) a row).
        """
        if k < 1:
            raise ValueError(f"a sketch has at least 1 number, got k = {k}")
        out, places = self._empty(self._n, k), self.layout.places()
        for chunk, rows in enumerate(self._chunks()):
            blocks = self._blocks(chunk)
            for block in blocks.values():
                for piece in self._budget.pieces(block.n, block.forming() + 2 * self._row_bytes(block)):
                    sketch = self._empty(piece.stop - piece.start, k)
                    for name, part in zip(block.names, block.parts(piece), strict=True):
                        add_sketch(part, places[name], sketch, seed, kind)
                    out[rows[piece]] += sketch
            del blocks
        return refuse_nan(out, "sketches of per-sample gradients")

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Σ_i weights_i g_i [p]."""
        total = self._empty(self.p)
        weights = self._weights(weights)
        for chunk, rows in enumerate(self._chunks()):
            parts: dict[str, Tensor] = {}
            for block in self._blocks(chunk).values():
                parts.update(block.weighted_sum(weights[rows], self._budget))
            total += self.layout.join(parts, total)
        return self._finite_sum(total)

    def mean(self) -> Tensor:
        """Mean gradient [p]."""
        return self.weighted_sum(torch.full((self._n,), 1.0 / max(1, self._n), dtype=torch.float64))

    def explicit(self) -> Tensor:
        """The gradients themselves [n, p]: n·p numbers, whatever the budget."""
        out, places = self._empty(self._n, self.p), self.layout.places()
        for chunk, rows in enumerate(self._chunks()):
            blocks = self._blocks(chunk)
            for block in blocks.values():
                for piece in self._budget.pieces(block.n, block.forming()):
                    for name, part in zip(block.names, block.parts(piece), strict=True):
                        out[rows[piece], places[name]] = part
            del blocks
        return refuse_nan(out, "per-sample gradients")

    # -- inside -----------------------------------------------------------------------------------

    def _products(self, other: PerSampleGradients, dtype: torch.dtype | None) -> Tensor:
        """Inner products [n, m]: as many chunks of this side as may be held meet every chunk of the other."""
        dtype = dtype or self._like.dtype
        out = torch.zeros(self._n, other._n, dtype=dtype, device=self._like.device)
        here, there, start = self._chunks(), other._chunks(), 0
        left_runs, right_runs = [run_of(rows) for rows in here], [run_of(rows) for rows in there]
        while start < len(here):
            held = self._hold(start)
            first, start = start, start + len(held)
            # A matrix with itself is symmetric: columns before the held rows are known.
            for j in range(first if other is self else 0, len(there)):
                right = held[j - first] if other is self and j < start else other._blocks(j)
                for i, left in enumerate(held, first):
                    if other is self and j < i:
                        continue
                    r, c = left_runs[i], right_runs[j]
                    placed = r is not None and c is not None  # then the tile is a part of the result itself
                    tile = out[r, c] if placed else out.new_zeros(len(here[i]), len(there[j]))
                    for layer in left.keys() & right.keys():
                        left[layer].add_products(right[layer], tile, self._budget)
                    mirrored = other is self and j > i
                    if placed:
                        if mirrored:
                            out[c, r] = tile.T
                        continue
                    out[here[i][:, None], there[j]] = tile
                    if mirrored:
                        out[there[j][:, None], here[i]] = tile.T
                del right
            del held
        return out

    def _hold(self, start: int) -> list[Blocks]:
        """Blocks of the chunks from `start` on, as many as fit into the budget's share, at least one."""
        held, used = [], 0
        for chunk in range(start, len(self._chunks())):
            held.append(self._blocks(chunk))
            size = nbytes(held[-1])
            used += size
            if used + size > self._budget.held:
                break
        return held

    def _dots(self, directions: Tensor) -> Tensor:
        out, split = self._empty(self._n, directions.shape[0]), self.layout.split(directions)
        for chunk, rows in enumerate(self._chunks()):
            blocks = self._blocks(chunk)
            for block in blocks.values():
                products = self._empty(block.n, directions.shape[0])
                block.add_dots(split, products, self._budget)
                out[rows] += products
            del blocks
        return out

    def _directions(self, given: Tensor | Sequence[Tensor]) -> tuple[Tensor, bool]:
        single = isinstance(given, Tensor) and given.ndim == 1
        stacked = given if isinstance(given, Tensor) else torch.stack(list(given))
        stacked = stacked.detach().to(self._like).reshape(-1, stacked.shape[-1])
        if stacked.shape[1] != self.p:
            raise ValueError(
                f"a direction has {stacked.shape[1]} entries, these gradients {self.p}; it must belong to "
                "the same parameters (has the head grown since?)"
            )
        return stacked, single

    def _same_parameters(self, other: PerSampleGradients) -> None:
        if self.layout != other.layout:
            mine, theirs = self.layout.shapes, other.layout.shapes
            differ = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
            raise ValueError(
                f"gradients with respect to different parameters ({', '.join(differ[:4])}) have no inner "
                "product; compute both at the same model"
            )

    def _weights(self, weights: Tensor) -> Tensor:
        if weights.shape != (self._n,):
            raise ValueError(f"one weight a row is needed, shape [{self._n}], got {list(weights.shape)}")
        return weights.detach().to(self._like)

    def _finite_sum(self, total: Tensor) -> Tensor:
        if not math.isfinite(float(total.sum())) and not bool(total.isfinite().all()):
            raise ValueError("the weighted sum of per-sample gradients is NaN or infinite: look at the inputs")
        return total

    def _empty(self, *shape: int) -> Tensor:
        return self._like.new_zeros(shape)

    def _row_bytes(self, block: Block) -> int:
        return block.size * self._like.element_size()


def nbytes(blocks: Blocks) -> int:
    return sum(block.nbytes for block in blocks.values())


def _inverse(lengths: Tensor) -> Tensor:
    return torch.where(lengths < DEGENERATE, 0.0, 1 / lengths.clamp(min=DEGENERATE))
