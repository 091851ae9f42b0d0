"""k-center greedy: the tight example, the factor 2, and rows fetched ahead."""

from functools import partial

import numpy as np
import pytest
import torch
from reference import coresets
from reference.factored import Factored

from replaykit.selectors import KCenter, Pool
from replaykit.selectors.k_center import first_row, k_center, nearest_to_mean, random_row

POINTS = torch.tensor([[0.0], [1], [2], [10], [11], [20]], dtype=torch.float64)


def test_worked_example(device: str) -> None:
    rows, radii = k_center(POINTS.to(device), 3, first=0)
    assert rows.tolist() == [0, 5, 3]
    assert radii.tolist() == [20, 10, 2]
    distances = (POINTS - POINTS.T).abs().numpy()
    for k, optimum in ((2, 9), (3, 1)):
        assert -coresets.best_subset(6, k, lambda c: -coresets.radius(distances, c)) == optimum


@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_literal_loop_and_within_twice_the_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 12))
    points = rng.normal(size=(n, 2))
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    for k in (1, 2, 3):
        rows, radii = k_center(torch.from_numpy(points), k)
        assert rows.tolist() == coresets.k_center(distances, k, 0)
        assert float(radii[-1]) == pytest.approx(coresets.radius(distances, rows.tolist()))
        assert float(radii[-1]) <= -2 * coresets.best_subset(n, k, lambda c: -coresets.radius(distances, c))


def test_the_radius_never_grows_and_ends_at_zero() -> None:
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 3)))
    radii = k_center(points, 50)[1]
    assert (radii.diff() <= 0).all()
    assert radii[-1] == 0 < radii[-2]


@pytest.mark.parametrize("d", [2, 30])
def test_fetching_ahead_changes_nothing(d: int) -> None:
    rng = np.random.default_rng(d)
    factors = Factored(torch.from_numpy(rng.normal(size=(400, 3))), torch.from_numpy(rng.normal(size=(400, d))))
    one, few, many = (k_center(factors, 120, max_bytes=b)[0].tolist() for b in (1, 400 * 8 * 3, 2**31))
    assert one == few == many == k_center(factors.dense(), 120)[0].tolist()


def test_fetching_ahead_asks_fewer_times() -> None:
    calls = []

    class Watched(Factored):
        def gram_rows(self, index, among=None):
            calls.append(len(index))
            return super().gram_rows(index, among)

    rng = np.random.default_rng(0)
    vectors = Watched(torch.from_numpy(rng.normal(size=(500, 3))), torch.from_numpy(rng.normal(size=(500, 8))))
    k_center(vectors, 100)
    assert len(calls) < 50 and max(calls) <= 32


def test_first_rows() -> None:
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.normal(size=(30, 4)))
    pool = Pool(30, features=points)
    central = int((points - points.mean(0)).norm(dim=1).argmin())
    assert KCenter().select(pool, 3, rng)[0][0] == central
    assert KCenter(first=first_row).select(pool, 3, rng)[0][0] == 0
    starts = {int(KCenter(first=random_row).select(pool, 3, np.random.default_rng(s))[0][0]) for s in range(40)}
    assert len(starts) > 15
    # By inner products alone.
    factors = Factored(points[:, :2], points[:, 2:])
    dense = factors.dense()
    assert nearest_to_mean(factors, rng) == int((dense - dense.mean(0)).norm(dim=1).argmin())


def test_rows_that_are_centres_already_are_respected() -> None:
    rows, radii = k_center(POINTS, 2, centres=torch.tensor([5, 5, 0]))
    assert rows.tolist() == [3, 2]
    assert radii.tolist() == [2, 1]
    everything, _ = k_center(POINTS, 9, centres=torch.tensor([5, 0]))
    assert sorted(everything.tolist()) == [1, 2, 3, 4]


def test_duplicates_go_by_index() -> None:
    points = torch.randn(1, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).expand(7, -1)
    assert k_center(points, 5)[0].tolist() == [0, 1, 2, 3, 4]
    rows, _ = KCenter().select(Pool(7, features=points), 5, np.random.default_rng(0))
    assert rows.tolist() == [0, 1, 2, 3, 4]


def test_bad_input_is_refused() -> None:
    for call, message in (
        (partial(k_center, POINTS, -1), "k is a number of rows"),
        (partial(k_center, POINTS, 1, first=6), "first row must be in"),
        (partial(k_center, POINTS * torch.nan, 1), "k_center: points of row 0, 1, 2"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
