"""Replay whose use wears off with repetition, and the counts of it."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import Chance, exact_law, p_value
from reference.laws import RARE
from scipy import stats

from replaykit import Buffer
from replaykit.policies import Reservoir
from replaykit.retrieval import LeastReplayed, Uniform, Weighted
from replaykit.testing import reloaded, same


def memory(
    n: int, retrieval: LeastReplayed | None = None, weight: list[float] | None = None, seed: int = 0
) -> Buffer:
    buffer = Buffer(n, Reservoir(), retrieval or LeastReplayed(), seed=seed)
    batch = {"id": torch.arange(n)}
    buffer.add(batch if weight is None else {**batch, "weight": torch.tensor(weight)})
    return buffer


def with_counts(buffer: Buffer, counts: list[float]) -> Buffer:
    buffer.store.note("replayed", 0.0)[: len(counts)] = counts
    return buffer


# -- the law ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.3, 1.0])
@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 0.5, 4.0]])
@pytest.mark.parametrize("n", [1, 2])
def test_draws_are_successive_with_weights_that_decay_with_the_count(decay, weight, n) -> None:
    counts = [0, 1, 2, 3]
    utility = [(weight or [1.0] * 4)[row] * decay ** counts[row] for row in range(4)]

    def successive(chance: Chance) -> tuple[int, ...]:
        left, drawn = list(range(4)), []
        for _ in range(n):
            drawn.append(left.pop(chance.weighted([utility[row] for row in left])))
        return tuple(drawn)

    retrieval = LeastReplayed(decay, column=None if weight is None else "weight")
    buffer, found = with_counts(memory(4, retrieval, weight), counts), {}
    rng = np.random.default_rng(0)
    for _ in range(2500):
        drawn = tuple(retrieval.rows(buffer.store, n, rng).tolist())
        found[drawn] = found.get(drawn, 0) + 1
    assert p_value(found, exact_law(successive)) > RARE


def test_with_decay_zero_the_least_replayed_come_first() -> None:
    buffer = with_counts(memory(6, LeastReplayed(0.0)), [3, 0, 1, 0, 1, 2])
    rng = np.random.default_rng(0)
    drawn = np.array([buffer.retrieval.rows(buffer.store, 3, rng) for _ in range(1000)])
    assert set(drawn[:, :2].ravel().tolist()) == {1, 3} and set(drawn[:, 2].tolist()) == {2, 4}
    assert stats.binomtest(int((drawn[:, 2] == 2).sum()), 1000).pvalue > RARE


def test_with_decay_zero_utility_decides_among_equals() -> None:
    buffer = memory(3, LeastReplayed(0.0, column="weight"), [1.0, 3.0, 0.0])
    rng = np.random.default_rng(0)
    first = [buffer.retrieval.rows(buffer.store, 1, rng)[0] for _ in range(1500)]
    assert stats.binomtest(first.count(1), 1500, 0.75).pvalue > RARE and 2 not in first


def test_counts_even_out() -> None:
    """With decay 0, after any number of draws no row was replayed two times more often than another."""
    buffer = memory(11, LeastReplayed(0.0))
    for _ in range(40):
        buffer.draw(4)
        counts = buffer["replayed"]
        assert counts.max() - counts.min() <= 1
    assert buffer["replayed"].sum() == 160


@pytest.mark.parametrize("decay", [0.5, 0.0])
def test_rows_of_no_utility_come_last_and_at_random(decay: float) -> None:
    buffer = memory(5, LeastReplayed(decay, column="weight"), [0.0, 1.0, 0.0, 1e-30, 0.0])
    rng = np.random.default_rng(0)
    drawn = np.array([buffer.retrieval.rows(buffer.store, 3, rng) for _ in range(1200)])
    assert {1, 3} == set(drawn[:, :2].ravel().tolist())
    assert stats.chisquare(np.bincount(drawn[:, 2], minlength=5)[[0, 2, 4]]).pvalue > RARE


def test_counts_beyond_the_range_of_weights_still_decide() -> None:
    """0.5^5000 is no number above 0, and yet more than 0.5^5100."""
    buffer = with_counts(memory(3, LeastReplayed(0.5)), [5100, 5000, 5200])
    for _ in range(50):
        assert buffer.retrieval.rows(buffer.store, 2, np.random.default_rng(0)).tolist() == [1, 0]


# -- counts -------------------------------------------------------------------------------------------


def test_draws_are_counted_whatever_drew_them() -> None:
    buffer = memory(4)
    buffer.sample(4)
    buffer.draw(3, Uniform())
    assert buffer["replayed"].sum() == 7 and buffer["replayed"].dtype == torch.float64
    buffer.draw(50, Uniform(replace=True))
    assert buffer["replayed"].sum() == 57  # a row that comes twice in a draw counts twice


def test_a_column_of_the_batch_is_not_taken_for_the_counts() -> None:
    buffer = Buffer(4, Reservoir(), LeastReplayed(decay=0.0), seed=0)
    buffer.add({"id": torch.arange(4), "replayed": torch.tensor([9, 9, 9, 0])})
    assert sorted(buffer.sample(1)["id"].item() for _ in range(4)) == [0, 1, 2, 3]


def test_nothing_is_counted_unless_somebody_looks() -> None:
    buffer = Buffer(4, Reservoir())
    buffer.add({"id": torch.arange(4)})
    buffer.sample(2)
    with pytest.raises(KeyError, match="no column 'replayed'"):
        buffer["replayed"]
    buffer.draw(2, LeastReplayed())
    assert buffer["replayed"].sum() == 2


def test_counting_can_be_asked_for_and_read_as_a_criterion() -> None:
    class Counts(Reservoir):
        counts = True

    for buffer in (
        Buffer(5, Reservoir(), count_replays=True),
        Buffer(5, Counts()),
        Buffer(5, Reservoir(), Weighted("replayed")),
    ):
        buffer.add({"id": torch.arange(5)})
        buffer.draw(3, Uniform())
        assert buffer["replayed"].sum() == 3
        drawn = set(buffer.draw(3, Weighted("replayed")).tolist())  # only those that were replayed have weight
        assert (buffer["replayed"][list(drawn)] == 2).all()
        buffer.clear()
        buffer.add({"id": torch.arange(5)})
        assert buffer["replayed"].tolist() == [0] * 5


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=10))
def test_counts_belong_to_the_row(seed: int, sizes: list[int]) -> None:
    buffer, book, first = Buffer(6, Reservoir(), LeastReplayed(0.4), seed=seed), {}, 0
    for size in sizes:
        buffer.add({"id": torch.arange(first, first + size)})
        first += size
        for row in buffer.sample(3)["id"].tolist():
            book[row] = book.get(row, 0) + 1
        assert buffer["replayed"].tolist() == [book.get(row, 0) for row in buffer["id"].tolist()]


@pytest.mark.parametrize("how", ["state", "pickle", "copy"])
def test_a_run_cut_anywhere_draws_the_same(how: str) -> None:
    ends = []
    for stops in (False, True):
        buffer, drawn = Buffer(6, Reservoir(), LeastReplayed(0.4), seed=3), []
        for turn in range(10):
            if stops and turn == 6:
                if how == "state":
                    state = reloaded(buffer.state_dict())
                    buffer = Buffer(6, Reservoir(), LeastReplayed(0.4), seed=5)
                    buffer.load_state_dict(state)
                else:
                    buffer = pickle.loads(pickle.dumps(buffer)) if how == "pickle" else copy.deepcopy(buffer)
            buffer.add({"id": torch.arange(3 * turn, 3 * turn + 3)})
            drawn.append(buffer.sample(4))
        ends.append({"drawn": drawn, "state": buffer.state_dict()})
    assert same(ends[0], ends[1])


# -- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [-0.1, 1.5, math.nan])
def test_decays_that_are_none(decay: float) -> None:
    with pytest.raises(ValueError, match=r"decay is a factor for each replay, in \[0, 1\], got"):
        LeastReplayed(decay)


@pytest.mark.parametrize("weight", [[1.0, -1.0, 1.0], [1.0, math.nan, 1.0], [math.inf, 1.0, 1.0]])
def test_utilities_that_mean_nothing(weight: list[float]) -> None:
    buffer = Buffer(3, Reservoir(), LeastReplayed(column="weight"), check_finite=False)
    buffer.add({"weight": torch.tensor(weight)})
    with pytest.raises(ValueError, match="column 'weight' must hold one finite utility >= 0 a row"):
        buffer.draw(1)


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(KeyError, match="LeastReplayed: no column 'score'; the memory holds .*; add batches that"):
        memory(3).draw(1, LeastReplayed(column="score"))
