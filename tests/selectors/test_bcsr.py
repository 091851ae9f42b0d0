"""BCSR: hand-worked numbers, the literal loop, finite differences, a regulariser that acts, and bad input."""

import math

import numpy as np
import pytest
import torch
from reference import bcsr as reference
from scipy.stats import chisquare
from torch import nn

from replaykit.selectors import BCSR, Pool, Problem, linear_problem, model_problem
from replaykit.selectors.bcsr import top_frequency
from replaykit.selectors.problem import InnerLoss


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def scalar(centres=(0.0, 1.0, 5.0)) -> Problem:
    """l_i = (theta - c_i)^2 / 2, from theta = 0."""
    c = torch.tensor(centres, dtype=torch.float64)
    return Problem({"theta": torch.zeros(1, dtype=torch.float64)}, lambda p, i: (p["theta"] - c[i]) ** 2 / 2)


def random_pool(n: int = 30, classes: int = 3, seed: int = 0) -> Pool:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=g)
    y[:classes] = torch.arange(classes)
    return Pool(n, y, features=torch.randn(n, 4, generator=g, dtype=torch.float64) + y[:, None])


# -- hand-worked -----------------------------------------------------------------------------------


def test_one_step_of_the_scalar_problem():
    w = torch.tensor([0.5, 0.5, 0.0])
    selector = BCSR(inner_rate=1.0, neumann=0, outer_steps=1, outer_rate=0.1, penalty=0.0)
    new, derivative = selector.weigh(scalar(), 3, 1, rng(), w)
    torch.testing.assert_close(derivative, torch.tensor([0.75, -0.75, -6.75]).double())
    torch.testing.assert_close(new, torch.tensor([0.2, 0.35, 0.45]).double())


@pytest.mark.parametrize(("terms", "factor"), [(0, 0.5), (1, 0.75), (3, 0.9375), (40, 1.0)])
def test_neumann_series_has_its_step_factor(terms, factor):
    w = torch.tensor([0.5, 0.5, 0.0]).double()
    at = {"theta": torch.tensor([0.5]).double()}
    exact = torch.tensor([0.75, -0.75, -6.75]).double()
    found = BCSR(inner_rate=0.5, neumann=terms)._derivative(scalar(), at, w, rng())
    torch.testing.assert_close(found, factor * exact)
    # As released: no factor (1.875 at three terms), and through a softmax over w.
    released = BCSR(inner_rate=0.5, neumann=terms, compat=True)._derivative(scalar(), at, w, rng())
    share, raw = w.softmax(0), 2 * factor * exact
    torch.testing.assert_close(released, share * (raw - share @ raw))


def test_frequencies_of_the_smoothed_top():
    w = torch.tensor([0.6, 0.4]).double()
    draws = 400_000
    p = 0.5 * (1 + math.erf(0.2 / (0.1 * math.sqrt(2)) / math.sqrt(2)))
    assert p == pytest.approx(0.92135, abs=1e-5)
    assert float(top_frequency(w, 1, 0.1, draws, rng())[0]) == pytest.approx(
        p, abs=5 * math.sqrt(p * (1 - p) / draws)
    )
    w = torch.tensor([0.5, 0.3, 0.2, 0.0]).double()
    for delta, expected in (
        (1e-3, (1, 1, 0, 0)),
        (0.1, (0.993, 0.757, 0.243, 0.007)),
        (1.0, (0.608, 0.523, 0.477, 0.392)),
    ):
        found = top_frequency(w, 2, delta, draws, rng())
        torch.testing.assert_close(found, torch.tensor(expected).double(), atol=0.005, rtol=0)
        assert float(found.sum()) == pytest.approx(2)


@pytest.mark.parametrize("strength", [0.01, 0.1])
@pytest.mark.parametrize("delta", [1e-3, 1e-2])
def test_the_regulariser_alone_makes_weights_sparse(strength, delta):
    flat = Problem({"theta": torch.zeros(1).double()}, lambda p, i: 0 * p["theta"].expand(len(i)))
    settings = {"outer_steps": 200, "outer_rate": strength, "smoothing": delta, "noise_draws": 16}
    w, _ = BCSR(penalty=1.0, **settings).weigh(flat, 50, 10, rng())
    assert int((w > 0).sum()) in (9, 10)
    assert float(w.topk(10).values.sum()) == pytest.approx(1)
    w, _ = BCSR(penalty=0.0, **settings).weigh(flat, 50, 10, rng())
    torch.testing.assert_close(w, torch.full((50,), 0.02).double())


