"""Scoring leaves no trace: parameters, `.grad`, modes, buffers, hooks, generators; also when it fails."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from reference import small_networks as nets
from torch import Tensor, nn

from replaykit.gradients import PerSampleGradients, cross_entropy, last_layer_gradients, per_sample_gradients
from replaykit.gradients.structure import Structure

Batch = dict[str, Tensor]


class Counting(nn.Module):
    """Writes to a buffer and draws from the global generator in every forward pass, also in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + 0 * torch.rand(())


def prepared() -> tuple[nn.Module, Batch]:
    """A model in the middle of a training step, its modes mixed, with hooks of its user."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), Counting(),
        nn.Flatten(), nn.Linear(4 * 16, 8), nn.BatchNorm1d(8), nn.Linear(8, nets.CLASSES),
    ).double()  # fmt: skip
    batch = nets.rows(6, 3, 6, 6)
    cross_entropy()(model(batch["x"]), batch).sum().backward()
    model[1].eval()
    model[6].bias.requires_grad_(False)
    model[8].weight.grad = None
    model[6].register_forward_hook(lambda *_: None)
    model[0].weight.register_hook(lambda gradient: gradient * 0)
    return model, batch


def trace(model: nn.Module, batch: Batch) -> list[object]:
    bits = lambda t: None if t is None else (t.dtype, t.numpy(force=True).tobytes(), t.data_ptr())  # noqa: E731
    return [
        [(name, module.training) for name, module in model.named_modules()],
        [(name, bits(p), bits(p.grad), p.requires_grad) for name, p in model.named_parameters()],
        [(name, bits(b)) for name, b in model.named_buffers()],
        [(list(m._forward_hooks), list(m._forward_pre_hooks), list(m._backward_hooks)) for m in model.modules()],
        [(name, bits(value)) for name, value in batch.items()],
        (torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state())),  # noqa: NPY002
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    ]  # fmt: skip


QUESTIONS: dict[str, Callable[[PerSampleGradients], object]] = {
    "norms": lambda g: g.norms(),
    "gram": lambda g: g.gram(),
    "direction": lambda g: g.inner(torch.ones(g.p)),
    "directions": lambda g: g.cosine(torch.ones(2, g.p)),
    "mean": lambda g: g.mean(),
    "explicit": lambda g: g.explicit(),
    "project": lambda g: g.project(3, 0),
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("route", ["auto", "func", "loop", "last"])
def test_nothing_is_changed(route: str, question: str) -> None:
    model, batch = prepared()
    if route == "func":
        model[4] = nn.Identity()  # torch.func refuses to write to a buffer; "auto" loops over the rows then
    before = trace(model, batch)
    if route == "last":
        QUESTIONS[question](last_layer_gradients(model, batch))
    else:
        QUESTIONS[question](per_sample_gradients(model, batch, route=route))
    assert trace(model, batch) == before


@pytest.mark.parametrize("route", ["auto", "func", "loop", "last"])
@pytest.mark.parametrize("where", ["model", "loss"])
def test_nothing_is_changed_when_it_fails_half_way(route: str, where: str) -> None:
    model, batch = prepared()
    if route == "func":
        model[4] = nn.Identity()
    fuse = {"left": 1}

    def blow(*_: object) -> None:
        fuse["left"] -= 1
        if fuse["left"] < 0:
            raise KeyError("fuse")

    def loss(outputs: Tensor, rows: Batch) -> Tensor:
        if where == "loss":
            blow()
        return cross_entropy()(outputs, rows)

    if where == "model":
        model[7].register_forward_hook(blow)
    before = trace(model, batch)
    with pytest.raises(KeyError, match="fuse"):
        for _ in range(3):
            if route == "last":
                last_layer_gradients(model, batch, loss).norms()
            else:
                per_sample_gradients(model, batch, loss, route=route).norms()
    assert trace(model, batch) == before


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_callers_may_have_switched_gradients_off(context: Callable[[], object]) -> None:
    model, batch = prepared()
    expected = per_sample_gradients(model, batch).norms(), last_layer_gradients(model, batch).norms()
    with context():  # type: ignore[attr-defined]
        found = per_sample_gradients(model, batch).norms(), last_layer_gradients(model, batch).norms()
        assert per_sample_gradients(model, batch).mean().shape == (found and per_sample_gradients(model, batch).p,)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_hooks_of_the_user_do_not_change_the_gradients() -> None:
    """A hook on a parameter's gradient (a mask, say) belongs to training."""
    model, batch = prepared()
    found = per_sample_gradients(model, batch)
    first = slice(0, model[0].weight.numel())
    assert float(found.explicit()[:, first].norm()) > 0 and float(found.mean()[first].norm()) > 0
    torch.testing.assert_close(found.explicit().mean(0), found.mean())


def test_a_step_in_between_is_noticed() -> None:
    model, batch = prepared()
    structure = Structure(model)
    assert not structure.changed()
    found = per_sample_gradients(model, batch)
    with torch.no_grad():
        model[8].bias.add_(1)
    assert structure.changed()
    with pytest.raises(RuntimeError, match="the model has changed"):
        found.inner(torch.ones(found.p))
    with pytest.raises(RuntimeError, match="the model has changed"):
        found.norms()
