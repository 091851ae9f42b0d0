"""Dark Experience Replay (DER)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from replaykit.augment import Views
from replaykit.avalanche import Replay, Template
from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.losses import MSELogits
from replaykit.probe import Probe


class DER(Template):
    """Replay that keeps the network near the logits it once gave: CE(stream) + α · mean (z − ℓ)².

    The stored logits are those of the training step in which a row arrived: of its augmented view, from the
    weights before the update, with BatchNorm in training mode. They are never refreshed.

    Source: Buzzega et al., Dark Experience for General Continual Learning, NeurIPS 2020, section 3.
    Departures: the mean over all elements instead of the squared norm, like the authors' code (the published
    α are for the mean).

    Args:
        model, optimizer: what is trained.
        buffer: the memory; the paper's is a `Reservoir` over presentations.
        alpha: coefficient of the logits.
        batch_size_mem: rows of a memory batch; default: `train_mb_size`.
        reduction, classes, mask_value: for heads that grow, see `replaykit.losses.MSELogits`.
        views, retrieval, probe, fast_loader: see `replaykit.avalanche.Replay`.
        plugins: further plugins, called after the replay.
        template: arguments of Avalanche's `SupervisedTemplate`.

    Published (SGD, no momentum, no weight decay) for memories of 200, 500 and 5,120 rows, as (lr, α, memory
    batch):

    ======================================  ===============  ===============  ===============
    Split CIFAR-10, 50 epochs, batch 32     0.03, 0.3, 32    0.03, 0.3, 32    0.03, 0.3, 32
    Split Tiny-ImageNet, 100, batch 32      0.03, 0.1, 32    0.03, 0.1, 32    0.03, 0.1, 32
    Split MNIST, 1 epoch, batch 10          0.03, 0.2, 10    0.03, 1.0, 128   0.1, 0.5, 128
    Permuted MNIST, 1 epoch, batch 128      0.2, 1.0, 128    0.2, 1.0, 128    0.2, 0.5, 128
    Rotated MNIST, 1 epoch, batch 128       0.2, 1.0, 128    0.2, 0.5, 128    0.2, 0.5, 128
    ======================================  ===============  ===============  ===============

    Split CIFAR-100 in the setting of X-DER (50 epochs, batch 32; 500 and 2,000 rows): 0.03, 0.3, 32.
    MNIST-360 (200, 500, 1,000 rows; batch 16, 16, 8): 0.1, 0.5, 64; 0.2, 0.5, 16; 0.1, 0.5, 64.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        buffer: Buffer,
        alpha: float = 0.3,
        batch_size_mem: int | None = None,
        reduction: str = "declared",
        classes: int | None = None,
        mask_value: float | None = -1000.0,
        views: Views | Callable[[Tensor], Tensor] | None = None,
        retrieval: AnyRetrieval | None = None,
        probe: Callable[[Any], Probe] | None = None,
        fast_loader: bool = True,
        plugins: Sequence[Any] | None = None,
        **template: Any,
    ) -> None:
        self.replay = Replay(
            buffer,
            batch_size_mem,
            loss=MSELogits(alpha, reduction, classes, mask_value),
            views=views,
            retrieval=retrieval,
            probe=probe,
            fast_loader=fast_loader,
        )
        plugins = [self.replay, *(plugins or ())]
        super().__init__(model=model, optimizer=optimizer, plugins=plugins, **template)
