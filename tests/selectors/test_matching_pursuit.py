"""Non-negative least squares and orthogonal matching pursuit: hand-worked steps, KKT, the literal loop."""

import numpy as np
import pytest
import torch
from reference import coresets
from scipy.optimize import nnls as least_squares

from replaykit.selectors.matching_pursuit import matching_pursuit, pursue
from replaykit.selectors.nnls import ActiveSet, nnls

ATOMS = torch.tensor([[3.0, 0], [0, 2], [2, 2], [-1, 0.5]], dtype=torch.float64).T
TARGET = ATOMS.sum(1)


def pursuit(atoms, target, k: int, lam: float = 0.0, eps: float = 0.0):
    return matching_pursuit(atoms.T @ atoms, atoms.T @ target, k, float(target @ target), lam, eps)


def objective(atoms, target, rows, weights, lam: float) -> float:
    residual = target - atoms[:, rows] @ weights
    return float(0.5 * residual @ residual + 0.5 * lam * weights @ weights)


# -- non-negative least squares -------------------------------------------------------------------


def test_it_is_not_least_squares_on_the_normal_equations() -> None:
    a = torch.tensor([[1.0, 0], [0.9, 0.19**0.5]], dtype=torch.float64).T
    gram, products = a.T @ a, torch.tensor([1.0, 0.5], dtype=torch.float64)
    for lam, correct, shortcut in ((0.0, 1.0, 0.801105), (0.5, 0.666667, 0.637255)):
        h = gram + lam * torch.eye(2)
        w = nnls(h, products)
        assert w.tolist() == pytest.approx([correct, 0], abs=1e-6)
        if lam == 0:
            assert (h @ w - products).tolist() == pytest.approx([0, 0.4])
        assert least_squares(h.numpy(), products.numpy())[0].tolist() == pytest.approx([shortcut, 0], abs=1e-6)


