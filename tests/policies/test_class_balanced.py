import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_streams import batch, counts, fed, feed, ids, kept, outcomes, short_streams
from laws import Dice, exact_law, p_value, uniform_subset_p_value
from reference.cbrs import cbrs, fair_counts

from replaykit import Buffer
from replaykit.policies import ClassBalancedReservoir, Reservoir

A, B, C = 0, 1, 2


def assert_fair(found: dict[int, int], offered: dict[int, int], capacity: int) -> None:
    classes = sorted(offered)
    sure, spare = fair_counts([offered[c] for c in classes], capacity)
    extra = [found.get(c, 0) - s for c, s in zip(classes, sure, strict=True)]
    assert set(extra) <= {0, 1}
    assert sum(extra) == spare
    assert all(found.get(c, 0) <= offered[c] for c in classes)


def random_stream(rng: np.random.Generator) -> list[int]:
    sizes = rng.integers(1, 80, rng.integers(1, 8))
    return np.repeat(np.arange(len(sizes)), sizes).tolist()


# -- the counts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["shuffled", "sorted", "reversed"])
def test_counts_are_the_fair_allocation_in_any_order(order: str) -> None:
    rng = np.random.default_rng(0)
    for trial in range(100):
        y = random_stream(rng)
        y = {"shuffled": rng.permutation(y).tolist(), "sorted": y, "reversed": y[::-1]}[order]
        capacity = int(rng.integers(len(set(y)), 60))
        assert_fair(counts(fed(ClassBalancedReservoir(), capacity, y, cut=7, seed=trial)), Counter(y), capacity)


@settings(deadline=None, max_examples=80)
@given(y=short_streams, capacity=st.integers(5, 30), cut=st.integers(1, 20), seed=st.integers(0, 99))
def test_counts_are_fair_after_every_batch(y: list[int], capacity: int, cut: int, seed: int) -> None:
    policy = ClassBalancedReservoir()
    memory = Buffer(capacity, policy, seed=seed)
    level = None
    for start in range(0, len(y), cut):
        feed(memory, y[start : start + cut])
        offered = Counter(y[: start + cut])
        assert_fair(counts(memory), offered, capacity)
        assert policy.slots.counts() == counts(memory)
        assert policy.offered == offered
        if len(memory) == capacity:
            for c, n in offered.items():
                assert c in policy.full or counts(memory)[c] == n < policy.slots.most
                assert c not in policy.full or counts(memory)[c] >= policy.slots.most - 1
            assert level is None or policy.slots.most <= level
            level = policy.slots.most


def test_every_row_of_a_class_that_is_not_full_is_stored() -> None:
    memory = fed(ClassBalancedReservoir(), 20, [A] * 500 + [B] * 9)
    assert set(range(500, 509)) <= set(ids(memory))
    assert memory.policy.full == {A}  # type: ignore[attr-defined]


# -- the law ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "capacity"),
    [
        ([A, A, B, A, B, C, A], 3),
        ([A, B, A, B, A, B], 4),
        ([A, A, B, B, C, C, A], 4),
        ([A, A, A, B, B], 2),
        ([C, A, A, A, B], 3),
    ],
)
def test_law_is_that_of_the_literal_loop(labels: list[int], capacity: int) -> None:
    law = exact_law(lambda chance: tuple(sorted(cbrs(labels, capacity, chance))))
    assert p_value(outcomes(ClassBalancedReservoir, capacity, labels, 2000), law) > 1e-3


@pytest.mark.parametrize("option", [{"full_from": "first_item"}, {"readmit_extinct": True}])
def test_options_follow_the_literal_loop(option: dict[str, str]) -> None:
    labels, capacity = [A, B, B, C, A, C, B], 2
    law = exact_law(lambda chance: tuple(sorted(cbrs(labels, capacity, chance, **option))))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = outcomes(lambda: ClassBalancedReservoir(**option), capacity, labels, 2000)  # type: ignore[arg-type]
    assert p_value(found, law) > 1e-3


def test_hand_case() -> None:
    a1, a2, _, a3, b2, c1, a4 = range(7)
    labels = [A, A, B, A, B, C, A]
    law = exact_law(lambda chance: tuple(sorted(cbrs(labels, 3, chance))))
    for row in (a1, a2, a3, a4):
        assert sum(p for stored, p in law.items() if row in stored) == pytest.approx(1 / 4)
    policy = ClassBalancedReservoir()
    memory = fed(policy, 3, labels[:3])
    assert (policy.slots.counts(), policy.full) == ({A: 2, B: 1}, {A})
    feed(memory, labels[3:5])
    assert (policy.slots.counts(), policy.full) == ({A: 1, B: 2}, {A, B})
    assert b2 in ids(memory)
    feed(memory, labels[5:6])
    assert (policy.slots.counts(), policy.full) == ({A: 1, B: 1, C: 1}, {A, B, C})
    assert c1 in ids(memory)
    accepted = int(kept(outcomes(ClassBalancedReservoir, 3, labels[:4], 2000), 4)[a3])
    assert p_value({True: accepted, False: 2000 - accepted}, {True: 2 / 3, False: 1 / 3}) > 1e-3


