"""Greedy bilevel coresets: hand-worked numbers, finite differences, dense oracles, laws and bad input."""

import numpy as np
import pytest
import torch
from reference import bilevel as reference

from replaykit.selectors import RBF, Bilevel, CrossEntropy, FullyConnectedNTK, Linear, Pool, SquaredError
from replaykit.selectors.gram import DenseGram
from replaykit.selectors.newton import conjugate_gradients, factored, fit, solve
from replaykit.selectors.pool import Dense
from replaykit.selectors.proxy import Representer

ones = lambda n: torch.ones(n, dtype=torch.float64)  # noqa: E731
LOSSES = {
    "cross-entropy": (CrossEntropy(), reference.CrossEntropy),
    "squared": (SquaredError(), reference.Squared),
}


def line() -> tuple[torch.Tensor, torch.Tensor]:
    """Four points on a parabola and the kernel 1 + x x'."""
    x = torch.arange(4.0, dtype=torch.float64)
    return 1 + x[:, None] * x, (x**2)[:, None]


def random_pool(n: int = 12, classes: int = 3, d: int = 4, seed: int = 0) -> Pool:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=g)
    y[:classes] = torch.arange(classes)
    x = torch.randn(n, d, generator=g, dtype=torch.float64) + y[:, None]
    return Pool(n, y, torch.rand(n, generator=g, dtype=torch.float64) + 0.5, x=x)


def grown(pool, support, loss, ridge=0.01, kernel=None, capacity=None, tolerance=1e-12) -> Representer:
    x = pool.tensor("x")
    gram = DenseGram((kernel or RBF(2.0))(x))
    model = Representer(
        gram, loss.targets(pool.y, None), pool.weight, ridge, loss, capacity or len(support), tolerance
    )
    for row in support:
        model.add(row)
    return model


# -- hand-worked -----------------------------------------------------------------------------------


def test_parabola_by_hand():
    kernel, y = line()
    model = Representer(DenseGram(kernel), y, ones(4), 0.1, SquaredError(), 2, 1e-12)
    model.add(0)
    model.add(3)
    model.fit(ones(2))
    torch.testing.assert_close(
        model.coefficients.flatten(), torch.tensor([-0.800712, 0.960854]).double(), atol=1e-6, rtol=0
    )
    assert model.outer() == pytest.approx(1.985468, abs=1e-6)
    torch.testing.assert_close(
        model.weight_gradient(ones(2)), torch.tensor([-0.144331, 0.170350]).double(), atol=1e-6, rtol=0
    )
    for on_support in (False, True):
        scores = model.scores(ones(2), on_support=on_support)
        torch.testing.assert_close(scores[1:3], torch.tensor([-1.830935, -1.716163]).double(), atol=1e-6, rtol=0)
        # As released: the mean over two selected rows and two candidates.
        compat = model.scores(ones(2), total=4, on_support=on_support)
        torch.testing.assert_close(compat[1:3], torch.tensor([-1.6571, -1.6294]).double(), atol=1e-4, rtol=0)


def test_parabola_gradient_is_a_central_difference():
    kernel, y = line()
    rows, h = [0, 3], 1e-5
    for i, expected in enumerate((-0.144331, 0.170350)):
        values = []
        for sign in (1, -1):
            weight = ones(2)
            weight[i] += sign * h
            model = Representer(DenseGram(kernel), y, ones(4), 0.1, SquaredError(), 2, 1e-13)
            for row in rows:
                model.add(row)
            model.fit(weight)
            values.append(model.outer())
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(expected, abs=1e-6)


def test_greedy_does_not_beat_the_enumeration():
    kernel, y = line()
    one = reference.best_subsets(kernel, y, 0.1, reference.Squared, 1)
    two = reference.best_subsets(kernel, y, 0.1, reference.Squared, 2)
    assert one[0][1] == (3,) and one[0][0] == pytest.approx(3.0962, abs=1e-4)
    values = {subset: value for value, subset in two}
    for subset, value in {(2, 3): 1.0141, (1, 3): 1.1572, (0, 3): 1.9855}.items():
        assert values[subset] == pytest.approx(value, abs=1e-4)
    assert two[0][1] == (2, 3)
    pool = Pool(4, y[:, 0], x=torch.arange(4.0)[:, None])
    seen = set()
    for seed in range(20):
        rows, weights = Bilevel(Linear(1.0), ridge=0.1, loss=SquaredError()).select(
            pool, 2, np.random.default_rng(seed)
        )
        seen.add(int(rows[0]))
        assert values[tuple(sorted(rows.tolist()))] >= two[0][0] - 1e-9
        assert torch.equal(weights, ones(2))
    assert seen == {0, 1, 2, 3}


