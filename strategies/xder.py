"""X-DER, and its variants without future preparation: X-DER-CE and X-DER-RPC."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn

from replaykit.augment import Views
from replaykit.avalanche import Template
from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.policies.xder_memory import XDERMemory, check_slots
from replaykit.probe import Probe
from replaykit.strategies.xder_replay import XDERReplay
from replaykit.xder import (
    Heads,
    SeenOutputs,
    SimplexClassifier,
    only,
    published,
    restricted_cross_entropy,
    untracked,
)
from replaykit.xder.logits import NonPositive, Rule
from replaykit.xder.settings import BatchNorm, Variant


class XDER(Template):
    """DER whose memory learns of later classes, and whose unused outputs are prepared for classes to come.

    One network has the outputs of all tasks; to task t they are past, present and future. The loss of a step is

    - CE(stream) over the present outputs;
    - α · mean (z - ℓ)² of one memory draw, over all outputs, and β · CE of another draw over the past outputs;
    - η · how far, on average over the rows where they do, future outputs come within m of a row's own head (stream
      and memory), and past ones within m of the present head (stream, in probability);
    - λ · supervised contrastive loss of strong views of stream and memory, mean over the heads of future tasks.

    Replayed rows have their present and future logits rewritten, attenuated so as not to rival the stored logit of
    the label; of all visits within a task one drawn uniformly survives. The memory is written when a task is over:
    all rows of the task are offered with their logits, and older rows are rewritten once more. Evaluation predicts
    classes seen so far only.

    Source: Boschini, Bonicelli, Buzzega, Porrello and Calderara, Class-Incremental Continual Learning into the
    eXtended DER-verse, TPAMI 2022, as in the authors' two programs (`preset`).
    Departures:
    - Attenuation and constraints are those of the code: the paper attenuates all logits above γ times the label's
      (``attenuation="paper"``), and speaks of the logit of the label where the constraints take the largest of the
      head. Where a factor cannot lower logits the code makes them worse; ``nonpositive="safe"`` does not.
    - Tasks may be of any size and classes in any order; past, present and future are sets of outputs.
    - Any policy will do, but it is offered whole tasks; the paper's is `replaykit.policies.XDERMemory`.
    - Logits to store are made for all rows of a task, in batches that may be a few rows larger than
      `train_mb_size`, rather than for the rows that come first.
    - An anchor without a positive (one view, one row of its class) says nothing, where the code divides 0 by 0.
    - ``batch_norm="aligned"`` takes at least one row of the stream. The mean over heads and views of the distances
      that `dp_weight` weighs is ours.

    Args:
        model, optimizer: what is trained; the model has an output for every class of every task from the start.
        buffer: the memory.
        classes_per_task: labels of each task, in the order of training: `Stream.classes_per_task`, or
            ``[e.classes_in_this_experience for e in benchmark.train_stream]``.
        preset: ``"tpami"``, the release with the paper, or ``"mammoth"``, the present state of its framework.
        batch_size_mem: rows of each of the first two memory draws; default: `train_mb_size`.
        future_view: random view of raw rows [n, ...] for future preparation; default: `replaykit.xder.strong_view`
            for images, which are uint8 or in [0, 1], and then the evaluation view.
        alpha, beta, lam, eta, margin, gamma, tau, augmentations, third_draw, stream_rows, dp_weight,
            past_constraint, future_constraint, future_preparation, memory_update, attenuation, nonpositive,
            batch_norm: see `replaykit.xder.Settings`; default: the preset's.
        views, retrieval, probe, fast_loader: see `replaykit.avalanche.Replay`.
        plugins: further plugins, called after the replay.
        template: arguments of Avalanche's `SupervisedTemplate`.

    Raises:
        TypeError, ValueError: on construction, tasks that are not given or overlap, a network with too few
            outputs or with a head for each task, a memory with fewer slots than classes, settings outside their
            range; in training, an experience that is not the next task.

    Published for Split CIFAR-100 in ten tasks (50 epochs, batches of 32, SGD without momentum, lr 0.03 times 0.1
    at epochs 35 and 45): 500 rows, preset ``"tpami"``; 2,000 rows, α 0.6, β 0.9, η 0.01, m 0.2. The present
    framework divides the learning rate by 5 instead. Split CIFAR-10 as its maintainers report: α 0.3, β 1, λ 0.05,
    η 0.01, m 0.5, 4 augmentations; X-DER-RPC α 0.3, β 0.8, η 0.01, m 0.5.
    """

    variant: ClassVar[Variant] = "xder"

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        buffer: Buffer,
        classes_per_task: Sequence[Sequence[int]] | None = None,
        preset: str = "tpami",
        batch_size_mem: int | None = None,
        future_view: Callable[[Tensor], Tensor] | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        lam: float | None = None,
        eta: float | None = None,
        margin: float | None = None,
        gamma: float | None = None,
        tau: float | None = None,
        augmentations: int | None = None,
        third_draw: int | None = None,
        stream_rows: int | None = None,
        dp_weight: float | None = None,
        past_constraint: bool | None = None,
        future_constraint: bool | None = None,
        future_preparation: bool | None = None,
        memory_update: bool | None = None,
        attenuation: Rule | None = None,
        nonpositive: NonPositive | None = None,
        batch_norm: BatchNorm | None = None,
        views: Views | Callable[[Tensor], Tensor] | None = None,
        retrieval: AnyRetrieval | None = None,
        probe: Callable[[Any], Probe] | None = None,
        fast_loader: bool = True,
        plugins: Sequence[Any] | None = None,
        **template: Any,
    ) -> None:
        settings = published(preset, self.variant).changed(
            alpha=alpha,
            beta=beta,
            lam=lam,
            eta=eta,
            margin=margin,
            gamma=gamma,
            tau=tau,
            augmentations=augmentations,
            third_draw=third_draw,
            stream_rows=stream_rows,
            dp_weight=dp_weight,
            past_constraint=past_constraint,
            future_constraint=future_constraint,
            future_preparation=future_preparation,
            memory_update=memory_update,
            attenuation=attenuation,
            nonpositive=nonpositive,
            batch_norm=batch_norm,
        )
        heads = Heads(classes_per_task)
        simplex = self.variant == "xder_rpc"
        _check_model(model, heads.outputs - 1 if simplex else heads.outputs)
        if isinstance(buffer, Buffer) and isinstance(buffer.policy, XDERMemory):
            check_slots(buffer.capacity, sum(map(len, heads.tasks)))
        self.replay = XDERReplay(
            buffer,
            batch_size_mem,
            heads=heads,
            settings=settings,
            future_view=future_view,
            views=views,
            retrieval=retrieval,
            probe=probe,
            fast_loader=fast_loader,
        )
        super().__init__(
            model=SimplexClassifier(model, heads.outputs) if simplex else model,
            optimizer=optimizer,
            plugins=[self.replay, *(plugins or ())],
            **template,
        )

    def forward(self) -> Tensor:
        """Outputs of the mini-batch; in evaluation those of classes not seen yet are -inf."""
        with untracked(self.model, when=self.is_training and not self.replay.tracks("stream")):
            z: Tensor = super().forward()
        return z if self.is_training else only(z, self.replay.seen)

    def criterion(self) -> Tensor:
        if self.is_training:
            return restricted_cross_entropy(self.mb_output, self.mb_y, self.replay.stage(self.mb_output).present)
        loss: Tensor = super().criterion()
        return loss

    def classifier(self) -> nn.Module:
        return SeenOutputs(self.model, self.replay.seen)

    def state_dict(self) -> dict[str, Any]:
        return self.replay.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.replay.load_state_dict(state)


class XDERCE(XDER):
    """X-DER without future preparation: outputs of tasks to come are only kept below the others.

    Arguments, source and departures: see `XDER`. Preset ``"mammoth"`` has its own η and m.
    """

    variant = "xder_ce"


class XDERRPC(XDER):
    """X-DER-CE with a fixed classifier: the corners of a simplex (`replaykit.xder.SimplexClassifier`).

    The classifier reads the first C - 1 outputs of the given model, for C outputs altogether; `strategy.model` is
    that model with the classifier on it. Arguments, source and departures: see `XDER`.
    """

    variant = "xder_rpc"


def _check_model(model: nn.Module, outputs: int) -> None:
    """Refuse a network that cannot have the outputs, as far as can be seen before a row passes through it."""
    if is_multi_task_module(model):
        raise ValueError(
            "X-DER compares the outputs of all tasks: give it one head over all classes, not one a task"
        )
    last = getattr(model, "classifier", None)
    if isinstance(model, nn.Sequential) and len(model):
        last = model[-1]
    if isinstance(last, nn.Linear) and last.out_features < outputs:
        raise ValueError(
            f"classes_per_task needs {outputs} outputs from the start, the network has {last.out_features}"
        )
