"""The submodular engines: equal to the literal loop, to each other, and within their guarantees."""

from functools import partial
from math import ceil, exp, log

import numpy as np
import pytest
import torch
from reference import coresets
from torch import Tensor

from replaykit.draws import distinct
from replaykit.selectors.facility_location import Coverage, facility_location
from replaykit.selectors.graph_cut import graph_cut
from replaykit.selectors.greedy import lazy, naive, stochastic
from replaykit.selectors.log_determinant import log_determinant
from replaykit.selectors.rows import Rows


def similarity(n: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((n, n)))


def kernel(n: int, seed: int) -> Tensor:
    factors = torch.from_numpy(np.random.default_rng(seed).random((n, n + 2)))
    return factors @ factors.T / n


@pytest.mark.parametrize("n", [1, 5, 40, 150])
@pytest.mark.parametrize("seed", range(4))
def test_lazy_gives_the_rows_and_gains_of_naive(n: int, seed: int) -> None:
    s, k = similarity(n, seed), kernel(n, seed)
    for maximise in (
        partial(facility_location, s),
        partial(graph_cut, s + s.T),
        partial(graph_cut, s + s.T, lam=0.3),
        partial(log_determinant, k),
        partial(log_determinant, k, eps=0.01),
    ):
        rows, gains = maximise(k=min(n, 30), engine=naive)
        lazy_rows, lazy_gains = maximise(k=min(n, 30), engine=lazy)
        assert lazy_rows.tolist() == rows.tolist()
        assert torch.allclose(lazy_gains, gains)


def test_lazy_breaks_ties_like_naive() -> None:
    # Small integers: many equal gains, and exact ones.
    for seed in range(20):
        s = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, (30, 30))).double()
        s[:, 15:] = s[:, :15]
        s[15:] = s[:15]
        assert facility_location(s, 20, lazy)[0].tolist() == facility_location(s, 20, naive)[0].tolist()


def test_lazy_computes_fewer_gains() -> None:
    class Counting(Coverage):
        computed = 0

        def gains(self, index: Tensor) -> Tensor:
            type(self).computed += len(index)
            return super().gains(index)

    n, k = 400, 40
    points = torch.from_numpy(np.random.default_rng(0).random((n, 2)))
    f = Counting(Rows.of(2 - torch.cdist(points, points)), torch.ones(n))
    lazy(f, k)
    assert Counting.computed < n * k / 5


@pytest.mark.parametrize("seed", range(6))
def test_greedy_is_within_its_guarantee_of_the_enumerated_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for k in (1, 2, 3, 4):
        n = int(rng.integers(k, 10))
        s = rng.random((n, n)) ** 3
        optimum = coresets.best_subset(n, k, partial(coresets.facility_location_value, s))
        rows, gains = facility_location(torch.from_numpy(s), k)
        value = coresets.facility_location_value(s, rows.tolist())
        assert value == pytest.approx(float(gains.sum()))
        assert value >= (1 - (1 - 1 / k) ** k) * optimum - 1e-12


def test_approximate_lazy_keeps_its_guarantee_and_saves_gains() -> None:
    for seed in range(6):
        s = similarity(10, seed)
        optimum = coresets.best_subset(10, 3, partial(coresets.facility_location_value, s.numpy()))
        for beta in (0.5, 0.9):
            _, gains = facility_location(s, 3, partial(lazy, beta=beta))
            assert float(gains.sum()) >= (1 - exp(-beta)) * optimum
    s = similarity(300, 0)
    exact, loose = facility_location(s, 50)[0], facility_location(s, 50, partial(lazy, beta=0.2))[0]
    assert exact.tolist() != loose.tolist()


def test_stochastic_greedy_reaches_its_guarantee_on_average() -> None:
    s = similarity(12, 3)
    for k, eps in ((2, 0.01), (4, 0.2)):
        optimum = coresets.best_subset(12, k, partial(coresets.facility_location_value, s.numpy()))
        engine = partial(stochastic, eps=eps)
        values = [
            float(facility_location(s, k, engine, np.random.default_rng(seed))[1].sum()) for seed in range(200)
        ]
        assert np.mean(values) >= (1 - exp(-1) - eps) * optimum


def test_stochastic_greedy_looks_at_no_more_than_the_stated_number_of_rows() -> None:
    sizes = []

    class Recording(Coverage):
        def gains(self, index: Tensor) -> Tensor:
            assert len(set(index.tolist())) == len(index)
            sizes.append(len(index))
            return super().gains(index)

    f = Recording(Rows.of(similarity(200, 0)), torch.ones(200))
    stochastic(f, 50, np.random.default_rng(0))
    size = ceil(200 / 50 * log(1 / 0.01))  # eps is 0.01 by default
    assert sizes[0] == size and max(sizes) <= size and sum(sizes) < 50 * size


@pytest.mark.parametrize("seed", range(10))
def test_gains_that_stochastic_greedy_leaves_out_do_not_matter(seed: int) -> None:
    n, k, eps = 150, 30, 0.1
    s = similarity(n, seed)
    s[:, 75:] = s[:, :75]
    s[75:] = s[:75]  # every row twice, so there are ties
    rows, _ = facility_location(s, k, partial(stochastic, eps=eps), np.random.default_rng(seed))
    f, rng = Coverage(Rows.of(s), torch.ones(n)), np.random.default_rng(seed)
    rest = list(range(n))
    for row in rows:
        drawn = distinct(len(rest), min(len(rest), ceil(n / k * log(1 / eps))), rng)
        sample = sorted(rest[i] for i in drawn)
        gains = f.gains(torch.tensor(sample))
        best = next(i for i, g in zip(sample, gains, strict=True) if g >= gains.max() - 1e-12)
        assert row == best
        f.add(row)
        rest.remove(best)


def test_a_sample_of_everything_is_naive() -> None:
    s = similarity(30, 1)
    rows, _ = facility_location(s, 6, partial(stochastic, eps=1e-9), np.random.default_rng(0))
    assert rows.tolist() == facility_location(s, 6, naive)[0].tolist()


def test_engines_refuse_what_they_cannot_use() -> None:
    s = similarity(5, 0)
    with pytest.raises(ValueError, match="beta must be in"):
        facility_location(s, 2, partial(lazy, beta=0.0))
    with pytest.raises(ValueError, match="eps must be in"):
        facility_location(s, 2, partial(stochastic, eps=1.0), np.random.default_rng(0))
    with pytest.raises(ValueError, match="needs a generator"):
        facility_location(s, 2, stochastic)
