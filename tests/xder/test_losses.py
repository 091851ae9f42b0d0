"""The terms of X-DER against their literal form, hand-worked values and gradients."""

import math

import pytest
import torch
from reference import xder as reference
from torch.nn import functional

from replaykit.contrastive import supervised_contrastive
from replaykit.xder import (
    Heads,
    distance_preservation,
    full,
    future_constraint,
    future_preparation,
    past_constraint,
    restricted_cross_entropy,
)

TASKS = [[4, 0], [2], [5, 1, 3]]
HEADS = Heads(TASKS)


def example(n: int = 9, seed: int = 0, c: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, c, dtype=torch.float64, generator=g).requires_grad_()
    return z, torch.arange(n) % c


# -- contrastive ------------------------------------------------------------------------------------


def test_two_classes_with_aligned_views() -> None:
    z = torch.tensor([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 2, dtype=torch.float64)
    y, head = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1])
    value = future_preparation(z, y, [head], 5.0).item()
    assert value == pytest.approx(math.log(1 + 2 * math.exp(-1 / 5)), abs=1e-12)
    assert round(value, 4) == 0.9698


def test_six_equal_vectors() -> None:
    z, y = torch.ones(6, 2, dtype=torch.float64), torch.tensor([0, 0, 0, 0, 1, 1])
    assert future_preparation(z, y, [torch.tensor([0, 1])], 5.0).item() == pytest.approx(math.log(5))


def test_the_mean_over_anchors_is_the_sum_over_samples_of_the_mean_over_views() -> None:
    z, _ = example(12)
    y, a = [0, 1, 0, 3], 3
    fast = future_preparation(z, torch.tensor(y).repeat_interleave(a), HEADS.stage(0, 6).coming, 5.0)
    total = torch.zeros(())
    for head in TASKS[1:]:
        views = [[z[i * a + j, head] for j in range(a)] for i in range(4)]
        total = total + reference.supervised_contrastive(views, y, 5.0)
    torch.testing.assert_close(fast, total / (2 * 4))


def test_views_of_one_head_do_not_move_the_others() -> None:
    z, y = example(8)
    future_preparation(z, y % 2, [torch.tensor([5, 1, 3])], 5.0).backward()
    assert (z.grad[:, [0, 2, 4]] == 0).all() and (z.grad[:, [1, 3, 5]] != 0).any()


def test_one_view_and_one_row_of_a_class_say_nothing() -> None:
    """The published sum divides 0 by 0 there."""
    z, _ = example(3)
    y = torch.tensor([0, 0, 1])
    both = future_preparation(z, y, [torch.tensor([0, 1])], 5.0)
    assert both.isfinite()
    torch.testing.assert_close(
        both, supervised_contrastive(z[:, :2], y, 5.0, weight=torch.tensor([1.0, 1.0, 0.0]))
    )
    assert future_preparation(z[:2], torch.tensor([0, 1]), [torch.tensor([0, 1])], 5.0) == 0


# -- cross-entropy and constraints -------------------------------------------------------------------


def test_cross_entropy_of_a_head_leaves_the_others_alone() -> None:
    z, _ = example(6)
    y = torch.tensor([4, 0, 4, 0, 0, 4])
    loss = restricted_cross_entropy(z, y, HEADS.stage(0, 6).present)
    torch.testing.assert_close(loss, functional.cross_entropy(z[:, [4, 0]], torch.tensor([0, 1, 0, 1, 1, 0])))
    loss.backward()
    assert (z.grad[:, [1, 2, 3, 5]] == 0).all() and (z.grad[:, [0, 4]] != 0).all()


@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
def test_future_constraint(margin: float) -> None:
    z, y = example()
    stage = HEADS.stage(0, 6)
    fast = future_constraint(z, stage.own(y), stage.future, margin)
    gaps = []
    for i, label in enumerate(y.tolist()):
        own = next(head for head in TASKS if label in head)
        gaps.append(z[i, [2, 5, 1, 3]].max() + margin - z[i, own].max())
    torch.testing.assert_close(fast, reference.violations(gaps))
    # The largest output of the own head, not that of the label: where that is another one, the label gets nothing.
    fast.backward()
    for i, label in enumerate(y.tolist()):
        own = next(head for head in TASKS if label in head)
        if label != own[int(z[i, own].argmax())] and label not in (2, 5, 1, 3):
            assert z.grad[i, label] == 0


@pytest.mark.parametrize("margin", [0.1, 0.7])
def test_past_constraint(margin: float) -> None:
    z, _ = example()
    stage = HEADS.stage(1, 6)
    fast = past_constraint(z, stage.past, stage.present, margin)
    p = z[:, [4, 0, 2]].softmax(1)
    gaps = [row[:2].max().detach() + margin - row[2] for row in p]
    torch.testing.assert_close(fast, reference.violations(gaps))
    again = torch.autograd.grad(reference.violations(gaps), z)[0]
    torch.testing.assert_close(torch.autograd.grad(fast, z)[0], again)
    assert (again[:, [5, 1, 3]] == 0).all()


def test_no_violation_no_loss() -> None:
    z = torch.tensor([[9.0, -9.0, -9.0, -9.0, 9.0, -9.0]], requires_grad=True)
    stage = HEADS.stage(0, 6)
    loss = future_constraint(z, stage.own(torch.tensor([4])), stage.future, 0.5)
    assert loss == 0
    loss.backward()
    assert (z.grad == 0).all()


# -- distances ----------------------------------------------------------------------------------------


def test_distance_preservation() -> None:
    z, _ = example(5)
    stored = torch.randn(5, 6, dtype=torch.float64)
    coming = HEADS.stage(0, 6).coming
    literal = [reference.distance(z[:, head], stored[:, head]) for head in TASKS[1:]]
    torch.testing.assert_close(distance_preservation(z, stored, coming), sum(literal) / 2)
    assert distance_preservation(3 * stored, stored, coming) == pytest.approx(0, abs=1e-15)


def test_halves_are_widened_and_doubles_stay() -> None:
    assert full(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32
    assert full(torch.ones(2, dtype=torch.float64)).dtype == torch.float64
