"""What a selector sees: n candidate rows, and on demand what a model makes of them.

A selector is an object with ``needs`` (names of pool quantities) and
``select(pool, k, rng) -> (rows, weights)``: min(k, n) distinct rows in selection order, int64 [k], and
their weights, float64 [k]. It changes nothing and draws only from the generator it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from replaykit.selectors.gradient_vectors import Gradients, gradient_vectors

Selection: TypeAlias = tuple[Tensor, Tensor]


@runtime_checkable
class Vectors(Protocol):
    """n vectors known by their inner products: dense rows, or gradients kept as factors."""

    def __len__(self) -> int: ...

    def gram(self) -> Tensor:
        """All inner products [n, n]."""
        ...

    def gram_rows(self, index: Tensor, among: Tensor | None = None) -> Tensor:
        """Rows of the Gram matrix: inner products of `index` [m] with all, [m, n], or with `among` [c]."""
        ...

    def gram_times(self, weights: Tensor) -> Tensor:
        """Inner products of all with Σ_j weights_j v_j, [n], without the Gram matrix."""
        ...

    def norms(self) -> Tensor:
        """Euclidean norms [n]."""
        ...

    def rows(self, index: Tensor) -> Vectors:
        """The vectors of some rows."""
        ...

    def to(self, dtype: torch.dtype) -> Vectors:
        """The same vectors in another precision."""
        ...


class Dense:
    """Explicit vectors [n, d] as `Vectors`."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return self.values.shape[0]

    def gram(self) -> Tensor:
        return self.values @ self.values.T

    def gram_rows(self, index: Tensor, among: Tensor | None = None) -> Tensor:
        return self.values[index] @ (self.values if among is None else self.values[among]).T

    def gram_times(self, weights: Tensor) -> Tensor:
        return self.values @ (weights @ self.values)

    def norms(self) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(self.values, dim=1)
        return norms

    def rows(self, index: Tensor) -> Dense:
        return Dense(self.values[index])

    def to(self, dtype: torch.dtype) -> Dense:
        return Dense(self.values.to(dtype))

    def scaled(self, factor: Tensor) -> Dense:
        """Every vector times its factor [n]."""
        return Dense(self.values * factor[:, None])


Value: TypeAlias = Tensor | Vectors | Gradients
Quantity: TypeAlias = Value | Callable[[], Value]


class Selector(Protocol):
    @property
    def needs(self) -> tuple[str, ...]: ...

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection: ...


class Pool:
    """Candidates of a selection.

    Args:
        n: number of candidates.
        y: labels, int64 [n].
        weight: what each candidate stands for, >= 0 [n]; ones by default.
        quantities: values, or functions that compute them when first asked for, of ``features`` [n, d],
            ``logits`` [n, c], ``losses`` [n], ``uncertainty`` [n], ``gradients`` (of `replaykit.gradients`, or
            any `Vectors`), ``x``, ...

    Raises:
        ValueError: labels or weights of another length; a weight that is negative, NaN or infinite.
    """

    def __init__(self, n: int, y: Tensor | None = None, weight: Tensor | None = None, **quantities: Quantity):
        for name, column in (("y", y), ("weight", weight)):
            if column is not None and column.shape != (n,):
                raise ValueError(f"{name!r} must have shape [{n}], got {list(column.shape)}")
        self.n, self.y = n, y
        self.weight = torch.ones(n, dtype=torch.float64) if weight is None else checked_weight(weight, "Pool")
        self._quantities: Mapping[str, Quantity] = quantities
        self._known: dict[str, Value] = {}

    def __len__(self) -> int:
        return self.n

    def tensor(self, name: str) -> Tensor:
        """A quantity that is a tensor [n, ...]."""
        value = self._get(name)
        if not isinstance(value, Tensor):
            raise TypeError(f"{name!r} of this pool is a {type(value).__name__}, not a tensor")
        return value

    def vectors(self, name: str) -> Vectors:
        """A quantity as vectors: gradients as they are, a tensor [n, ...] row by row."""
        return as_vectors(self._get(name))

    def subset(self, index: Tensor) -> Pool:
        """The pool of some rows [m], in that order. Quantities are still computed once, for all rows."""

        def taken(name: str) -> Callable[[], Value]:
            def value() -> Value:
                whole = self._get(name)
                return whole[index.to(whole.device)] if isinstance(whole, Tensor) else whole.rows(index)

            return value

        return Pool(
            len(index),
            None if self.y is None else self.y[index.to(self.y.device)],
            self.weight[index.to(self.weight.device)],
            **{name: taken(name) for name in self._quantities},
        )

    def _get(self, name: str) -> Value:
        if name not in self._known:
            if name not in self._quantities:
                raise KeyError(
                    f"the pool has no {name!r}, only {sorted(self._quantities)}; give it when building the pool"
                )
            value = self._quantities[name]
            value = value if isinstance(value, Tensor) or not callable(value) else value()
            if len(value) != self.n:
                raise ValueError(f"{name!r} has {len(value)} rows, the pool has {self.n}")
            self._known[name] = value
        return self._known[name]


def as_vectors(values: Tensor | Vectors | Gradients) -> Vectors:
    """Rows of a tensor [n, ...] as vectors, gradients by their inner products, vectors as they are."""
    if isinstance(values, Tensor):
        return Dense(values.flatten(1) if values.ndim > 1 else values.reshape(-1, 1))
    return values if isinstance(values, Vectors) else gradient_vectors(values)


def working_dtype(n: int) -> torch.dtype:
    """Precision of Gram matrices and solves over n rows: float64 up to 4,096, then float32."""
    return torch.float64 if n <= 4096 else torch.float32


def checked_vectors(pool: Pool, name: str, selector: str) -> Vectors:
    """A quantity as vectors in the working precision.

    Raises:
        ValueError: NaN or infinity.
    """
    vectors = pool.vectors(name).to(working_dtype(pool.n))
    try:
        norms = vectors.norms()
    except ValueError as error:
        raise ValueError(f"{selector}: {name}: {error}") from error
    finite(norms, selector, name)
    return vectors


def finite(values: Tensor, selector: str, quantity: str) -> Tensor:
    """The values [n, ...], if all of them are finite.

    Raises:
        ValueError: naming the selector, the quantity and the first rows that are not.
    """
    if not bool(values.isfinite().all()):
        bad = (~values.isfinite()).reshape(len(values), -1).any(1).nonzero().flatten().tolist()
        raise ValueError(
            f"{selector}: {quantity} of row {', '.join(map(str, bad[:5]))}{', ...' if bad[5:] else ''} "
            f"holds NaN or infinity ({len(bad)} of {len(values)} rows); look for a diverged model or drop them"
        )
    return values


def checked_weight(weight: Tensor, selector: str) -> Tensor:
    """Weights [n] as float64.

    Raises:
        ValueError: a weight that is negative, NaN or infinite.
    """
    weight = finite(weight, selector, "weight").double()
    if len(weight) and weight.min() < 0:
        raise ValueError(f"{selector}: weights must be >= 0, got {weight.min().item()}")
    return weight


def take_count(k: int, n: int, selector: str) -> int:
    """How many rows a selection of `k` out of `n` returns: min(k, n).

    Raises:
        ValueError: a negative `k`.
    """
    if k < 0:
        raise ValueError(f"{selector}: k is a number of rows, at least 0, got {k}")
    return min(int(k), n)
