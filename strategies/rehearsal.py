"""Rehearsal with any replay loss: the free combination of storage, retrieval and loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from replaykit.augment import Views
from replaykit.avalanche import Replay, Template
from replaykit.avalanche.fit import check_features
from replaykit.avalanche.pooled import PooledReplay
from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.losses import CrossEntropy, ReplayLoss
from replaykit.probe import Probe


class Rehearsal(Template):
    """The criterion on the stream, plus any replay loss on the memory.

    `ER`, `DER` and `DERpp` are this with a loss of their own; here the loss is an argument like the memory and the
    retrieval, so that any of them goes with any other.

    Args:
        model, optimizer: what is trained.
        buffer: the memory.
        loss: of `replaykit.losses`, or any function ``(model, draw) -> Tensor []``; default: cross-entropy.
        batch_size_mem: rows of each draw; default: `train_mb_size`.
        candidates: a buffer that keeps rows of the stream, with their logits, until the memory takes them all at
            once when the experience is over: so a policy that takes whole tasks goes with a loss of stored logits.
        store_logits: keep the logits of the stream's rows even if the loss does not name them.
        views, retrieval, probe, update, fast_loader: see `replaykit.avalanche.Replay`.
        plugins: further plugins, called after the replay.
        template: arguments of Avalanche's `SupervisedTemplate`.

    Raises:
        ValueError: parts that do not fit each other, as told by `replaykit.avalanche.Replay`; a loss of features
            with a model that takes task labels; `update` beside `candidates`; candidates that are the memory.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        buffer: Buffer,
        loss: ReplayLoss | None = None,
        batch_size_mem: int | None = None,
        candidates: Buffer | None = None,
        store_logits: bool = False,
        views: Views | Callable[[Tensor], Tensor] | None = None,
        retrieval: AnyRetrieval | None = None,
        probe: Callable[[Any], Probe] | None = None,
        update: str | None = None,
        fast_loader: bool = True,
        plugins: Sequence[Any] | None = None,
        **template: Any,
    ) -> None:
        loss = CrossEntropy() if loss is None else loss
        check_features(model, loss)
        options: dict[str, Any] = {
            "loss": loss,
            "store_logits": store_logits,
            "views": views,
            "retrieval": retrieval,
            "probe": probe,
            "fast_loader": fast_loader,
        }
        self.replay: Replay
        if candidates is None:
            self.replay = Replay(buffer, batch_size_mem, update=update, **options)
        else:
            if update is not None or candidates is buffer:
                raise ValueError(
                    "candidates are a buffer of their own, offered to the memory when an experience is over; give "
                    "no update and another buffer than the memory"
                )
            self.replay = PooledReplay(buffer, candidates, batch_size_mem=batch_size_mem, **options)
        super().__init__(model=model, optimizer=optimizer, plugins=[self.replay, *(plugins or ())], **template)

    def state_dict(self) -> dict[str, Any]:
        return self.replay.state_dict() if isinstance(self.replay, PooledReplay) else super().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if isinstance(self.replay, PooledReplay):
            self.replay.load_state_dict(state)
        else:
            super().load_state_dict(state)
