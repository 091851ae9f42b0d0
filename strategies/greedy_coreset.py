"""Replay of a whole weighted memory (greedy coreset)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from replaykit.augment import Views
from replaykit.avalanche import FreshOptimizer, Replay, Template
from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.losses import Draw, Model, outputs
from replaykit.probe import Probe


class GreedyCoreset(Template):
    """CE(stream) + β · Σ over slots of the mean of weightᵢ · CEᵢ, over the whole memory in every step.

    Every experience is trained on with a new optimiser, and then offered to the memory at once. The paper's memory
    is `replaykit.policies.GreedyCoreset`: one slot for each task with ``layout="tasks"``, merge-reduce slots with
    ``layout="stream"``. Any other will do: rows without a weight count once, and a memory without slots is one.

    Weights are taken as they are stored, and the means of slots are added, so that the replay grows with the
    number of tasks or of merged batches: with one merge-reduce slot, β = 10 acts as 10, 20, 30, ... after the
    first, second, third, ... batch of the stream.

    Source: Borsos, Mutny and Krause, Coresets via Bilevel Optimization for Continual Learning and Streaming,
    NeurIPS 2020, section 4, with the loss of the authors' code.
    Departures: none.

    Args:
        model, optimizer: what is trained.
        buffer: the memory.
        beta: β, coefficient of the memory's loss.
        batch_size_mem: rows of a memory batch; default: all that are stored.
        slots: column that tells the slots apart; None, or where there is no such column: all rows are one slot.
        fresh_optimizer: begin every experience with a new optimiser.
        views, retrieval, probe, update, fast_loader, chunk: see `replaykit.avalanche.Replay`; by default the whole
            experience is offered after it.
        plugins: further plugins, called after the replay.
        template: arguments of Avalanche's `SupervisedTemplate`.

    Published (Adam with lr 5e-4, batches of 256, convolutional network with dropout 0.5, memory of 100 rows; β
    chosen by test accuracy): Split MNIST with 1,000 rows a task, 400 epochs, β = 100 with coresets, 10 with random
    rows; imbalanced stream of Split MNIST in batches of 125 rows, 40 epochs, β = 10 with coresets and
    `ClassBalancedReservoir`, 100 with `Reservoir`.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        buffer: Buffer,
        beta: float = 1.0,
        batch_size_mem: int | None = None,
        slots: str | None = "coreset_slot",
        fresh_optimizer: bool = True,
        views: Views | Callable[[Tensor], Tensor] | None = None,
        retrieval: AnyRetrieval | None = None,
        probe: Callable[[Any], Probe] | None = None,
        update: str | None = "experience",
        fast_loader: bool = True,
        chunk: int | None = None,
        plugins: Sequence[Any] | None = None,
        **template: Any,
    ) -> None:
        self._whole_memory = batch_size_mem is None
        self.replay = Replay(
            buffer,
            batch_size_mem,
            loss=SlotMeans(beta, slots),
            views=views,
            retrieval=retrieval,
            probe=probe,
            update=update,
            fast_loader=fast_loader,
            chunk=chunk,
        )
        fresh = [FreshOptimizer()] if fresh_optimizer else []
        plugins = [self.replay, *fresh, *(plugins or ())]
        super().__init__(model=model, optimizer=optimizer, plugins=plugins, **template)

    def _before_training_exp(self, **kwargs: Any) -> None:
        if self._whole_memory:  # which may have been resized
            self.replay.batch_size_mem = self.replay.buffer.capacity
        super()._before_training_exp(**kwargs)


class SlotMeans:
    """`beta` times the sum over slots of mean(weight · cross-entropy), weights as they are stored.

    Unlike `replaykit.losses.WeightedCrossEntropy` it is not divided by the weights: their size counts.

    Args:
        beta: coefficient.
        slots: column that tells the slots apart; None, or where the memory has none: all rows are one slot.
        column: column of weights; rows of a memory without it count once.
    """

    #: Everything, since a memory need not have slots and weights.
    columns = None

    def __init__(self, beta: float, slots: str | None = "coreset_slot", column: str = "weight") -> None:
        if not beta >= 0:
            raise ValueError(f"beta is a coefficient >= 0, got {beta}")
        self.beta, self.slots, self.column = beta, slots, column

    def __call__(self, model: Model, draw: Draw) -> Tensor:
        if self.beta == 0:
            return torch.zeros(())
        batch = draw()
        losses = functional.cross_entropy(outputs(model, batch), batch["y"], reduction="none")
        if self.column in batch:
            losses = losses * batch[self.column].to(losses.dtype)
        if self.slots is None or self.slots not in batch:
            return self.beta * losses.mean()
        slot, rows = torch.unique(batch[self.slots], return_inverse=True, return_counts=True)[1:]
        total: Tensor = (losses / rows[slot]).sum()
        return self.beta * total
