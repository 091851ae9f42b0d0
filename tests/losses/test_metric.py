"""ER-AML's loss: hand-worked values, the formula pair by pair, and whom a row may be compared with."""

import math

import numpy as np
import pytest
import torch
from reference import contrastive as reference
from scipy.stats import chi2
from torch import nn

from replaykit.losses import AML, asymmetric_metric, draw_partners


def test_the_hand_worked_values() -> None:
    anchor, partners = torch.tensor([[1.0, 0]]).double(), torch.tensor([[1.0, 0], [0, 1]]).double()
    y, labels = torch.tensor([3]), torch.tensor([3, 5])
    assert asymmetric_metric(anchor, y, partners, labels, 0.2).item() == pytest.approx(0.019187, abs=5e-7)
    assert asymmetric_metric(anchor, y, partners, labels, 0.1).item() == pytest.approx(6.486e-5, rel=2e-4)
    closed = 0.2 / 0.07 * math.log(1 + math.exp(-5))
    assert asymmetric_metric(anchor, y, partners, labels).item() == pytest.approx(closed, rel=1e-5)


def test_anchors_contrast_with_everybodys_partners() -> None:
    g = torch.Generator().manual_seed(0)
    anchors = torch.randn(5, 4, generator=g, dtype=torch.float64, requires_grad=True)
    partners = torch.randn(10, 4, generator=g, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 1, 2, 0])
    labels = torch.cat([y, torch.tensor([1, 0, 2, 1, 2])])
    ours = asymmetric_metric(anchors, y, partners, labels, 0.3, 0.05)
    lists = anchors.tolist(), y.tolist(), partners.tolist(), labels.tolist()
    assert ours.item() == pytest.approx(reference.asymmetric_metric(*lists, 0.3, 0.05), rel=1e-10)
    alone = [
        reference.asymmetric_metric([a], [c], [p, n], [c, d], 0.3, 0.05)
        for a, c, p, n, d in zip(*lists[:2], lists[2][:5], lists[2][5:], lists[3][5:], strict=True)
    ]
    assert abs(ours.item() - sum(alone) / 5) > 1e-2, "own partners only would be another loss"
    assert torch.autograd.gradcheck(lambda a, q: asymmetric_metric(a, y, q, labels), (anchors, partners))


def test_no_anchor_is_a_loss_and_a_gradient_of_zero() -> None:
    anchors = torch.randn(3, 4, requires_grad=True)
    none = torch.empty(0, dtype=torch.int64)
    loss = asymmetric_metric(anchors[none], none, torch.empty(0, 4), none)
    (grad,) = torch.autograd.grad(loss, anchors)
    assert loss == 0 and not grad.any()


def test_an_anchor_without_a_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="no partner of its own label; leave out"):
        asymmetric_metric(torch.ones(1, 2), torch.tensor([0]), torch.ones(1, 2), torch.tensor([1]))


# -- partners -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_partners_are_those_that_the_rule_allows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    held, y = rng.integers(5, size=rng.integers(0, 12)), rng.integers(5, size=rng.integers(1, 6))
    pool = np.concatenate([held, y])
    allowed = reference.possible_partners(y.tolist(), pool.tolist(), len(held))
    rows, positive, negative = draw_partners(y, pool, len(held), rng)
    assert rows.tolist() == [i for i, (p, n) in enumerate(allowed) if p and n]
    for row, p, n in zip(rows, positive, negative, strict=True):
        assert p in allowed[row][0] and n in allowed[row][1]


def test_negatives_have_labels_of_the_incoming_batch() -> None:
    # Class 2 fills the memory and is not in the batch, so it is nobody's negative.
    y, held = np.array([0, 1, 0]), np.full(50, 2)
    pool = np.concatenate([held, y])
    for seed in range(20):
        rows, _, negative = draw_partners(y, pool, 50, np.random.default_rng(seed))
        assert rows.tolist() == [0, 2], "row 1 has no positive"
        assert (pool[negative] == 1).all()
    rows, *_ = draw_partners(np.array([0, 0]), np.array([1, 1, 0, 0]), 2, np.random.default_rng(0))
    assert len(rows) == 0, "a batch of one class has no negatives"


def test_partners_are_uniform() -> None:
    y, pool, runs = np.array([0, 1]), np.array([0, 0, 1, 1, 2, 0, 1]), 6000
    rng = np.random.default_rng(0)
    drawn = [draw_partners(y, pool, 5, rng) for _ in range(runs)]
    for of in (1, 2):
        for row, places in ((0, [0, 1] if of == 1 else [2, 3, 6]), (1, [2, 3] if of == 1 else [0, 1, 5])):
            found = np.array([draw[of][row] for draw in drawn])
            counts = np.array([(found == place).sum() for place in places])
            assert counts.sum() == runs
            expected = runs / len(places)
            assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(0.9999, len(places) - 1)


# -- as a replay loss ---------------------------------------------------------------------------------


def test_the_replay_loss_is_the_metric_loss_of_a_draw() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    batch = {"x": torch.randn(8, 5), "y": torch.arange(8) % 3}
    state = torch.get_rng_state()
    value = AML(0.5)(model, lambda: batch)
    torch.set_rng_state(state)
    rng = np.random.default_rng(int(torch.randint(2**62, ())))
    labels = batch["y"].numpy()
    rows, *both = draw_partners(labels, labels, 0, rng)
    chosen = np.concatenate(both)
    z = model[:2](batch["x"])
    y = batch["y"]
    expected = 0.5 * asymmetric_metric(z[rows], y[rows], z[chosen], y[chosen])
    torch.testing.assert_close(value, expected)
    assert AML.columns == ("x", "y")


@pytest.mark.parametrize("name", ["temperature", "base_temperature"])
def test_temperatures_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is a positive number, got 0"):
        AML(**{name: 0.0})
