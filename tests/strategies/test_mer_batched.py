"""The batched approximation of MER: experience replay whose steps are damped."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from reference import mer as reference
from small_streams import CLASSES, DIM, minibatches, mlp, parameters, template, unlabelled
from torch import nn

from replaykit import Buffer, policies
from replaykit.avalanche import Reptile
from replaykit.strategies import ER, MERBatched


def memory() -> Buffer:
    return Buffer(17, policies.Reservoir(), seed=3)


def with_batchnorm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(DIM, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


def trained(model: nn.Module, make: type = MERBatched, **options: Any) -> Any:
    sgd = options.pop("sgd", {"lr": 0.1})
    arguments = template(model, optimizer=torch.optim.SGD(model.parameters(), **sgd))
    strategy = make(buffer=memory(), **{"batch_size_mem": 7, **options}, **arguments)
    strategy.train(unlabelled(60).train_stream, eval_streams=[], shuffle=False)
    return strategy


def test_the_literal_loop() -> None:
    """Three draws for each mini-batch, momentum, BatchNorm's statistics: everything but the momentum is damped."""
    sgd = {"lr": 0.1, "momentum": 0.5}
    strategy = trained(with_batchnorm(), steps=3, beta=0.4, gamma=0.7, sgd=sgd)
    model, twin, criterion = with_batchnorm(), memory(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), **sgd)
    for x, y in minibatches(unlabelled(60), 5):
        first = deepcopy(model.state_dict())
        for _ in range(3):
            before = deepcopy(model.state_dict())
            batch = twin.sample(7) if len(twin) else {"x": x[:0], "y": y[:0]}
            row = torch.cat([x, batch["x"]]), torch.cat([y, batch["y"]])
            reference.step(model, optimizer, criterion, row)
            reference.towards(model, before, 0.4)
        reference.towards(model, first, 0.7)
        twin.add({"x": x, "y": y})
    for name, value in model.state_dict().items():
        torch.testing.assert_close(strategy.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert torch.equal(strategy.replay.buffer["x"], twin["x"])


def test_without_damping_it_is_er() -> None:
    ours, er = trained(with_batchnorm()).model, trained(with_batchnorm(), ER).model
    torch.testing.assert_close(parameters(ours), parameters(er), rtol=1e-4, atol=1e-5)


def test_one_damped_step_is_a_smaller_one() -> None:
    ours = trained(mlp(), beta=0.4, gamma=0.5).model
    er = trained(mlp(), ER, sgd={"lr": 0.1 * 0.4 * 0.5}).model
    torch.testing.assert_close(parameters(ours), parameters(er), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rate", ["beta", "gamma"])
def test_a_rate_of_0_never_moves_the_model(rate: str) -> None:
    model = trained(with_batchnorm(), steps=2, **{rate: 0.0}).model
    assert torch.equal(parameters(model), parameters(with_batchnorm()))
    assert not model[1].running_mean.any() and model[1].num_batches_tracked == 24


@pytest.mark.parametrize("rate", ["beta", "gamma"])
def test_another_plugin_may_interpolate_too(rate: str) -> None:
    """Reptile moves the state into a vector of its own, in the middle of a step."""
    model = trained(mlp(), plugins=[Reptile(every=1, rate=0.4)], **{rate: 0.0}).model
    assert torch.equal(parameters(model), parameters(mlp()))


def test_events_of_steps_and_iterations() -> None:
    events: list[str] = []

    class Watch(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs) -> None:
            events.append("iteration")

        def before_forward(self, strategy, **kwargs) -> None:
            events.append(f"{len(strategy.mb_x)} rows, {int(strategy.from_memory.sum())} replayed")

        def after_training_iteration(self, strategy, **kwargs) -> None:
            events.append("done")

    trained(mlp(), steps=2, plugins=[Watch()])
    assert events[:8] == [
        *("iteration", "5 rows, 0 replayed", "5 rows, 0 replayed", "done"),
        *("iteration", "10 rows, 5 replayed", "10 rows, 5 replayed", "done"),
    ]
    assert events.count("12 rows, 7 replayed") == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": 0}, "steps >= 1, got 0"), ({"beta": 2.0}, "beta is a rate"), ({"gamma": -1.0}, "gamma is a rate")],
)
def test_arguments_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MERBatched(buffer=memory(), **options, **template())
