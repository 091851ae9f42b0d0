"""The supervised contrastive loss: closed values, the formula pair by pair, weights, gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import contrastive as reference

from replaykit.contrastive import supervised_contrastive


@pytest.mark.parametrize("n", [2, 3, 4, 10])
def test_two_views_of_identical_embeddings_of_one_class(n: int) -> None:
    z, y = torch.ones(2 * n, 3), torch.zeros(2 * n, dtype=torch.int64)
    for temperature in (0.07, 1.0, 5.0):
        assert supervised_contrastive(z, y, temperature).item() == pytest.approx(math.log(2 * n - 1), rel=1e-5)


def test_the_closed_values() -> None:
    one = torch.ones(8, 3), torch.zeros(8, dtype=torch.int64)
    assert supervised_contrastive(*one).item() == pytest.approx(1.94591, abs=5e-6)
    # Two classes, two views: views aligned, classes orthogonal; and six identical vectors.
    z, y = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]]), torch.tensor([0, 1, 0, 1])
    assert supervised_contrastive(z, y, 5.0).item() == pytest.approx(0.9698, abs=5e-5)
    assert supervised_contrastive(z, y, 5.0).item() == pytest.approx(math.log(1 + 2 * math.exp(-0.2)), rel=1e-6)
    assert supervised_contrastive(torch.ones(6, 2), torch.tensor([0, 1, 2] * 2), 5.0).item() == (
        pytest.approx(math.log(5), rel=1e-6)
    )


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.floats(-2, 2, width=16), min_size=3, max_size=3)),
        min_size=2,
        max_size=8,
    ),
    temperature=st.sampled_from([0.1, 0.5, 2.0]),
)
def test_it_is_the_mean_of_the_formula_over_anchors_with_a_positive(rows, temperature: float) -> None:
    y = [label for label, _ in rows]
    z = [[x + 0.1 * (i + 1) if j == 0 else x for j, x in enumerate(row)] for i, (_, row) in enumerate(rows)]
    z = [row if reference.inner(row, row) > 1e-2 else [1.0, 0.0, 0.0] for row in z]
    values = [value for value in reference.supervised_contrastive(z, y, temperature) if value is not None]
    expected = sum(values) / len(values) if values else 0.0
    ours = supervised_contrastive(torch.tensor(z, dtype=torch.float64), torch.tensor(y), temperature)
    assert ours.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_an_anchor_that_is_alone_says_nothing_but_pushes_the_others() -> None:
    torch.manual_seed(0)
    z, y = torch.randn(5, 3), torch.tensor([0, 0, 1, 1, 2])
    each = reference.supervised_contrastive(z.tolist(), y.tolist(), 0.5)
    assert each[4] is None
    assert supervised_contrastive(z, y, 0.5).item() == pytest.approx(sum(each[:4]) / 4, rel=1e-5)
    without = supervised_contrastive(z[:4], y[:4], 0.5)
    assert without < supervised_contrastive(z, y, 0.5)


def test_without_any_positive_loss_and_gradient_are_zero() -> None:
    z = torch.randn(3, 4, requires_grad=True)
    loss = supervised_contrastive(z, torch.tensor([0, 1, 2]))
    (grad,) = torch.autograd.grad(loss, z)
    assert loss == 0 and not grad.any()


def test_weights_are_those_of_anchors_and_only_their_ratios_matter() -> None:
    torch.manual_seed(1)
    z, y = torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 1, 2])
    each = reference.supervised_contrastive(z.tolist(), y.tolist(), 0.3)
    weight = torch.tensor([1.0, 2, 0, 3, 1, 50])
    expected = (each[0] + 2 * each[1] + 3 * each[3] + each[4]) / 7
    for scale in (1, 10):
        assert supervised_contrastive(z, y, 0.3, scale * weight).item() == pytest.approx(expected, rel=1e-5)
    equal = supervised_contrastive(z, y, 0.3, torch.full((6,), 4.0))
    torch.testing.assert_close(equal, supervised_contrastive(z, y, 0.3))
    assert supervised_contrastive(z, y, 0.3, torch.zeros(6)) == 0


def test_lengths_count_only_without_normalisation() -> None:
    torch.manual_seed(2)
    z, y = torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
    torch.testing.assert_close(supervised_contrastive(3 * z, y), supervised_contrastive(z, y))
    unit = torch.nn.functional.normalize(z, dim=1)
    plain = supervised_contrastive(unit, y, normalise=False)
    torch.testing.assert_close(plain, supervised_contrastive(z, y))
    assert (supervised_contrastive(3 * unit, y, normalise=False) - plain).abs() > 1e-3


def test_order_of_rows_does_not_matter() -> None:
    torch.manual_seed(3)
    z, y, order = torch.randn(8, 3), torch.arange(8) % 3, torch.randperm(8)
    torch.testing.assert_close(supervised_contrastive(z[order], y[order]), supervised_contrastive(z, y))


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(4)
    z = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    y, weight = torch.tensor([0, 0, 1, 1, 1, 2]), torch.rand(6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: supervised_contrastive(z, y, 0.5), z)
    assert torch.autograd.gradcheck(lambda z: supervised_contrastive(z, y, 0.5, weight, normalise=False), z)


def test_large_similarities_do_not_overflow() -> None:
    z = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]], requires_grad=True)
    loss = supervised_contrastive(z, torch.tensor([0, 0, 1, 1]), 1e-3)
    (grad,) = torch.autograd.grad(loss, z)
    assert loss.item() == pytest.approx(0, abs=1e-5) and grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": torch.zeros(4)}, "embeddings .m, d., labels .m."),
        ({"y": torch.zeros(3, dtype=torch.int64)}, "embeddings .m, d., labels .m."),
        ({"weight": torch.ones(2)}, "weights .m. expected, got"),
        ({"temperature": 0.0}, "positive number, got 0.0"),
        ({"temperature": math.nan}, "positive number, got nan"),
    ],
)
def test_bad_input_is_told(change, message: str) -> None:
    given = {"z": torch.zeros(4, 2), "y": torch.zeros(4, dtype=torch.int64), **change}
    with pytest.raises(ValueError, match=message):
        supervised_contrastive(**given)
