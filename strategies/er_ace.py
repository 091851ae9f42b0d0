"""Experience Replay with Asymmetric Cross-Entropy (ER-ACE)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from replaykit.augment import Views
from replaykit.avalanche import Replay, Template
from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.losses import AsymmetricCrossEntropy, Draw, Model, outputs
from replaykit.probe import Probe


class ERACE(Template):
    """ER whose stream rows compete only with the classes of their own batch.

    CE(stream, softmax over the classes of the batch) + CE(memory, softmax over the classes seen so far), with
    two forward passes. Evaluation uses the plain criterion.

    Source: Caccia et al., New Insights on Reducing Abrupt Representation Change in Online Continual
    Learning, ICLR 2022.
    Departures: see `replaykit.losses.AsymmetricCrossEntropy`.

    Args:
        model, optimizer: what is trained.
        buffer: the memory.
        batch_size_mem: rows of a memory batch; default: `train_mb_size`.
        mode: ``"strict"``, the paper; or ``"official"``, the authors' code, which also lets outputs from the
            highest label seen so far upward compete in the stream, and all outputs in the replay.
        views, retrieval, probe, update, fast_loader: see `replaykit.avalanche.Replay`.
        plugins: further plugins, called after the replay.
        template: arguments of Avalanche's `SupervisedTemplate`.

    Published: Split CIFAR-10 and CIFAR-100, one pass, batch 10 + 10, SGD with lr 0.1, reduced ResNet-18,
    reservoir, no augmentation in the main table; mode ``"official"``.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        buffer: Buffer,
        batch_size_mem: int | None = None,
        mode: str = "strict",
        views: Views | Callable[[Tensor], Tensor] | None = None,
        retrieval: AnyRetrieval | None = None,
        probe: Callable[[Any], Probe] | None = None,
        update: str | None = None,
        fast_loader: bool = True,
        plugins: Sequence[Any] | None = None,
        **template: Any,
    ) -> None:
        self.stream_loss = AsymmetricCrossEntropy(mode)
        self.replay = Replay(
            buffer,
            batch_size_mem,
            loss=_Replayed(self.stream_loss),
            views=views,
            retrieval=retrieval,
            probe=probe,
            update=update,
            fast_loader=fast_loader,
        )
        plugins = [self.replay, *(plugins or ())]
        super().__init__(model=model, optimizer=optimizer, plugins=plugins, **template)

    def state_dict(self) -> dict[str, Any]:
        return self.stream_loss.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream_loss.load_state_dict(state)

    def criterion(self) -> Tensor:
        if self.is_training:
            return self.stream_loss(self.mb_output, self.mb_y)
        loss: Tensor = super().criterion()
        return loss


class _Replayed:
    """The memory's part of the loss, which shares the record of seen classes with the stream's."""

    columns = ("x", "y")

    def __init__(self, stream_loss: AsymmetricCrossEntropy) -> None:
        self.stream_loss = stream_loss

    def __call__(self, model: Model, draw: Draw) -> Tensor:
        batch = draw()
        return self.stream_loss.replayed(outputs(model, batch), batch["y"])
