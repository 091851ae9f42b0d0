"""Budgets by class: exact sums, caps, excess handed on, and the order of a per-class selection."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from replaykit.selectors import KCenter, LeastConfidence, PerClass, Pool, equal, proportional
from replaykit.selectors.quotas import largest_remainder


@pytest.mark.parametrize(
    ("budget", "shares", "available", "quotas"),
    [
        (10, [1, 1, 98], [1, 1, 98], [0, 0, 10]),
        (10, [1, 1, 1], [50, 50, 50], [4, 3, 3]),
        (10, [1, 1, 1], [2, 50, 50], [2, 4, 4]),
        (10, [1, 1, 1], [2, 50, 1], [2, 7, 1]),
        (10, [1, 1, 1], [2, 3, 1], [2, 3, 1]),
        (3, [2, 3, 5], [9, 9, 9], [1, 1, 1]),
        (7, [0.3, 0.3, 0.4], [9, 9, 9], [2, 2, 3]),
        (5, [0, 1, 0], [4, 3, 4], [1, 3, 1]),
        (5, [0, 0], [4, 4], [3, 2]),
        (0, [1, 2], [3, 3], [0, 0]),
        (5, [1, 1], [0, 9], [0, 5]),
        (5, [], [], []),
    ],
)
def test_by_hand(budget: int, shares: list[float], available: list[int], quotas: list[int]) -> None:
    assert largest_remainder(budget, np.array(shares), np.array(available)).tolist() == quotas


classes = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 30)), max_size=8)


@given(st.integers(0, 200), classes)
def test_quotas_always_sum_to_what_can_be_had(budget: int, groups: list[tuple[int, int]]) -> None:
    shares, available = np.array([g[0] for g in groups]), np.array([g[1] for g in groups], dtype=np.int64)
    quotas = largest_remainder(budget, shares, available)
    assert quotas.sum() == min(budget, available.sum())
    assert (quotas >= 0).all() and (quotas <= available).all()
    if len(groups) and (available >= budget).all() and shares.sum() > 0:
        # Without a cap no quota is a whole row away from its share.
        assert (np.abs(quotas - budget * shares / shares.sum()) < 1).all()


def test_bad_budgets_are_refused() -> None:
    for budget, shares in ((-1, [1.0]), (1, [-1.0]), (1, [np.nan])):
        with pytest.raises(ValueError, match="budget and finite shares"):
            largest_remainder(budget, np.array(shares), np.array([3]))


def test_per_class_is_the_selection_within_each_class_interleaved() -> None:
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.permutation([3] * 40 + [5] * 20))
    features = torch.from_numpy(rng.normal(size=(60, 3)))
    selector = PerClass(KCenter())
    assert selector.needs == ("features",)
    rows, weights = selector.select(Pool(60, y, features=features), 12, rng)
    for c, k in ((3, 8), (5, 4)):
        members = (y == c).nonzero().flatten()
        alone = KCenter().select(Pool(len(members), features=features[members]), k, rng)[0]
        assert rows[y[rows] == c].tolist() == members[alone].tolist()
    # Every prefix has nearly the shares of the whole.
    share = (y[rows] == 3).double().cumsum(0) - torch.arange(1, 13) * 8 / 12
    assert (share.abs() < 1).all()
    assert weights.shape == (12,)


def test_small_classes_hand_on_what_they_cannot_fill() -> None:
    y = torch.tensor([0] * 2 + [1] * 30 + [2] * 30)
    pool, rng = Pool(62, y, features=torch.randn(62, 3)), np.random.default_rng(0)
    for k in (0, 1, 12, 61, 62, 90):
        rows, _ = PerClass(KCenter(), equal).select(pool, k, rng)
        assert len(set(rows.tolist())) == min(k, 62)
    counts = torch.bincount(y[PerClass(KCenter(), equal).select(pool, 12, rng)[0]])
    assert counts.tolist() == [2, 5, 5]
    counts = torch.bincount(y[PerClass(KCenter(), proportional).select(pool, 31, rng)[0]])
    assert counts.tolist() == [1, 15, 15]


def test_class_labels_are_only_names() -> None:
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.integers(0, 3, 40))
    logits = torch.from_numpy(rng.normal(size=(40, 3)))
    selector = PerClass(LeastConfidence())
    rows = selector.select(Pool(40, y, logits=logits), 9, rng)[0]
    assert selector.select(Pool(40, y * 7 + 2, logits=logits), 9, rng)[0].tolist() == rows.tolist()


def test_errors_name_the_class() -> None:
    features = torch.ones(4, 2)
    features[3] = torch.inf
    pool = Pool(4, torch.tensor([0, 0, 9, 9]), features=features)
    with pytest.raises(ValueError, match=r"KCenter: features of row 1 holds NaN.*\(class 9\)"):
        PerClass(KCenter()).select(pool, 4, np.random.default_rng(0))
    with pytest.raises(ValueError, match="PerClass: the pool has no labels"):
        PerClass(KCenter()).select(Pool(4, features=features), 2, np.random.default_rng(0))
