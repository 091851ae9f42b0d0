"""Incremental Classifier and Representation Learning (iCaRL)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn
from torch.nn import functional

from replaykit.augment import Views
from replaykit.avalanche import Replay, Template
from replaykit.avalanche.tasks import task_of
from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.embedding import Embedding
from replaykit.nearest_mean import NearestMean
from replaykit.probe import Probe


class ICaRL(Template):
    """Binary cross-entropy with distillation of old classes, and a nearest-mean classifier over the memory.

    Rows of the memory are appended to every mini-batch. Each class seen so far is a sigmoid output of its own; the
    target of a class of the present task is the label, that of a class seen in an older one is what the network at
    the end of the last task says. (A task is a whole experience, where the stream comes in sub-experiences.) What
    predicts is `classifier`: the class whose stored rows have the nearest mean feature, features being what enters
    the last layer, scaled to length 1. Until something is stored, the network itself predicts.

    Source: Rebuffi, Kolesnikov, Sperl and Lampert, iCaRL, CVPR 2017, algorithms 1 to 3.
    Departures:
    - Every step has rows of both the stream and the memory; the paper shuffles them into one set.
    - The loss is the mean over rows and classes, as in the authors' code; the paper's formula is the sum.
    - The old network's answers are computed in evaluation mode for the rows as they are seen in the step; the
      paper computes them once, before the training.
    - Means are of the stored rows in their evaluation view; the authors' code adds mirrored copies.

    Args:
        model, optimizer: what is trained.
        buffer: the memory; the paper's policy is `replaykit.policies.ICaRLHerding`, but any will do.
        loss: ``"bce"`` as above, or ``"ce"``, the strategy's criterion without distillation.
        nearest_mean: let the nearest mean predict; otherwise the network does.
        batch_size_mem: rows of the memory in a mini-batch; default: `train_mb_size`.
        views, retrieval, probe, update, fast_loader: see `replaykit.avalanche.Replay`.
        plugins: further plugins, called after the replay.
        template: arguments of Avalanche's `SupervisedTemplate`.

    Published: Split CIFAR-100, 2,000 rows, ResNet-32, SGD with momentum 0.9 and weight decay 1e-5, batch 128, 70
    epochs, lr 2.0 divided by 5 after 49 and 63.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        buffer: Buffer,
        loss: Literal["bce", "ce"] = "bce",
        nearest_mean: bool = True,
        batch_size_mem: int | None = None,
        views: Views | Callable[[Tensor], Tensor] | None = None,
        retrieval: AnyRetrieval | None = None,
        probe: Callable[[Any], Probe] | None = None,
        update: str | None = None,
        fast_loader: bool = True,
        plugins: Sequence[Any] | None = None,
        **template: Any,
    ) -> None:
        if loss not in ("bce", "ce"):
            raise ValueError(f"loss is 'bce' or 'ce', got {loss!r}")
        if is_multi_task_module(model):
            raise ValueError("iCaRL compares all classes in one space; give a model that takes no task labels")
        self.distils, self.nearest_mean = loss == "bce", nearest_mean
        self.seen = self.old = torch.zeros(0, dtype=torch.bool)  # classes seen at all, and in former tasks
        self.teacher: nn.Module | None = None
        self.task = -1
        self.replay = Replay(
            buffer,
            batch_size_mem,
            views=views,
            retrieval=retrieval,
            probe=probe,
            update=update,
            fast_loader=fast_loader,
        )
        super().__init__(model=model, optimizer=optimizer, plugins=[self.replay, *(plugins or ())], **template)

    def classifier(self) -> nn.Module:
        memory, views = self.replay.buffer, self.replay.views
        if not self.nearest_mean or len(memory) == 0:
            model: nn.Module = self.model
            return model
        x = memory["x"].to(self.device)
        if views is not None:
            x = views.eval(x)
        return NearestMean(Embedding(self.model)).fit(x, memory["y"].to(self.device), self._outputs(x))

    def criterion(self) -> Tensor:
        if not (self.is_training and self.distils):
            loss: Tensor = super().criterion()
            return loss
        z, y = self.mb_output, self.mb_y
        self.seen = _together(self.seen, y, z.shape[1])
        columns = self.seen.to(z.device).nonzero().flatten()
        return functional.binary_cross_entropy_with_logits(z[:, columns], self.targets()[:, columns])

    def targets(self) -> Tensor:
        """What the sigmoid outputs for the present mini-batch should be [n, c]."""
        z = self.mb_output
        target = functional.one_hot(self.mb_y, z.shape[1]).to(z.dtype)
        if self.teacher is not None:
            with torch.no_grad():
                answers: Tensor = self.teacher(self.mb_x).sigmoid()
            old = self.old.to(z.device).nonzero().flatten()
            target[:, old] = answers[:, old].to(z.dtype)
        return target

    def state_dict(self) -> dict[str, Any]:
        teacher = {} if self.teacher is None else {n: v.clone() for n, v in self.teacher.state_dict().items()}
        return {"task": self.task, "seen": self.seen.clone(), "old": self.old.clone(), "teacher": teacher}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.keys() != {"task", "seen", "old", "teacher"} or type(state["task"]) is not int:
            raise ValueError(f"not the state of iCaRL's training: it has {sorted(map(str, state))}")
        teacher = None
        if state["teacher"]:
            teacher = _frozen(self.model)
            try:
                teacher.load_state_dict(state["teacher"])
            except RuntimeError as error:
                raise ValueError(f"the saved network of the last task is not like the model: {error}") from error
        self.seen, self.old = state["seen"].clone(), state["old"].clone()
        self.task, self.teacher = state["task"], teacher

    def _before_training_exp(self, **kwargs: Any) -> None:
        task = task_of(self.experience)
        if self.distils and task != self.task and bool(self.seen.any()):
            self.old, self.teacher = self.seen.clone(), _frozen(self.model)  # before its heads may grow
        self.task = task
        super()._before_training_exp(**kwargs)

    def _outputs(self, x: Tensor) -> int:
        """Number of outputs: as many as the network has, so that criteria of the evaluation find every label."""
        width = Probe(self.model).logits({"x": x[:1]}).shape[1]
        return max(width, int(self.replay.buffer["y"].max()) + 1)


def _frozen(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).requires_grad_(False).eval()


def _together(seen: Tensor, y: Tensor, classes: int) -> Tensor:
    """Which classes were seen, with those of labels y [n]: bool [classes], on the host."""
    found = torch.zeros(max(classes, len(seen)), dtype=torch.bool)
    found[: len(seen)] = seen
    found[y.cpu()] = True
    return found