def test_the_regulariser_reaches_the_update():
    problem, pool = linear_problem()(random_pool()), random_pool()
    directions = {
        (penalty, compat): BCSR(outer_steps=1, penalty=penalty, compat=compat).weigh(problem, pool.n, 5, rng())[1]
        for penalty in (0.1, 0.2)
        for compat in (False, True)
    }
    assert not torch.allclose(directions[0.1, False], directions[0.2, False])
    assert torch.equal(directions[0.1, True], directions[0.2, True])


# -- against other implementations -----------------------------------------------------------------


def test_the_literal_loop():
    pool = random_pool(12)
    x = pool.tensor("features")
    x = torch.cat([x / x.square().sum(1).mean().sqrt(), torch.ones(12, 1)], dim=1)
    numbers = {"inner_rate": 0.3, "neumann": 3, "penalty": 0.05, "outer_rate": 0.4}
    expected = reference.weights(x, pool.y, 4, steps=6, delta=0.02, draws=5, rng=rng(7), **numbers)
    found, _ = BCSR(outer_steps=6, smoothing=0.02, noise_draws=5, **numbers).weigh(
        linear_problem()(pool), 12, 4, rng(7)
    )
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def curved(pool: Pool) -> Problem:
    """The linear problem with a ridge in every row, so that the Hessian is positive."""
    plain = linear_problem()(pool)
    losses = lambda p, i: plain.losses(p, i) + 0.05 * p["weight"].square().sum()  # noqa: E731
    return Problem(plain.parameters, losses)


def test_derivative_is_a_finite_difference():
    pool = random_pool(8)
    problem, everything = curved(pool), torch.arange(8)
    w = torch.tensor([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.0]).double()

    def optimum(w: torch.Tensor) -> torch.Tensor:
        theta = problem.parameters["weight"].clone().requires_grad_()
        solver = torch.optim.LBFGS(
            [theta], 1.0, 500, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def closure() -> torch.Tensor:
            solver.zero_grad()
            value = problem.losses({"weight": theta}, everything) @ w
            value.backward()
            return value

        solver.step(closure)
        return theta.detach()

    found = BCSR(inner_rate=0.8, neumann=400)._derivative(problem, {"weight": optimum(w)}, w, rng())
    for i in range(8):
        values = []
        for h in (1e-4, -1e-4):
            moved = w.clone()
            moved[i] += h
            values.append(float(problem.losses({"weight": optimum(moved)}, everything).mean()))
        assert float(found[i]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4, abs=1e-7)


def test_products_with_the_hessian_and_with_rows():
    pool = random_pool(8)
    problem, rows = linear_problem()(pool), torch.tensor([4, 1, 6])
    g = torch.Generator().manual_seed(0)
    at, v = torch.randn(2, 5, 3, generator=g, dtype=torch.float64)
    w = torch.rand(8, generator=g, dtype=torch.float64)
    losses = lambda t: problem.losses({"weight": t}, rows)  # noqa: E731
    value = lambda t: losses(t) @ w[rows] * 8 / 3  # noqa: E731
    inner = InnerLoss(problem, {"weight": at}, w, rows)
    torch.testing.assert_close(inner.gradient()["weight"], torch.func.grad(value)(at))
    dense = torch.func.hessian(value)(at).reshape(15, 15)
    torch.testing.assert_close(inner.hessian_product({"weight": v})["weight"].flatten(), dense @ v.flatten())
    slopes = torch.func.jacrev(losses)(at).reshape(3, 15) @ v.flatten()
    torch.testing.assert_close(inner.slopes({"weight": v}), slopes)


def test_batches_estimate_without_bias():
    pool = random_pool(20)
    problem, w = curved(pool), torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    at = {"weight": torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)}
    whole = BCSR()._gradient(problem, at, w, rng())["weight"]
    generator = rng()
    parts = torch.stack([BCSR(batch=3)._gradient(problem, at, w, generator)["weight"] for _ in range(1500)])
    error = parts.std(0) / math.sqrt(1500)
    assert ((parts.mean(0) - whole).abs() <= 5 * error).all()


# -- the selector ----------------------------------------------------------------------------------

FLAGS = {
    "problem": curved,
    "outer_steps": 5,
    "inner_steps": 3,
    "inner_rate": 0.5,
    "neumann": 0,
    "sparsity": 1.0,
    "penalty": 0.01,
    "outer_rate": 0.05,
    "smoothing": 0.1,
    "noise_draws": 3,
    "batch": 7,
    "compat": True,
}


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_changes_the_weights(flag):
    pool = random_pool()
    plain, other = BCSR(), BCSR(**{flag: FLAGS[flag]})
    w, _ = plain.weigh(plain.problem(pool), pool.n, 10, rng())
    changed, _ = other.weigh(other.problem(pool), pool.n, 10, rng())
    assert not torch.allclose(w, changed)
    for weights in (w, changed):
        assert float(weights.sum()) == pytest.approx(1) and (weights >= 0).all()