# -- the inner problem -----------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.7, 2.0])
def test_squared_loss_solves_the_normal_equations(width):
    pool = random_pool(20)
    kernel, weight = RBF(width)(pool.tensor("x")), pool.weight
    y = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = fit(kernel, y, weight, 0.01, SquaredError(), tolerance=1e-12)
    residual = weight[:, None] * (kernel @ a - y) + 20 * 0.01 * a
    if width < 1:  # well conditioned: the coefficients themselves are determined
        assert residual.norm() < 1e-8
    assert (kernel @ residual).norm() < 1e-8
    exact = torch.linalg.solve(
        torch.diag(weight) @ kernel + 20 * 0.01 * torch.eye(20).double(), weight[:, None] * y
    )
    torch.testing.assert_close(kernel @ a, kernel @ exact, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("ridge", [1e-1, 1e-4, 1e-7])
def test_cross_entropy_is_stationary(ridge):
    pool = random_pool(25)
    kernel, loss = RBF(2.0)(pool.tensor("x")), CrossEntropy()
    targets, weight = loss.targets(pool.y, None), pool.weight
    a = fit(kernel, targets, weight, ridge, loss).requires_grad_()
    predictions = kernel @ a
    (weight @ loss.values(predictions, targets) / 25 + ridge * (a * predictions).sum()).backward()
    assert a.grad is not None and a.grad.norm() < 1e-5
    other = fit(kernel, targets, weight, ridge, loss, start=torch.randn(25, 3, dtype=torch.float64))
    torch.testing.assert_close(kernel @ other, predictions.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
@pytest.mark.parametrize("width", [0.5, 20.0])  # the kernel close to the identity, and close to rank one
def test_two_solvers_of_the_newton_system(loss, width):
    ours, plain = LOSSES[loss]
    pool = random_pool(15)
    kernel = RBF(width)(pool.tensor("x"))
    g = torch.Generator().manual_seed(0)
    predictions, rhs = torch.randn(2, 15, 3, dtype=torch.float64, generator=g)
    weight = pool.weight.clone()
    weight[4] = 0
    curvature = ours.curvature(predictions, weight)
    blocks = plain.curves(predictions, rhs) * weight[:, None, None]
    dense = 0.05 * torch.eye(45).double() + torch.einsum("icd,ij->icjd", blocks, kernel).reshape(45, 45)
    exact = torch.linalg.solve(dense, rhs.flatten()).reshape(15, 3)
    x, gram_x = factored(kernel, curvature, 0.05, rhs)
    torch.testing.assert_close(x, exact, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(gram_x, kernel @ x)
    x, gram_x, left = conjugate_gradients(kernel, curvature, 0.05, rhs, 1e-12)
    torch.testing.assert_close(gram_x, kernel @ exact, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(gram_x, kernel @ x, atol=1e-8, rtol=1e-8)
    assert left <= 1e-12


def test_both_solvers_select_alike(monkeypatch):
    pool = random_pool(60, seed=5)
    chosen = []
    for limit in (0, 1000):
        monkeypatch.setattr("replaykit.selectors.newton.DIRECT", limit)
        rows, weights = Bilevel(max_outer=2).select(pool, 25, np.random.default_rng(0))
        chosen.append((rows.tolist(), weights))
    assert chosen[0][0] == chosen[1][0]
    torch.testing.assert_close(chosen[0][1], chosen[1][1], atol=1e-4, rtol=0)


def test_factors_take_over_where_conjugate_gradients_give_up():
    pool = random_pool(120)
    kernel, loss = RBF(3.0)(pool.tensor("x")), CrossEntropy()
    curvature = loss.curvature(torch.zeros(120, 3).double(), pool.weight)
    rhs = loss.residuals(torch.zeros(120, 3).double(), loss.targets(pool.y, None))
    assert conjugate_gradients(kernel, curvature, 1e-5, rhs, 1e-12)[2] > 1e-12  # after 300 steps
    x, gram_x = solve(kernel, curvature, 1e-5, rhs, 1e-12)
    assert float((1e-5 * x + curvature(gram_x) - rhs).norm() / rhs.norm()) < 1e-6


@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
def test_losses_are_those_of_autograd(loss):
    ours, plain = LOSSES[loss]
    g = torch.Generator().manual_seed(0)
    predictions, v = torch.randn(2, 6, 3, dtype=torch.float64, generator=g)
    targets = CrossEntropy().targets(torch.tensor([0, 1, 2, 2, 1, 0]), None)
    torch.testing.assert_close(ours.values(predictions, targets), plain.values(predictions, targets))
    total = lambda p: plain.values(p, targets).sum()  # noqa: E731
    torch.testing.assert_close(ours.residuals(predictions, targets), torch.func.grad(total)(predictions))
    weight = torch.rand(6, dtype=torch.float64, generator=g)
    weighted = lambda p: weight @ plain.values(p, targets)  # noqa: E731
    _, product = torch.func.jvp(torch.func.grad(weighted), (predictions,), (v,))
    torch.testing.assert_close(ours.curvature(predictions, weight)(v), product)


# -- implicit gradients ----------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
@pytest.mark.parametrize("on_support", [False, True])
def test_scores_are_finite_differences(loss, on_support):
    """n = 12, C = 3: every row's score, in and out of the support, by a central difference in its weight."""
    ours, plain = LOSSES[loss]
    pool, support = random_pool(), [4, 0, 7, 2]
    model = grown(pool, support, ours)
    weight = torch.tensor([1.0, 0.5, 1.5, 0.8]).double()
    model.fit(weight)
    scores = model.scores(weight, on_support=on_support)
    kernel, targets = model.gram.values, ours.targets(pool.y, None)
    for k in range(12):
        index = support if k in support else [*support, k]
        basis = support if on_support else index
        values = []
        for h in (1e-4, -1e-4):
            w = torch.cat([weight, ones(1) * 0])[: len(index)]
            w[index.index(k)] += h
            values.append(
                reference.outer_value(kernel, targets, pool.weight, 0.01, plain, index, w, basis, len(support))
            )
        assert float(scores[k]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4, abs=1e-8)
    torch.testing.assert_close(model.weight_gradient(weight), scores[support], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
@pytest.mark.parametrize("on_support", [False, True])
@pytest.mark.parametrize("total", [None, 12])
def test_scores_are_those_of_dense_hessians(loss, on_support, total):
    ours, plain = LOSSES[loss]
    pool, support = random_pool(seed=1), [1, 8, 3]
    model = grown(pool, support, ours)
    weight = torch.tensor([1.0, 0.7, 1.2]).double()
    model.fit(weight)
    expected = reference.scores(
        model.gram.values, ours.targets(pool.y, None), pool.weight, 0.01, plain, support, weight, on_support, total
    )
    torch.testing.assert_close(model.scores(weight, total, on_support), expected, rtol=1e-6, atol=1e-10)


def test_the_two_forms_differ():
    pool = random_pool()
    model = grown(pool, [4, 0], CrossEntropy())
    model.fit(ones(2))
    free, bound = model.scores(ones(2)), model.scores(ones(2), on_support=True)
    torch.testing.assert_close(free[[4, 0]], bound[[4, 0]])
    assert (free - bound).abs().max() > 0.01 * free.abs().max()


@pytest.mark.parametrize("seed", range(3))
def test_a_row_with_a_negative_score_helps(seed):
    pool, support = random_pool(seed=seed), [0, 5, 9]
    model = grown(pool, support, CrossEntropy())
    model.fit(ones(3))
    before = model.outer()
    scores = model.scores(ones(3))
    best = int(scores.argmin())
    assert scores[best] < 0 and best not in support
    bigger = grown(pool, [*support, best], CrossEntropy())
    found = []
    for h in (1e-3, 1e-2, 1e-1):
        bigger.fit(torch.tensor([1, 1, 1, h]).double() * 4 / 3)  # the same mean over three rows
        found.append(bigger.outer())
    assert min(found) < before


@pytest.mark.parametrize("on_support", [False, True])
def test_greedy_order_is_that_of_the_literal_algorithm(on_support):
    pool = random_pool(15, seed=3)
    selector = Bilevel(RBF(2.0), ridge=0.01, on_support=on_support)
    rows, _ = selector.select(pool, 6, np.random.default_rng(5))
    expected = reference.greedy(
        RBF(2.0)(pool.tensor("x")),
        CrossEntropy().targets(pool.y, None),
        pool.weight,
        0.01,
        reference.CrossEntropy,
        6,
        int(rows[0]),
        on_support,
    )
    assert rows.tolist() == expected


# -- the selector ----------------------------------------------------------------------------------


def test_a_smaller_coreset_is_a_prefix():
    pool = random_pool(40)
    for selector in (Bilevel(), Bilevel(compat=True, candidates=5), Bilevel(start=3, max_outer=2)):
        long, _ = selector.select(pool, 20, np.random.default_rng(1))
        for k in (1, 2, 7):
            short, _ = selector.select(pool, k, np.random.default_rng(1))
            assert short.tolist() == long[:k].tolist()


FLAGS = {
    "kernel": Linear(1.0),
    "ridge": 1.0,
    "loss": SquaredError(),
    "classes": 10,
    "on_support": True,
    "start": 5,
    "candidates": 3,
    "compat": True,
}


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_changes_the_selection(flag):
    pool = random_pool(60, classes=5, seed=2)
    plain, _ = Bilevel().select(pool, 25, np.random.default_rng(0))
    other, _ = Bilevel(**{flag: FLAGS[flag]}).select(pool, 25, np.random.default_rng(0))
    assert plain.tolist() != other.tolist()


def test_weight_optimisation_lowers_the_outer_loss():
    pool = random_pool(40, seed=4)
    found = {}
    for steps, rate in ((0, 0.05), (10, 0.05), (10, 0.2)):
        selector = Bilevel(RBF(2.0), ridge=0.01, max_outer=steps, outer_rate=rate)
        rows, weights = selector.select(pool, 8, np.random.default_rng(0))
        assert weights.mean() == pytest.approx(1) and (weights >= 0).all()
        found[steps, rate] = weights
    assert torch.equal(found[0, 0.05], ones(8))
    assert not torch.allclose(found[10, 0.05], found[0, 0.05])
    assert not torch.allclose(found[10, 0.05], found[10, 0.2])

    model = grown(pool, rows.tolist(), CrossEntropy())
    model.fit(ones(8))
    before = model.outer()
    Bilevel(max_outer=20, outer_rate=0.02)._optimised(model, ones(8))
    assert model.outer() < before


def test_data_weights_draw_the_selection_to_heavy_classes():
    pool = random_pool(60, classes=2, seed=6)
    counts = []
    for heavy in (0, 1):
        weight = torch.where(pool.y == heavy, 20.0, 1.0).double()
        weighted = Pool(60, pool.y, weight, x=pool.tensor("x"))
        rows, _ = Bilevel(ridge=0.01).select(weighted, 12, np.random.default_rng(0))
        counts.append(int((pool.y[rows] == 0).sum()))
    assert counts[0] > counts[1]


def test_order_of_labels_and_rows_does_not_matter():
    pool = random_pool(30, seed=7)
    rows, _ = Bilevel().select(pool, 10, np.random.default_rng(0))
    renamed = Pool(30, torch.tensor([7, 0, 4])[pool.y], pool.weight, x=pool.tensor("x"))
    again, _ = Bilevel().select(renamed, 10, np.random.default_rng(0))
    assert again.tolist() == rows.tolist()
    moved = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    model, other = (
        grown(p, [s], CrossEntropy()) for p, s in ((pool, 3), (pool.subset(moved), int((moved == 3).nonzero())))
    )
    model.fit(ones(1))
    other.fit(ones(1))
    torch.testing.assert_close(other.scores(ones(1)), model.scores(ones(1))[moved], rtol=1e-9, atol=1e-14)


def test_forms_of_the_kernel_matrix_select_alike():
    pool = random_pool(30, d=6, seed=8)
    x = pool.tensor("x")
    kernel = Linear(1.0)
    selector = Bilevel(ridge=0.01)
    targets = CrossEntropy().targets(pool.y, None)
    whole = selector.greedy(DenseGram(kernel(x)), targets, 12, pool.weight, np.random.default_rng(0))[0]
    factors = Bilevel(kernel, ridge=0.01).select(pool, 12, np.random.default_rng(0))[0]
    assert factors.tolist() == whole.tolist()
    dense = Bilevel(RBF(), ridge=0.01).select(pool, 12, np.random.default_rng(0))[0]
    blocks = Bilevel(RBF(), ridge=0.01, max_bytes=500).select(pool, 12, np.random.default_rng(0))[0]
    assert blocks.tolist() == dense.tolist()
    inner = Pool(30, pool.y, pool.weight, gradients=Dense(x))
    vectors = Bilevel(None, "gradients", ridge=0.01).select(inner, 12, np.random.default_rng(0))[0]
    assert vectors.tolist() == Bilevel(Linear(), ridge=0.01).select(pool, 12, np.random.default_rng(0))[0].tolist()


def test_devices_agree(device):
    pool = random_pool(40, seed=9)
    rows, weights = Bilevel(max_outer=1).select(pool, 15, np.random.default_rng(0))
    there = Pool(40, pool.y.to(device), pool.weight.to(device), x=pool.tensor("x").to(device))
    other, same = Bilevel(max_outer=1).select(there, 15, np.random.default_rng(0))
    assert other.tolist() == rows.tolist() and other.device.type == device
    torch.testing.assert_close(same.cpu(), weights)


@pytest.mark.parametrize("on_support", [False, True])
def test_sizes_and_duplicates(on_support):
    pool = random_pool(9)
    x = pool.tensor("x")[:1].expand(9, -1)
    same = Pool(9, pool.y, x=x)
    for candidate in (pool, same, Pool(9, torch.zeros(9, dtype=torch.int64), x=x), Pool(9, pool.y, x=0 * x)):
        for k in (0, 1, 5, 9, 20):
            rows, weights = Bilevel(on_support=on_support).select(candidate, k, np.random.default_rng(0))
            assert len(set(rows.tolist())) == len(rows) == len(weights) == min(k, 9)
            assert rows.dtype == torch.int64 and weights.dtype == torch.float64
    one = Pool(1, torch.tensor([3]), x=x[:1])
    assert Bilevel().select(one, 4, np.random.default_rng(0))[0].tolist() == [0]


def test_equal_candidates_go_to_the_smallest_row():
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pool = Pool(20, torch.arange(10).repeat(2) % 2, x=torch.cat([x, x]))
    rows, _ = Bilevel(ridge=0.1).select(pool, 6, np.random.default_rng(0))
    first = {int(rows[0])}
    for row in rows[1:].tolist():
        assert row < 10 or row - 10 in first
        first.add(row)


def test_nothing_around_changes():
    pool = random_pool(20)
    x, y, weight = pool.tensor("x").clone(), pool.y.clone(), pool.weight.clone()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    rows, weights = Bilevel(max_outer=1).select(pool, 8, np.random.default_rng(0))
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()
    assert torch.equal(x, pool.tensor("x")) and torch.equal(y, pool.y) and torch.equal(weight, pool.weight)
    (weights * torch.ones(8, requires_grad=True)).sum().backward()  # usable in a training loss


class Opposite:
    """Minus the inner product: no kernel."""

    def fit(self, x):
        return self

    def __call__(self, a, b=None):
        return -(a @ (a if b is None else b).T)


@pytest.mark.parametrize(
    ("selector", "change", "message"),
    [
        (Bilevel(), {"x": torch.full((12, 4), torch.nan)}, "Bilevel.*x.*NaN"),
        (Bilevel(Opposite()), {}, "Bilevel.*eigenvalue.*positive semi-definite"),
        (Bilevel(Opposite(), max_bytes=1), {}, "Bilevel.*positive semi-definite"),
        (Bilevel(), {"y": None}, "Bilevel.*labels"),
        (Bilevel(), {"y": torch.rand(12)}, "Bilevel.*integer"),
        (Bilevel(classes=2), {}, "Bilevel.*0..1"),
        (Bilevel(Linear(), ridge=1e-300), {"x": 1e6 * random_pool().tensor("x")}, "Bilevel.*converge.*ridge"),
    ],
)
def test_bad_input_names_the_selector_and_the_cure(selector, change, message):
    pool = random_pool()
    given = {"y": pool.y, "x": pool.tensor("x"), **change}
    with pytest.raises(ValueError, match=message):
        selector.select(Pool(12, given.pop("y"), **given), 6, np.random.default_rng(0))


@pytest.mark.parametrize("seed", [512, 751, 1395])
def test_a_ridge_lost_in_rounding_is_told_with_the_cure(seed):
    """A linear kernel of rows a million away from 0: its own rounding is larger than the ridge."""
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(3, 16)), int(rng.integers(1, 5))
    x, y = torch.from_numpy(rng.normal(size=(n, d)) + 1e6), torch.from_numpy(rng.integers(0, 4, n))
    with pytest.raises(ValueError, match=r"Bilevel: .*raise the ridge"):
        Bilevel(Linear(), ridge=10.0 ** rng.integers(-6, -2)).select(Pool(n, y, x=x), n, np.random.default_rng(0))


@pytest.mark.parametrize(
    "setting", [{"ridge": 0.0}, {"ridge": np.nan}, {"start": 0}, {"max_outer": -1}, {"candidates": 0}]
)
def test_bad_settings(setting):
    with pytest.raises(ValueError, match="Bilevel"):
        Bilevel(**setting)
    with pytest.raises(ValueError, match="Bilevel.*k"):
        Bilevel().select(random_pool(), -1, np.random.default_rng(0))


def test_tangent_kernels_serve_as_proxies():
    pool = random_pool(30, seed=11)
    rows, _ = Bilevel(FullyConnectedNTK(), classes=10).select(pool, 10, np.random.default_rng(0))
    assert set(pool.y[rows].tolist()) == {0, 1, 2}
