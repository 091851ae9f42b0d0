import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.laws import RARE, assert_probabilities, feed, joint_p_value, stored, stream, subset_p_value
from reference.reservoir import algorithm_r, frozen_count, truncated_binomial_mean
from scipy import stats

from replaykit import Buffer
from replaykit.policies import Reservoir
from replaykit.policies.reservoir import accepted
from replaykit.testing import same

RUNS = 1000
SIZES = (5, 1, 2)  # n = 8
SMALL = st.lists(st.integers(0, 40), min_size=1, max_size=8)


def by_slot(buffer: Buffer) -> list[int]:
    return buffer.store.host("id")[np.sort(buffer.store.filled)].tolist()


# -- the plain reservoir --------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(capacity=st.integers(1, 20), sizes=SMALL, seed=st.integers(0, 1000))
def test_batches_end_like_single_steps_with_the_same_draws(capacity: int, sizes: list[int], seed: int) -> None:
    memory = feed(Buffer(capacity, Reservoir(), seed=np.random.default_rng(seed)), sizes)
    expected = algorithm_r(sum(sizes), capacity, np.random.default_rng(seed).random)
    assert (by_slot(memory) if expected else []) == expected


def test_all_subsets_are_equally_likely() -> None:
    assert subset_p_value(stored(Reservoir, 3, SIZES, RUNS)) > RARE
    assert joint_p_value(stored(Reservoir, 2, (3, 2), RUNS)) > RARE


def test_the_first_rows_all_survive_once_in_as_many_runs_as_there_are_subsets() -> None:
    inside = stored(Reservoir, 3, SIZES, 3 * RUNS)
    survived = int(inside[:, :3].all(axis=1).sum())
    assert stats.binomtest(survived, 3 * RUNS, 1 / 56).pvalue > RARE


def test_number_of_writes_after_the_fill() -> None:
    """M (H_8 - H_3) = 2.6536 for M = 3, with variance the sum of p (1 - p), p = M / i."""
    p = 3 / np.arange(4, 9)
    assert p.sum() == pytest.approx(2.6536, abs=1e-4)
    writes = []
    for seed in range(RUNS):
        buffer = feed(Buffer(3, Reservoir(), seed=seed), [3])
        writes.append(sum(buffer.add(stream(1, row)) for row in range(3, 8)))
    z = (np.mean(writes) - p.sum()) / math.sqrt((p * (1 - p)).sum() / RUNS)
    assert abs(z) < stats.norm.isf(RARE / 2)


def test_an_accepted_row_takes_each_slot_equally_often() -> None:
    slots = []
    rng = np.random.default_rng(0)
    for _ in range(RUNS):
        slots.extend(accepted(1, 9, 5, rng))
    assert stats.chisquare(np.bincount(slots, minlength=5)).pvalue > RARE


def test_draws_stay_uniform_far_beyond_single_precision() -> None:
    slots = np.array(list(accepted(4000, 2**30, 2**29, np.random.default_rng(0))))
    assert stats.binomtest(int((slots % 2).sum()), len(slots)).pvalue > RARE
    assert abs(len(slots) / 4000 - 0.5) < 0.05


def test_every_offered_row_counts_also_if_it_is_not_stored() -> None:
    buffer = feed(Buffer(2, Reservoir()), [10] * 50)
    assert buffer.seen == 500 and len(buffer) == 2


def test_a_batch_larger_than_the_memory() -> None:
    assert subset_p_value(stored(Reservoir, 3, (8,), RUNS)) > RARE


# -- published deviations -------------------------------------------------------------------------


@pytest.mark.parametrize(("compat", "chance"), [(None, 3 / 4), ("mer", 3 / 5), ("agem", 1.0)])
def test_chance_of_the_first_row_after_the_fill(compat, chance: float) -> None:
    inside = stored(partial(Reservoir, compat=compat), 3, (3, 1), RUNS)
    assert_probabilities(inside[:, 3:], [chance])


@pytest.mark.parametrize(
    ("compat", "first", "others"), [("mer", 4 / 9, 3 / 9), ("agem", 2 / 7, 3 / 7)], ids=["mer", "agem"]
)
def test_laws_of_the_off_by_one_variants(compat, first: float, others: float) -> None:
    inside = stored(partial(Reservoir, compat=compat), 3, SIZES, RUNS)
    assert_probabilities(inside, [first] * 3 + [others] * 5)
    assert subset_p_value(inside) < 1e-9  # a test with as many runs does tell them from a uniform sample


@settings(max_examples=40, deadline=None)
@given(capacity=st.integers(1, 20), sizes=SMALL, seed=st.integers(0, 1000))
def test_frozen_count_is_the_published_loop(capacity: int, sizes: list[int], seed: int) -> None:
    policy = Reservoir(compat="frozen_count")
    memory = feed(Buffer(capacity, policy, seed=np.random.default_rng(seed)), sizes)
    expected = frozen_count(sizes, capacity, np.random.default_rng(seed).random)
    assert (by_slot(memory) if expected else []) == expected


