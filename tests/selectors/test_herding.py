"""Herding against its literal loop, the hand cases, and the prefix property."""

import numpy as np
import pytest
import torch
from reference import coresets
from reference.factored import Factored

from replaykit.selectors import Herding, Pool, proportional
from replaykit.selectors.herding import herding


def test_hand_cases(device: str) -> None:
    values = torch.tensor([[0.0], [1], [2], [9]], device=device)
    rows = herding(values, 3)
    assert rows.tolist() == [2, 1, 3]
    mean = values[rows, 0].cumsum(0) / torch.arange(1, 4, device=device)
    assert (mean - 3).abs().tolist() == [1, 1.5, 1]
    other = torch.tensor([[0.0], [1], [2], [6]], device=device)
    assert other[herding(other, 4), 0].tolist() == [2, 1, 6, 0]


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_literal_loop(seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=(40, 6))
    expected = coresets.herding(features, 40)
    assert herding(torch.from_numpy(features), 40).tolist() == expected
    assert herding(torch.from_numpy(features), 7).tolist() == expected[:7]  # a prefix


def test_normalised_by_default_and_the_flag_matters() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 3)) * rng.random((40, 1)) * 9
    pool = Pool(40, features=torch.from_numpy(features))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert Herding().select(pool, 10, rng)[0].tolist() == coresets.herding(unit, 10)
    assert Herding(normalise=False).select(pool, 10, rng)[0].tolist() == coresets.herding(features, 10)


def test_gradients_as_factors_give_the_rows_of_dense_ones() -> None:
    rng = np.random.default_rng(0)
    g = Factored(torch.from_numpy(rng.normal(size=(50, 3))), torch.from_numpy(rng.normal(size=(50, 4))))
    factored, dense = (
        Herding("gradients").select(Pool(50, gradients=value), 12, rng)[0] for value in (g, g.dense())
    )
    assert factored.tolist() == dense.tolist()


def test_error_of_all_rows_is_zero_and_falls_with_k() -> None:
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 3)))
    rows = herding(features, 200)
    error = (features[rows].cumsum(0) / torch.arange(1, 201)[:, None] - features.mean(0)).norm(dim=1)
    assert error[-1] < 1e-12
    # O(1 / k), while a random subset has O(1 / sqrt k).
    assert (error[10:100] * torch.arange(11, 101) < 3).all()


def test_a_weighted_mean_is_the_mean_of_copies() -> None:
    values = torch.tensor([[0.0], [1], [2], [9]], dtype=torch.float64)
    weight = torch.tensor([1.0, 1, 1, 20])
    assert herding(values, 1, weight).tolist() == [3]
    assert herding(values, 1, torch.zeros(4)).tolist() == [2]


def test_equal_shares_of_the_classes_and_proportional_ones() -> None:
    rng = np.random.default_rng(0)
    y = torch.tensor([0] * 90 + [1] * 10)
    pool = Pool(100, y, features=torch.from_numpy(rng.normal(size=(100, 3))))
    rows, weights = Herding().select(pool, 10, rng)
    assert (y[rows] == 1).sum() == 5
    assert weights.tolist() == [1] * 10
    assert (y[Herding(shares=proportional).select(pool, 10, rng)[0]] == 1).sum() == 1


def test_symmetric_pairs_and_duplicates_go_by_index() -> None:
    pair = torch.tensor([[0.3, 1.7], [0.1, -0.9]], dtype=torch.float64)
    assert herding(pair, 2).tolist() == herding(pair.flip(0), 2).tolist() == [0, 1]
    assert herding(torch.full((9, 3), 0.1), 5).tolist() == [0, 1, 2, 3, 4]
