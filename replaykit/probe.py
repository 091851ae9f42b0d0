"""What a batch looks like under a model: the one thing that policies may ask of it.

A probe answers with logits, losses, features, per-sample gradients and uncertainty, each computed when it is
asked for, in chunks, in evaluation mode; it leaves `.grad`, mode flags, buffers (BatchNorm statistics), hooks
and the global generators exactly as found.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from replaykit.gradients import (
    DEFAULT_BUDGET,
    PerSampleGradients,
    RowLoss,
    cross_entropy,
    last_layer_gradients,
    per_sample_gradients,
)
from replaykit.gradients.budget import Budget
from replaykit.gradients.heads import entering, find_head
from replaykit.gradients.objective import (
    Chosen,
    Layout,
    Objective,
    checked_rows,
    refuse_nan,
    rows_per_pass,
)
from replaykit.gradients.rows import cut, moved, only_x, row_count, take, together
from replaykit.gradients.scoring import scoring
from replaykit.gradients.structure import Structure
from replaykit.store import Batch

View: TypeAlias = Callable[[Tensor], Tensor]
Answer = TypeVar("Answer")
_LAYERS = ("all", "last")


class Probe:
    """A model, and how raw rows are put to it.

    A batch is a dict of raw columns, on any device; answers are on the model's device.

    Args:
        model: takes ``x``; a model whose forward also takes ``task_labels`` (Avalanche's multi-task modules)
            is given the task of the column ``t``, one task at a time.
        loss: (outputs, batch) -> losses [n]; cross-entropy with column ``y`` by default.
        prepare: makes the model's input of raw ``x``: the conversion and normalisation of evaluation,
            without random augmentation. Not needed when ``x`` is stored as the model takes it.
        features: where features come from: the name of the module whose output they are, or a function of
            the prepared input. By default the input of the last layer.
        layers: what `gradients` covers: "all" trainable parameters, or the "last" linear layer in closed form.
        parameters: which trainable parameters "all" covers, by names or by a function of the name.
        views: perturbed copies for `uncertainty`.
        route: of whole-model gradients; see `per_sample_gradients`.
        budget: bytes of working memory of every answer.

    Example:
        >>> import torch
        >>> from replaykit.probe import Probe
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> probe = Probe(model)
        >>> batch = {"x": torch.ones(5, 4), "y": torch.arange(5) % 3}
        >>> probe.features(batch).shape, probe.losses(batch).shape, probe.gradients(batch).gram().shape
        (torch.Size([5, 8]), torch.Size([5]), torch.Size([5, 5]))
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: RowLoss | None = None,
        prepare: Callable[[Tensor], Tensor] | None = None,
        features: str | Callable[..., Tensor] | None = None,
        layers: str = "all",
        parameters: Chosen = None,
        views: Sequence[View] | View | None = None,
        route: str = "auto",
        budget: int = DEFAULT_BUDGET,
    ) -> None:
        if layers not in _LAYERS:
            raise ValueError(f"layers is one of {_LAYERS}, got {layers!r}")
        self.model, self.loss, self.prepare = model, loss or cross_entropy(), prepare
        self.feature_source, self.layers, self.parameters = features, layers, parameters
        self.views, self.route, self.budget = views, route, budget
        self.takes_task = "task_labels" in inspect.signature(model.forward).parameters
        self._structure = Structure(model)
        self._cache: dict[tuple[str, int], tuple[Batch, Any]] | None = None

    # -- answers ----------------------------------------------------------------------------------

    def logits(self, batch: Batch) -> Tensor:
        """Outputs of the model [n, C]; heads of different width are padded with zeros."""
        return self._once("logits", batch, lambda: self._rows(batch, lambda _, args: self.model(*args)))

    def losses(self, batch: Batch) -> Tensor:
        """Losses [n]."""

        def losses(part: Batch, args: tuple[Any, ...]) -> Tensor:
            return checked_rows(self.loss(self.model(*args), part), part)

        return self._once("losses", batch, lambda: refuse_nan(self._rows(batch, losses), "losses"))

    def losses_around(self, batch: Batch, step: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Losses [n] at the present parameters, and [n] with `step` added to some of them.

        Args:
            step: change of each named parameter, any shape of the right size; ``g.layout.split(flat)`` makes
                it of a flat direction [p] of the gradients `g`.
        """
        head = self._head_of(step)

        def both(part: Batch, args: tuple[Any, ...]) -> Tensor:
            seen: list[tuple[Tensor, Tensor, int]] = []
            handle = head and head.register_forward_hook(
                lambda _, args, out: seen.append((args[0], out, out._version))
            )
            try:
                outputs = self.model(*args)
            finally:
                if handle:
                    handle.remove()
            if head and len(seen) == 1 and seen[0][1] is outputs and seen[0][2] == outputs._version:
                # Only the last layer moves, and nothing comes after it (not even a mask that is written into its
                # output): the rest need not be run again.
                moved_outputs = nn.functional.linear(seen[0][0], *_moved_parameters(head, step))
            else:
                named = self._structure.parameters
                values = {name: (named[name] + change.view_as(named[name])) for name, change in step.items()}
                moved_outputs = functional_call(self.model, values, args)
            return torch.stack([checked_rows(self.loss(out, part), part) for out in (outputs, moved_outputs)], 1)

        losses = refuse_nan(self._rows(batch, both), "losses").reshape(row_count(batch), 2)
        return losses[:, 0], losses[:, 1]

    def features(self, batch: Batch) -> Tensor:
        """What the last layer sees [n, d], or what the constructor's `features` names.

        Raises:
            ValueError: the last layer does not take one vector a row.
        """
        return self._once("features", batch, lambda: self._rows(batch, self._features))

    def gradients(self, batch: Batch) -> PerSampleGradients:
        """Gradients of the losses of all rows: norms, inner products, cosines, ... without forming them."""
        return self._once("gradients", batch, lambda: self._gradients(batch))

    def votes(
        self, batch: Batch, views: Sequence[View] | View | None = None, times: int = 12
    ) -> tuple[Tensor, Tensor]:
        """How often each class wins over perturbed copies, int64 [n, C], and its mean probability [n, C].

        Args:
            views: functions of raw ``x`` [n, ...], each used once, or one random function, used `times` times.
                A view that draws from a global generator starts from its present state, which is put back.
        """
        if views is None:
            return self._once(f"votes of {times}", batch, lambda: self._votes(batch, self.views, times))
        return self._votes(batch, views, times)

    def uncertainty(self, batch: Batch, views: Sequence[View] | View | None = None, times: int = 12) -> Tensor:
        """1 - (votes of the winning class) / (number of copies), float64 [n]; see `votes`.

        Source: Bang et al., Rainbow Memory, CVPR 2021, section 4.1.
        """
        votes = self.votes(batch, views, times)[0]
        return 1 - votes.max(1).values.double() / votes.sum(1).clamp(min=1)

    @contextmanager
    def cached(self) -> Iterator[Probe]:
        """Within the body, ask the model once for each quantity of a batch (the same dict object).

        A change of the model in between is noticed. Afterwards the answers are dropped.
        """
        outer, self._cache = self._cache, {} if self._cache is None else self._cache
        try:
            yield self
        finally:
            self._cache = outer

    # -- inside -----------------------------------------------------------------------------------

    def _once(self, name: str, batch: Batch, compute: Callable[[], Answer]) -> Answer:
        self._notice_changes()
        if self._cache is None:
            return compute()
        key = (name, id(batch))
        if key not in self._cache:
            # The batch is kept with the answer, so that its identity is not used again.
            self._cache[key] = (batch, compute())
        answer: Answer = self._cache[key][1]
        return answer

    def _notice_changes(self) -> None:
        if self._structure.changed():
            self._structure = Structure(self.model)
            if self._cache is not None:
                self._cache.clear()

    def _rows(self, batch: Batch, answer: Callable[[Batch, tuple[Any, ...]], Tensor]) -> Tensor:
        """Answers of all rows, chunk by chunk, in evaluation mode and without gradients."""
        self._notice_changes()
        n, structure = row_count(batch), self._structure
        device = next((value.device for value in structure.parameters.values()), torch.device("cpu"))
        objective = Objective(structure, self.loss, self._inputs, Layout({}))
        answers: list[tuple[Tensor, Tensor]] = []
        with scoring(structure, "eval", gradients=False):
            for rows in together(n, self._groups(batch)):
                step = rows_per_pass(objective, batch, rows, device, Budget(self.budget))
                for part in cut(rows, step):
                    taken = batch if len(part) == n else take(batch, part)
                    taken = moved(taken, device)
                    answers.append((part.to(device), answer(taken, objective.arguments(taken))))
        return _joined(answers, n)

    def _votes(self, batch: Batch, views: Sequence[View] | View | None, times: int) -> tuple[Tensor, Tensor]:
        if views is None:
            raise ValueError("uncertainty needs perturbed copies: give views, here or to the Probe")
        copies = [views] * times if callable(views) else list(views)
        if not copies:
            raise ValueError("uncertainty needs at least one view, got none")
        if row_count(batch) == 0:
            return torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, 1)

        def count(part: Batch, _: tuple[Any, ...]) -> Tensor:
            total = torch.zeros(())
            for view in copies:
                outputs = self.model(*self._inputs({**part, "x": view(part["x"])}))
                winner = nn.functional.one_hot(outputs.argmax(1), outputs.shape[1])
                total = total.to(outputs) + torch.stack([winner.to(outputs), outputs.softmax(1)], 1)
            return total

        counted = self._rows(batch, count)
        return counted[:, 0].round().long(), counted[:, 1] / len(copies)

    def _features(self, batch: Batch, args: tuple[Any, ...]) -> Tensor:
        source, n = self.feature_source, row_count(batch)
        if source is not None and not isinstance(source, str):
            return _vectors(source(*args), n, "the function given as features")
        seen: list[Tensor] = []
        if source is None:
            name = find_head(self._structure, args, n)
            with entering(self._structure.modules[name], lambda value: seen.append(value.clone())):
                self.model(*args)
            return _vectors(seen[-1] if seen else None, n, f"what enters the last layer {name!r}")
        if source not in self._structure.modules:
            raise ValueError(f"the model has no module {source!r} to take features from")
        module = self._structure.modules[source]
        # A copy: what comes next may write to it in place.
        handle = module.register_forward_hook(lambda _module, _args, output: seen.append(output.clone()))
        try:
            self.model(*args)
        finally:
            handle.remove()
        value = seen[-1].flatten(1) if seen else None
        return _vectors(value, n, f"the output of {source!r}")

    def _gradients(self, batch: Batch) -> PerSampleGradients:
        groups = self._groups(batch)
        if self.layers == "last":
            return last_layer_gradients(
                self.model,
                batch,
                self.loss,
                inputs=self._inputs,
                groups=groups,
                budget=self.budget,
                structure=self._structure,
            )
        return per_sample_gradients(
            self.model,
            batch,
            self.loss,
            inputs=self._inputs,
            parameters=self.parameters,
            route=self.route,
            groups=groups,
            budget=self.budget,
            structure=self._structure,
        )

    def _head_of(self, step: Mapping[str, Tensor]) -> nn.Linear | None:
        """The linear layer that these parameters belong to, alone and all, if it does nothing else."""
        self._notice_changes()
        unknown = step.keys() - self._structure.parameters.keys()
        if unknown:
            raise ValueError(f"the model has no parameters {sorted(unknown)}")
        owners = {name.rpartition(".")[0] for name in step}
        module = self._structure.modules[owners.pop()] if len(owners) == 1 else None
        if type(module) is not nn.Linear or module._forward_hooks or module._forward_pre_hooks:
            return None
        parameters, shared = self._structure.parameters, self._structure.shared
        return None if any(id(parameters[name]) in shared for name in step) else module

    def _inputs(self, batch: Batch) -> tuple[Any, ...]:
        x = only_x(batch) if self.prepare is None else self.prepare(batch["x"])
        return (x, int(batch["t"][0])) if self.takes_task else (x,)

    def _groups(self, batch: Batch) -> Tensor | None:
        if not self.takes_task:
            return None
        if "t" not in batch:
            raise ValueError(
                f"{type(self.model).__name__} takes task labels; the batch needs a column 't', it has "
                f"{sorted(batch)}"
            )
        return batch["t"]


def _vectors(value: Tensor | None, n: int, what: str) -> Tensor:
    if value is None or value.ndim != 2 or value.shape[0] != n:
        given = "nothing" if value is None else f"shape {list(value.shape)}"
        raise ValueError(
            f"features are one vector a row, [{n}, d], but {what} has {given}; name a module or give a function "
            "of the prepared input: Probe(model, features=...)"
        )
    return value


def _moved_parameters(layer: nn.Linear, step: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer with its part of a step added."""
    changes = {name.rpartition(".")[2]: change for name, change in step.items()}
    weight, bias = (
        value if value is None or name not in changes else value + changes[name].view_as(value)
        for name, value in (("weight", layer.weight), ("bias", layer.bias))
    )
    assert weight is not None
    return weight, bias


def _joined(answers: list[tuple[Tensor, Tensor]], n: int) -> Tensor:
    """Answers of chunks of rows in the order of the rows; a last axis of different lengths is padded with 0."""
    if len(answers) == 1:
        return answers[0][1]
    if not answers:
        return torch.empty(0)
    first = answers[0][1]
    shape = list(first.shape[1:])
    if shape:
        shape[-1] = max(answer.shape[-1] for _, answer in answers)
    joined = first.new_zeros(n, *shape)
    for rows, answer in answers:
        if shape:
            joined[rows, ..., : answer.shape[-1]] = answer
        else:
            joined[rows] = answer
    return joined
