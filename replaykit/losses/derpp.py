"""Stored logits of one draw and stored labels of another (DER++)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from replaykit.losses.base import Draw, Model, coefficient, outputs
from replaykit.losses.cross_entropy import CrossEntropy
from replaykit.losses.logits import MSELogits


class DERpp:
    """DER++: `MSELogits` of one draw and `beta` times the cross-entropy of another, independent draw.

    Source: Buzzega et al., Dark Experience for General Continual Learning, NeurIPS 2020, section 3 and
    appendix A.

    Args:
        alpha: coefficient of the squared distance to the stored logits (mean over all elements).
        beta: coefficient of the cross-entropy with the stored labels.
        fuse_replay: pass both draws through the model together: one forward pass less, but BatchNorm then
            sees them as one batch. The published method passes them apart.
        reduction, classes, mask_value: see `MSELogits`.
    """

    columns: tuple[str, ...] = ("x", "y", "logits")

    def __init__(
        self,
        alpha: float,
        beta: float,
        fuse_replay: bool = False,
        reduction: str = "declared",
        classes: int | None = None,
        mask_value: float | None = -1000.0,
    ) -> None:
        self.logits = MSELogits(alpha, reduction, classes, mask_value)
        self.labels = CrossEntropy(coefficient("beta", beta))
        self.fuse_replay = fuse_replay

    def __call__(self, model: Model, draw: Draw) -> Tensor:
        if not self.fuse_replay or 0 in (self.logits.alpha, self.labels.weight):
            return self.logits(model, draw) + self.labels(model, draw)
        first, second = draw(), draw()
        names = [name for name in ("x", "t") if name in first]
        n = len(first["x"])
        z = outputs(model, {name: torch.cat([first[name], second[name]]) for name in names})
        labels = functional.cross_entropy(z[n:], second["y"])
        return self.logits.alpha * self.logits.distance(z[:n], first) + self.labels.weight * labels
