"""Distillation from the network as it was after the last task (LwF), on replayed rows."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from replaykit.losses.base import Draw, Model, TaskAware, check_temperature, coefficient, outputs
from replaykit.store import Batch


class Distillation:
    """`weight` · T² · KL(softmax(old / T) ‖ softmax(new / T)), the mean over the rows of one draw.

    The old network is a copy that `remember` takes; before that the loss is 0 and nothing is drawn. Give it to a
    `Replay` plugin and call `remember` between the tasks, or use `replaykit.strategies.ERLwF`, which does so and
    distils the rows of the stream too.

    Source: Li and Hoiem, Learning without Forgetting, ECCV 2016, section 3 (temperature 2); replayed rows as in
    Rebuffi et al., iCaRL, CVPR 2017.
    Departures: the factor T² of Hinton et al. 2015, which keeps the size of gradients when T changes (the
    published weight 1 at T = 2 is 1/4 here); the old network is in evaluation mode.

    Args:
        weight: coefficient of the term.
        temperature: T.

    Attributes:
        old: the copy, or None.
        classes: which outputs are distilled, bool [c], or None for all that the old network has.
    """

    columns: tuple[str, ...] = ("x",)

    def __init__(self, weight: float = 1.0, temperature: float = 2.0) -> None:
        self.weight = coefficient("weight", weight)
        self.temperature = check_temperature("temperature", temperature)
        self.old: nn.Module | None = None
        self.classes: Tensor | None = None

    def remember(self, model: nn.Module, classes: Tensor | None = None) -> None:
        """Take a copy of the model as it is now.

        Args:
            classes: the outputs that mean something by now, bool [c]; by default all.

        Raises:
            ValueError: no class.
        """
        if classes is not None and not bool(classes.any()):
            raise ValueError("no class is to be distilled; call remember after training on some")
        self.old = copy.deepcopy(model).requires_grad_(False).eval()
        self.classes = None if classes is None else classes.clone()

    def __call__(self, model: Model, draw: Draw) -> Tensor:
        if self.weight == 0 or self.old is None:
            return torch.zeros(())
        batch = draw()
        return self.weight * self.divergence(outputs(model, batch), batch, isinstance(model, TaskAware))

    def divergence(self, z: Tensor, batch: Batch, task_aware: bool = False) -> Tensor:
        """T² · KL of the outputs z [n, c] to those of the old network for the rows of a batch."""
        assert self.old is not None
        with torch.no_grad():
            target = self._old_outputs(batch) if task_aware else self.old(batch["x"])
        given = z[:, : target.shape[1]]
        if self.classes is not None:
            kept = torch.nonzero(self.classes[: target.shape[1]].to(z.device)).flatten()
            given, target = given.index_select(1, kept), target.index_select(1, kept)
        old, new = (functional.log_softmax(logits.float() / self.temperature, 1) for logits in (target, given))
        return self.temperature**2 * functional.kl_div(new, old, reduction="batchmean", log_target=True)

    def _old_outputs(self, batch: Batch) -> Tensor:
        """Outputs of an old network that takes task labels."""
        assert self.old is not None
        try:
            target: Tensor = self.old(batch["x"], batch["t"])
        except KeyError as error:
            tasks = sorted(set(batch["t"].tolist()))
            raise ValueError(
                f"rows of the tasks {tasks} are to be distilled, but the old network has "
                f"no head for one of them ({error}); offer the memory past tasks alone, by update='experience', "
                "and call remember between the tasks"
            ) from error
        return target

    def state_dict(self) -> dict[str, Any]:
        """The copy's parameters and buffers, and the classes; empty before the first task is over."""
        if self.old is None:
            return {}
        state: dict[str, Any] = {"old": {name: value.clone() for name, value in self.old.state_dict().items()}}
        return state if self.classes is None else {**state, "classes": self.classes.clone()}

    def load_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Take over a saved state; `model` is of the copy's architecture, but for outputs that it grew since.

        Raises:
            ValueError: not such a state, or a copy of another architecture. Nothing has changed then.
        """
        if not state:
            self.old = self.classes = None
            return
        if not {"old"} <= state.keys() <= {"old", "classes"}:
            raise ValueError(f"not the state of a distillation: it has {sorted(map(str, state))}")
        old = copy.deepcopy(model).requires_grad_(False).eval()
        try:
            _narrow(old, state["old"])
            old.load_state_dict(state["old"])
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"the saved old network does not fit {type(model).__name__}: {error}") from error
        self.old, self.classes = old, state["classes"].clone() if "classes" in state else None


def _narrow(model: nn.Module, saved: Mapping[str, Any]) -> None:
    """Cut tensors of a model that have more rows than the saved ones: those of outputs that came later."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        held = saved.get(name)
        if not isinstance(held, Tensor) or held.ndim == 0:
            continue
        if held.shape[1:] == tensor.shape[1:] and len(held) < len(tensor):
            tensor.data = tensor.data[: len(held)].clone()
