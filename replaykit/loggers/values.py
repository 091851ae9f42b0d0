"""What a logger is given: an evaluation's values in one call, so that each logger keeps them together.

Besides plain numbers there are three kinds of values. A logger shows the kinds it can show and passes over
the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class Matrix:
    """A table of numbers [rows, columns], such as the accuracies after each task; NaN was not measured."""

    values: Sequence[Sequence[float]]
    rows: str = "after task"
    columns: str = "on task"


@dataclass(frozen=True)
class Counts:
    """How many of each label, such as the classes in the memory."""

    numbers: Mapping[int, int]


@dataclass(frozen=True)
class Images:
    """Pictures [n, channels, height, width], uint8 with 1 or 3 channels, and a caption each."""

    pixels: Tensor
    captions: Sequence[str]

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if self.pixels.dtype != torch.uint8 or len(shape) != 4 or shape[1] not in (1, 3):
            raise ValueError(
                f"images are uint8 [n, 1 or 3, height, width], got {list(shape)} of {self.pixels.dtype}"
            )
        if len(self.captions) != shape[0]:
            raise ValueError(f"{shape[0]} images need as many captions, got {len(self.captions)}")


Value: TypeAlias = float | int | Matrix | Counts | Images


class Logger(Protocol):
    """Takes what a run reports. What it is configured with goes to its constructor."""

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """One evaluation; `step` is the number of training iterations so far and never falls."""
        ...

    def summary(self, values: Mapping[str, Any]) -> None:
        """What the run comes to; numbers only. Called once, before `close`."""
        ...

    def close(self) -> None:
        """Finish writing. Also called when the run fails."""
        ...
