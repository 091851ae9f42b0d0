"""Distillation from the network of the last task."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from replaykit.losses import Distillation, TaskAware


def model(classes: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, classes)
    ).eval()


def batch(n: int = 6) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(n, 5, generator=torch.Generator().manual_seed(1))}


def test_the_hand_worked_value() -> None:
    # Old logits (ln 3, 0), new (0, 0), T = 1: KL = 0.75 ln 1.5 + 0.25 ln 0.5.
    loss = Distillation(temperature=1.0)
    loss.remember(nn.Linear(1, 2))
    loss.old = nn.Linear(1, 2)
    with torch.no_grad():
        loss.old.weight.zero_(), loss.old.bias.copy_(torch.tensor([math.log(3), 0]))
    value = loss.divergence(torch.zeros(4, 2), {"x": torch.zeros(4, 1)})
    assert value.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)
    # T = 2: old probabilities (√3, 1) / (√3 + 1), times 4.
    p = math.sqrt(3) / (math.sqrt(3) + 1)
    loss.temperature = 2.0
    value = loss.divergence(torch.zeros(4, 2), {"x": torch.zeros(4, 1)})
    assert value.item() == pytest.approx(4 * (p * math.log(2 * p) + (1 - p) * math.log(2 - 2 * p)), rel=1e-5)


def test_nothing_happens_before_the_first_task_is_over() -> None:
    assert Distillation()(lambda x: pytest.fail("the model ran"), lambda: pytest.fail("a draw")) == 0
    loss = Distillation(0.0)
    loss.remember(model())
    assert loss(lambda x: pytest.fail("the model ran"), lambda: pytest.fail("a draw")) == 0


def test_a_model_is_at_no_distance_from_its_copy_and_then_moves_away() -> None:
    new, rows = model(), batch()
    loss = Distillation(3.0)
    loss.remember(new)
    assert loss(new, lambda: rows).item() == pytest.approx(0, abs=1e-6)
    (grad,) = torch.autograd.grad(loss(new, lambda: rows), new[4].weight)
    assert grad.abs().max() < 1e-6
    with torch.no_grad():
        new[4].weight.mul_(3)
    log_old, log_new = (functional.log_softmax(m(rows["x"]) / 2, 1) for m in (loss.old, new))
    expected = 3 * 4 * (log_old.exp() * (log_old - log_new)).sum(1).mean()
    torch.testing.assert_close(loss(new, lambda: rows), expected)


def test_the_copy_stands_still() -> None:
    new, rows = model(), batch()
    loss = Distillation()
    loss.remember(new)
    before = {name: value.clone() for name, value in loss.old.state_dict().items()}
    new.train()
    loss(new, lambda: rows).backward()
    assert all(torch.equal(value, before[name]) for name, value in loss.old.state_dict().items())
    assert not loss.old.training and not any(p.requires_grad for p in loss.old.parameters())
    assert new.training and all(p.requires_grad for p in new.parameters())


def test_only_the_given_classes_are_distilled() -> None:
    new, other, rows = model(), model(seed=1), batch()
    loss = Distillation(temperature=1.0)
    loss.remember(new, torch.tensor([True, False, True, False]))
    z = other(rows["x"]).detach().requires_grad_()
    value = loss.divergence(z, rows)
    (grad,) = torch.autograd.grad(value, z)
    assert not grad[:, [1, 3]].any() and grad[:, [0, 2]].any()
    log_old, log_new = (functional.log_softmax(w[:, [0, 2]], 1) for w in (new(rows["x"]), z))
    torch.testing.assert_close(value, (log_old.exp() * (log_old - log_new)).sum(1).mean())
    with pytest.raises(ValueError, match="no class is to be distilled"):
        loss.remember(new, torch.zeros(4, dtype=torch.bool))


def test_heads_that_grew_are_compared_where_the_old_one_had_outputs() -> None:
    old, rows = model(3), batch()
    loss = Distillation()
    loss.remember(old)
    z = torch.cat([old(rows["x"]).detach(), torch.randn(6, 2)], 1)
    assert loss.divergence(z, rows).item() == pytest.approx(0, abs=1e-6)


def test_a_task_aware_model_is_asked_with_task_labels() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return x[:, :2] * (1 + t[:, None])

    loss = Distillation()
    loss.remember(Two())
    rows = {**batch(), "t": torch.tensor([0, 1] * 3)}
    assert loss(TaskAware(Two()), lambda: rows).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("classes", [None, torch.tensor([True, True, False, True])])
def test_the_state_comes_back_bit_for_bit(classes) -> None:
    loss, rows, new = Distillation(), batch(), model(seed=2)
    assert loss.state_dict() == {}
    loss.remember(model(), classes)
    copy = Distillation()
    copy.load_state_dict(loss.state_dict(), model(seed=3))
    assert torch.equal(copy(new, lambda: rows), loss(new, lambda: rows))
    copy.load_state_dict({}, model())
    assert copy.old is None


def test_a_state_that_does_not_fit_is_refused() -> None:
    loss = Distillation()
    loss.remember(model(3))
    kept = loss.old
    with pytest.raises(ValueError, match="does not fit Sequential"):
        loss.load_state_dict({"old": model(4).state_dict()}, model(3))
    with pytest.raises(ValueError, match="not the state of a distillation: it has .'new'"):
        loss.load_state_dict({"new": 1}, model(3))
    assert loss.old is kept
    with pytest.raises(ValueError, match="temperature is a positive number"):
        Distillation(temperature=0)


def test_a_copy_from_before_the_head_grew_comes_back() -> None:
    loss, rows = Distillation(), batch()
    loss.remember(model(3))
    copy = Distillation()
    copy.load_state_dict(loss.state_dict(), model(5, seed=1))
    assert copy(model(5), lambda: rows) == loss(model(5), lambda: rows) > 0


def test_rows_of_a_task_that_the_old_network_has_no_head_for_are_told() -> None:
    class Heads(nn.Module):
        def __init__(self, tasks: int) -> None:
            super().__init__()
            self.heads = nn.ModuleDict({str(task): nn.Linear(5, 2) for task in range(tasks)})

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return torch.stack([self.heads[str(int(task))](row) for row, task in zip(x, t, strict=True)])

    loss = Distillation()
    loss.remember(Heads(1))
    rows = {**batch(), "t": torch.tensor([0, 1] * 3)}
    with pytest.raises(ValueError, match=r"tasks \[0, 1\] .* no head for one of them .*update='experience'"):
        loss(TaskAware(Heads(2)), lambda: rows)
