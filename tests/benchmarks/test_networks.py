"""Networks: sizes, initial values, features, and what they do to the generators."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from replaykit.benchmarks import Network, convnet, mlp, resnet18, slim_resnet18
from replaykit.benchmarks.resnet import BasicBlock

MAKERS: list[tuple[Callable[..., Network], tuple[int, ...]]] = [
    (mlp, (1, 28, 28)),
    (convnet, (1, 28, 28)),
    (slim_resnet18, (3, 32, 32)),
    (resnet18, (3, 32, 32)),
]
every = pytest.mark.parametrize(("make", "shape"), MAKERS, ids=lambda value: getattr(value, "__name__", ""))


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameter_counts() -> None:
    assert count(mlp()) == 784 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10
    assert count(convnet()) == (25 * 32 + 32) + (25 * 32 * 64 + 64) + (1024 * 128 + 128) + (128 * 10 + 10)
    assert count(slim_resnet18()) == 1_094_750
    assert count(resnet18()) == 11_173_962
    assert count(slim_resnet18(100)) == 1_094_750 + 90 * 161


@every
def test_logits_are_the_classifier_over_the_features(make: Callable[..., Network], shape: tuple[int, ...]) -> None:
    model = make(classes=7, seed=0).eval()
    x = torch.rand(3, *shape)
    features = model.features(x)
    assert features.shape == (3, model.width)
    assert isinstance(model.classifier, nn.Linear)
    assert torch.equal(model(x), model.classifier(features))
    assert model(x).shape == (3, 7)


@every
def test_integers_are_refused_with_the_way_out(make: Callable[..., Network], shape: tuple[int, ...]) -> None:
    model = make()
    for call in (model, model.features):
        with pytest.raises(TypeError, match=r"torch.uint8, .*x.float\(\) / 255.*as_float=True.*views=\.\.\."):
            call(torch.zeros(2, *shape, dtype=torch.uint8))


@every
def test_a_seed_repeats_the_network_and_leaves_the_generator(
    make: Callable[..., Network], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    same = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))
    plain = make()
    assert not torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert torch.equal(next(make().parameters()), next(plain.parameters()))


def test_mlp_starts_xavier_uniform_with_zero_biases() -> None:
    model = mlp(hidden=(100, 50), seed=0)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(100, 784), (50, 100), (10, 50)]
    for layer in linear:
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        size = float(layer.weight.detach().abs().max())
        assert 0.9 * bound < size <= bound
        assert float(layer.bias.detach().abs().max()) == 0
    with pytest.raises(ValueError, match="at least one hidden layer"):
        mlp(hidden=())


def test_convnet_is_convolution_dropout_relu_pool() -> None:
    model = convnet(dropout=0.3)
    kinds = [type(module).__name__ for module in model.body.children()]
    stage = ["Conv2d", "Dropout", "ReLU", "MaxPool2d"]
    assert kinds == [*stage, *stage, "Flatten", "Linear", "Dropout", "ReLU"]
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.3}
    assert convnet(channels=3, size=32).width == 128
    assert convnet(channels=3, size=32)(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert convnet(size=16)(torch.rand(2, 1, 16, 16)).shape == (2, 10)
    with pytest.raises(ValueError, match="at least 16 × 16 pixels, got 15 × 15"):
        convnet(size=15)


def test_resnet_halves_the_image_three_times() -> None:
    model = slim_resnet18()
    assert sum(isinstance(module, BasicBlock) for module in model.modules()) == 8
    x = torch.rand(2, 3, 32, 32)
    shapes = []
    for layer in model.body.children():
        x = layer(x)
        shapes.append(tuple(x.shape[1:]))
    stages = [(20, 32, 32), (40, 16, 16), (80, 8, 8), (160, 4, 4)]
    assert [shape for shape in dict.fromkeys(shapes) if len(shape) == 3] == [*stages, (160, 1, 1)]
    assert slim_resnet18(channels=1)(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_a_head_needs_classes() -> None:
    with pytest.raises(ValueError, match="at least one class, got 0"):
        mlp(classes=0)


@every
def test_per_sample_gradients_can_be_taken(make: Callable[..., Network], shape: tuple[int, ...]) -> None:
    model = make(seed=0).eval()
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.func.functional_call(model, (parameters, buffers), (x[None],))
        return out.logsumexp(1)[0]

    x = torch.rand(2, *shape)
    rows = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    alone = torch.func.grad(loss)(parameters, x[1])
    name = "classifier.weight"
    assert torch.allclose(rows[name][1], alone[name], atol=1e-6)
