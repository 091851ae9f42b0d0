"""Losses of the proxy models: value, gradient and curvature in the predictions, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Curvature(Protocol):
    """The Hessians W_i [c, c] of weighted losses, one for each of m rows."""

    def __call__(self, v: Tensor) -> Tensor:
        """Every row's Hessian times a row of v [m, c]."""
        ...

    def factor(self, gram: Tensor, shift: float) -> Callable[[Tensor], Tensor]:
        """A function from b [m, c] to the x [m, c] with ``shift x + W (gram x) = b``, in O(c m^3) once.

        Raises:
            ValueError: the kernel matrix is not positive semi-definite.
        """
        ...


class Loss(Protocol):
    """A loss of predictions [n, c] and targets [n, c], convex in the predictions."""

    def targets(self, y: Tensor, classes: int | None) -> Tensor:
        """Targets [n, c] of the labels of a pool."""
        ...

    def values(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Losses [n]."""
        ...

    def residuals(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Their gradients in the predictions [n, c]."""
        ...

    def curvature(self, predictions: Tensor, weight: Tensor) -> Curvature:
        """Their Hessians, times weights [n]."""
        ...


class CrossEntropy:
    """Softmax cross-entropy; targets are one-hot."""

    def targets(self, y: Tensor, classes: int | None) -> Tensor:
        return one_hot(y, classes)

    def values(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return predictions.logsumexp(1) - (predictions * targets).sum(1)

    def residuals(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return predictions.softmax(1).sub_(targets)

    def curvature(self, predictions: Tensor, weight: Tensor) -> Curvature:
        return SoftmaxCurvature(predictions.softmax(1), weight)


class SquaredError:
    """|h - y|², without a half; real labels [n] or [n, c] are targets, integer labels are one-hot."""

    def targets(self, y: Tensor, classes: int | None) -> Tensor:
        if not y.dtype.is_floating_point:
            return one_hot(y, classes)
        return y.double().reshape(len(y), -1)

    def values(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return (predictions - targets).square_().sum(1)

    def residuals(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return (predictions - targets).mul_(2)

    def curvature(self, predictions: Tensor, weight: Tensor) -> Curvature:
        return ScalarCurvature(2 * weight)


class ScalarCurvature:
    """W_i = d_i I."""

    def __init__(self, diagonal: Tensor) -> None:
        self.diagonal = diagonal

    def __call__(self, v: Tensor) -> Tensor:
        return v * self.diagonal[:, None]

    def factor(self, gram: Tensor, shift: float) -> Callable[[Tensor], Tensor]:
        root = self.diagonal.sqrt()
        cholesky = _shifted_cholesky(gram, root, shift)

        def solve(b: Tensor) -> Tensor:
            inner = torch.cholesky_solve(root[:, None] * (gram @ b), cholesky)
            return (b - root[:, None] * inner) / shift

        return solve


class SoftmaxCurvature:
    """W_i = w_i (diag(p_i) - p_i p_iᵀ)."""

    def __init__(self, p: Tensor, weight: Tensor) -> None:
        self.p, self.weight = p, weight
        self._scaled = p * weight[:, None]

    def __call__(self, v: Tensor) -> Tensor:
        return (v - (self.p * v).sum(1, keepdim=True)).mul_(self._scaled)

    def factor(self, gram: Tensor, shift: float) -> Callable[[Tensor], Tensor]:
        # Without the term p pᵀ the classes are independent: c systems of m rows, with D = diag(w p_c).
        # That term has rank m and is put back by the Woodbury identity (Rasmussen and Williams, Gaussian
        # Processes for Machine Learning, 2006, section 3.5).
        root = self._scaled.T.sqrt()
        inverse = torch.cholesky_inverse(_shifted_cholesky(gram, root, shift))
        single = inverse.mul_(root[:, :, None]).mul_(root[:, None, :])
        total = single.sum(0)
        total.diagonal().add_((self.weight == 0).to(total.dtype))
        coupling = _cholesky(total)

        def solve(b: Tensor) -> Tensor:
            alone = single @ (gram @ b).T[:, :, None]
            shared = torch.cholesky_solve(alone.sum(0), coupling)
            return (b - (alone - single @ shared)[:, :, 0].T) / shift

        return solve


def _shifted_cholesky(gram: Tensor, root: Tensor, shift: float) -> Tensor:
    """Cholesky factor of ``shift I + diag(root) gram diag(root)`` for root [m], or of c of them for [c, m]."""
    matrix = gram * root[..., :, None] * root[..., None, :]
    matrix.diagonal(dim1=-2, dim2=-1).add_(shift)
    return _cholesky(matrix)


def _cholesky(matrix: Tensor) -> Tensor:
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool(info.any()):
        raise ValueError(NOT_A_KERNEL)
    return factor


NOT_A_KERNEL = (
    "the kernel is not positive semi-definite, or the ridge is lost in its rounding; use a kernel that is "
    "(Linear, RBF, an NTK), add a multiple of the identity, or raise the ridge"
)


def one_hot(y: Tensor, classes: int | None) -> Tensor:
    """Labels [n] as rows [n, c] of float64: c labels that occur, or 0..classes-1.

    Raises:
        ValueError: labels that are not integers, or not in 0..classes-1.
    """
    if y.ndim != 1 or y.dtype.is_floating_point or y.dtype.is_complex:
        raise ValueError(f"integer labels [n] expected, got {list(y.shape)} of {y.dtype}")
    if classes is None:
        values, y = torch.unique(y, return_inverse=True)
        classes = len(values)
    elif len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(f"labels in 0..{classes - 1} expected, got {int(y.min())}..{int(y.max())}")
    return torch.zeros(len(y), classes, dtype=torch.float64, device=y.device).scatter_(1, y.long()[:, None], 1)
