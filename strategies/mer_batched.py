"""The batched approximation of Meta-Experience Replay: experience replay with Reptile's damping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from replaykit.augment import Views
from replaykit.avalanche import Replay, Template
from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.flat import Flat, checked_rate
from replaykit.probe import Probe


class MERBatched(Template):
    """`ER` whose steps are damped: θ ← W + β (θ − W) after each step, θ ← A + γ (θ − A) after each mini-batch.

    `steps` times for every mini-batch, a draw of the memory is appended to the rows of the stream, and the
    optimiser makes one step on the mean loss of all of them. With plain SGD and one step a mini-batch this is `ER`
    at the learning rate β γ · lr; with β = γ = 1 it is `ER` for every optimiser. There are no steps on single
    rows, which are what aligns gradients in MER: see `replaykit.strategies.MER` for the algorithms of the paper.

    θ, W and A are all trainable parameters and all floating-point buffers; what the optimiser keeps (momentum) is
    not interpolated. The events from `before_forward` to `after_update` are fired for each step, those of the
    iteration once.

    Source: what mammoth, the code of the DER paper (Buzzega et al., NeurIPS 2020), trains under the name of MER.

    Args:
        model, optimizer: what is trained.
        buffer: the memory.
        batch_size_mem: rows of a draw; default: `train_mb_size`.
        steps: draws, and optimiser steps, for each mini-batch.
        beta: rate of the interpolation after each step.
        gamma: rate of the interpolation after the steps of a mini-batch.
        views, retrieval, probe, update, fast_loader: see `replaykit.avalanche.Replay`.
        plugins: further plugins, called after the replay.
        template: arguments of Avalanche's `SupervisedTemplate`.

    Published in the DER paper as MER (SGD, one pass, `train_mb_size` 1, β = γ = 1, 128 replayed rows): Split
    MNIST, memories of 200, 500 and 5,120 rows, lr 0.1, 0.1, 0.03, 1 step; MNIST-360 (200, 500, 1,000 rows),
    lr 0.2, 0.1, 0.2, 3 steps.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        buffer: Buffer,
        batch_size_mem: int | None = None,
        steps: int = 1,
        beta: float = 1.0,
        gamma: float = 1.0,
        views: Views | Callable[[Tensor], Tensor] | None = None,
        retrieval: AnyRetrieval | None = None,
        probe: Callable[[Any], Probe] | None = None,
        update: str | None = None,
        fast_loader: bool = True,
        plugins: Sequence[Any] | None = None,
        **template: Any,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps is a number of optimiser steps >= 1, got {steps}")
        self.steps, self.beta, self.gamma = steps, checked_rate("beta", beta), checked_rate("gamma", gamma)
        self.replay = _Again(
            buffer,
            batch_size_mem,
            views=views,
            retrieval=retrieval,
            probe=probe,
            update=update,
            fast_loader=fast_loader,
        )
        self._flat: Flat | None = None
        super().__init__(model=model, optimizer=optimizer, plugins=[self.replay, *(plugins or ())], **template)

    def train_minibatch(self, **kwargs: Any) -> None:
        self._flat = Flat.of(self.model, self._flat)
        before_all = self._flat.copy() if self.gamma != 1 else []
        for step in range(self.steps):
            if step:
                self.replay.draw_again(self)
            before = self._flat.copy() if self.beta != 1 else []
            self.train_step(**kwargs)
            # A plugin such as Reptile may have moved the state into a vector of its own.
            self._flat = Flat.of(self.model, self._flat)
            self._flat.interpolate(before, self.beta)
        self._flat.interpolate(before_all, self.gamma)


class _Again(Replay):
    def draw_again(self, strategy: Any) -> None:
        """The same rows of the stream with other rows of the memory, all in new views."""
        strategy.mbatch = [self._arrivals[name] for name in self._names]
        self.before_training_iteration(strategy)
