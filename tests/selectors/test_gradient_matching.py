"""GradMatch and GCR: weights that compose, budgets by class, a ridge in units of the gradients."""

import numpy as np
import pytest
import torch
from reference import coresets
from reference.factored import Factored

from replaykit.selectors import GCR, GradMatch, Pool, equal
from replaykit.selectors.gradient_matching import grad_approx
from replaykit.selectors.matching_pursuit import matching_pursuit
from replaykit.selectors.pool import as_vectors


def gradients(n: int, seed: int = 0, shift: float = 0.3) -> Factored:
    rng = np.random.default_rng(seed)
    return Factored(
        torch.from_numpy(rng.normal(size=(n, 3)) + shift), torch.from_numpy(rng.normal(size=(n, 4)) + shift)
    )


def test_it_is_the_literal_loop_on_explicit_gradients() -> None:
    g, weight = gradients(40), torch.from_numpy(np.random.default_rng(1).random(40))
    atoms = g.dense().T.numpy()
    for lam in (0.0, 0.5):
        rows, weights, _ = coresets.matching_pursuit(atoms, atoms @ weight.numpy(), 8, lam)
        found = grad_approx(g, weight, 8, lam, relative=False)
        assert found.rows.tolist() == rows
        assert found.weights.tolist() == pytest.approx(weights.tolist())


def test_a_pool_of_one_row_gives_back_its_weight() -> None:
    g = torch.tensor([[0.3, -2.0]])
    pool = Pool(1, weight=torch.tensor([5.0]), gradients=g)
    rng = np.random.default_rng(0)
    rows, weights = GCR(lam=0.0).select(pool, 3, rng)
    assert rows.tolist() == [0] and weights.tolist() == pytest.approx([5])
    # GradMatch knows no weights, and a ridge of 0.5 takes a third of one.
    assert GradMatch(lam=0.0).select(pool, 3, rng)[1].tolist() == pytest.approx([1])
    assert GradMatch().select(pool, 3, rng)[1].tolist() == pytest.approx([2 / 3])


def test_selecting_again_composes_the_weights() -> None:
    g = torch.tensor([[1.0, 0]] * 5 + [[0, 1.0]] * 3)
    rng = np.random.default_rng(0)
    rows, weights = GCR(lam=0.0).select(Pool(8, gradients=g), 2, rng)
    assert rows.tolist() == [0, 5] and weights.tolist() == pytest.approx([5, 3])
    # The coreset and two candidates: it stands for its eight rows still.
    union = torch.cat([g[rows], g[:2]])
    rows, weights = GCR(lam=0.0).select(Pool(4, None, torch.tensor([5.0, 3, 1, 1]), gradients=union), 2, rng)
    assert rows.tolist() == [0, 1] and weights.tolist() == pytest.approx([7, 3])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_the_ridge_is_in_units_of_the_gradients(scale: float) -> None:
    g = gradients(40)
    scaled = Factored(g.r * scale, g.h)
    pool, rng = Pool(40, gradients=scaled), np.random.default_rng(0)
    rows, weights = GCR().select(pool, 10, rng)
    plain = GCR().select(Pool(40, gradients=g), 10, rng)
    assert rows.tolist() == plain[0].tolist()
    assert torch.allclose(weights, plain[1])
    # Normalising the gradients by their mean norm and using lam as it is gives the same.
    unit = as_vectors(scaled.dense() / scaled.norms().mean())
    by_hand = grad_approx(unit, torch.ones(40), 10, 0.5, relative=False)
    assert by_hand.rows.tolist() == rows.tolist() and torch.allclose(by_hand.weights, weights)
    if scale != 1:
        assert not torch.allclose(GCR(relative=False).select(pool, 10, rng)[1], weights)


