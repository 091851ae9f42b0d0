"""Averaged Gradient Episodic Memory (A-GEM)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from replaykit.augment import Views
from replaykit.avalanche import Replay, Template
from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.losses.base import NoTerm
from replaykit.probe import Probe


class AGEM(Template):
    """Steps on the stream that, to first order, do not raise the loss of a memory batch.

    g is the gradient of the loss of the stream's rows, g_ref that of a memory batch. Where <g, g_ref> < 0 the step
    follows the nearest vector that does not point against g_ref,

        g − (<g, g_ref> / <g_ref, g_ref>) g_ref,

    otherwise g itself. The memory is never trained on.

    Both gradients are over all trainable parameters, and of the criterion: what other plugins add to the loss of
    the stream is in g. The memory batch has a forward pass of its own in training mode, before that of the stream,
    as in the authors' code: dropout is on, and BatchNorm normalises it by itself and takes it into its running
    statistics. With momentum or weight decay the step itself may point against g_ref.

    Source: Chaudhry, Ranzato, Rohrbach and Elhoseiny, Efficient Lifelong Learning with A-GEM, ICLR 2019,
    equation 11.
    Cost: two forward and backward passes a step, a second gradient.
    Departures: the memory is any buffer with any retrieval, and by default it holds rows of the current experience
    too. With ``update="experience"`` it holds rows of past ones alone, as in the paper.

    Args:
        model, optimizer: what is trained.
        buffer: the memory; the paper's is a `RingBuffer`.
        batch_size_mem: rows of a memory batch; default: `train_mb_size`.
        views, retrieval, probe, update, fast_loader: see `replaykit.avalanche.Replay`.
        plugins: further plugins, called after the replay; what they do to `.grad` comes after the projection.
        template: arguments of Avalanche's `SupervisedTemplate`.

    Attributes:
        replay.projected: steps so far whose gradient was changed (in this process).
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        buffer: Buffer,
        batch_size_mem: int | None = None,
        views: Views | Callable[[Tensor], Tensor] | None = None,
        retrieval: AnyRetrieval | None = None,
        probe: Callable[[Any], Probe] | None = None,
        update: str | None = None,
        fast_loader: bool = True,
        plugins: Sequence[Any] | None = None,
        **template: Any,
    ) -> None:
        self.replay = ProjectingReplay(
            buffer,
            batch_size_mem,
            loss=NoTerm(),
            views=views,
            retrieval=retrieval,
            probe=probe,
            update=update,
            fast_loader=fast_loader,
        )
        super().__init__(model=model, optimizer=optimizer, plugins=[self.replay, *(plugins or ())], **template)


class ProjectingReplay(Replay):
    """Replay that changes the direction of steps instead of their loss."""

    projected = 0

    def __init__(self, *args: Any, **replay: Any) -> None:
        super().__init__(*args, **replay)
        self._trained: list[Tensor] = []
        self._reference: Tensor | None = None

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """The gradient of a memory batch; leaves `.grad` and the strategy's mini-batch alone."""
        self._reference = None
        if len(self.buffer) == 0:
            return
        stream = strategy.mbatch
        self._trained = [p for p in strategy.model.parameters() if p.requires_grad]
        strategy.mbatch = self._minibatch(strategy)
        try:
            strategy.mb_output = strategy.forward()
            if self._feedback is not None:
                self._feedback.saw(self._drawn, strategy.mb_output, strategy.mb_y)
            gradients = torch.autograd.grad(strategy.criterion(), self._trained, materialize_grads=True)
        finally:
            strategy.mbatch, strategy.mb_output = stream, None
        self._reference = flat(gradients)

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if self._reference is None:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._trained]
        change = away_from(flat(gradients), self._reference)
        self._reference = None
        if change is None:
            return
        self.projected += 1
        start = 0
        for parameter, gradient in zip(self._trained, gradients, strict=True):
            gradient.add_(change[start : start + gradient.numel()].view(gradient.shape))
            parameter.grad = gradient
            start += gradient.numel()

    def _minibatch(self, strategy: Any) -> list[Tensor]:
        batch = self._sample(strategy, self._names)
        mbatch = [batch[name] for name in self._names]
        if self.views is not None:
            mbatch[0] = self.views.train(mbatch[0])
        return mbatch


def flat(gradients: Sequence[Tensor]) -> Tensor:
    """Gradients of all parameters as one vector [p]."""
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def away_from(gradient: Tensor, reference: Tensor) -> Tensor | None:
    """What to add to a gradient [p] so that it no longer points against another; None where it does not.

    The nearest vector with a product >= 0 is gradient − (gradient · reference / reference · reference) reference.
    """
    if not bool(torch.dot(gradient, reference) < 0):
        return None
    # Of a memory that is learnt by heart, entries are so small that their squares would vanish.
    direction = reference / reference.abs().max()
    return direction * (-torch.dot(gradient, direction) / torch.dot(direction, direction))
