"""The template with cheap iterations fires what Avalanche's fires."""

from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metrics import (
    accuracy_metrics,
    forgetting_metrics,
    loss_metrics,
    timing_metrics,
)
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from small_streams import Silent, classic, mlp, parameters, rows, template, unlabelled

from replaykit.avalanche import Template
from replaykit.avalanche.template import EVENTS, callbacks

ALL = [name for name in dir(SupervisedPlugin) if name.startswith(("before_", "after_"))]


class Everything(SupervisedPlugin):
    """Notes every event, and what the evaluator's clock said."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[str, int]] = []

    def __getattribute__(self, name: str) -> Any:
        if name in ALL:
            return lambda strategy, *a, **k: self.noted.append((name, strategy.clock.train_iterations))
        return super().__getattribute__(name)


class Collected(BaseLogger):
    def __init__(self) -> None:
        super().__init__()
        self.values: list[tuple[str, float]] = []

    def log_single_metric(self, name, value, x_plot) -> None:
        self.values.append((name, value))


def run(kind: type, *metrics: Any, **options: Any):
    plugin, logger = Everything(), Collected()
    strategy = kind(
        **template(mlp(), plugins=[plugin], evaluator=EvaluationPlugin(*metrics, loggers=[logger]), **options)
    )
    data = classic()
    torch.manual_seed(0)
    for experience in data.train_stream:
        strategy.train(experience, eval_streams=[data.test_stream])
    strategy.eval(data.test_stream)
    return plugin.noted, logger.values, parameters(strategy.model)


@pytest.mark.parametrize(
    "options",
    [{}, {"train_epochs": 2, "eval_every": 1}, {"eval_every": 3, "peval_mode": "iteration"}],
    ids=["plain", "evaluated each epoch", "evaluated inside epochs"],
)
def test_events_metrics_and_results_are_those_of_avalanche(options: dict) -> None:
    metrics = lambda: (  # noqa: E731
        accuracy_metrics(minibatch=True, epoch=True, experience=True, stream=True),
        loss_metrics(minibatch=True, epoch_running=True, stream=True),
        forgetting_metrics(experience=True),
    )
    ours, theirs = run(Template, *metrics(), **options), run(SupervisedTemplate, *metrics(), **options)
    assert {name for name, _ in ours[0]} >= set(EVENTS)
    assert ours[0] == theirs[0]
    assert ours[1] == theirs[1] and len(ours[1]) > 20
    assert torch.equal(ours[2], theirs[2])


def test_plugins_without_an_event_are_not_called() -> None:
    evaluator = EvaluationPlugin(loggers=[Silent()])
    for event in EVENTS:
        assert callbacks(SupervisedPlugin(), event) == []
        assert len(callbacks(evaluator, event)) == event.startswith("after") * event.endswith("_iteration")
    timed = EvaluationPlugin(timing_metrics(minibatch=True), loggers=[Silent()])
    assert len(callbacks(timed, "before_training_iteration")) == 1
    assert len(callbacks(timed, "before_backward")) == 0


def test_plugins_of_any_make_are_called() -> None:
    called = []

    class Bare:
        """No base class at all."""

        def after_update(self, strategy, **kwargs) -> None:
            called.append("bare")

    patched = SupervisedPlugin()
    patched.before_update = lambda strategy, **kwargs: called.append("patched")
    Template(**template(plugins=[Bare(), patched])).train(unlabelled(10, 1).train_stream, eval_streams=[])
    assert called == ["patched", "bare"] * 2


def test_values_published_from_outside_reach_the_loggers() -> None:
    logger = Collected()

    class Publisher(SupervisedPlugin):
        def after_forward(self, strategy, *args, **kwargs) -> None:
            x = strategy.clock.train_iterations
            strategy.evaluator.publish_metric_value(MetricValue(self, "mine", x, x))

    strategy = Template(**template(plugins=[Publisher()], evaluator=EvaluationPlugin(loggers=[logger])))
    strategy.train(unlabelled(20, 1).train_stream, eval_streams=[])
    assert logger.values == [("mine", 0), ("mine", 1), ("mine", 2), ("mine", 3)]


def test_plugins_added_between_epochs_are_found() -> None:
    strategy, added = Template(**template(train_epochs=2)), Everything()

    class Adder(SupervisedPlugin):
        def before_training_epoch(self, strategy, *args, **kwargs) -> None:
            if strategy.clock.train_exp_epochs == 1 and added not in strategy.plugins:
                strategy.plugins.append(added)

    strategy.plugins.insert(0, Adder())
    strategy.train(unlabelled(10, 1).train_stream, eval_streams=[])
    assert [name for name, _ in added.noted].count("after_update") == 2


def test_a_strategy_with_other_steps_keeps_the_loop_and_its_events() -> None:
    class Twice(Template):
        def train_minibatch(self, **kwargs: Any) -> None:
            for _ in range(2):
                self.train_step(**kwargs)

    noted, values, _ = run(Twice, loss_metrics(minibatch=True))
    plain = run(Template, loss_metrics(minibatch=True))
    of = lambda events, name: [event for event in events if event[0] == name]  # noqa: E731
    assert of(noted, "before_training_iteration") == of(plain[0], "before_training_iteration")
    assert of(noted, "after_update") == [e for e in of(plain[0], "after_update") for _ in range(2)]
    assert [name for name, _ in values] == [name for name, _ in plain[1]] and values != plain[1]


# -- what predicts ------------------------------------------------------------------------------------


class Swapped(torch.nn.Module):
    """The model's outputs, classes in reverse, and its mode in every pass."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.passes = model, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes.append(self.training)
        return self.model(x).flip(1)


