"""Log-determinant: Cholesky gains against determinants, degenerate and indefinite kernels."""

from functools import partial

import numpy as np
import pytest
import torch
from reference import coresets

from replaykit.selectors import LogDeterminant, Pool
from replaykit.selectors.log_determinant import log_determinant


def kernel(n: int, d: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, d))
    return x @ x.T


@pytest.mark.parametrize("eps", [0.0, 0.1, 1.0])
def test_rows_and_gains_are_those_of_determinants(eps: float, device: str) -> None:
    for seed in range(5):
        k = kernel(8, 12, seed)
        value = partial(coresets.log_determinant_value, k, eps=eps)
        rows, gains = log_determinant(torch.from_numpy(k).to(device), 6, eps)
        assert rows.tolist() == coresets.greedy(8, 6, value)
        for j, gain in enumerate(gains.tolist()):
            assert gain == pytest.approx(value(rows.tolist()[: j + 1]) - value(rows.tolist()[:j]))


def test_from_a_ridge_of_1_on_greedy_is_within_its_guarantee() -> None:
    for seed in range(5):
        k = kernel(9, 3, seed)
        value = partial(coresets.log_determinant_value, k, eps=1.0)
        for size in (2, 3):
            rows, gains = log_determinant(torch.from_numpy(k), size, 1.0)
            assert (gains >= 0).all()
            assert value(rows.tolist()) >= (1 - (1 - 1 / size) ** size) * coresets.best_subset(9, size, value)


def test_it_takes_the_different_row_not_the_redundant_one() -> None:
    x = torch.tensor([[1.0, 0], [0.99, 0.01], [0, 0.9]], dtype=torch.float64)
    assert log_determinant(x @ x.T, 2)[0].tolist() == [0, 2]


def test_a_kernel_of_low_rank_without_a_ridge_still_gives_distinct_rows() -> None:
    rows, gains = log_determinant(torch.from_numpy(kernel(10, 2, 0)), 7, eps=0.0)
    assert len(set(rows.tolist())) == 7
    assert gains.isfinite().all()
    # Two directions are all there is; then the smallest index comes first.
    assert rows[2:].tolist() == sorted(set(range(10)) - set(rows[:2].tolist()))[:5]


def test_a_kernel_of_zeros_without_a_ridge_gives_distinct_rows() -> None:
    """Gradients of rows that are fitted, for example."""
    assert log_determinant(torch.zeros(5, 5), 3, eps=0.0)[0].tolist() == [0, 1, 2]
    selector = LogDeterminant("gradients", lambda vectors: vectors.gram_rows, eps=0.0)
    rows, _ = selector.select(Pool(6, gradients=torch.zeros(6, 2)), 6, np.random.default_rng(0))
    assert rows.tolist() == [0, 1, 2, 3, 4, 5]


def test_an_indefinite_kernel_is_refused() -> None:
    bad = torch.tensor([[1.0, 2], [2, 1]], dtype=torch.float64)
    for eps in (0.0, 1.0):
        with pytest.raises(ValueError, match="log_determinant: the kernel is not positive semi-definite"):
            log_determinant(bad, 2, eps)
    with pytest.raises(ValueError, match="log_determinant: the kernel is not positive semi-definite"):
        log_determinant(-torch.eye(2), 1)
    with pytest.raises(ValueError, match="eps must be"):
        log_determinant(torch.eye(2), 1, eps=-1.0)


def test_a_small_byte_budget_and_the_ridge() -> None:
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(150, 4)))
    pool, rng = Pool(150, features=features), np.random.default_rng(0)
    whole, *others = (
        LogDeterminant(max_bytes=b).select(pool, 20, rng)[0].tolist() for b in (2**31, 150 * 8 * 7, 1)
    )
    assert others == [whole, whole]
    assert LogDeterminant(eps=1e-6).select(pool, 20, rng)[0].tolist() != whole
