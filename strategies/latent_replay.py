"""Latent Replay: the memory holds activations of a layer in place of inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn

from replaykit.augment import Views
from replaykit.avalanche import Replay, Template
from replaykit.avalanche.tasks import task_of
from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.gradients.scoring import scoring
from replaykit.gradients.structure import Structure
from replaykit.probe import Probe
from replaykit.retrieval import GuidedRetrieval


class LatentReplay(Template):
    """Rows of the stream pass the whole network; stored activations join them behind a layer, the cut.

    What the cut gives for the rows of a step is stored in the column ``x``, so a memory of activations takes any
    policy and any retrieval that do not look at the model, and each replayed row saves the pass up to the cut. The
    criterion averages over stream and memory, as in `ER`. Activations are never refreshed: they age with the
    layers up to the cut, the front, which therefore learn slowly, or not at all, from the second task on.

    Source: Pellegrini et al., Latent Replay for Real-Time Continual Learning, IROS 2020.
    Departures: any policy in place of the random replacement of a share of the memory at the end of each task;
    BatchNorm instead of Batch Renormalisation: in a frozen front it uses its running statistics.

    Args:
        model, optimizer: what is trained. Everything behind the cut must depend on the cut's output alone (no
            connection around it) and treat its first dimension as rows; ``nn.Sequential(front, back)`` with
            ``cut="0"`` will do.
        buffer: the memory.
        cut: name of the module whose output is stored.
        batch_size_mem: rows of a memory batch; default: `train_mb_size`.
        front_rate: share of its step that the front takes after the first task, whatever the optimiser: 1 leaves
            it alone, 0 freezes it: then no gradient reaches it, and its dropout and BatchNorm are in evaluation
            mode.
        dtype: of what is stored, such as float16 for half the bytes; default: as the cut gives it.
        views: of the rows of the stream, see `replaykit.avalanche.Replay`; stored activations have had theirs.
        retrieval, fast_loader: see `replaykit.avalanche.Replay`.
        probe: makes a probe for a policy or retrieval that looks at the model: it is shown activations.
        plugins: further plugins, called after the replay.
        template: arguments of Avalanche's `SupervisedTemplate`.

    Attributes:
        begun: number of tasks so far, the present one included (whole experiences, where the stream comes in
            sub-experiences).
        task: number of the present or the last task in its stream; -1 before the first.

    Raises:
        ValueError: no such module, a rate outside [0, 1], a dtype that is not floating point, a policy or
            retrieval that looks at the model without `probe`, a policy that takes every add as a task.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        buffer: Buffer,
        cut: str,
        batch_size_mem: int | None = None,
        front_rate: float = 0.0,
        dtype: torch.dtype | None = None,
        views: Views | Callable[[Tensor], Tensor] | None = None,
        retrieval: AnyRetrieval | None = None,
        probe: Callable[[Any], Probe] | None = None,
        fast_loader: bool = True,
        plugins: Sequence[Any] | None = None,
        **template: Any,
    ) -> None:
        names = [name for name, _ in model.named_modules() if name]
        if cut not in names:
            raise ValueError(f"the model has no module {cut!r} to cut at; it has {names}")
        if not 0 <= front_rate <= 1:
            raise ValueError(f"front_rate is a share in [0, 1], got {front_rate}")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"activations are stored as floating point, got {dtype}")
        _refuse_what_looks_at_inputs(buffer, retrieval, probe)
        self.cut, self.front_rate = cut, front_rate
        self.begun, self.task = 0, -1
        self.replay = _Latent(
            buffer, dtype, batch_size_mem, views=views, retrieval=retrieval, probe=probe, fast_loader=fast_loader
        )
        self._front: tuple[nn.Module, list[nn.Module]] | None = None
        plugins = [self.replay, *(plugins or ())]
        super().__init__(model=model, optimizer=optimizer, plugins=plugins, **template)

    @property
    def frozen(self) -> bool:
        """Whether the front no longer learns."""
        return self.begun > 1 and self.front_rate == 0

    def forward(self) -> Any:
        if not self.is_training:
            return super().forward()
        module, frozen = self.model.get_submodule(self.cut), self.front() if self.frozen else []
        handle = module.register_forward_hook(lambda _module, _args, output: self._join(output))
        try:
            with _evaluating(frozen):
                outputs = super().forward()
        except RuntimeError as error:
            if type(error) is not RuntimeError or not bool(self.replay.from_memory.any()):
                raise
            raise RuntimeError(
                f"{error} (replayed rows joined behind {self.cut!r}: cut where everything behind depends on the "
                "output of that module alone)"
            ) from error
        finally:
            handle.remove()
        if len(outputs) != len(self.mb_y):
            raise ValueError(
                f"{len(outputs)} outputs for {len(self.mb_y)} rows: what is behind {self.cut!r} mixes rows, or "
                "does not follow from its output; cut elsewhere"
            )
        return outputs

    def optimizer_step(self) -> None:
        if self.begun < 2 or self.front_rate == 1:
            super().optimizer_step()
            return
        # Once each: layers may share one.
        parameters = dict.fromkeys(p for module in self.front() for p in module.parameters(recurse=False))
        if self.frozen:
            for parameter in parameters:
                parameter.grad = None  # a plugin's penalty may have left one, and momentum would go on with it
            super().optimizer_step()
            return
        before = [parameter.detach().clone() for parameter in parameters]
        super().optimizer_step()
        with torch.no_grad():
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(torch.lerp(old, parameter, self.front_rate))

    def front(self) -> list[nn.Module]:
        """The modules that a forward pass is through with when the cut has its output, the cut included."""
        if self._front is None or self._front[0] is not self.model:
            task = [self.mb_task_id] if is_multi_task_module(self.model) else []
            self._front = self.model, modules_up_to(self.model, self.cut, self.mb_x, *task)
        return self._front[1]

    def _join(self, output: Tensor) -> Tensor:
        latent = output.detach() if self.frozen else output
        return self.replay.join(latent)

    def _before_training_exp(self, **kwargs: Any) -> None:
        task = task_of(self.experience)
        self.begun += task != self.task
        self.task = task
        super()._before_training_exp(**kwargs)

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self.begun, "task": self.task}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        numbers = [state.get("begun"), state.get("task")]
        if not all(type(number) is int for number in numbers):
            raise ValueError(f"not the state of LatentReplay: it has {sorted(map(str, state))}")
        self.begun, self.task = state["begun"], state["task"]


