"""Inner products of a pool, in the form that fits the memory.

A bilevel selector asks two things of the kernel matrix K [n, n] of its pool: single rows, and products with
a thin matrix [n, c]. `DenseGram` holds K, `FactorGram` holds vectors whose inner products are K, `BlockGram`
holds neither and computes what is asked.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from replaykit.selectors.kernels import Kernel, Linear, chunks
from replaykit.selectors.pool import Dense, Pool, Vectors, checked_vectors, finite, working_dtype


class Gram(Protocol):
    """A symmetric positive semi-definite matrix [n, n] known through its rows and products.

    Attributes:
        dtype, device: of its values.
    """

    dtype: torch.dtype
    device: torch.device

    def __len__(self) -> int: ...

    def rows(self, index: Tensor) -> Tensor:
        """Rows [m, n] of the matrix."""
        ...

    def product(self, u: Tensor) -> Tensor:
        """The matrix times u [n, c]."""
        ...

    def subset(self, index: Tensor) -> Gram:
        """The matrix of some rows of the pool."""
        ...


class DenseGram:
    """An explicit matrix [n, n], taken as it is; `checked_gram` looks at it first."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.dtype, self.device = values, values.dtype, values.device

    def __len__(self) -> int:
        return self.values.shape[0]

    def rows(self, index: Tensor) -> Tensor:
        return self.values.index_select(0, index)

    def product(self, u: Tensor) -> Tensor:
        return self.values @ u

    def subset(self, index: Tensor) -> DenseGram:
        return DenseGram(self.values.index_select(0, index).index_select(1, index))


class FactorGram:
    """The inner products of n vectors: their d numbers each, instead of n."""

    def __init__(self, vectors: Vectors) -> None:
        self.vectors = vectors
        norms = vectors.norms()
        self.dtype, self.device = norms.dtype, norms.device

    def __len__(self) -> int:
        return len(self.vectors)

    def rows(self, index: Tensor) -> Tensor:
        return self.vectors.gram_rows(index)

    def product(self, u: Tensor) -> Tensor:
        if isinstance(self.vectors, Dense):
            return self.vectors.values @ (self.vectors.values.T @ u)
        return torch.stack([self.vectors.gram_times(column) for column in u.T], dim=1)

    def subset(self, index: Tensor) -> FactorGram:
        return FactorGram(self.vectors.rows(index))


class BlockGram:
    """A kernel evaluated in blocks of rows whenever it is asked: slow, and never more than the budget."""

    def __init__(self, kernel: Kernel, x: Tensor, max_bytes: int) -> None:
        self.kernel, self.x, self.max_bytes = kernel, x, max_bytes
        self.dtype, self.device = x.dtype, x.device

    def __len__(self) -> int:
        return self.x.shape[0]

    def rows(self, index: Tensor) -> Tensor:
        return self.kernel(self.x.index_select(0, index), self.x)

    def product(self, u: Tensor) -> Tensor:
        blocks = chunks(len(self), len(self) * self.x.element_size(), self.max_bytes)
        return torch.cat([self.kernel(self.x[rows], self.x) @ u for rows in blocks])

    def subset(self, index: Tensor) -> BlockGram:
        return BlockGram(self.kernel, self.x.index_select(0, index), self.max_bytes)


def pool_gram(pool: Pool, quantity: str, kernel: Kernel | None, max_bytes: int, selector: str) -> Gram:
    """The kernel matrix of a pool, in float64 up to 4,096 rows and in float32 beyond.

    It is held if it fits into `max_bytes`; otherwise vectors are kept as they are, and any other kernel is
    computed in blocks. A linear kernel of few dimensions is never written out.

    Args:
        kernel: None for the inner products of the quantity's vectors (per-sample gradients, for example).

    Raises:
        ValueError: NaN or infinity, or a kernel that is not positive semi-definite.
    """
    dtype = working_dtype(pool.n)
    fits = pool.n**2 * torch.empty(0, dtype=dtype).element_size() <= max_bytes
    if kernel is None:
        vectors = checked_vectors(pool, quantity, selector)
        if fits and not isinstance(vectors, Dense):
            return DenseGram(checked_gram(vectors.gram(), selector))
        return FactorGram(vectors)
    x = finite(pool.tensor(quantity).detach().to(dtype), selector, quantity)
    kernel = kernel.fit(x)
    if isinstance(kernel, Linear):
        features = kernel.features(x)
        return FactorGram(Dense(features)) if features.shape[1] < pool.n else DenseGram(kernel(x))
    return DenseGram(checked_gram(kernel(x), selector)) if fits else BlockGram(kernel, x, max_bytes)


def checked_gram(values: Tensor, selector: str) -> Tensor:
    """A kernel matrix [n, n] that is one.

    Raises:
        ValueError: not square, not symmetric, NaN or infinity, or (looked for up to 4,096 rows) an eigenvalue
            below -1e-6 times the trace.
    """
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise ValueError(f"{selector}: a kernel matrix [n, n] expected, got {list(values.shape)}")
    finite(values, selector, "the kernel")
    if not 0 < len(values) <= 4096 or not bool(values.any()):
        return values
    trace = values.diagonal().sum()
    if (values - values.T).abs().max() > 1e-6 * trace.abs():
        raise ValueError(f"{selector}: the kernel matrix is not symmetric; average it with its transpose")
    # A Cholesky factor of the shifted matrix exists unless an eigenvalue is below the shift.
    shifted = values.double().clone()
    shifted.diagonal().add_(1e-6 * trace)
    if int(torch.linalg.cholesky_ex(shifted).info):
        raise ValueError(
            f"{selector}: the kernel matrix has an eigenvalue below -1e-6 of its trace, so it is not a kernel; "
            "use a positive semi-definite one (Linear, RBF, an NTK) or add a multiple of the identity"
        )
    return values
