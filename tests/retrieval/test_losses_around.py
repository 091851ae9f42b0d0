"""Losses before and after some parameters move, against a copy whose parameters move."""

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from avalanche.models import IncrementalClassifier
from guided_memories import model, stream, trace
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import small_networks as nets
from torch import Tensor, nn

from replaykit.gradients import cross_entropy, squared_error
from replaykit.probe import Probe

Batch = dict[str, Tensor]
Loss = Callable[[Tensor, Batch], Tensor]


class Headed(nn.Module):
    """A body and a linear head; subclasses say what comes after it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh()), nn.Linear(8, nets.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.head(self.body(x)))

    def after(self, z: Tensor) -> Tensor:
        return z


class MaskedCopy(Headed):
    def after(self, z: Tensor) -> Tensor:
        return z.masked_fill(torch.arange(nets.CLASSES) >= 3, -1000.0)


class MaskedInPlace(Headed):
    def after(self, z: Tensor) -> Tensor:
        z[:, 3:] = -1000.0
        return z


class Tempered(Headed):
    def after(self, z: Tensor) -> Tensor:
        return z / 3


class Twice(Headed):
    """A head that is called twice, its last output being the model's."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.head(h + self.head(h)[:, :1])


class Hooked(Headed):
    def __init__(self) -> None:
        super().__init__()
        self.head.register_forward_hook(lambda _, args, out: out * 2)


class Tied(Headed):
    """The head's weight belongs to a layer of the body too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, nets.CLASSES, bias=False)
        self.first.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.head(h + self.first(h).sum(1, keepdim=True))


class Normed(Headed):
    """Weight normalisation of the old kind: the weight is made of two parameters before each call."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.head = torch.nn.utils.weight_norm(self.head)


class NoBias(Headed):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, nets.CLASSES, bias=False)


class Grown(Headed):
    """Avalanche's head, which masks the classes that it has not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.head = IncrementalClassifier(8, nets.CLASSES)
        self.head.active_units[:3] = 1


HEADS = {
    made.__name__: made
    for made in (Headed, MaskedCopy, MaskedInPlace, Tempered, Twice, Hooked, Tied, Normed, NoBias, Grown)
}


def moved_copy(net: nn.Module, step: dict[str, Tensor]) -> nn.Module:
    twin = copy.deepcopy(net).eval()
    named = dict(twin.named_parameters())
    with torch.no_grad():
        for name, change in step.items():
            named[name] += change.reshape(named[name].shape)
    return twin


def compare(net: nn.Module, batch: Batch, step: dict[str, Tensor], loss: Loss | None = None, **probe: int) -> None:
    found = Probe(net, loss=loss, **probe).losses_around(batch, step)
    loss = loss or cross_entropy()
    with torch.no_grad():
        expected = [loss(twin(batch["x"]), batch) for twin in (moved_copy(net, {}), moved_copy(net, step))]
    for one, other in zip(found, expected, strict=True):
        assert not one.requires_grad and one.shape == (len(batch["y"]),)
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def random_step(net: nn.Module, chosen: Callable[[str], bool] = str) -> dict[str, Tensor]:
    """In shapes that are not the parameters'."""
    named = {name: p for name, p in net.named_parameters() if chosen(name)}
    return {name: 0.3 * torch.randn(p.numel(), dtype=p.dtype) for name, p in named.items()}


def under(prefix: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefix)


@pytest.mark.parametrize("name", ["mlp", "convnet", "slim_resnet18", "Shared"])
def test_the_whole_model_moves(name: str) -> None:
    torch.manual_seed(0)
    net = getattr(nets, name)().double().train()
    batch = nets.rows(7, 12) if name in ("mlp", "Shared") else nets.rows(7, 3, 8, 8)
    batch["y"] %= 3
    compare(net, batch, random_step(net))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("part", ["all", "head", "weight", "bias", "body", "none"])
