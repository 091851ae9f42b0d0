"""Periodic Reptile on any strategy: its law, and a run that is cut."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import IncrementalClassifier
from reference import mer as reference
from small_streams import (
    CLASSES,
    DIM,
    Labelled,
    as_classification_dataset,
    benchmark_from_datasets,
    minibatches,
    naive,
    parameters,
    rows,
    template,
    unlabelled,
)
from torch import nn

from replaykit import Buffer, policies
from replaykit.avalanche import Reptile
from replaykit.strategies import AGEM, ER, GSS, XDERCE, DERpp, MERBatched


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(DIM, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


def trained(*plugins: Any, n: int = 60, **options: Any) -> nn.Module:
    strategy = naive(*plugins, model=network(), **options)
    strategy.train(unlabelled(n).train_stream, eval_streams=[], shuffle=False)
    return strategy.model


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def test_the_literal_loop_across_experiences() -> None:
    """Twelve steps, six an experience, and an interpolation after each fifth."""
    ours = trained(Reptile(every=5, rate=0.3))
    model, steps = network(), 0
    sgd, start = torch.optim.SGD(model.parameters(), lr=0.1), deepcopy(model.state_dict())
    for row in minibatches(unlabelled(60), 5):
        reference.step(model, sgd, nn.CrossEntropyLoss(), row)
        steps += 1
        if steps % 5 == 0:
            reference.towards(model, start, 0.3)
            start = deepcopy(model.state_dict())
    assert steps == 12
    for name, value in model.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_rate_of_1_is_the_identity_and_0_stands_still() -> None:
    ours, plain = trained(Reptile(every=1, rate=1.0)), trained()
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)
    still = trained(Reptile(every=3, rate=0.0))
    assert torch.equal(parameters(still), parameters(network())) and not still[1].running_mean.any()


def buffer(policy: Any = None) -> Buffer:
    return Buffer(20, policy or policies.Reservoir(), seed=1)


ANY = {
    "er": lambda **o: ER(buffer=buffer(), **o),
    "derpp": lambda **o: DERpp(buffer=buffer(), **o),
    "agem": lambda **o: AGEM(buffer=buffer(), **o),
    "xder_ce": lambda **o: XDERCE(buffer=buffer(policies.XDERMemory()), classes_per_task=[[0, 1], [2, 3]], **o),
    "mer_batched": lambda **o: MERBatched(buffer=buffer(), beta=0.5, **o),
    "gss": lambda **o: GSS(buffer=buffer(), **o),
}


@pytest.mark.parametrize("make", ANY.values(), ids=ANY)
def test_any_strategy_goes_a_part_of_the_way(make: Any) -> None:
    """After every fifth step the state is W + 0.3 (θ - W), with the θ that the strategy came to."""
    reached: list[dict[str, torch.Tensor]] = []
    kept: list[dict[str, torch.Tensor]] = []

    def look(into: list[dict[str, torch.Tensor]]) -> SupervisedPlugin:
        class Look(SupervisedPlugin):
            def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
                into.append(deepcopy(dict(strategy.model.state_dict())))

        return Look()

    model = network()
    start = deepcopy(dict(model.state_dict()))
    strategy = make(plugins=[look(reached), Reptile(every=5, rate=0.3), look(kept)], **template(model))
    for experience in unlabelled(60).train_stream:
        strategy.train(experience, eval_streams=[], shuffle=False)
    assert len(kept) >= 12
    for number, (theta, after) in enumerate(zip(reached, kept, strict=True), 1):
        if number % 5:
            torch.testing.assert_close(after, theta, rtol=0, atol=0)
            continue
        for name, value in after.items():
            if value.is_floating_point():
                torch.testing.assert_close(value, start[name] + 0.3 * (theta[name] - start[name]))
        start = after


class Cut(SupervisedPlugin):
    """Stops after some iterations, in the middle of an experience."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.clock.train_iterations == self.after:
            strategy.stop_training()


def derpp(reptile: Reptile, *plugins: Any) -> DERpp:
    model = network()
    buffer = Buffer(20, policies.Reservoir(), seed=1)
    return DERpp(buffer=buffer, plugins=[reptile, *plugins], **template(model))


@pytest.mark.parametrize("after", [4, 6])
def test_a_run_that_is_cut_goes_on_to_the_same_bits(after: int) -> None:
    x, y = rows(60)

    def part(chosen: slice) -> Any:
        data = as_classification_dataset(Labelled(x[chosen], y[chosen]))
        return benchmark_from_datasets(train=[data]).train_stream

    def go(strategy: DERpp, chosen: slice) -> None:
        strategy.train(part(chosen), eval_streams=[], shuffle=False)

    whole = derpp(Reptile(5, 0.3))
    go(whole, slice(0, 5 * after))
    go(whole, slice(5 * after, 60))

    first_plugin = Reptile(5, 0.3)
    first = derpp(first_plugin)
    go(first, slice(0, 5 * after))
    saved = deepcopy([first.model.state_dict(), first.replay.buffer.state_dict(), first_plugin.state_dict()])
    go(first, slice(5 * after, 60))  # what was saved must not move with it
    plugin = Reptile(5, 0.3)
    second = derpp(plugin)
    second.model.load_state_dict(saved[0])
    second.replay.buffer.load_state_dict(saved[1])
    plugin.load_state_dict(saved[2])
    assert plugin.steps == after % 5
    go(second, slice(5 * after, 60))
    assert equal(whole.model, second.model) and equal(whole.model, first.model)
    fresh = derpp(Reptile(5, 0.3))
    fresh.model.load_state_dict(saved[0])
    fresh.replay.buffer.load_state_dict(saved[1])
    go(fresh, slice(5 * after, 60))
    assert not equal(whole.model, fresh.model)  # without its state the run is another one


def test_saved_states_hold_plain_tensors_and_wrong_ones_are_refused() -> None:
    plugin = Reptile(5, 0.3)
    assert plugin.state_dict() == {"steps": 0, "start": []}
    trained(plugin)
    state = plugin.state_dict()
    assert state["steps"] == 2 and [v.ndim for v in state["start"]] == [1]
    for wrong in ({}, {"steps": 5, "start": []}, {"steps": 1, "start": [1.0]}, {"steps": True, "start": []}):
        with pytest.raises(ValueError, match=r"not the state of Reptile\(every=5\)"):
            plugin.load_state_dict(wrong)
    plugin.load_state_dict({"steps": 1, "start": [torch.zeros(3)]})
    with pytest.raises(ValueError, match="another model"):
        trained(plugin)


def test_a_model_that_grows_begins_anew() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(DIM, 8), IncrementalClassifier(8, initial_out_features=1, masking=False))
    plugin = Reptile(5, 0.0)
    strategy = naive(plugin, model=model)
    strategy.train(unlabelled(40).train_stream[0], eval_streams=[])
    width, body = model[1].classifier.out_features, model[0].weight.detach().clone()
    strategy.train(unlabelled(60).train_stream[1], eval_streams=[])
    assert model[1].classifier.out_features > width and plugin.steps == 1
    assert not torch.equal(body, model[0].weight)  # six steps: back to the start of the experience, and one more


@pytest.mark.parametrize(
    ("options", "message"), [({"every": 0}, "steps >= 1, got 0"), ({"every": 2, "rate": 1.1}, "rate is a rate in")]
)
def test_arguments_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reptile(**options)
