import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_streams import counts, fed, feed, ids, outcomes, short_streams
from laws import Dice, exact_law, p_value
from reference.greedy_balanced import greedy_balanced

from replaykit import Buffer
from replaykit.policies import GreedyBalanced

A, B, C = 0, 1, 2


@pytest.mark.parametrize(
    ("labels", "capacity"),
    [
        ([A, A, A, B, B, B, C, C], 4),
        ([A, B, A, B, C, A, C], 3),
        ([A, A, B, C, A, B, C], 2),
        ([A, A, A, A, A, B], 5),
    ],
)
def test_law_is_that_of_the_literal_loop(labels: list[int], capacity: int) -> None:
    law = exact_law(lambda chance: tuple(sorted(greedy_balanced(labels, capacity, chance))))
    assert p_value(outcomes(GreedyBalanced, capacity, labels, 2000), law) > 1e-3


@settings(deadline=None, max_examples=60)
@given(y=short_streams, capacity=st.integers(1, 20), cut=st.integers(1, 20), seed=st.integers(0, 99))
def test_counts_are_those_of_the_literal_loop(y: list[int], capacity: int, cut: int, seed: int) -> None:
    policy = GreedyBalanced()  # which class loses a row is deterministic, so all counts are
    memory = Buffer(capacity, policy, seed=seed)
    for start in range(0, len(y), cut):
        feed(memory, y[start : start + cut])
        assert policy.slots.counts() == counts(memory)
    literal = [y[i] for i in greedy_balanced(y, capacity, Dice(np.random.default_rng(seed)))]
    assert sorted(memory["y"].tolist()) == sorted(literal)


@pytest.mark.parametrize("seed", range(5))
def test_one_class_is_its_first_rows(seed: int) -> None:
    assert ids(fed(GreedyBalanced(), 10, [A] * 100, cut=7, seed=seed)) == tuple(range(10))


def test_three_classes_in_sequence() -> None:
    assert counts(fed(GreedyBalanced(), 10, [A] * 50 + [B] * 50 + [C] * 50)) == {A: 3, B: 4, C: 3}


@pytest.mark.parametrize(("classes", "capacity"), [(2, 10), (5, 20), (10, 50), (7, 7)])
def test_a_sorted_stream_ends_in_equal_shares(classes: int, capacity: int) -> None:
    labels = np.repeat(np.arange(classes), 60).tolist()
    assert counts(fed(GreedyBalanced(), capacity, labels)) == dict.fromkeys(range(classes), capacity // classes)


def test_more_classes_than_slots() -> None:
    memory = fed(GreedyBalanced(), 3, [0, 1, 2, 3, 4])
    assert counts(memory) == {2: 1, 3: 1, 4: 1}  # the class that entered first goes first
    feed(memory, [0])
    assert counts(memory) == {3: 1, 4: 1, 0: 1}


def test_shrinking_evicts_by_the_sampler_s_rule() -> None:
    memory = fed(GreedyBalanced(), 10, [A] * 4 + [B] * 4 + [C] * 2)
    memory.resize(7)
    assert counts(memory) == {A: 2, B: 3, C: 2}
    feed(memory, [A] * 5 + [B] * 5 + [C] * 5)
    assert counts(memory) == {A: 2, B: 3, C: 2}  # the share is 7 // 3


def test_growing_raises_the_share() -> None:
    memory = fed(GreedyBalanced(), 4, [A] * 10 + [B] * 10)
    with pytest.raises(ValueError, match="16 rows that were dropped"):
        memory.resize(8)
    memory.resize(8, grow="naive")
    feed(memory, [A] * 10 + [B] * 10)
    assert counts(memory) == {A: 4, B: 4}