def test_any_part_moves_whatever_comes_after_the_head(name: str, part: str) -> None:
    torch.manual_seed(0)
    net = HEADS[name]().double().train()
    batch = nets.rows(7, 12)
    batch["y"] %= 3
    if part == "bias" and name == "NoBias":
        return
    parts: dict[str, Callable[[str], bool]] = {
        "all": under(""),
        "head": under("head"),
        "weight": lambda name: name.startswith("head") and "weight" in name,
        "bias": lambda name: name.startswith("head") and name.endswith("bias"),
        "body": under("body"),
        "none": lambda name: False,
    }
    compare(net, batch, random_step(net, parts[part]))


def test_one_pass_serves_both_when_the_head_alone_moves() -> None:
    net, passes = Headed().double(), []
    net.body.register_forward_hook(lambda *_: passes.append(1))
    batch, probe = nets.rows(4, 12), Probe(net)
    probe.losses_around(batch, {})
    for part, expected in (("head", 1), ("", 2)):
        passes.clear()
        probe.losses_around(batch, random_step(net, under(part)))
        assert len(passes) == expected


def test_another_loss() -> None:
    torch.manual_seed(0)
    net, batch = Headed().double(), nets.rows(7, 12)
    batch["logits"] = torch.randn(7, nets.CLASSES).double()
    for part in ("head", ""):
        compare(net, batch, random_step(net, under(part)), squared_error())


@settings(deadline=None, max_examples=10, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 12))
def test_in_chunks_as_in_one(n: int, rows: int) -> None:
    torch.manual_seed(n)
    net, batch = nets.convnet().double(), nets.rows(n, 3, 8, 8)
    for part in ("9", ""):
        compare(net, batch, random_step(net, under(part)), budget=rows * 100_000)


def test_steps_that_do_not_fit() -> None:
    net, batch = Headed().double(), nets.rows(3, 12)
    for wrong in ("head.scale", "model.head.weight"):
        with pytest.raises(ValueError, match=rf"the model has no parameters \['{wrong}'\]"):
            Probe(net).losses_around(batch, {wrong: torch.zeros(1)})
    with pytest.raises(RuntimeError, match="shape"):
        Probe(net).losses_around(batch, {"head.bias": torch.zeros(nets.CLASSES + 1)})


@pytest.mark.parametrize("bad", [math.nan, 1e308])
@pytest.mark.parametrize("part", ["head", ""])
def test_losses_that_are_not_finite(bad: float, part: str) -> None:
    net, batch = Headed().double(), nets.rows(3, 12)
    step = {name: torch.full_like(p, bad) for name, p in net.named_parameters() if name.startswith(part)}
    before = trace(net, batch)
    with pytest.raises(ValueError, match=r"losses are NaN or infinite in rows \[0, 1, 2\]"):
        Probe(net, loss=lambda z, _: z.square().sum(1)).losses_around(batch, step)
    assert trace(net, batch) == before


@pytest.mark.parametrize("part", ["head", ""])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_changed_even_when_it_fails(part: str, fails: bool) -> None:
    net, batch = model(), stream(6)
    step = random_step(net, under(part))
    if fails:
        net.head.register_forward_hook(lambda *_: 1 / 0)
    before = trace(net, batch)
    if fails:
        with pytest.raises(ZeroDivisionError):
            Probe(net).losses_around(batch, step)
    else:
        Probe(net).losses_around(batch, step)
    assert trace(net, batch) == before


def test_no_rows() -> None:
    net, batch = Headed().double(), nets.rows(3, 12)
    nobody = {name: value[:0] for name, value in batch.items()}
    before, after = Probe(net).losses_around(nobody, random_step(net))
    assert before.shape == after.shape == (0,)


def test_on_every_device(device: str) -> None:
    torch.manual_seed(0)
    net, batch = Headed().double(), nets.rows(5, 12)
    step = random_step(net)
    expected = Probe(net).losses_around(batch, step)
    probe = Probe(net.to(device))
    found = probe.losses_around(batch, {name: change.to(device) for name, change in step.items()})
    for one, other in zip(found, expected, strict=True):
        assert one.device.type == device
        torch.testing.assert_close(one.cpu(), other)