def random_problem(seed: int):
    """Tall, wide and exactly degenerate matrices, with and without a ridge."""
    rng = np.random.default_rng(seed)
    m, p = int(rng.integers(1, 25)), int(rng.integers(1, 35))
    a = rng.normal(size=(p, m))
    if seed % 4 == 0:
        a[:, m // 2 :] = a[:, : m - m // 2]
    return a, rng.normal(size=p), (0.0, 0.1, 1.0)[seed % 3]


@pytest.mark.parametrize("seed", range(60))
def test_the_solution_satisfies_kkt_and_has_the_value_of_an_independent_solver(seed: int) -> None:
    a, t, lam = random_problem(seed)
    m = a.shape[1]
    h, c = a.T @ a + lam * np.eye(m), a.T @ t
    w = nnls(torch.from_numpy(h), torch.from_numpy(c)).numpy()
    q = h @ w - c
    assert (w >= 0).all()
    assert q.min() >= -1e-8
    assert np.abs(q[w > 0]).max(initial=0) < 1e-8
    reference, _ = least_squares(np.vstack([a, np.sqrt(lam) * np.eye(m)]), np.concatenate([t, np.zeros(m)]))
    value = [0.5 * x @ h @ x - c @ x for x in (w, reference)]
    assert value[0] == pytest.approx(value[1], abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_a_warm_start_ends_where_a_cold_one_does(seed: int) -> None:
    a, t, _ = random_problem(seed)
    a = np.abs(a)
    h, c = torch.from_numpy(a.T @ a + 0.01 * np.eye(a.shape[1])), torch.from_numpy(a.T @ t)
    problem = ActiveSet(len(c))
    for m in range(1, len(c) + 1):
        problem.append(h[m - 1, :m], float(c[m - 1]))
        w = problem.solve()
        assert torch.allclose(w, nnls(h[:m, :m], c[:m]), atol=1e-9)
        assert problem.value() == pytest.approx(float(w @ h[:m, :m] @ w - 2 * c[:m] @ w), abs=1e-9)


def test_variables_do_leave_again() -> None:
    # The first two are used until the third, their sum, replaces both.
    a = torch.tensor([[1.0, 0, 1], [0, 1, 1], [1, 1, 0]], dtype=torch.float64)
    t = torch.tensor([1.0, 1, -0.5], dtype=torch.float64)
    h, c = a.T @ a, a.T @ t
    problem = ActiveSet(3)
    problem.append(h[0, :1], float(c[0]))
    problem.append(h[1, :2], float(c[1]))
    assert (problem.solve() > 0).all()
    problem.append(h[2, :3], float(c[2]))
    assert problem.solve().tolist() == pytest.approx([0, 0, 1])


def test_an_indefinite_matrix_and_nan_are_refused_or_solved_without_harm() -> None:
    with pytest.raises(ValueError, match="nnls: the matrix or the products hold NaN"):
        nnls(torch.full((2, 2), torch.nan), torch.ones(2))
    assert nnls(torch.zeros(0, 0), torch.zeros(0)).tolist() == []
    assert nnls(torch.zeros(2, 2), torch.zeros(2)).tolist() == [0, 0]


# -- matching pursuit -----------------------------------------------------------------------------


def test_worked_example_without_a_ridge(device: str) -> None:
    atoms, target = ATOMS.to(device), TARGET.to(device)
    assert (atoms.T @ target).tolist() == [12, 9, 17, -1.75]
    one = pursuit(atoms, target, 1)
    assert one.rows.tolist() == [2]
    assert one.weights.tolist() == pytest.approx([2.125])
    assert one.residual == pytest.approx(0.125)
    two = pursuit(atoms, target, 2)
    assert two.rows.tolist() == [2, 1]
    assert two.weights.tolist() == pytest.approx([2, 0.25])
    assert two.residual == pytest.approx(0, abs=1e-12)
    assert two.rows.device.type == two.weights.device.type == torch.device(device).type


def test_worked_example_with_a_ridge() -> None:
    steps = [
        ([2], [2.0], 1.125),
        ([2, 1], [1.820225, 0.382022], 0.933989),
        ([2, 1, 0], [1.230380, 0.906329, 0.486076], 0.671835),
    ]
    for rows, weights, value in steps:
        found = pursuit(ATOMS, TARGET, len(rows), lam=0.5)
        assert found.rows.tolist() == rows
        assert found.weights.tolist() == pytest.approx(weights, abs=1e-6)
        assert objective(ATOMS, TARGET, found.rows, found.weights, 0.5) == pytest.approx(value, abs=1e-6)
    # The best pair of all is the one found.
    pairs = {}
    for i in range(4):
        for j in range(i):
            a = ATOMS[:, [i, j]]
            w = nnls(a.T @ a + 0.5 * torch.eye(2), a.T @ TARGET)
            pairs[i, j] = objective(a, TARGET, [0, 1], w, 0.5)
    assert min(pairs, key=lambda pair: pairs[pair]) == (2, 1)
    assert pairs[2, 1] == pytest.approx(0.933989, abs=1e-6)


@pytest.mark.parametrize("seed", range(30))
def test_it_is_the_literal_loop_and_never_gets_worse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, p, lam = int(rng.integers(2, 30)), int(rng.integers(2, 12)), (0.0, 0.5)[seed % 2]
    atoms = rng.normal(size=(p, n)) + 0.3
    target = atoms @ rng.random(n)
    rows, weights, objectives = coresets.matching_pursuit(atoms, target, n, lam)
    assert (np.diff(objectives) <= 1e-9).all()
    a, t = torch.from_numpy(atoms), torch.from_numpy(target)
    found = pursuit(a, t, n, lam)
    # Once the residual is rounding, there is nothing left to agree on.
    steps = sum(value > 1e-9 for value in [1.0, *objectives[:-1]])
    assert found.pursued >= steps
    assert found.rows[:steps].tolist() == rows[:steps]
    exact = pursuit(a, t, steps, lam)
    assert objective(a, t, exact.rows, exact.weights, lam) == pytest.approx(objectives[steps - 1], abs=1e-8)
    if lam > 0:
        assert found.weights[: len(rows)].tolist() == pytest.approx(weights.tolist(), abs=1e-8)
    assert found.residual == pytest.approx(
        float((t - a[:, found.rows[: found.pursued]] @ found.weights[: found.pursued]).square().sum()), abs=1e-7
    )
    assert len(set(found.rows.tolist())) == n


@pytest.mark.parametrize("seed", range(10))
def test_all_atoms_without_a_ridge_leave_no_residual(seed: int) -> None:
    rng = np.random.default_rng(seed)
    atoms = torch.from_numpy(rng.normal(size=(12, 8)))
    found = pursuit(atoms, atoms @ torch.from_numpy(rng.random(8) + 0.1), 8)
    assert found.residual == pytest.approx(0, abs=1e-9)
    assert objective(atoms, atoms.sum(1), *pursuit(atoms, atoms.sum(1), 8)[:2], 0.0) < 1e-9


def test_kkt_at_the_weights_it_returns() -> None:
    rng = np.random.default_rng(0)
    atoms = torch.from_numpy(rng.random((10, 40)))
    target = atoms @ torch.from_numpy(rng.random(40))
    for lam in (0.0, 0.5):
        found = pursuit(atoms, target, 8, lam)
        a, w = atoms[:, found.rows[: found.pursued]], found.weights[: found.pursued]
        q = a.T @ (a @ w - target) + lam * w
        assert q.min() >= -1e-8
        assert q[w > 0].abs().max() < 1e-8


def test_the_rest_of_the_budget_is_filled_at_the_mean_positive_weight() -> None:
    found = pursuit(ATOMS, TARGET, 4)
    assert found.pursued == 2
    assert found.rows.tolist()[:2] == [2, 1] and sorted(found.rows.tolist()) == [0, 1, 2, 3]
    assert found.weights.tolist() == pytest.approx([2, 0.25, 1.125, 1.125])
    early = pursuit(ATOMS, TARGET, 3, eps=0.2)
    assert early.pursued == 1
    # By the products with the residual t - 2.125 a = (-0.25, 0.25): -0.75, 0.5, -, 0.375.
    assert early.rows.tolist() == [2, 1, 3]
    assert early.weights.tolist() == pytest.approx([2.125] * 3)


def test_no_positive_product_means_nothing_to_pursue() -> None:
    found = pursuit(-torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64), 2)
    assert found.pursued == 0 and found.rows.tolist() == [0, 1] and found.weights.tolist() == [0, 0]
    zero = pursuit(torch.zeros(4, 5, dtype=torch.float64), torch.zeros(4, dtype=torch.float64), 3)
    assert zero.rows.tolist() == [0, 1, 2] and zero.residual == 0


def test_duplicates_are_never_taken_twice() -> None:
    atoms = torch.tensor([[1.0, 1, 1, 0], [0.2, 0.2, 0.2, 1]], dtype=torch.float64)
    found = pursuit(atoms, atoms.sum(1), 4)
    assert sorted(found.rows.tolist()) == [0, 1, 2, 3]
    assert found.rows[0] == 0 and found.residual == pytest.approx(0, abs=1e-12)


def test_holding_rows_or_computing_anew_is_the_same() -> None:
    rng = np.random.default_rng(0)
    atoms = torch.from_numpy(rng.normal(size=(6, 50)) + 0.3)
    target, gram = atoms.sum(1), atoms.T @ atoms
    held = pursuit(atoms, target, 20, 0.5)
    anew = pursue(
        lambda j, _: gram[j], atoms.T @ target, 20, float(target @ target), 0.5, combine=lambda w: gram @ w
    )
    assert held.rows.tolist() == anew.rows.tolist()
    assert torch.allclose(held.weights, anew.weights)


def test_bad_input_is_refused() -> None:
    eye, one = torch.eye(2), torch.ones(2)
    for arguments, message in (
        ((eye, torch.ones(3), 1, 1.0), "products"),
        ((eye * torch.nan, one, 1, 1.0), "NaN"),
        ((eye, one * torch.inf, 1, 1.0), "matching_pursuit: product of row 0, 1"),
        ((eye, one, -1, 1.0), "k is a number of rows"),
        ((eye, one, 1, 1.0, -0.5), "lam and eps must be >= 0"),
        ((torch.ones(2, 3), one, 1, 1.0), "square"),
    ):
        with pytest.raises(ValueError, match=message):
            matching_pursuit(*arguments)
