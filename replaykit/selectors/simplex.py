"""Euclidean projection onto the probability simplex."""

from __future__ import annotations

import torch
from torch import Tensor


def project_simplex(v: Tensor) -> Tensor:
    """The nearest point w [n] to v [n] with w >= 0 and sum 1: ``max(v - tau, 0)`` for the right tau.

    Source: Held, Wolfe and Crowder 1974; O(n log n) by sorting.

    Raises:
        ValueError: no entry, NaN or infinity.
    """
    if v.ndim != 1 or not len(v) or not bool(v.isfinite().all()):
        raise ValueError(f"project_simplex: finite values [n >= 1] expected, got {list(v.shape)}")
    # The projection does not see a common shift, and sums of small numbers keep their digits.
    v = v - v.max()
    largest_first = v.sort(descending=True).values
    excess = (largest_first.cumsum(0) - 1) / torch.arange(1, len(v) + 1, dtype=v.dtype, device=v.device)
    support = int((largest_first > excess).sum())
    return (v - excess[support - 1]).clamp_(min=0)
