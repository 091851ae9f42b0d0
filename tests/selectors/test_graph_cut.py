"""Graph cut: gains are differences of the definition, and the guarantee holds where it is promised."""

from functools import partial

import numpy as np
import pytest
import torch
from reference import coresets

from replaykit.selectors import GraphCut, Pool, naive
from replaykit.selectors.graph_cut import graph_cut


def symmetric(n: int, seed: int) -> np.ndarray:
    s = np.random.default_rng(seed).random((n, n))
    return s + s.T


@pytest.mark.parametrize("lam", [0.2, 1.0, 2.0])
def test_rows_and_gains_are_those_of_the_definition(lam: float, device: str) -> None:
    for seed in range(5):
        s = symmetric(9, seed)
        value = partial(coresets.graph_cut_value, s, lam=lam)
        rows, gains = graph_cut(torch.from_numpy(s).to(device), 6, lam)
        assert rows.tolist() == coresets.greedy(9, 6, value)
        for j, gain in enumerate(gains.tolist()):
            assert gain == pytest.approx(value(rows.tolist()[: j + 1]) - value(rows.tolist()[:j]))


def test_from_lam_2_on_no_row_hurts_and_greedy_is_within_its_guarantee() -> None:
    for seed in range(5):
        s = symmetric(9, seed)
        value = partial(coresets.graph_cut_value, s, lam=2.0)
        assert (graph_cut(torch.from_numpy(s), 9, 2.0)[1] >= -1e-9).all()
        for k in (2, 3):
            rows, _ = graph_cut(torch.from_numpy(s), k, 2.0)
            assert value(rows.tolist()) >= (1 - (1 - 1 / k) ** k) * coresets.best_subset(9, k, value)
    # Below it rows do hurt, and k rows come back all the same.
    rows, gains = graph_cut(torch.from_numpy(s), 9, 0.2)
    assert gains.min() < 0 and sorted(rows.tolist()) == list(range(9))


def test_lam_changes_the_result() -> None:
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(60, 4)))
    pool, rng = Pool(60, features=features), np.random.default_rng(0)
    diverse, typical = (GraphCut(lam=lam).select(pool, 10, rng)[0] for lam in (0.01, 100.0))
    assert diverse.tolist() != typical.tolist()


def test_a_small_byte_budget_changes_nothing() -> None:
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(150, 4)))
    pool, rng = Pool(150, features=features), np.random.default_rng(0)
    whole, *others = (GraphCut(max_bytes=b).select(pool, 20, rng)[0].tolist() for b in (2**31, 150 * 8 * 7, 1))
    assert others == [whole, whole]


def test_a_matrix_that_is_not_symmetric_is_refused() -> None:
    with pytest.raises(ValueError, match="graph_cut: the matrix is not symmetric"):
        graph_cut(torch.arange(9.0).reshape(3, 3), 2, engine=naive)