class _Latent(Replay):
    """Replay of activations: rows of the memory join behind the cut instead of in the mini-batch."""

    def __init__(self, buffer: Buffer, dtype: torch.dtype | None, rows: int | None, **replay: Any) -> None:
        super().__init__(buffer, rows, update="iteration", **replay)
        self.dtype = dtype
        self._replayed: Tensor | None = None

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        mbatch = strategy.mbatch
        self._keep_arrivals(strategy)
        rows, replayed, self._replayed = len(mbatch[0]), 0, None
        if len(self.buffer):
            memory = self._sample(strategy, self._names)
            self._replayed, replayed = memory["x"], len(memory["x"])
            for position, name in enumerate(self._names):
                if name != "x":
                    mbatch[position] = torch.cat((mbatch[position], memory[name]))
        if self.views is not None:
            mbatch[0] = self.views.train(mbatch[0])
        self.from_memory = strategy.from_memory = self._marked(rows, replayed, strategy.device)

    def join(self, latent: Tensor) -> Tensor:
        """Keep the activations of the stream's rows for the memory, and append those that it holds."""
        kept = latent.detach()
        if self.dtype is not None and kept.dtype != self.dtype:
            kept = kept.to(self.dtype)
            if kept.is_cpu and not bool(kept.isfinite().all()):
                raise ValueError(f"activations do not fit into {self.dtype}; store them as float32 or bfloat16")
        self._arrivals = {**self._arrivals, "x": kept}
        # A copy either way: what follows the cut may work in place, and the memory is not to see that.
        return latent.clone() if self._replayed is None else torch.cat((latent, self._replayed.to(latent.dtype)))


def modules_up_to(model: nn.Module, cut: str, *inputs: Tensor) -> list[nn.Module]:
    """Modules whose pass of the inputs [n, ...] is over when the one named `cut` has its output, it included."""
    structure = Structure(model)
    finished: list[nn.Module] = []
    end = structure.modules[cut]
    handles = [
        module.register_forward_hook(
            lambda module, _args, _output: None if end in finished else finished.append(module)
        )
        for module in structure.modules.values()
    ]
    try:
        with scoring(structure, "eval", gradients=False):
            model(*(rows[:1] for rows in inputs))
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(finished))


@contextmanager
def _evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Modules in evaluation mode while the body runs."""
    modes = [(module, module.training) for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _refuse_what_looks_at_inputs(buffer: Buffer, retrieval: AnyRetrieval | None, probe: Any) -> None:
    policy = buffer.policy
    if policy.per_task:
        raise ValueError(
            f"LatentReplay stores the activations of each step, {type(policy).__name__} takes every add as a "
            "whole task; use another policy, or another strategy"
        )
    guided = retrieval or buffer.retrieval
    looks: list[object] = [policy] if policy.needs else []
    looks += [guided] if isinstance(guided, GuidedRetrieval) and guided.needs_probe else []
    if looks and probe is None:
        raise ValueError(
            f"LatentReplay stores activations, and {type(looks[0]).__name__} shows stored rows to the model, "
            "which takes inputs; pass probe=, whose model starts from activations, or use another policy and "
            "retrieval"
        )
