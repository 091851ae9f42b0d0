"""What a replay loss is, and what all of them need."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

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


class NoTerm:
    """Adds nothing to the loss: for strategies whose memory rows enter a step in a way of their own.

    With a loss, even this one, `replaykit.avalanche.Replay` does not append memory rows to mini-batches.

    Args:
        columns: what the strategy reads of the memory.
    """

    def __init__(self, *columns: str) -> None:
        self.columns = columns

    def __call__(self, model: Model, draw: Draw) -> Tensor:
        return torch.zeros(())


def outputs(model: Model, batch: Batch) -> Tensor:
    """Logits [n, c] of the rows of a memory batch."""
    return model(batch["x"], batch["t"]) if isinstance(model, TaskAware) else model(batch["x"])


def columns_of(loss: ReplayLoss) -> tuple[str, ...] | None:
    """Columns that a loss says it reads, or None when it does not say."""
    columns = getattr(loss, "columns", None)
    return None if columns is None else tuple(columns)


def coefficient(name: str, value: float) -> float:
    if not value >= 0:
        raise ValueError(f"{name} is a coefficient >= 0, got {value}")
    return value


def check_temperature(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is a positive number, got {value}")
    return value
