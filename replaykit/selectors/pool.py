"""What a selector sees: n candidate rows, and on demand what a model makes of them.

A selector is an object with ``needs`` (names of pool quantities) and
``select(pool, k, rng) -> (rows, weights)``: min(k, n) distinct rows in selection order, int64 [k], and
their weights, float64 [k]. It changes nothing and draws only from the generator it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

Selection: TypeAlias = tuple[Tensor, Tensor]


class Vectors(Protocol):
    """n vectors known by their inner products: dense rows, or gradients kept as factors."""

    def __len__(self) -> int: ...

    def gram(self) -> Tensor:
        """All inner products [n, n]."""
        ...

    def norms(self) -> Tensor:
        """Euclidean norms [n]."""
        ...

    def rows(self, index: Tensor) -> Vectors:
        """The vectors of some rows."""
        ...


class Dense:
    """Explicit vectors [n, d] as `Vectors`."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return self.values.shape[0]

    def gram(self) -> Tensor:
        return torch.matmul(self.values, self.values.T)

    def norms(self) -> Tensor:
        return torch.linalg.vector_norm(self.values, dim=1)

    def rows(self, index: Tensor) -> Dense:
        return Dense(self.values[index])


class Selector(Protocol):
    needs: tuple[str, ...]

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection: ...


class Pool:
    """Candidates of a selection.

    Args:
        n: number of candidates.
        y: labels, int64 [n].
        weight: what each candidate stands for, >= 0 [n]; ones by default.
        quantities: values, or functions that compute them when first asked for, of ``features`` [n, d],
            ``logits`` [n, c], ``losses`` [n], ``uncertainty`` [n], ``gradients`` (`Vectors`), ``x``, ...
    """

    def __init__(
        self,
        n: int,
        y: Tensor | None = None,
        weight: Tensor | None = None,
        **quantities: Tensor | Vectors | Callable[[], Tensor | Vectors],
    ) -> None:
        self.n, self.y = n, y
        self.weight = torch.ones(n, dtype=torch.float64) if weight is None else weight
        self._quantities: Mapping[str, Tensor | Vectors | Callable[[], Tensor | Vectors]] = quantities
        self._known: dict[str, Tensor | Vectors] = {}

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
        value = self._get(name)
        return Dense(value.flatten(1)) if isinstance(value, Tensor) else value

    def _get(self, name: str) -> Tensor | Vectors:
        if name not in self._known:
            if name not in self._quantities:
                raise KeyError(
                    f"the pool has no {name!r}, only {sorted(self._quantities)}; give it when building it"
                )
            value = self._quantities[name]
            self._known[name] = value if isinstance(value, Tensor) or not callable(value) else value()
        return self._known[name]
