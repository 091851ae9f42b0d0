import numpy as np
import pytest
import torch
from reference.laws import RARE
from reference.reservoir import successive_inclusion
from scipy import stats

from replaykit import Buffer
from replaykit.policies import Reservoir
from replaykit.retrieval import ClassBalanced, Retrieval, Uniform, Weighted

RUNS = 1500
ALL = [Uniform(), ClassBalanced(), Weighted()]
REPLACING = [Uniform(replace=True), ClassBalanced(replace=True), Weighted(replace=True)]


def memory(n: int, capacity: int = 0, y: list[int] | None = None, weight: list[float] | None = None) -> Buffer:
    buffer = Buffer(capacity or n, Reservoir(), seed=0)
    buffer.add(
        {
            "id": torch.arange(n),
            "y": torch.tensor(y if y is not None else [0] * n),
            "weight": torch.tensor(weight if weight is not None else [1.0] * n),
        }
    )
    return buffer


def counts(buffer: Buffer, n: int, retrieval: Retrieval, runs: int = RUNS) -> np.ndarray:
    drawn = [buffer.sample(n, retrieval)["id"].numpy() for _ in range(runs)]
    return np.bincount(np.concatenate(drawn), minlength=len(buffer))


@pytest.mark.parametrize("retrieval", ALL, ids=lambda r: type(r).__name__)
def test_rows_of_a_draw_are_distinct_and_all_when_more_are_asked_for(retrieval: Retrieval) -> None:
    buffer = memory(40, capacity=100, y=[i % 3 for i in range(40)], weight=[1.0 + i for i in range(40)])
    for n in (1, 10, 39, 40, 41, 1000):
        ids = buffer.sample(n, retrieval)["id"].tolist()
        assert len(ids) == len(set(ids)) == min(n, 40)


@pytest.mark.parametrize("retrieval", REPLACING, ids=lambda r: type(r).__name__)
def test_with_replacement_a_draw_has_as_many_rows_as_asked_for(retrieval: Retrieval) -> None:
    buffer = memory(5, capacity=100, y=[0, 0, 1, 1, 1])
    ids = buffer.sample(50, retrieval)["id"].tolist()
    assert len(ids) == 50 and set(ids) <= set(range(5))


@pytest.mark.parametrize("retrieval", ALL + REPLACING)
def test_empty_slots_are_never_read(retrieval: Retrieval) -> None:
    buffer = memory(20, capacity=30, y=[i % 4 for i in range(20)])
    buffer.store.release(np.array([0, 3, 7, 19]))
    for _ in range(50):
        assert not {0, 3, 7, 19} & set(buffer.sample(6, retrieval)["id"].tolist())


@pytest.mark.parametrize("retrieval", [Uniform(), Uniform(replace=True)], ids=["without", "with"])
def test_uniform(retrieval: Uniform) -> None:
    assert stats.chisquare(counts(memory(12), 1, retrieval)).pvalue > RARE
    hits = counts(memory(12), 4, retrieval)
    share = 4 * RUNS / 12
    variance = share * (11 / 12 if retrieval.replace else (1 - 4 / 12) * 12 / 11)
    assert stats.chi2.sf(((hits - share) ** 2).sum() / variance, 11) > RARE


def test_uniform_pairs_are_equally_likely() -> None:
    buffer = memory(5)
    pairs = np.zeros((5, 5))
    for _ in range(RUNS):
        first, second = buffer.sample(2)["id"].tolist()
        pairs[first, second] += 1
    assert stats.chisquare(pairs[~np.eye(5, dtype=bool)]).pvalue > RARE


@pytest.mark.parametrize("retrieval", [ClassBalanced(), ClassBalanced(replace=True)], ids=["without", "with"])
def test_class_balanced_single_draws(retrieval: ClassBalanced) -> None:
    """Class counts (8, 1, 1): a row of the large class with 1/24, the others with 1/3."""
    buffer = memory(10, y=[5] * 8 + [2, 9])
    hits = counts(buffer, 1, retrieval)
    assert stats.chisquare(hits, RUNS * np.array([1 / 24] * 8 + [1 / 3] * 2)).pvalue > RARE


def test_class_balanced_draws_of_several_are_successive() -> None:
    buffer = memory(7, y=[0] * 4 + [1, 2, 3])
    successive = successive_inclusion([1 / 16] * 4 + [1 / 4] * 3, 3)
    hits = counts(buffer, 3, ClassBalanced())
    for row, p in enumerate(successive):
        assert stats.binomtest(int(hits[row]), RUNS, p).pvalue > RARE


def test_balancing_another_column() -> None:
    buffer = memory(9)
    buffer.clear()
    buffer.add({"id": torch.arange(9), "t": torch.tensor([0] * 8 + [1])})
    hits = counts(buffer, 1, ClassBalanced("t"))
    assert stats.binomtest(int(hits[8]), RUNS, 0.5).pvalue > RARE


@pytest.mark.parametrize("retrieval", [Weighted(), Weighted(replace=True)], ids=["without", "with"])
def test_weighted_single_draws(retrieval: Weighted) -> None:
    weight = [1.0, 0.0, 2.0, 5.0]
    hits = counts(memory(4, weight=weight), 1, retrieval)
    assert hits[1] == 0
    assert stats.chisquare(hits[[0, 2, 3]], RUNS * np.array([1, 2, 5]) / 8).pvalue > RARE


def test_weighted_draws_of_several_are_successive() -> None:
    hits = counts(memory(3, weight=[1.0, 2.0, 3.0]), 2, Weighted())
    for row, p in enumerate([5 / 12, 11 / 15, 17 / 20]):
        assert stats.binomtest(int(hits[row]), RUNS, p).pvalue > RARE


def test_rows_without_weight_are_not_drawn_even_when_all_are_asked_for() -> None:
    assert sorted(memory(3, weight=[1.0, 0.0, 2.0]).sample(5, Weighted())["id"].tolist()) == [0, 2]


@pytest.mark.parametrize("weight", [[1.0, -1.0], [1.0, float("nan")], [0.0, 0.0], [1.0, float("inf")]], ids=str)
def test_weights_that_mean_nothing(weight: list[float]) -> None:
    buffer = Buffer(2, Reservoir(), check_finite=False)
    buffer.add({"weight": torch.tensor(weight)})
    with pytest.raises(ValueError, match="one finite weight >= 0 a row"):
        buffer.sample(1, Weighted())


def test_unknown_columns() -> None:
    buffer = Buffer(2, Reservoir())
    buffer.add({"x": torch.zeros(2)})
    for retrieval in (ClassBalanced(), Weighted("score")):
        with pytest.raises(KeyError, match=r"no column .*; the memory holds \['x'\]"):
            buffer.sample(1, retrieval)


def test_two_draws_are_independent() -> None:
    """DER++ draws twice: the overlap of two draws of 4 of 16 is hypergeometric with mean 1."""
    buffer = memory(16)
    shared = [
        len(set(buffer.sample(4)["id"].tolist()) & set(buffer.sample(4)["id"].tolist())) for _ in range(RUNS)
    ]
    law = stats.hypergeom(16, 4, 4)
    wanted = RUNS * np.array([law.pmf(0), law.pmf(1), law.pmf(2), law.sf(2)])
    observed = np.bincount(np.minimum(shared, 3), minlength=4)
    assert stats.chisquare(observed, wanted).pvalue > RARE
