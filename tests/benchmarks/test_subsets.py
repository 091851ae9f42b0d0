"""Thinned data: counts as asked, rows distinct, drawn evenly."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit.benchmarks import exponential_profile, long_tailed, subset
from replaykit.benchmarks.scenarios import IntArray

seeds = st.integers(0, 2**32 - 1)
label_lists = st.lists(st.integers(1, 60), min_size=1, max_size=8).map(
    lambda counts: np.random.default_rng(len(counts)).permutation(np.repeat(np.arange(len(counts)), counts))
)


def ascending(rows: IntArray) -> bool:
    return bool((np.diff(rows) > 0).all())


@given(label_lists, seeds, st.data())
def test_subset_by_count(y: IntArray, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, int(np.bincount(y).min())))
    rows = subset(y, per_class=k, seed=seed)
    assert np.bincount(y[rows], minlength=y.max() + 1).tolist() == [k] * (y.max() + 1)
    assert ascending(rows)
    assert np.array_equal(rows, subset(y, per_class=k, seed=seed))


@given(label_lists, seeds, st.floats(0.01, 1.0))
def test_subset_by_fraction(y: IntArray, seed: int, fraction: float) -> None:
    rows = subset(y, fraction=fraction, seed=seed)
    kept, all_of = np.bincount(y[rows]), np.bincount(y)
    assert (np.abs(kept - fraction * all_of) <= 1).all()
    assert kept.min() >= 1
    assert ascending(rows)


def test_subset_draws_every_row_alike() -> None:
    y = np.zeros(20, np.int64)
    times = np.zeros(20)
    for seed in range(2000):
        times[subset(y, per_class=5, seed=seed)] += 1
    # Variance of a sample without replacement: chi-square of spec 0.4 with n - 1 degrees of freedom.
    p = 5 / 20
    statistic = ((times - 2000 * p) ** 2).sum() / (2000 * p * (1 - p)) * 19 / 20
    assert statistic < 43.8  # 19 degrees of freedom, 0.1 %


def test_a_class_that_is_absent_stays_absent() -> None:
    assert subset([2, 2, 0, 0], per_class=1).tolist()[0] in (0, 1)
    assert len(subset([2, 2, 0, 0], fraction=0.5)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give per_class or fraction"),
        ({"per_class": 1, "fraction": 0.5}, "give per_class or fraction"),
        ({"fraction": 50}, r"fraction is in \(0, 1\]"),
        ({"per_class": 3}, "cannot take 3 rows of class 1, which has 2"),
        ({"per_class": -1}, "cannot take -1 rows"),
    ],
)
def test_subsets_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        subset([0, 0, 0, 1, 1], **arguments)


def test_exponential_profile_by_hand() -> None:
    assert exponential_profile(3, 100, 100) == [100, 10, 1]
    assert exponential_profile(5, 5000, 16) == [5000, 2500, 1250, 625, 312]
    assert exponential_profile(2, 5, 1000) == [5, 1]
    assert exponential_profile(1, 7, 10) == [7]
    with pytest.raises(ValueError, match="at least 1"):
        exponential_profile(3, 100, 0.01)


@given(st.integers(2, 8), st.floats(1, 200), seeds)
def test_long_tail_by_factor(classes: int, factor: float, seed: int) -> None:
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), 50 + np.arange(classes)))
    rows = long_tailed(y, factor, seed)
    counts = np.bincount(y[rows]).tolist()
    assert counts == exponential_profile(classes, 50, factor)
    assert counts == sorted(counts, reverse=True)
    assert ascending(rows)
    assert np.array_equal(rows, long_tailed(y, factor, seed))


def test_long_tail_by_profile() -> None:
    y = np.repeat([0, 1, 2], 10)
    assert np.bincount(y[long_tailed(y, [1, 10, 4])]).tolist() == [1, 10, 4]
    with pytest.raises(ValueError, match="2 class sizes, the labels have 3"):
        long_tailed(y, [1, 2])
    with pytest.raises(ValueError, match="11 rows of class 1"):
        long_tailed(y, [1, 11, 4])
