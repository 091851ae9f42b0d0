import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.laws import RARE
from reference.reservoir import successive_inclusion
from scipy import stats

from replaykit.draws import distinct, weighted


@given(n=st.integers(0, 3000), k=st.integers(0, 300), seed=st.integers(0, 99))
def test_distinct_numbers_below_n(n: int, k: int, seed: int) -> None:
    drawn = distinct(n, min(n, k), np.random.default_rng(seed))
    assert drawn.dtype == np.int64 and len(drawn) == min(n, k) == len(set(drawn.tolist()))
    assert not len(drawn) or 0 <= drawn.min() <= drawn.max() < n


@pytest.mark.parametrize(("n", "k"), [(4, 2), (34, 2)], ids=["shuffled", "drawn until distinct"])
def test_every_ordered_choice_is_equally_likely(n: int, k: int) -> None:
    rng = np.random.default_rng(0)
    cells = dict.fromkeys(itertools.permutations(range(n), k), 0)
    for _ in range(12 * len(cells)):
        cells[tuple(distinct(n, k, rng).tolist())] += 1
    assert stats.chisquare(list(cells.values())).pvalue > RARE


def test_distinct_repeats_nothing_when_repeats_are_likely() -> None:
    """60 of 1000: the first draws repeat in five of six runs, and every number is as likely as any other."""
    rng = np.random.default_rng(0)
    hits = np.zeros(1000)
    for _ in range(1000):
        hits[distinct(1000, 60, rng)] += 1
    statistic = ((hits - 60) ** 2).sum() / (1000 * 60 * 940 / (1000 * 999))
    assert stats.chi2.sf(statistic, 999) > RARE


def test_cost_of_distinct_does_not_grow_with_n() -> None:
    class Counting:
        def __init__(self) -> None:
            self.rng, self.drawn = np.random.default_rng(0), 0

        def random(self, n: int) -> np.ndarray:
            self.drawn += n
            return self.rng.random(n)

    rng = Counting()
    distinct(10**12, 64, rng)  # type: ignore[arg-type]
    assert rng.drawn == 64


def test_weighted_with_replacement() -> None:
    weights = np.array([1.0, 0.0, 3.0])
    drawn = weighted(weights, 4000, np.random.default_rng(0), replace=True)
    assert stats.binomtest(int((drawn == 2).sum()), 4000, 0.75).pvalue > RARE
    assert not (drawn == 1).any()


def test_weighted_without_replacement_is_successive_sampling() -> None:
    weights = np.array([1.0, 2.0, 3.0, 0.5])
    rng = np.random.default_rng(0)
    drawn = [weighted(weights, 2, rng) for _ in range(3000)]
    counts = np.bincount(np.concatenate(drawn), minlength=4)
    for row, p in enumerate(successive_inclusion(weights.tolist(), 2)):
        assert stats.binomtest(int(counts[row]), 3000, p).pvalue > RARE
    first = np.bincount([rows[0] for rows in drawn], minlength=4)
    assert stats.chisquare(first, weights / weights.sum() * 3000).pvalue > RARE


def test_weighted_without_replacement_of_all_rows_comes_in_the_order_of_the_draws() -> None:
    weights, rng = np.array([1.0, 0.0, 2.0, 3.0]), np.random.default_rng(0)
    drawn = np.array([weighted(weights, 4, rng) for _ in range(3000)])
    assert (np.sort(drawn, 1) == [0, 2, 3]).all()
    assert stats.chisquare(np.bincount(drawn[:, 0])[[0, 2, 3]], [500, 1000, 1500]).pvalue > RARE


def test_weighted_without_replacement_returns_what_has_weight() -> None:
    weights = np.array([0.0, 2.0, 0.0, 1e-300, 1e300])
    assert sorted(weighted(weights, 10, np.random.default_rng(0)).tolist()) == [1, 3, 4]
    assert set(weighted(weights, 2, np.random.default_rng(0)).tolist()) == {1, 4}
