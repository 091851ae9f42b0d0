"""The state of a model as one vector: the same model as before, and noticed when it is taken out of it."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from replaykit.flat import Flat, checked_rate


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


X, Y = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3


def train(model: nn.Module, steps: int = 3, **sgd: float) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **sgd)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_nothing_changes_but_where_the_numbers_are() -> None:
    model, twin = network(), network()
    before = list(model.parameters())
    flat = Flat(model)
    assert same(model, twin)
    assert all(one is other for one, other in zip(before, model.parameters(), strict=True))
    (vector,) = flat.vectors
    assert len(vector) == sum(p.numel() for p in model.parameters()) + 8  # and the running mean and variance
    train(model, momentum=0.9)
    train(twin, momentum=0.9)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-4, atol=1e-5)
    assert flat.holds(model)
    vector.zero_()
    assert not any(v.any() for n, v in model.state_dict().items() if "tracked" not in n)
    assert model[1].num_batches_tracked == 3


def test_state_dicts_copies_and_files_work() -> None:
    model, other = network(), network(1)
    flat = Flat(model)
    model.load_state_dict(other.state_dict())
    assert flat.holds(model) and same(model, other)
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = network(2)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    flat.vectors[0].add_(1.0)
    assert same(twin, other) and same(loaded, other) and not same(model, other)
    assert not flat.holds(twin)


def replace_a_parameter(model: nn.Module) -> None:
    model[4].bias = nn.Parameter(torch.zeros(3))


def replace_data(model: nn.Module) -> None:
    model[0].weight.data = model[0].weight.data.clone()


def freeze(model: nn.Module) -> None:
    model[0].weight.requires_grad_(False)


def assign(model: nn.Module) -> None:
    model.load_state_dict(network(3).state_dict(), assign=True)


@pytest.mark.parametrize(
    "change", [replace_a_parameter, replace_data, freeze, assign, nn.Module.double], ids=lambda f: f.__name__
)
def test_tensors_that_left_the_vector_are_noticed(change) -> None:
    model = network()
    flat = Flat(model)
    assert Flat.of(model, flat) is flat
    change(model)
    twin = copy.deepcopy(model)
    renewed = Flat.of(model, flat)
    assert renewed is not flat and renewed.holds(model) and same(model, twin)


def test_frozen_parameters_and_integers_stay_where_they_are() -> None:
    model = network()
    model[0].requires_grad_(False)
    kept = [model[0].weight.data_ptr(), model[0].bias.data_ptr(), model[1].num_batches_tracked.data_ptr()]
    flat = Flat(model)
    flat.interpolate([torch.zeros_like(v) for v in flat.vectors], 0.0)
    assert kept == [model[0].weight.data_ptr(), model[0].bias.data_ptr(), model[1].num_batches_tracked.data_ptr()]
    assert same(model[0], network()[0]) and not model[4].weight.any()


def test_layouts_stay() -> None:
    model = network().to(memory_format=torch.channels_last)
    stride = model[0].weight.stride()
    Flat(model)
    assert model[0].weight.stride() == stride and model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert same(model, network())


def test_each_dtype_has_a_vector() -> None:
    model = network()
    model[4].double()
    assert [(len(v), v.dtype) for v in Flat(model).vectors] == [(92, torch.float32), (51, torch.float64)]


def test_a_shared_parameter_stays_shared_and_a_shared_memory_is_refused() -> None:
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    two.weight = one.weight
    flat = Flat(nn.Sequential(one, two))
    assert len(flat.vectors[0]) == 9 + 3 + 3 and two.weight is one.weight
    two.weight = nn.Parameter(one.weight.detach()[:2])
    with pytest.raises(ValueError, match=r"share memory.*same nn.Parameter"):
        Flat(nn.Sequential(one, two))


def test_a_complex_parameter_is_refused() -> None:
    model = nn.ParameterList([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    with pytest.raises(TypeError, match="complex64, not real"):
        Flat(model)


def test_interpolation() -> None:
    model = network()
    flat = Flat(model)
    start = flat.copy()
    train(model)
    end = flat.copy()
    flat.interpolate(start, 1.0)
    assert torch.equal(flat.vectors[0], end[0])
    flat.interpolate(start, 0.3)
    torch.testing.assert_close(flat.vectors[0], start[0] + 0.3 * (end[0] - start[0]))
    mean: Tensor = model[1].running_mean
    assert mean.data_ptr() != start[0].data_ptr() and not torch.equal(mean, torch.zeros(4))
    flat.interpolate(start, 0.0)
    assert torch.equal(flat.vectors[0], start[0]) and not model[1].running_mean.any()


def test_copies_are_reused_where_they_fit() -> None:
    flat = Flat(network())
    copied = flat.copy()
    flat.vectors[0].add_(1.0)
    assert flat.copy(copied)[0] is copied[0] and torch.equal(copied[0], flat.vectors[0])
    assert flat.copy([torch.zeros(3)])[0].shape == flat.vectors[0].shape


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_rates_lie_between_0_and_1(rate: float) -> None:
    with pytest.raises(ValueError, match=r"gamma is a rate in \[0, 1\]"):
        checked_rate("gamma", rate)
