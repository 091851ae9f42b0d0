"""Facility location: the worked example, its laws, and its byte budget."""

from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from reference import coresets
from reference.factored import Factored

from replaykit.selectors import FacilityLocation, Pool, cosine, gaussian, lazy, naive, stochastic
from replaykit.selectors.facility_location import Coverage, facility_location
from replaykit.selectors.rows import Rows

POINTS = torch.tensor([0.0, 1, 2, 10, 11, 20], dtype=torch.float64)
S = 20 - (POINTS[:, None] - POINTS).abs()


def test_worked_example(device: str) -> None:
    f = Coverage(Rows.of(S.to(device)), torch.ones(6))
    everything = torch.arange(6, device=device)
    assert f.gains(everything).tolist() == [76, 80, 82, 82, 80, 44]
    f.add(torch.tensor(2, device=device))
    assert f.gains(everything)[[0, 1, 3, 4, 5]].tolist() == [2, 2, 24, 25, 18]
    for engine in (naive, lazy):
        rows, gains = facility_location(S.to(device), 3, engine)
        assert rows.device.type == torch.device(device).type
        assert rows.tolist() == [2, 4, 5]
        assert gains.cumsum(0).tolist() == [82, 107, 116]
    optima = [coresets.best_subset(6, k, partial(coresets.facility_location_value, S.numpy())) for k in (1, 2, 3)]
    assert optima == [82, 108, 117]


def test_it_is_monotone_and_has_diminishing_returns() -> None:
    s = np.random.default_rng(0).random((6, 6))
    value = partial(coresets.facility_location_value, s)
    assert value([]) == 0
    for size in range(5):
        for small in combinations(range(6), size):
            for more in range(6 - size):
                rest = [i for i in range(6) if i not in small]
                large = [*small, *rest[:more]]
                for j in rest[more:]:
                    first, later = value([*small, j]) - value(small), value([*large, j]) - value(large)
                    assert first >= later - 1e-12 >= -2e-12
                    # and the engine's gains are these differences
                    f = Coverage(Rows.of(torch.from_numpy(s)), torch.ones(6))
                    for i in large:
                        f.add(torch.tensor(i))
                    assert float(f.gains(torch.tensor([j]))) == pytest.approx(later)


def test_weights_count_like_copies() -> None:
    weight = torch.tensor([1, 3, 1, 2, 1, 20])
    copies = torch.repeat_interleave(torch.arange(6), weight)
    rows, gains = facility_location(S, 3, weight=weight.double())
    best = torch.zeros(6, dtype=torch.float64)
    for row, gain in zip(rows, gains, strict=True):
        better = torch.maximum(best, S[row])
        assert float((better - best)[copies].sum()) == pytest.approx(float(gain))
        best = better
    assert rows[0] == 5  # where the weight is, unlike in the worked example


@pytest.mark.parametrize("similarity", [cosine, gaussian])
@pytest.mark.parametrize("engine", [lazy, stochastic])
def test_a_small_byte_budget_changes_nothing(similarity, engine) -> None:
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(120, 7)))
    gradients = Factored(torch.from_numpy(rng.normal(size=(120, 3))), features)
    pool = Pool(120, features=features, gradients=gradients)
    for quantity in ("features", "gradients"):
        whole, *others = (
            FacilityLocation(quantity, similarity, engine, max_bytes).select(pool, 12, np.random.default_rng(5))
            for max_bytes in (2**31, 120 * 8 * 7, 1)
        )
        for rows, weights in others:
            assert rows.tolist() == whole[0].tolist()
            assert weights.tolist() == [1] * 12


def test_no_more_of_the_matrix_is_held_than_the_budget_allows() -> None:
    largest = []

    class Watched(Factored):
        def gram_rows(self, index, among=None):
            largest.append(len(index))
            return super().gram_rows(index, among)

    rng = np.random.default_rng(0)
    vectors = Watched(torch.from_numpy(rng.normal(size=(200, 3))), torch.from_numpy(rng.normal(size=(200, 4))))
    FacilityLocation("gradients", max_bytes=200 * 8 * 5).select(Pool(200, gradients=vectors), 4, rng)
    assert max(largest) == 5


def test_it_picks_one_row_of_each_cluster() -> None:
    rng = np.random.default_rng(0)
    centres = torch.eye(5, dtype=torch.float64) * 10
    group = torch.arange(100) % 5
    features = centres[group] + torch.from_numpy(rng.normal(size=(100, 5)))
    for engine in (lazy, stochastic):
        rows, _ = FacilityLocation(engine=engine).select(Pool(100, features=features), 5, rng)
        assert sorted(group[rows].tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.full((3, 3), -1.0), "must be >= 0, got -1"),
        (torch.full((3, 3), torch.nan), "NaN or infinity"),
        (torch.zeros(3, 2), "square"),
    ],
)
def test_bad_similarities_are_refused(matrix, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        facility_location(matrix, 1)
    with pytest.raises(ValueError, match="facility_location: weight"):
        facility_location(torch.ones(3, 3), 1, weight=torch.tensor([1.0, -1, 1]))
