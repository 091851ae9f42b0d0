"""The asymmetric loss of the stream (ER-ACE)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def ace_mask(y: Tensor, classes: int, highest: Tensor | int | None = None) -> Tensor:
    """Which of `classes` outputs compete for a stream batch with labels y [n]: bool [classes].

    Those of the batch; with `highest`, the highest label seen so far, also every output from it upward.
    """
    mask = torch.zeros(classes, dtype=torch.bool, device=y.device)
    mask[y] = True
    return mask if highest is None else mask | (torch.arange(classes, device=y.device) >= highest)


class AsymmetricCrossEntropy:
    """The stream's loss in ER-ACE: a softmax over the classes of the batch alone.

    Outputs outside get a gradient of exactly 0, so that new classes do not push the old ones away.

    Source: Caccia et al., New Insights on Reducing Abrupt Representation Change in Online Continual
    Learning, ICLR 2022.
    Departures: none in ``"strict"``. ``"official"`` is the authors' code, with which their numbers were made:
    every output from the highest label seen so far upward competes too. In both, the first task is treated
    like any other (the task-free setting of the code).

    Attributes:
        seen: labels that the stream has shown so far, bool [c]; grows with the outputs.
    """

    def __init__(self, mode: str = "strict") -> None:
        if mode not in ("strict", "official"):
            raise ValueError(f"mode is 'strict' or 'official', got {mode!r}")
        self.mode = mode
        self.seen = torch.zeros(0, dtype=torch.bool)

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        """Mean loss of outputs z [n, c] for labels y [n], which count as seen from now on."""
        self.seen = self._seen_with(y, z.shape[1])
        highest = None
        if self.mode == "official":
            highest = (self.seen * torch.arange(z.shape[1], device=z.device)).max()
        return functional.cross_entropy(_only(z, ace_mask(y, z.shape[1], highest)), y)

    def replayed(self, z: Tensor, y: Tensor) -> Tensor:
        """Mean loss of replayed rows: over the classes seen so far, or all outputs in ``"official"``."""
        if self.mode == "strict":
            z = _only(z, self._seen_with(y, z.shape[1]))
        return functional.cross_entropy(z, y)

    def _seen_with(self, y: Tensor, classes: int) -> Tensor:
        seen = ace_mask(y, classes)
        seen[: len(self.seen)] |= self.seen.to(y.device)
        return seen

    def state_dict(self) -> dict[str, Tensor]:
        return {"seen": self.seen.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state, or raise `ValueError` and keep the present one."""
        seen = state.get("seen")
        if state.keys() != {"seen"} or not (isinstance(seen, Tensor) and seen.dtype == torch.bool):
            raise ValueError(f"not the state of an asymmetric cross-entropy: it has {sorted(map(str, state))}")
        self.seen = seen.clone()


def _only(z: Tensor, mask: Tensor) -> Tensor:
    return z.masked_fill(~mask, float("-inf"))