class Predicting(Template):
    made: list[Swapped]

    def classifier(self) -> Any:
        self.made = [*getattr(self, "made", []), Swapped(self.model)]
        return self.made[-1]


def test_the_classifier_is_evaluated_in_the_models_place() -> None:
    metrics = accuracy_metrics(stream=True), loss_metrics(stream=True)
    data, logger = unlabelled(tasks=1), Collected()
    strategy = Predicting(**template(evaluator=EvaluationPlugin(*metrics, loggers=[logger])))
    strategy.train(data.train_stream, eval_streams=[])
    assert not hasattr(strategy, "made"), "training asks for none"
    strategy.model.train()
    found = strategy.eval(data.test_stream)
    (classifier,) = strategy.made
    assert classifier.passes == [False] * 5 and classifier.training and strategy.model.training
    x, y = rows(80)
    z = strategy.model(x).flip(1)
    values = {name.split("/")[0]: value for name, value in found.items()}
    assert values["Top1_Acc_Stream"] == pytest.approx((z.argmax(1) == y).float().mean().item())
    assert values["Loss_Stream"] == pytest.approx(torch.nn.functional.cross_entropy(z, y).item(), rel=1e-5)


def test_evaluations_within_training_ask_for_the_classifier_and_training_goes_on_with_the_model() -> None:
    models = []
    for kind in (Predicting, Template):
        strategy, data = kind(**template(train_epochs=2, eval_every=1)), unlabelled()
        torch.manual_seed(0)
        strategy.train(data.train_stream, eval_streams=[data.test_stream])
        models.append(parameters(strategy.model))
        assert strategy.model.training
    assert torch.equal(*models)


def test_a_failing_evaluation_leaves_modes_and_model_in_place() -> None:
    class Broken(Predicting):
        def classifier(self) -> Any:
            made = super().classifier()
            made.forward = lambda x: 1 / 0
            return made

    strategy, data = Broken(**template()), unlabelled()
    strategy.model.train()
    with pytest.raises(ZeroDivisionError):
        strategy.eval(data.test_stream)
    assert strategy.made[-1].training and strategy.model.training
    strategy.train(data.train_stream, eval_streams=[])
    assert parameters(strategy.model).isfinite().all()


def test_a_state_that_nobody_keeps_is_refused() -> None:
    strategy = Template(**template())
    assert strategy.state_dict() == {}
    strategy.load_state_dict({})
    with pytest.raises(ValueError, match="Template keeps no state, got .'task'"):
        strategy.load_state_dict({"task": 1})


def test_overridden_events_of_a_subclass_are_used() -> None:
    fired = []

    class Mine(Template):
        def _before_update(self, **kwargs) -> None:
            fired.append(1)
            super()._before_update(**kwargs)

    Mine(**template()).train(unlabelled(20, 1).train_stream, eval_streams=[])
    assert len(fired) == 4
