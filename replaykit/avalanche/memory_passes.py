"""Training on the memory alone, at the end of an experience: what GDumb and Rainbow Memory have in common."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from replaykit.avalanche.replay import Replay
from replaykit.avalanche.template import Template
from replaykit.perturb import cutmix
from replaykit.store import IntArray

WARM_UP, LOWEST = 0.1, 0.01


def rate(number: int) -> float:
    """Learning rate of a pass, as a fraction of the full one.

    0.1 in pass 0; then a cosine from 1 to 0.01 with warm restarts, over periods of 1, 2, 4, ... passes.

    Source: the released codes of GDumb (Prabhu et al., ECCV 2020) and Rainbow Memory (Bang et al., CVPR 2021).
    """
    if number == 0:
        return WARM_UP
    period = 1 << (number.bit_length() - 1)  # of the passes 1, 2-3, 4-7, ...
    return LOWEST + (1 - LOWEST) * (1 + math.cos(math.pi * (number - period) / period)) / 2


def scale_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every learning rate to `factor` times the first one (``initial_lr``, as torch's schedulers do)."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def blocks(slots: IntArray, size: int) -> list[IntArray]:
    """Slots cut into blocks of `size`; a last one of a single row joins the one before it, for BatchNorm."""
    starts = np.arange(0, len(slots), size)
    if len(starts) > 1 and len(slots) - starts[-1] == 1:
        starts = starts[:-1]
    return np.split(slots, starts[1:]) if len(slots) else []


class MemoryPasses(Template):
    """A template that can pass over the memory alone, with or without CutMix in all of its steps.

    Its plugin must be `replay`, and calls `train_on_memory` when the memory is up to date. Other plugins see
    nothing of these passes. The order comes from the buffer's draws, so that a resumed run repeats it.

    Args:
        passes: over the memory.
        batch_size_mem: rows of a step on the memory.
        clip: largest norm of the gradient in these steps; None for none.
        cutmix: probability of CutMix in a step, on the stream as well.
        template: arguments of `Template`.
    """

    replay: Replay

    def __init__(
        self,
        *,
        passes: int,
        batch_size_mem: int,
        clip: float | None,
        cutmix: float,
        **template: Any,
    ) -> None:
        if passes < 0:
            raise ValueError(f"passes is a number of passes over the memory >= 0, got {passes}")
        if batch_size_mem < 1:
            raise ValueError(f"batch_size_mem is a number of rows >= 1, got {batch_size_mem}")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip is the largest norm of a gradient, a positive number or None, got {clip}")
        if not 0 <= cutmix <= 1:
            raise ValueError(f"cutmix is a probability, in [0, 1], got {cutmix}")
        self.passes, self.batch_size_mem, self.clip, self.cutmix = passes, batch_size_mem, clip, cutmix
        self.mixed: tuple[Tensor, Tensor] | None = None
        super().__init__(**template)

    def train_on_memory(self) -> None:
        """Pass over the memory with the learning rates of `rate`; afterwards they are at their full value."""
        memory, seen = self.replay.buffer, (self.mbatch, self.mb_output, self.loss)
        self.model.train()
        for number in range(self.passes if len(memory) else 0):
            scale_rates(self.optimizer, rate(number))
            slots = memory.store.filled[memory.draws.permutation(len(memory))]
            for block in blocks(slots, self.batch_size_mem):
                self._memory_step(block)
        scale_rates(self.optimizer, 1.0)
        self.mixed = None
        self.mbatch, self.mb_output, self.loss = seen

    def mix(self) -> None:
        """CutMix of the present mini-batch, which is ready for the model; its loss is then that of both labels."""
        self.mixed = None
        if self.cutmix:
            x, y, pasted, share = cutmix(self.mbatch[0], self.mbatch[1], self.cutmix)
            self.mbatch[0], self.mixed = x, (pasted, share.to(y.device))

    def criterion(self) -> Tensor:
        loss: Tensor = super().criterion()
        if self.mixed is None or not self.is_training:
            return loss
        pasted, share = self.mixed
        other: Tensor = self._criterion(self.mb_output, pasted)
        return share * loss + (1 - share) * other

    def _memory_step(self, slots: IntArray) -> None:
        memory, views = self.replay.buffer, self.replay.views
        rows = memory.read(slots, [name for name in ("x", "y", "t") if name in memory.store.columns])
        self.mbatch = [column.to(self.device, non_blocking=True) for column in rows.values()]
        if views is not None:
            self.mbatch[0] = views.train(self.mbatch[0])
        self.mix()
        self.optimizer.zero_grad()
        self.mb_output = self.forward()
        self.loss = self.criterion()
        self.backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer_step()
