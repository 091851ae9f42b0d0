"""Dropout from single random bits: PyTorch's on the CPU spends a draw on every unit, and in a small convolutional
network more time than the convolutions' forward passes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

# What each byte of random bits makes of eight units: 0 for those that are dropped, 2 for those that stay.
_FACTORS = 2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32)


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`; with p = 0.5, on the CPU and in float32, about ten times as fast.

    There a unit stays if a bit of torch's global generator is set: independent and fair, as in the original. The
    law is the same, the numbers drawn are others. In every other case it *is* the original.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p != 0.5 or not x.is_cpu or x.dtype is not torch.float32:
            return super().forward(x)
        factors = _fair(x.numel()).as_strided(x.shape, torch.empty_like(x).stride())
        return x.mul_(factors) if self.inplace else x * factors


def _fair(n: int) -> Tensor:
    """0 or 2 with equal chances, n times."""
    # From the lowest number with no upper end: all 64 bits are drawn.
    words = torch.empty(-(-n // 64), dtype=torch.int64).random_(-(2**63), None)
    return torch.from_numpy(_FACTORS.take(words.view(torch.uint8).numpy(), axis=0)).view(-1)[:n]
