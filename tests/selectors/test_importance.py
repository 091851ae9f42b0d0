"""Importance sampling: unbiased by enumeration, inclusion probabilities by chi-square."""

import numpy as np
import pytest
import torch
from reference.factored import Factored
from scipy.stats import chi2

from replaykit.selectors import Importance, Pool
from replaykit.selectors.importance import (
    chances,
    effective_sample_size,
    inclusion_probabilities,
    systematic,
    with_replacement,
)


@pytest.mark.parametrize("rho", [0.0, 0.1, 1.0])
def test_one_draw_is_unbiased_for_the_mean(rho: float) -> None:
    x, scores = np.array([3.0, -1, 4, 10]), np.array([1.0, 5, 2, 2])
    p = chances(scores, rho)
    assert p.sum() == pytest.approx(1)
    assert sum(p[i] * x[i] / (4 * p[i]) for i in range(4)) == pytest.approx(x.mean())
    rows, weights = with_replacement(p, 500, np.random.default_rng(0))
    assert weights.tolist() == (1 / (4 * p[rows])).tolist()


def test_chances_proportional_to_the_loss_leave_no_variance() -> None:
    loss = np.array([1.0, 2, 3, 4])
    rows, weights = with_replacement(chances(loss, 0.0), 200, np.random.default_rng(0))
    assert (loss[rows] * weights).tolist() == pytest.approx([2.5] * 200)
    assert set(rows.tolist()) == {0, 1, 2, 3}


def test_weights_average_to_one_and_are_bounded() -> None:
    scores = np.random.default_rng(0).random(50) ** 8
    _, weights = with_replacement(chances(scores, 0.1), 100_000, np.random.default_rng(1))
    assert weights.max() <= 10 + 1e-9
    assert weights.mean() == pytest.approx(1, abs=4 * weights.std() / np.sqrt(100_000))


def test_inclusion_probabilities_by_hand() -> None:
    assert inclusion_probabilities(np.array([1.0, 1, 2]) / 4, 1).tolist() == [0.25, 0.25, 0.5]
    assert inclusion_probabilities(np.array([1.0, 1, 2]) / 4, 2).tolist() == [0.5, 0.5, 1]
    assert inclusion_probabilities(np.array([1.0, 1, 8]) / 10, 2).tolist() == [0.5, 0.5, 1]
    assert inclusion_probabilities(np.array([1.0, 2, 8, 30]) / 41, 3).tolist() == pytest.approx(
        [1 / 3, 2 / 3, 1, 1]
    )
    assert inclusion_probabilities(np.array([0.0, 0, 0, 1]), 2).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
    assert inclusion_probabilities(np.array([0.5, 0.5]), 0).tolist() == [0, 0]
    assert inclusion_probabilities(np.array([0.9, 0.1]), 2).tolist() == [1, 1]


def test_systematic_sampling_has_these_probabilities() -> None:
    rng = np.random.default_rng(0)
    pi = inclusion_probabilities(rng.random(12) ** 2, 5)
    runs, hits = 4000, np.zeros(12)
    for _ in range(runs):
        rows = systematic(pi, rng)
        assert len(set(rows.tolist())) == 5
        hits[rows] += 1
    assert (hits[pi == 1] == runs).all()
    free = pi < 1
    # Inclusions of a fixed-size design are negatively correlated, so this statistic is at most chi-square.
    z = (hits - runs * pi)[free] / np.sqrt(runs * (pi * (1 - pi))[free])
    assert (z**2).sum() < chi2.ppf(0.999, free.sum())
    assert np.abs(z).max() > 0.1


def test_horvitz_thompson_is_unbiased_for_the_weighted_sum() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.random(30), rng.random(30)
    pool = Pool(30, weight=torch.from_numpy(weight), losses=torch.from_numpy(x))
    estimates = []
    for _ in range(1500):
        rows, w = Importance("losses").select(pool, 8, rng)
        assert len(set(rows.tolist())) == 8
        estimates.append(float(w.numpy() @ x[rows.numpy()]))
    error = np.std(estimates) / np.sqrt(1500)
    assert np.mean(estimates) == pytest.approx(x @ weight, abs=4 * error)
    uniform = 30 / 8 * np.std([(x * weight)[rng.permutation(30)[:8]].sum() for _ in range(1500)])
    assert np.std(estimates) < uniform / 2


def test_all_rows_are_returned_with_their_own_weight() -> None:
    weight = torch.tensor([1.0, 5, 2])
    rows, w = Importance("losses").select(
        Pool(3, weight=weight, losses=torch.ones(3)), 7, np.random.default_rng(0)
    )
    assert sorted(rows.tolist()) == [0, 1, 2]
    assert w.tolist() == weight[rows].tolist()


def test_vectors_are_scored_by_their_norm(device: str) -> None:
    residual = torch.zeros(5, 2, dtype=torch.float64, device=device)
    residual[3] = 1
    g = Factored(residual, torch.ones(5, 3, dtype=torch.float64, device=device))
    rows, _ = Importance(rho=0.0).select(Pool(5, gradients=g), 1, np.random.default_rng(0))
    assert rows.tolist() == [3]
    assert rows.device.type == torch.device(device).type


def test_scores_of_zero_are_uniform_and_bad_ones_refused() -> None:
    assert chances(np.zeros(4)).tolist() == [0.25] * 4
    for scores in (np.array([1.0, -1]), np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match="scores must be finite and >= 0"):
            chances(scores)
    with pytest.raises(ValueError, match="rho must be in"):
        chances(np.ones(2), 2.0)
    with pytest.raises(ValueError, match="importance: scores"):
        Importance("losses").select(Pool(2, losses=torch.tensor([1.0, -2])), 1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="systematic: probabilities"):
        systematic(np.array([0.5, 0.7]), np.random.default_rng(0))


def test_effective_sample_size() -> None:
    assert effective_sample_size(torch.ones(7)) == 7
    assert effective_sample_size(torch.tensor([1.0, 0, 0])) == 1
    assert effective_sample_size(torch.tensor([3.0, 1])) == pytest.approx(1.6)
    assert effective_sample_size(torch.zeros(0)) == 0
