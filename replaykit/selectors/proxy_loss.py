"""Losses of the proxy models: value, gradient and curvature in the predictions, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

Curvature: TypeAlias = Callable[[Tensor], Tensor]


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
        """The product of every row's Hessian, times its weight [n], with a row of [n, c]."""
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
        p = predictions.softmax(1)
        scaled = p * weight[:, None]

        def times(v: Tensor) -> Tensor:
            return (v - (p * v).sum(1, keepdim=True)).mul_(scaled)

        return times


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
        return lambda v: v * (2 * weight[:, None])


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
