"""Periodic Reptile: every so many optimiser steps, go only a part of the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from replaykit.flat import Flat, checked_rate


class Reptile(SupervisedPlugin):
    """After every `every` optimiser steps: θ ← W + `rate` (θ − W), then W ← θ.

    θ is all trainable parameters and all floating-point buffers (BatchNorm's statistics); W is what it was after
    the last interpolation, at first before the first step. The count of steps goes on from one experience to the
    next. What the optimiser keeps (momentum) is not interpolated. A plugin for any strategy that fires
    `after_update` after its steps; with `replaykit.strategies.ER` it is MER with batched updates, as used at
    scale.

    When a model grows between experiences, W starts anew at its parameters, and so does the count.

    Source: Nichol, Achiam and Schulman, On First-Order Meta-Learning Algorithms, 2018; Riemer et al., ICLR 2019.
    Cost: a second copy of the state; each interpolation reads and writes both once.

    Args:
        every: number of steps from one interpolation to the next.
        rate: of the interpolation; 1 leaves training as it is.

    Raises:
        ValueError: `every` below 1, a rate outside [0, 1]; a loaded state of another model, when training starts.
    """

    def __init__(self, every: int, rate: float = 0.3) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every is a number of steps >= 1, got {every}")
        self.every, self.rate = every, checked_rate("rate", rate)
        self.steps = 0
        """Steps since the last interpolation."""
        self._flat: Flat | None = None
        self._start: list[Tensor] | None = None
        self._loaded = False

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._flat = Flat.of(strategy.model, self._flat)
        if self._start is not None:
            vectors = zip(self._start, self._flat.vectors, strict=False)
            self._start = [start.to(vector.device) for start, vector in vectors]
        if self._start is None or not self._flat.fits(self._start):
            if self._loaded:
                raise ValueError("the saved state of Reptile is of another model; build the model that was saved")
            self._start, self.steps = self._flat.copy(), 0
        self._loaded = False

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.steps += 1
        if self.steps < self.every:
            return
        self._flat = Flat.of(strategy.model, self._flat)
        if self._start is None or not self._flat.fits(self._start):
            raise ValueError("parameters came or went during an experience; W is of the model that began it")
        self._flat.interpolate(self._start, self.rate)
        self._start, self.steps = self._flat.copy(self._start), 0

    def state_dict(self) -> dict[str, Any]:
        """W and the steps since."""
        start = [] if self._start is None else [vector.clone() for vector in self._start]
        return {"steps": self.steps, "start": start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        steps, start = state.get("steps"), state.get("start")
        vectors = isinstance(start, list) and all(isinstance(v, Tensor) and v.ndim == 1 for v in start)
        if type(steps) is not int or not 0 <= steps < self.every or not vectors:
            raise ValueError(
                f"not the state of Reptile(every={self.every}): steps {steps!r}, keys {sorted(map(str, state))}"
            )
        self.steps, self._loaded = steps, bool(start)
        self._start = [torch.clone(vector) for vector in start or ()] or None
