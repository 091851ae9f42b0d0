"""The distance to stored logits (DER)."""

from __future__ import annotations

import torch
from torch import Tensor

from replaykit.losses.base import Draw, Model, coefficient, outputs
from replaykit.store import Batch


class MSELogits:
    """The term of DER: `alpha` times the mean squared distance to the logits that the memory holds.

    Source: Buzzega et al., Dark Experience for General Continual Learning, NeurIPS 2020.
    Departures: the mean over all B·C elements, as in the authors' code and as their published alphas
    presuppose; the formula of the paper has the squared norm, C times as much.

    Args:
        alpha: coefficient of the term.
        reduction: what the sum of squares is divided by when stored rows are narrower than the model's
            output (heads that grow): ``"declared"`` by B·C, ``"valid"`` by the number of stored logits.
        classes: the C of ``"declared"``, when it is known before all heads exist; default: the outputs of
            the model as it is.
        mask_value: a stored logit of this value marks a unit that was switched off and is no target
            (Avalanche's `IncrementalClassifier` writes -1000); None if the model has no such units.
    """

    columns: tuple[str, ...] = ("x", "logits")

    def __init__(
        self,
        alpha: float,
        reduction: str = "declared",
        classes: int | None = None,
        mask_value: float | None = -1000.0,
    ) -> None:
        if reduction not in ("declared", "valid"):
            raise ValueError(f"reduction is 'declared' or 'valid', got {reduction!r}")
        self.alpha = coefficient("alpha", alpha)
        self.reduction, self.classes, self.mask_value = reduction, classes, mask_value

    def __call__(self, model: Model, draw: Draw) -> Tensor:
        if self.alpha == 0:
            return torch.zeros(())
        batch = draw()
        return self.alpha * self.distance(outputs(model, batch), batch)

    def distance(self, z: Tensor, batch: Batch) -> Tensor:
        """The mean squared distance of outputs z [n, c] to a batch's logits, in float32.

        Raises:
            ValueError: the batch holds more logits a row than the model gives.
        """
        target, width = batch["logits"], batch.get("logits_width")
        held, given = target.shape[1], z.shape[1]
        if held > given:
            raise ValueError(f"the memory holds {held} logits a row, the model gives {given}; outputs only grow")
        error = z[:, :held].float() - target.float()
        valid = None if self.mask_value is None else target != self.mask_value
        if width is not None:
            within = torch.arange(held, device=z.device) < width[:, None]
            valid = within if valid is None else valid & within
        if valid is not None:
            error = error.where(valid, 0.0)
        if self.reduction == "declared":
            return error.square().sum() / (len(z) * (self.classes or given))
        return error.square().sum() / (error.numel() if valid is None else valid.sum().clamp_min(1))
