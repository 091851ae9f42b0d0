"""The largest score, by the smallest index among equals."""

from __future__ import annotations

import torch
from torch import Tensor


def rounding(scores: Tensor) -> Tensor:
    """What scores of this size may differ by through rounding alone: 8 units in the last place, []."""
    finite = scores[scores.isfinite()]
    largest = finite.abs().max() if len(finite) else scores.new_zeros(())
    return largest * (8 * torch.finfo(scores.dtype).eps)


def first_max(scores: Tensor, tolerance: Tensor | float = 0.0) -> Tensor:
    """Smallest index whose score [n] is within `tolerance` of the largest, int64 [].

    Equal candidates (duplicates, symmetric pairs) get scores that differ in the last digits, by an amount
    that depends on the device and the chunking. With a tolerance the choice does not.
    """
    return (scores >= scores.max() - tolerance).to(torch.uint8).argmax()