def test_every_flag_changes_the_result() -> None:
    y = torch.arange(50) % 5 // 2
    pool = Pool(50, y, torch.arange(1.0, 51), gradients=gradients(50))
    results = {}
    for name, selector in {
        "gcr": GCR(),
        "lam": GCR(lam=0.0),
        "eps": GCR(eps=1e9),
        "relative": GCR(relative=False),
        "shares": GCR(shares=equal),
        "unweighted": GradMatch(),
        "mean": GradMatch(mean=True),
    }.items():
        rows, weights = selector.select(pool, 12, np.random.default_rng(0))
        results[name] = (tuple(rows.tolist()), tuple(weights.tolist()))
    assert len(set(results.values())) == len(results)


def test_matching_the_mean_scales_the_weights() -> None:
    g, rng = gradients(40), np.random.default_rng(0)
    pool = Pool(40, gradients=g)
    summed, mean = (GradMatch(lam=0.0, mean=m).select(pool, 10, rng) for m in (False, True))
    assert summed[0].tolist() == mean[0].tolist()
    assert torch.allclose(summed[1], 40 * mean[1])


def test_quotas_follow_the_classes_and_each_class_matches_its_own_sum() -> None:
    y = torch.tensor([0] * 30 + [2] * 10 + [7] * 20)
    g, rng = gradients(60), np.random.default_rng(0)
    weight = torch.from_numpy(rng.random(60))
    rows, weights = GCR().select(Pool(60, y, weight, gradients=g), 12, rng)
    assert {c: int((y[rows] == c).sum()) for c in (0, 2, 7)} == {0: 6, 2: 2, 7: 4}
    for c, k in ((0, 6), (2, 2), (7, 4)):
        members = (y == c).nonzero().flatten()
        found = grad_approx(g.rows(members), weight[members], k)
        assert rows[y[rows] == c].tolist() == members[found.rows].tolist()
        assert weights[y[rows] == c].tolist() == found.weights.tolist()


def test_a_class_of_zero_gradients_is_filled_at_equal_weights() -> None:
    g = gradients(20)
    g.r[:8] = 0
    y = torch.tensor([0] * 8 + [1] * 12)
    weight = torch.arange(1.0, 21)
    rows, weights = GCR().select(Pool(20, y, weight, gradients=g), 5, np.random.default_rng(0))
    empty = y[rows] == 0
    assert rows[empty].tolist() == [0, 1]
    assert weights[empty].tolist() == [18, 18]  # the 36 that the class stands for
    assert weights[~empty].isfinite().all() and len(rows) == 5


def test_identical_gradients_keep_their_sum() -> None:
    g = torch.ones(9, 4)
    rows, weights = GCR(lam=0.0).select(Pool(9, gradients=g), 3, np.random.default_rng(0))
    assert rows.tolist() == [0, 1, 2]
    assert weights[0] == pytest.approx(9)


@pytest.mark.parametrize("max_bytes", [1, 100 * 8 * 5, 2**31])
def test_a_byte_budget_changes_nothing(max_bytes: int) -> None:
    g, rng = gradients(100), np.random.default_rng(0)
    expected = grad_approx(g, torch.ones(100), 30)
    gram = g.gram()
    whole = matching_pursuit(gram, gram.sum(1), 30, float(gram.sum()), 0.5 * float(g.norms().mean() ** 2))
    rows, weights = GCR(max_bytes=max_bytes).select(Pool(100, gradients=g), 30, rng)
    assert rows.tolist() == expected.rows.tolist() == whole.rows.tolist()
    assert torch.allclose(weights, expected.weights) and torch.allclose(weights, whole.weights)


def test_errors_name_the_selector_the_quantity_and_the_class() -> None:
    g = gradients(6)
    g.r[4] = torch.nan
    pool = Pool(6, torch.tensor([0, 0, 0, 3, 3, 3]), gradients=g)
    with pytest.raises(ValueError, match=r"GCR: gradients of row 1 holds NaN.*\(class 3\)"):
        GCR().select(pool, 4, np.random.default_rng(0))
    pool = Pool(6, torch.tensor([0, 0, 0, 3, 3, 3]), gradients=gradients(6))
    with pytest.raises(ValueError, match=r"GCR: .*lam and eps must be >= 0.*got lam=-1.0.*\(class 0\)"):
        GCR(lam=-1.0).select(pool, 4, np.random.default_rng(0))