def test_the_first_step_moves_no_weight_by_more_than_half_its_value():
    pool = random_pool()
    w, _ = BCSR(outer_steps=1, penalty=0.0).weigh(linear_problem()(pool), pool.n, 10, rng())
    steps = (w - 1 / pool.n).abs()
    assert 0.1 / pool.n < float(steps.max()) <= 1 / pool.n  # half before the projection


def test_largest_weights_first_then_the_most_promising():
    w = torch.tensor([0.0, 0.3, 0.0, 0.4, 0.3, 0.0]).double()
    derivative = torch.tensor([0.5, 0.0, -1.0, 0.0, 0.0, -1.0]).double()
    for k, expected in ((2, [3, 1]), (3, [3, 1, 4]), (5, [3, 1, 4, 2, 5]), (6, [3, 1, 4, 2, 5, 0])):
        assert BCSR()._rows(w, derivative, k, rng()).tolist() == expected
    drawn = BCSR(draw=True)._rows(w, derivative, 5, rng()).tolist()
    assert set(drawn[:3]) == {1, 3, 4} and drawn[3:] == [2, 5]


def test_draws_follow_the_weights():
    w, generator = torch.tensor([0.0, 0.5, 0.2, 0.3]).double(), rng(3)
    picks = [int(BCSR(draw=True)._rows(w, torch.zeros(4).double(), 1, generator)) for _ in range(2000)]
    counts = np.bincount(picks, minlength=4)
    assert counts[0] == 0 and chisquare(counts[1:], 2000 * w[1:].numpy()).pvalue > 1e-4


def test_sizes_duplicates_and_devices(device):
    pool = random_pool(9)
    x = pool.tensor("features")
    candidates = [x, x[:1].expand(9, -1), 0 * x]
    for features in candidates:
        given = Pool(9, pool.y.to(device), features=features.to(device))
        for k in (0, 1, 4, 9, 15):
            for draw in (False, True):
                rows, weights = BCSR(draw=draw, outer_steps=5).select(given, k, rng())
                assert len(set(rows.tolist())) == len(rows) == len(weights) == min(k, 9)
                assert torch.equal(weights.cpu(), torch.ones(min(k, 9)).double())
        here = BCSR().select(Pool(9, pool.y, features=features), 4, rng())[0]
        assert BCSR().select(given, 4, rng())[0].tolist() == here.tolist()
    one_class = Pool(9, torch.full((9,), 4), features=x)
    assert len(BCSR().select(one_class, 3, rng())[0]) == 3


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(4 * 9, 3))
    model(torch.randn(5, 1, 8, 8)).sum().backward()
    model[1].eval()
    return model


def test_a_network_is_left_as_it_was():
    model = network()
    g = torch.Generator().manual_seed(1)
    pool = Pool(12, torch.randint(3, (12,), generator=g), x=torch.randn(12, 1, 8, 8, generator=g))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    selector = BCSR(model_problem(model), ("x",))
    rows, _ = selector.select(pool, 5, rng())
    assert len(set(rows.tolist())) == 5
    assert torch.equal(before, torch.get_rng_state())
    assert [module.training for module in model.modules()] == modes and True in modes and False in modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, old) for p, old in zip(model.parameters(), gradients, strict=True))
    model.eval()
    assert selector.select(pool, 5, rng())[0].tolist() == rows.tolist()


def test_only_trainable_parameters_move():
    model = network()
    model[0].requires_grad_(False)
    problem = model_problem(model)(Pool(2, torch.tensor([0, 1]), x=torch.randn(2, 1, 8, 8)))
    assert set(problem.parameters) == {"1.weight", "1.bias", "6.weight", "6.bias"}


@pytest.mark.parametrize(
    ("selector", "pool", "message"),
    [
        (BCSR(), Pool(3, torch.tensor([0, 1, 0]), features=torch.full((3, 2), math.nan)), "features.*NaN"),
        (BCSR(), Pool(3, features=torch.ones(3, 2)), "labels"),
        (BCSR(lambda pool: scalar(), (), inner_rate=20.0), Pool(3), "BCSR.*Neumann.*inner_rate"),
        (BCSR(lambda pool: scalar((0, 1, math.nan)), ()), Pool(3), "BCSR.*NaN"),
    ],
)
def test_bad_input(selector, pool, message):
    with pytest.raises(ValueError, match=message):
        selector.select(pool, 2, rng())


@pytest.mark.parametrize(
    "setting", [{"outer_steps": 0}, {"neumann": -1}, {"inner_rate": math.inf}, {"sparsity": -1.0}]
)
def test_bad_settings(setting):
    with pytest.raises(ValueError, match=f"BCSR: {next(iter(setting))}"):
        BCSR(**setting)
