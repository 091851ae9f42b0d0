"""Features of a model with their gradient."""

import pytest
import torch
from avalanche.models import IncrementalClassifier
from torch import nn

from replaykit.benchmarks import mlp, slim_resnet18
from replaykit.contrastive import supervised_contrastive
from replaykit.losses import Features, SupCon, TaskAware


def sequential() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))


def test_features_enter_the_last_layer_and_come_with_the_outputs_of_the_same_pass() -> None:
    model, x = sequential(), torch.randn(4, 5)
    passes: list[int] = []
    model[0].register_forward_hook(lambda _module, _args, output: passes.append(len(output)))
    features = Features()
    z, outputs = features.both(model, {"x": x})
    assert torch.equal(z, model[:2](x)) and torch.equal(outputs, model(x))
    passes.clear()
    features.both(model, {"x": x})
    assert passes == [4], "the last layer is found once"
    gradient = torch.autograd.grad(features(model, {"x": x}).sum(), model[0].weight)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(model[:2](x).sum(), model[0].weight)[0])


@pytest.mark.parametrize("model", [mlp(inputs=48, seed=0), slim_resnet18(seed=0)], ids=["mlp", "resnet"])
def test_they_are_those_of_our_networks(model) -> None:
    x = torch.rand(3, 3, 4, 4)
    torch.testing.assert_close(Features()(model.eval(), {"x": x}), model.features(x))


def test_a_head_that_was_replaced_is_found_again() -> None:
    model, features = sequential(), Features()
    batch = {"x": torch.randn(4, 5)}
    features(model, batch)
    model[2] = nn.Linear(6, 7)
    z, outputs = features.both(model, batch)
    assert z.shape == (4, 6) and outputs.shape == (4, 7)
    model[2] = IncrementalClassifier(6, 4)
    assert features(model, batch).shape == (4, 6)
    other = nn.Sequential(nn.Linear(5, 2), nn.Linear(2, 9))
    assert features(other, batch).shape == (4, 2)


def test_finding_the_last_layer_leaves_no_trace() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).train()
    state = torch.get_rng_state()
    Features()(model, {"x": torch.randn(4, 5, generator=torch.Generator().manual_seed(0))})
    assert int(model[1].num_batches_tracked) == 1 and model.training
    torch.set_rng_state(state)


def test_a_module_or_a_function_may_be_named() -> None:
    model, x = sequential(), torch.randn(4, 5)
    assert torch.equal(Features("0")(model, {"x": x}), model[0](x))
    z, outputs = Features(lambda x: 2 * x).both(model, {"x": x})
    assert torch.equal(z, 2 * x) and torch.equal(outputs, model(x))


def test_what_has_no_features_says_how_to_give_them() -> None:
    batch = {"x": torch.randn(4, 5), "t": torch.zeros(4, dtype=torch.int64)}
    with pytest.raises(TypeError, match="is no module: function; .* pass features=, a function of x"):
        Features()(lambda x: x, batch)
    aware = TaskAware(lambda x, t: x)
    with pytest.raises(TypeError, match="takes task labels; .* pass features="):
        Features()(aware, batch)
    assert Features(lambda x: x).both(aware, batch)[0] is batch["x"]
    with pytest.raises(ValueError, match="no module 'body' for features; it has"):
        Features("body")(sequential(), batch)
    with pytest.raises(ValueError, match=r"one vector a row, \[4, d\], but the function .* shape \[4\]"):
        Features(lambda x: x.sum(1))(sequential(), batch)
    with pytest.raises(ValueError, match=r"what enters the last layer has shape \[4, 2, 5\]"):
        Features()(nn.Linear(5, 3), {"x": torch.randn(4, 2, 5)})


# -- the supervised contrastive replay loss -----------------------------------------------------------


def test_supcon_contrasts_the_rows_of_its_draws() -> None:
    model = sequential()
    first, second = ({"x": torch.randn(n, 5), "y": torch.arange(n) % 2} for n in (4, 3))
    given = iter([first, second])
    value = SupCon(0.5, 0.2, draws=2)(model, lambda: next(given))
    z = model[:2](torch.cat([first["x"], second["x"]]))
    expected = 0.5 * supervised_contrastive(z, torch.cat([first["y"], second["y"]]), 0.2)
    torch.testing.assert_close(value, expected)
    projection = nn.Linear(6, 2)
    value = SupCon(projection=projection)(model, lambda: first)
    torch.testing.assert_close(value, supervised_contrastive(projection(model[:2](first["x"])), first["y"]))
    assert SupCon(0.0)(lambda x: pytest.fail("the model ran"), lambda: pytest.fail("a draw")) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "draws is a number"),
        ({"temperature": 0}, "temperature is a positive number, got 0"),
        ({"temperature": float("inf")}, "temperature is a positive number, got inf"),
        ({"weight": -1}, "weight is"),
    ],
)
def test_supcon_refuses_bad_settings(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SupCon(**options)