def test_rows_of_a_class_are_a_uniform_subset() -> None:
    labels, runs = [A] * 6 + [B] * 6 + [A] * 6, 2000
    times = kept(outcomes(ClassBalancedReservoir, 4, labels, runs), 18)
    a, b = np.r_[times[:6], times[12:]], times[6:12]
    assert a.sum() == b.sum() == 2 * runs  # inclusion 1/6 and 1/3
    assert uniform_subset_p_value(a, runs, 2) > 1e-3
    assert uniform_subset_p_value(b, runs, 2) > 1e-3


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 80), capacity=st.integers(1, 20), cut=st.integers(1, 30), seed=st.integers(0, 99))
def test_one_class_is_algorithm_r_draw_for_draw(n: int, capacity: int, cut: int, seed: int) -> None:
    balanced, plain = (fed(p, capacity, [A] * n, cut, seed) for p in (ClassBalancedReservoir(), Reservoir()))
    assert balanced["id"].tolist() == plain["id"].tolist()


# -- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("full_from", "expected"), [("filled", {A: 50, B: 50}), ("first_item", {A: 5, B: 95})])
def test_full_from_the_first_item_locks_the_first_class(full_from: str, expected: dict[int, int]) -> None:
    policy = ClassBalancedReservoir(full_from=full_from)  # type: ignore[arg-type]
    assert counts(fed(policy, 100, [A] * 5 + [B] * 95 + [A] * 50, cut=10)) == expected


def test_more_classes_than_slots() -> None:
    labels = [A, A, B, B, C, C, *([A, B, C] * 30)]
    policy = ClassBalancedReservoir()
    with pytest.warns(UserWarning, match="3 classes for 2 slots") as warned:
        memory = fed(policy, 2, labels[:6], cut=1)
    assert len(warned) == 1
    survivors = set(counts(memory))
    assert len(survivors) == 2
    feed(memory, labels[6:], cut=1)
    assert set(counts(memory)) == survivors  # an extinct class never returns


def test_extinct_classes_return_when_readmitted() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy = ClassBalancedReservoir(readmit_extinct=True)
        memory = fed(policy, 2, [A, A, B, B, C, C], cut=1)
        for c in [A, B, C] * 5:
            feed(memory, [c])
            assert c in counts(memory)
    assert all(c in policy.slots for c in policy.full)


def test_a_warning_that_is_an_error_changes_nothing() -> None:
    memory = fed(ClassBalancedReservoir(), 2, [A, B])
    before = memory.policy.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            feed(memory, [C])
        with pytest.raises(UserWarning):
            memory.resize(1)
    assert repr(memory.policy.state_dict()) == repr(before)
    assert ids(memory) == (0, 1)


def test_unknown_option() -> None:
    with pytest.raises(ValueError, match="full_from"):
        ClassBalancedReservoir(full_from="later")  # type: ignore[arg-type]


# -- capacity ---------------------------------------------------------------------------------------------


def test_shrinking_keeps_the_counts_fair_and_they_stay_so() -> None:
    rng = np.random.default_rng(1)
    for trial in range(60):
        y = rng.permutation(random_stream(rng)).tolist()
        classes, half = len(set(y)), len(y) // 2
        large = int(rng.integers(classes + 1, classes + 50))
        small = int(rng.integers(classes, large))
        policy = ClassBalancedReservoir()
        memory = fed(policy, large, y[:half], cut=9, seed=trial)
        memory.resize(small)
        assert_fair(counts(memory), Counter(y[:half]), small)
        assert policy.slots.counts() == counts(memory)
        dropped = {c for c, n in policy.offered.items() if counts(memory).get(c, 0) < n}
        assert dropped <= policy.full  # or its next row would be stored with certainty
        feed(memory, y[half:], cut=9)
        assert_fair(counts(memory), Counter(y), small)


def test_rows_stay_uniform_within_a_class_through_a_shrink() -> None:
    labels, runs = [A] * 8 + [B] * 3 + [A] * 4, 2000
    times = kept(outcomes(ClassBalancedReservoir, 7, labels, runs, resized=(11, 4)), 15)
    a, b = np.r_[times[:8], times[11:]], times[8:11]
    assert a.sum() == b.sum() == 2 * runs
    assert uniform_subset_p_value(a, runs, 2) > 1e-3
    assert uniform_subset_p_value(b, runs, 2) > 1e-3


def test_growing_naively_levels_the_counts_again() -> None:
    policy = ClassBalancedReservoir()
    memory = fed(policy, 10, [A] * 100)
    with pytest.raises(ValueError, match="90 rows that were dropped"):
        memory.resize(30)
    memory.resize(30, grow="naive")
    assert policy.full == set()
    feed(memory, [B] * 100)
    assert counts(memory) == {A: 10, B: 20}
    feed(memory, [A] * 100)
    assert counts(memory) == {A: 15, B: 15}


def test_growing_is_free_while_nothing_was_dropped() -> None:
    memory = fed(ClassBalancedReservoir(), 4, [A, A, A, B])
    memory.resize(8)
    feed(memory, [A, A, A, A, B, B, B])
    assert counts(memory) == {A: 4, B: 4}


def test_simulation_of_a_longer_stream_agrees_with_the_literal_loop() -> None:
    labels = np.random.default_rng(2).choice(3, 120, p=[0.8, 0.15, 0.05]).tolist()
    literal = Counter(labels[i] for i in cbrs(labels, 30, Dice(np.random.default_rng(0))))
    found = counts(fed(ClassBalancedReservoir(), 30, labels, cut=10))
    assert max(abs(literal[c] - found[c]) for c in literal) <= 1


def test_bad_labels_change_nothing() -> None:
    memory = fed(ClassBalancedReservoir(), 3, [A, B, B, B])
    before = repr(memory.policy.state_dict())
    with pytest.raises(ValueError, match="ClassBalancedReservoir: labels 'y' must not be negative"):
        memory.add(batch([0, -1], memory.seen))
    assert repr(memory.policy.state_dict()) == before
