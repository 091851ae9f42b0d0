"""Experience Replay with the distillation of Learning without Forgetting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from avalanche.models.utils import is_multi_task_module
from torch import Tensor

from replaykit.augment import Views
from replaykit.avalanche import Replay, Template
from replaykit.avalanche.tasks import task_of
from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.losses import Distillation
from replaykit.probe import Probe


class ERLwF(Template):
    """ER that stays near the network of the last task: CE + `weight` · T² · KL(old ‖ new), both of all rows.

    Stream and memory share one forward pass of the network and one of its copy, which is taken when another task
    begins (another whole experience, where the stream comes in sub-experiences). Distilled are the outputs of the
    classes that had come by then.

    Source: Li and Hoiem, Learning without Forgetting, ECCV 2016; replayed rows as in Rebuffi et al., iCaRL, CVPR
    2017. Departures: those of `replaykit.losses.Distillation`; one head for all tasks.

    Args:
        model, optimizer: what is trained.
        buffer: the memory.
        weight: coefficient of the distillation.
        temperature: T.
        batch_size_mem: rows of a memory batch; default: `train_mb_size`.
        views, retrieval, probe, update, fast_loader: see `replaykit.avalanche.Replay`.
        plugins: further plugins, called after the replay.
        template: arguments of Avalanche's `SupervisedTemplate`.

    Attributes:
        seen: labels that training has shown so far, bool [c]; grows with the outputs.
        task: number of the task in training, or of the last one; -1 before the first.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        buffer: Buffer,
        weight: float = 1.0,
        temperature: float = 2.0,
        batch_size_mem: int | None = None,
        views: Views | Callable[[Tensor], Tensor] | None = None,
        retrieval: AnyRetrieval | None = None,
        probe: Callable[[Any], Probe] | None = None,
        update: str | None = None,
        fast_loader: bool = True,
        plugins: Sequence[Any] | None = None,
        **template: Any,
    ) -> None:
        if is_multi_task_module(model):
            raise ValueError(
                "ERLwF distils one head that all tasks share, the model has one for each task; give a model that "
                "takes no task labels"
            )
        self.distillation = Distillation(weight, temperature)
        self.seen, self.task = torch.zeros(0, dtype=torch.bool), -1
        self.replay = Replay(
            buffer,
            batch_size_mem,
            views=views,
            retrieval=retrieval,
            probe=probe,
            update=update,
            fast_loader=fast_loader,
        )
        plugins = [self.replay, *(plugins or ())]
        super().__init__(model=model, optimizer=optimizer, plugins=plugins, **template)

    def criterion(self) -> Tensor:
        loss: Tensor = super().criterion()
        if not self.is_training:
            return loss
        self._see(self.mb_y, self.mb_output.shape[1])
        if self.distillation.old is None or self.distillation.weight == 0:
            return loss
        return loss + self.distillation.weight * self.distillation.divergence(self.mb_output, {"x": self.mb_x})

    def _see(self, y: Tensor, classes: int) -> None:
        if len(self.seen) < classes or self.seen.device != y.device:
            seen = torch.zeros(max(classes, len(self.seen)), dtype=torch.bool, device=y.device)
            seen[: len(self.seen)] = self.seen.to(y.device)
            self.seen = seen
        self.seen[y] = True

    def _before_training_exp(self, **kwargs: Any) -> None:
        task = task_of(self.experience)
        if task != self.task and bool(self.seen.any()):
            self.distillation.remember(self.model, self.seen)  # before its heads may grow
        self.task = task
        super()._before_training_exp(**kwargs)

    def state_dict(self) -> dict[str, Any]:
        return {"task": self.task, "seen": self.seen.clone(), "distillation": self.distillation.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        task, seen = state.get("task"), state.get("seen")
        whole = state.keys() == {"task", "seen", "distillation"}
        if not whole or type(task) is not int or not isinstance(seen, Tensor):
            raise ValueError(f"not the state of ERLwF: it has {sorted(map(str, state))}")
        self.distillation.load_state_dict(state["distillation"], self.model)
        self.task, self.seen = task, seen.clone()
