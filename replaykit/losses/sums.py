"""Several losses as one."""

from __future__ import annotations

from torch import Tensor

from replaykit.losses.base import Draw, Model, ReplayLoss, columns_of


class Sum:
    """The sum of several replay losses, each with its own draws."""

    def __init__(self, *losses: ReplayLoss) -> None:
        if not losses:
            raise ValueError("a sum needs at least one loss, got none")
        self.losses = losses
        known = [columns_of(loss) for loss in losses]
        # A loss that does not say what it reads is given everything, and so is a sum with such a part.
        self.columns = (
            None if None in known else tuple(dict.fromkeys(name for part in known for name in part or ()))
        )

    def __call__(self, model: Model, draw: Draw) -> Tensor:
        first, *rest = self.losses
        return sum((loss(model, draw) for loss in rest), first(model, draw))