def test_law_of_the_frozen_count() -> None:
    """M = B = 4, n = 16: with c rows before the batch a row enters with 4 / c and overwrites a slot with 1 / c."""
    inside = stored(partial(Reservoir, compat="frozen_count"), 4, (4, 4, 4, 4), RUNS)
    wanted = []
    for batch, accept in enumerate([1, 4 / 4, 4 / 8, 4 / 12]):
        for place in range(4):
            p = accept if batch == 0 else accept * (1 - 1 / (4 * batch)) ** (3 - place)
            for later in range(batch + 1, 4):
                p *= (1 - 1 / (4 * later)) ** 4
            wanted.append(p)
    assert (round(min(wanted), 2), round(max(wanted), 2)) == (0.13, 0.41)
    assert_probabilities(inside, wanted)
    assert subset_p_value(inside) < 1e-9


def test_an_unknown_deviation_is_refused() -> None:
    with pytest.raises(ValueError, match="'mer', 'agem' or 'frozen_count', got 'mir'"):
        Reservoir(compat="mir")  # type: ignore[arg-type]


# -- other capacities -----------------------------------------------------------------------------


def test_shrinking_keeps_the_law() -> None:
    def shrink(buffer: Buffer) -> None:
        buffer.resize(2)
        feed(buffer, (1, 1), start=6)

    assert subset_p_value(stored(Reservoir, 4, (6,), RUNS, then=shrink)) > RARE
    assert joint_p_value(stored(Reservoir, 4, (5,), RUNS, then=lambda buffer: buffer.resize(2))) > RARE


def test_growing_is_refused_with_the_ways_named() -> None:
    buffer = feed(Buffer(4, Reservoir()), [10])
    before = buffer.state_dict()
    with pytest.raises(ValueError, match=r"from 4 to 8 slots.*6 rows.*'naive' or 'bernoulli'"):
        buffer.resize(8)
    with pytest.raises(ValueError, match="got 'magic'"):
        buffer.resize(8, grow="magic")
    assert same(buffer.state_dict(), before)


def test_growing_is_exact_as_long_as_nothing_was_dropped() -> None:
    def grow(buffer: Buffer) -> None:
        buffer.resize(3)
        feed(buffer, (6,), start=2)

    assert subset_p_value(stored(Reservoir, 2, (2,), RUNS, then=grow)) > RARE


def test_naive_growth_stores_what_comes_next() -> None:
    def grow(buffer: Buffer) -> None:
        buffer.resize(6, grow="naive")
        feed(buffer, (3,), start=8)

    assert_probabilities(stored(Reservoir, 3, (8,), RUNS, then=grow), [3 / 8] * 8 + [1] * 3)


def test_bernoulli_growth_stores_old_and_new_rows_alike() -> None:
    def grow(buffer: Buffer) -> None:
        buffer.resize(100, grow="bernoulli")
        feed(buffer, (3, 7), start=10)

    old = truncated_binomial_mean(10, 0.4, 4) / 10
    assert_probabilities(stored(Reservoir, 4, (10,), RUNS, then=grow), [old] * 10 + [0.4] * 10)
    assert old == pytest.approx(0.4 * (1 - 0.4 * math.sqrt(0.6 / 4)), rel=0.02)


def test_bernoulli_growth_ends_in_the_plain_reservoir() -> None:
    def grow(buffer: Buffer) -> None:
        buffer.resize(6, grow="bernoulli")
        feed(buffer, (200,), start=8)
        assert len(buffer) == 6 and buffer.policy.state_dict() == {}

    inside = stored(Reservoir, 3, (8,), 500, then=grow)
    recent = inside[:, -50:].sum()
    assert abs(recent - 500 * 50 * 6 / 208) < 5 * math.sqrt(500 * 50 * 6 / 208)


def test_a_memory_that_is_growing_can_be_cut_anywhere_and_resumed() -> None:
    ends = []
    for sizes in ([60], [1] * 60, [7, 3, 50]):
        buffer = feed(Buffer(5, Reservoir(), seed=2), [30])
        buffer.resize(12, grow="bernoulli")
        assert buffer.policy.state_dict() == {"rate": 5 / 30}
        resumed = Buffer(12, Reservoir())
        resumed.load_state_dict(buffer.state_dict())
        for memory in (buffer, resumed):
            ends.append(feed(memory, sizes, start=30).state_dict())
    assert all(same(end, ends[0]) for end in ends)


def test_state_of_another_kind_is_refused() -> None:
    for state in ({"rate": 2.0}, {"rate": "a"}, {"pointer": 1}):
        with pytest.raises(ValueError, match="not the state of a Reservoir"):
            Reservoir().load_state_dict(state)


def test_any_column_travels() -> None:
    buffer = Buffer(4, Reservoir())
    buffer.add({"anything": torch.arange(20).reshape(10, 2)})
    assert buffer["anything"].shape == (4, 2)
