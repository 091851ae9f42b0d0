"""Replay losses: what the rows of a memory add to the loss of a training step.

A replay loss is a function ``(model, draw) -> Tensor []``. `draw()` returns a fresh batch of the memory
whose ``x`` is ready for the model; a loss that wants two independent batches draws twice. The attribute
``columns`` names what the loss reads, so that a plugin knows what to store and what to fetch; a plain
function without it is given every column. A term whose coefficient is 0 is left out, forward pass and draw
included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from replaykit.store import Batch

Model: TypeAlias = Callable[..., Tensor]
Draw: TypeAlias = Callable[[], Batch]
ReplayLoss: TypeAlias = Callable[[Model, Draw], Tensor]


class TaskAware:
    """Marks a model that takes task labels [n] beside its input, such as one with a head for each task."""

    def __init__(self, forward: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.forward = forward

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.forward(x, t)


def outputs(model: Model, batch: Batch) -> Tensor:
    """Logits [n, c] of the rows of a memory batch."""
    return model(batch["x"], batch["t"]) if isinstance(model, TaskAware) else model(batch["x"])


class CrossEntropy:
    """`weight` times the mean cross-entropy of one draw, over all outputs."""

    columns: tuple[str, ...] = ("x", "y")

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = _coefficient("weight", weight)

    def __call__(self, model: Model, draw: Draw) -> Tensor:
        if self.weight == 0:
            return torch.zeros(())
        batch = draw()
        return self.weight * functional.cross_entropy(outputs(model, batch), batch["y"])


class WeightedCrossEntropy:
    """Cross-entropy of one draw with the weights that the memory holds: Σ wᵢ CEᵢ / Σ wᵢ.

    The weights are normalised within the draw, so only their ratios matter; when all are 0, so is the loss.

    Args:
        weight: coefficient of the term.
        column: the column of non-negative weights [n], as coreset methods write it.
    """

    def __init__(self, weight: float = 1.0, column: str = "weight") -> None:
        self.weight, self.column = _coefficient("weight", weight), column
        self.columns: tuple[str, ...] = ("x", "y", column)

    def __call__(self, model: Model, draw: Draw) -> Tensor:
        if self.weight == 0:
            return torch.zeros(())
        batch = draw()
        losses = functional.cross_entropy(outputs(model, batch), batch["y"], reduction="none")
        weights = batch[self.column].to(losses.dtype)
        return self.weight * (weights @ losses) / weights.sum().clamp_min(torch.finfo(losses.dtype).tiny)


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
        self.alpha = _coefficient("alpha", alpha)
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
        self.labels = CrossEntropy(_coefficient("beta", beta))
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


def columns_of(loss: ReplayLoss) -> tuple[str, ...] | None:
    """Columns that a loss says it reads, or None when it does not say."""
    columns = getattr(loss, "columns", None)
    return None if columns is None else tuple(columns)


# -- the asymmetric loss of the stream ----------------------------------------------------------------


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

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.seen = state["seen"].clone()


def _only(z: Tensor, mask: Tensor) -> Tensor:
    return z.masked_fill(~mask, float("-inf"))


def _coefficient(name: str, value: float) -> float:
    if not value >= 0:
        raise ValueError(f"{name} is a coefficient >= 0, got {value}")
    return value
