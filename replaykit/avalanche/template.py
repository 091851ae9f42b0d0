"""A supervised template that calls only the plugins that have something to do.

Avalanche asks every plugin at every one of the eight events of an iteration, and its evaluator answers each
time by copying the experience and walking through its metrics and loggers, even when there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from avalanche.core import BaseSGDPlugin
from avalanche.evaluation.metric_definitions import PluginMetric
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate

Callback = Callable[..., Any]

EVENTS = (
    *("before_training_iteration", "before_forward", "after_forward", "before_backward", "after_backward"),
    *("before_update", "after_update", "after_training_iteration"),
    *("before_eval_iteration", "before_eval_forward", "after_eval_forward", "after_eval_iteration"),
)


def _event(name: str) -> Callback:
    def fire(self: Any, **kwargs: Any) -> None:
        for callback in self._callbacks[name]:
            callback(self, **kwargs)

    return fire


class Template(SupervisedTemplate):
    """`SupervisedTemplate` with cheap iterations: same loop, same events, same order.

    Which plugins, metrics and loggers define an event is found out at the beginning of an epoch. Whatever is
    added to the strategy during an epoch is called from the next one on.
    """

    # Set by the base class, which has no types.
    mbatch: Any
    mb_output: Any
    loss: Any

    _callbacks: Mapping[str, list[Callback]] = MappingProxyType({name: [] for name in EVENTS})
    _asked: tuple[int, ...] = ()
    _predictor: torch.nn.Module | None = None

    _before_training_iteration = _event("before_training_iteration")
    _before_forward = _event("before_forward")
    _after_forward = _event("after_forward")
    _before_backward = _event("before_backward")
    _after_backward = _event("after_backward")
    _before_update = _event("before_update")
    _after_update = _event("after_update")
    _after_training_iteration = _event("after_training_iteration")
    _before_eval_iteration = _event("before_eval_iteration")
    _before_eval_forward = _event("before_eval_forward")
    _after_eval_forward = _event("after_eval_forward")
    _after_eval_iteration = _event("after_eval_iteration")

    def classifier(self) -> Any:
        """What predicts at evaluation, a module from inputs to logits: the model, unless a strategy has its own.

        Called once before each evaluation, `eval` included, so a nearest-mean classifier may take its means anew
        here. It must leave the model, its mode and the generators as they are.
        """
        return self.model

    def eval(self, exp_list: Any, **kwargs: Any) -> Any:
        """Avalanche's evaluation, of what `classifier` gives; its mode is put back."""
        with torch.no_grad():
            predictor = self.classifier()
        if predictor is self.model:
            return super().eval(exp_list, **kwargs)
        modes = [(module, module.training) for module in predictor.modules()]
        self._predictor = predictor.eval()
        try:
            return super().eval(exp_list, **kwargs)
        finally:
            self._predictor = None
            for module, training in modes:
                module.training = training

    def forward(self) -> Any:
        if self._predictor is None or self.is_training:
            return super().forward()
        return self._predictor(self.mb_x)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides model, optimiser and buffer: plain tensors and numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state, or raise `ValueError` and keep the present one."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, got {sorted(state)}")

    def training_epoch(self, **kwargs: Any) -> None:
        """Avalanche's loop, which leaves to `train_minibatch` what is done with a mini-batch of the stream."""
        self._ask()
        for mbatch in self.dataloader:
            if self._stop_training:
                break
            self.mbatch = mbatch
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            self.train_minibatch(**kwargs)
            self._after_training_iteration(**kwargs)

    def train_minibatch(self, **kwargs: Any) -> None:
        """Learn from a mini-batch of the stream: in one step, unless a strategy does it otherwise."""
        self.train_step(**kwargs)

    def train_step(self, **kwargs: Any) -> None:
        """One optimiser step on the present mini-batch, with its events."""
        self.optimizer.zero_grad()
        self.loss = self._make_empty_loss()
        self._before_forward(**kwargs)
        self.mb_output = self.forward()
        self._after_forward(**kwargs)
        self.loss += self.criterion()
        self._before_backward(**kwargs)
        self.backward()
        self._after_backward(**kwargs)
        self._before_update(**kwargs)
        self.optimizer_step()
        self._after_update(**kwargs)

    def eval_epoch(self, **kwargs: Any) -> None:
        self._ask()
        super().eval_epoch(**kwargs)

    def _ask(self) -> None:
        listeners = [*self.plugins, *self.evaluator.metrics, *self.evaluator.loggers]
        asked = tuple(map(id, listeners))
        if asked != self._asked:
            self._callbacks = {
                name: [call for plugin in self.plugins for call in callbacks(plugin, name)] for name in EVENTS
            }
            self._asked = asked


def callbacks(plugin: Any, event: str) -> list[Callback]:
    """What to call on a plugin at an event: one function, or none when it would do nothing."""
    if type(plugin) is EvaluationPlugin:
        if any(_defines(listener, event) for listener in (*plugin.metrics, *plugin.loggers)):
            return [getattr(plugin, event)]
        # Values that somebody published are handed to the loggers once an iteration.
        return [_Publish(plugin, event)] if event.endswith("_iteration") and event.startswith("after") else []
    return [getattr(plugin, event)] if _defines(plugin, event) else []


def _defines(listener: Any, event: str) -> bool:
    method = getattr(listener, event, None)
    function = getattr(method, "__func__", method)
    empty = (getattr(BaseSGDPlugin, event, None), getattr(PluginMetric, event, None))
    return function is not None and function not in empty


class _Publish:
    def __init__(self, evaluator: Any, event: str) -> None:
        self.evaluator, self.event = evaluator, event

    def __call__(self, strategy: Any, **kwargs: Any) -> None:
        if self.evaluator._metric_values:
            getattr(self.evaluator, self.event)(strategy, **kwargs)
