"""What is differentiated: the losses of the rows of a batch, as a function of named parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from replaykit.gradients.budget import Allocations, Budget, row_bytes, tensor_bytes
from replaykit.gradients.losses import RowLoss
from replaykit.gradients.rows import columns, moved, take
from replaykit.gradients.structure import Structure
from replaykit.store import Batch

Inputs: TypeAlias = Callable[[Batch], Any]
Chosen: TypeAlias = Callable[[str], bool] | Iterable[str] | None


@dataclass(frozen=True)
class Layout:
    """The parameters behind the p entries of a flat gradient, in the order of ``named_parameters()``."""

    shapes: dict[str, torch.Size]

    @property
    def size(self) -> int:
        return sum(shape.numel() for shape in self.shapes.values())

    def places(self) -> dict[str, slice]:
        """Where each parameter lies in the flat gradient."""
        places, start = {}, 0
        for name, shape in self.shapes.items():
            places[name] = slice(start, start + shape.numel())
            start += shape.numel()
        return places

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Flat directions [..., p] as {name: [..., size]}."""
        return {name: flat[..., place] for name, place in self.places().items()}

    def join(self, parts: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """{name: gradient of any shape} as [p]; parameters that are missing have gradient 0."""
        flat = [
            parts[name].reshape(-1) if name in parts else like.new_zeros(shape.numel())
            for name, shape in self.shapes.items()
        ]
        return torch.cat(flat)


class Objective:
    """Losses of rows under a model.

    Args:
        inputs: makes the model's positional arguments of a batch: one tensor or a tuple.
        layout: the parameters to differentiate with respect to.
    """

    def __init__(self, structure: Structure, loss: RowLoss, inputs: Inputs, layout: Layout) -> None:
        self.structure, self.loss, self.inputs, self.layout = structure, loss, inputs, layout

    @property
    def model(self) -> nn.Module:
        return self.structure.model

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        with torch.inference_mode(False), torch.no_grad():
            made = self.inputs(batch)
        return tuple(made) if isinstance(made, (tuple, list)) else (made,)

    def leaves(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Parameters as fresh leaves on the same memory, so that hooks of the originals stay out."""
        wanted = self.layout.shapes if names is None else names
        return {name: self.structure.parameters[name].detach().requires_grad_() for name in wanted}

    def fixed(self) -> dict[str, Tensor]:
        """All parameters without history."""
        return {name: value.detach() for name, value in self.structure.parameters.items()}

    def losses(self, args: tuple[Any, ...], batch: Batch) -> Tensor:
        """Losses [n]."""
        return checked_rows(self.loss(self.model(*args), batch), batch)

    def losses_at(self, parameters: Mapping[str, Tensor], args: tuple[Any, ...], batch: Batch) -> Tensor:
        """Losses [n] with some parameters replaced, as a function of these alone."""
        outputs = functional_call(
            self.model, {**self.fixed(), **parameters}, args, tie_weights=bool(self.structure.shared)
        )
        return checked_rows(self.loss(outputs, batch), batch)


def chosen_layout(structure: Structure, chosen: Chosen = None) -> Layout:
    """The trainable parameters, or those of them that are chosen by name.

    Raises:
        ValueError: no parameter is left, or a chosen name is not a trainable parameter.
    """
    shapes = {name: value.shape for name, value in structure.parameters.items() if value.requires_grad}
    if chosen is not None and not callable(chosen):
        wanted = set(chosen)
        if wanted - shapes.keys():
            raise ValueError(f"{sorted(wanted - shapes.keys())} are not trainable parameters of the model")
        shapes = {name: shape for name, shape in shapes.items() if name in wanted}
    elif chosen is not None:
        shapes = {name: shape for name, shape in shapes.items() if chosen(name)}
    if not shapes:
        raise ValueError("no trainable parameter to differentiate; set requires_grad, or choose others")
    return Layout(shapes)


def checked_rows(losses: Any, batch: Batch) -> Tensor:
    """Losses as they came, if they are one floating number a row."""
    n = next(iter(batch.values())).shape[0]
    if not isinstance(losses, Tensor):
        raise TypeError(f"the loss must return a tensor [n], got {type(losses).__name__}")
    if losses.shape != (n,):
        given = "a scalar" if losses.ndim == 0 else f"shape {list(losses.shape)}"
        raise ValueError(
            f"the loss must return one value a row, shape [{n}], got {given}; a function (outputs, batch) "
            "with reduction='none' is needed"
        )
    if not losses.is_floating_point():
        raise TypeError(f"the loss must return floating numbers, got {losses.dtype}")
    return losses


def refuse_nan(values: Tensor, what: str, rows: Tensor | None = None) -> Tensor:
    """The values [n, ...], if all are finite; raises `ValueError` with the (numbers of the) rows otherwise."""
    # A sum is finite unless an entry is not, or it overflows, which the full test tells apart.
    if not math.isfinite(float(values.sum())) and not bool(values.isfinite().all()):
        bad = (~values.isfinite()).reshape(values.shape[0], -1).any(1).nonzero().flatten()
        listed = (bad if rows is None else rows[bad]).tolist()
        raise ValueError(
            f"{what} are NaN or infinite in rows {listed[:8]}{' and more' if len(listed) > 8 else ''}: "
            "look at the inputs and the learning rate"
        )
    return values


def rows_per_pass(objective: Objective, batch: Batch, rows: Tensor, device: torch.device, budget: Budget) -> int:
    """Rows of a forward pass without gradients that fit into the budget; call it while scoring."""

    def measure() -> int:
        row = moved(take(batch, rows[:1]), device)
        with Allocations() as made, torch.no_grad():
            objective.model(*(args := objective.arguments(row)))
        return int(made.nbytes) + tensor_bytes(*args, *row.values())

    dtypes = frozenset(value.dtype for value in objective.structure.parameters.values())
    return budget.rows_per_pass(row_bytes(objective.model, ("forward", dtypes, columns(batch)), measure))
