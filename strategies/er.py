"""Experience Replay (ER)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from replaykit.augment import Views
from replaykit.avalanche import Replay, Template
from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.losses import CrossEntropy
from replaykit.probe import Probe


class ER(Template):
    """Cross-entropy of the stream and of a memory batch in every step.

    Source: Chaudhry et al., On Tiny Episodic Memories in Continual Learning, 2019; Riemer et al., ICLR 2019.

    Args:
        model, optimizer: what is trained.
        buffer: the memory.
        batch_size_mem: rows of a memory batch; default: `train_mb_size`.
        joint: one forward pass over the rows of both, and the mean over all of them (what the authors of DER
            compare to). Otherwise two passes, each with a BatchNorm batch of its own, and
            CE(stream) + `weight` · CE(memory).
        weight: coefficient of the memory's loss; only without `joint`.
        views, retrieval, probe, update, fast_loader: see `replaykit.avalanche.Replay`.
        plugins: further plugins, called after the replay.
        template: arguments of Avalanche's `SupervisedTemplate`.

    Published (SGD, no momentum), as tuned for the DER paper with reservoirs of 200, 500 and 5,120 rows:
    Split MNIST, 1 epoch, batch 10 + 10, lr 0.01, 0.1, 0.1; Split CIFAR-10, 50 epochs, batch 32 + 32, lr 0.1;
    Split Tiny-ImageNet, 100 epochs, batch 32 + 32, lr 0.1, 0.03, 0.1; Permuted and Rotated MNIST, 1 epoch,
    batch 128 + 128, lr 0.2.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        buffer: Buffer,
        batch_size_mem: int | None = None,
        joint: bool = True,
        weight: float = 1.0,
        views: Views | Callable[[Tensor], Tensor] | None = None,
        retrieval: AnyRetrieval | None = None,
        probe: Callable[[Any], Probe] | None = None,
        update: str | None = None,
        fast_loader: bool = True,
        plugins: Sequence[Any] | None = None,
        **template: Any,
    ) -> None:
        if joint and weight != 1.0:
            raise ValueError(f"the joint mean has no weight of the memory, got {weight}; use joint=False")
        self.replay = Replay(
            buffer,
            batch_size_mem,
            loss=None if joint else CrossEntropy(weight),
            views=views,
            retrieval=retrieval,
            probe=probe,
            update=update,
            fast_loader=fast_loader,
        )
        super().__init__(model=model, optimizer=optimizer, plugins=[self.replay, *(plugins or ())], **template)
