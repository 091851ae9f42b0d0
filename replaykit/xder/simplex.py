"""The fixed classifier of X-DER-RPC: the corners of a regular simplex.

Source: Pernici et al., Class-Incremental Learning with Pre-allocated Fixed Classifiers, ICPR 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def simplex(classes: int) -> Tensor:
    """`classes` unit vectors as columns [classes - 1, classes], float64, with inner products -1 / (classes - 1).

    Raises:
        ValueError: fewer than two classes.
    """
    if classes < 2:
        raise ValueError(f"a simplex of classifiers needs at least 2 classes, got {classes}")
    # The unit vectors of R^c within the plane of vectors that sum to 0 (Helmert's basis), scaled to length 1.
    j = torch.arange(1, classes, dtype=torch.float64)[:, None]
    column = torch.arange(classes, dtype=torch.float64)
    helmert = torch.where(column < j, 1.0, torch.where(column == j, -j, 0.0)) / (j * (j + 1)).sqrt()
    scale: float = (classes / (classes - 1)) ** 0.5
    return helmert * scale


class SimplexClassifier(nn.Module):
    """Logits Wᵀ net(x)[:classes - 1] with the fixed W of `simplex`; further outputs of the net are not used.

    W is no parameter and no part of the state: it follows from the number of classes.
    """

    weight: Tensor

    def __init__(self, net: nn.Module, classes: int) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("weight", simplex(classes).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        if z.shape[1] < len(self.weight):
            needed, classes = self.weight.shape
            raise ValueError(f"{classes} classes need {needed} outputs of the network, it has {z.shape[1]}")
        return z[:, : len(self.weight)] @ self.weight.to(z.dtype)
