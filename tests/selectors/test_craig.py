"""CRAIG: the worked example, the triangle bound for every subset, and weights that add up."""

from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from reference import coresets
from reference.factored import Factored

from replaykit.selectors import CRAIG, Pool, lazy, naive, stochastic
from replaykit.selectors.craig import craig, stood_for
from replaykit.selectors.facility_location import facility_location
from replaykit.selectors.rows import Rows

POINTS = torch.tensor([0.0, 1, 2, 10, 11, 20], dtype=torch.float64)
DISTANCES = (POINTS[:, None] - POINTS).abs()


def test_worked_example(device: str) -> None:
    for engine in (naive, lazy):
        rows, gamma, bound = craig(DISTANCES.to(device), 3, engine)
        assert rows.tolist() == [2, 4, 5]
        assert gamma.tolist() == [3, 2, 1]
        assert bound.tolist() == [38, 13, 4]
        # The bound on |44 - 48| is met with equality.
        assert float(POINTS.sum()) == 44
        assert float(gamma.cpu() @ POINTS[rows.cpu()]) == 48


def test_it_is_facility_location_on_the_largest_distance_minus_the_distance() -> None:
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 3)))
    distances = torch.cdist(points, points)
    rows, _, bound = craig(distances, 10)
    other, gains = facility_location(distances.max() - distances, 10)
    assert rows.tolist() == other.tolist()
    assert torch.allclose(bound, 40 * distances.max() - gains.cumsum(0))


def test_the_triangle_bound_holds_for_every_subset() -> None:
    g = torch.from_numpy(np.random.default_rng(0).normal(size=(7, 4)))
    distances = torch.cdist(g, g)
    nearness = Rows.of(-distances)
    for k in (1, 2, 3):
        for subset in combinations(range(7), k):
            rows = torch.tensor(subset)
            gamma = stood_for(nearness, rows, torch.ones(7))
            assert gamma.sum() == 7
            bound = distances[:, rows].min(1).values.sum()
            assert (g.sum(0) - gamma @ g[rows]).norm() <= bound + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_greedy_is_within_the_guarantee_of_the_best_subset(seed: int) -> None:
    g = np.random.default_rng(seed).normal(size=(9, 3))
    distances = np.linalg.norm(g[:, None] - g, axis=2)
    value = partial(coresets.facility_location_value, distances.max() - distances)
    for k in (2, 3):
        rows, _, bound = craig(torch.from_numpy(distances), k)
        assert 9 * distances.max() - float(bound[-1]) >= (
            (1 - (1 - 1 / k) ** k) * coresets.best_subset(9, k, value)
        )
        assert float(bound[-1]) == pytest.approx(distances[:, rows].min(1).sum())


def test_it_stops_when_the_bound_is_low_enough() -> None:
    _, _, bound = craig(DISTANCES, 6)
    assert bound.tolist() == [38, 13, 4, 2, 1, 0]
    for enough, size in ((38, 1), (20, 2), (13, 2), (12.9, 3), (0.0, 6)):
        rows, gamma, reached = craig(DISTANCES, 6, enough=enough)
        assert len(rows) == len(gamma) == len(reached) == size
        assert gamma.sum() == 6


def test_duplicates_count_together_and_still_fill_the_budget() -> None:
    points = torch.tensor([0.0, 0, 5, 5, 5], dtype=torch.float64)
    rows, gamma, _ = craig((points[:, None] - points).abs(), 2)
    assert rows.tolist() == [2, 0]
    assert gamma.tolist() == [3, 2]
    rows, gamma, _ = craig((points[:, None] - points).abs(), 4)
    assert rows.tolist() == [2, 0, 1, 3]
    assert gamma.tolist() == [2, 1, 1, 1]


def test_selector_equals_the_function_within_each_class_and_weights_sum_to_the_class() -> None:
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.integers(0, 3, 60))
    gradients = Factored(torch.from_numpy(rng.normal(size=(60, 3))), torch.from_numpy(rng.normal(size=(60, 5))))
    weight = torch.from_numpy(rng.random(60))
    pool = Pool(60, y, weight, gradients=gradients)
    dense = gradients.dense()
    rows, gamma = CRAIG().select(pool, 12, rng)
    for c in range(3):
        members = (y == c).nonzero().flatten()
        mine = y[rows] == c
        expected, weights, _ = craig(
            torch.cdist(dense[members], dense[members]), int(mine.sum()), weight=weight[members]
        )
        assert rows[mine].tolist() == members[expected].tolist()
        assert torch.allclose(gamma[mine], weights)
        assert float(gamma[mine].sum()) == pytest.approx(float(weight[members].sum()))


@pytest.mark.parametrize("engine", [lazy, stochastic])
def test_a_small_byte_budget_changes_nothing(engine) -> None:
    rng = np.random.default_rng(0)
    gradients = Factored(torch.from_numpy(rng.normal(size=(90, 3))), torch.from_numpy(rng.normal(size=(90, 4))))
    pool = Pool(90, gradients=gradients)
    (rows, gamma), *others = (
        CRAIG(engine=engine, max_bytes=b).select(pool, 9, np.random.default_rng(3)) for b in (2**31, 7000, 1)
    )
    for other, weights in others:
        assert other.tolist() == rows.tolist()
        assert weights.tolist() == gamma.tolist()


def test_negative_distances_are_refused() -> None:
    with pytest.raises(ValueError, match="craig: distances must be >= 0"):
        craig(-DISTANCES, 2)
