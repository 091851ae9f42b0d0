from collections import Counter
from itertools import chain, repeat

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_streams import Table, counts, fed, feed, kept, outcomes, short_streams
from laws import exact_law, mean_p_value, p_value
from reference.brs import balancoir_with_wrong_book, brs

from replaykit import Buffer
from replaykit.policies import BalancedReservoir, Reservoir

A, B, C = 0, 1, 2


def in_sequence(classes: int, each: int) -> list[int]:
    return list(chain.from_iterable(repeat(c, each) for c in range(classes)))


STREAMS = [
    ([A, A, B, A, B, C, A], 3),
    ([A, A, A, B, B, C], 4),
    ([A, B, C, A, B, C, A], 3),
    ([B, B, B, A, C, A], 2),
    ([C, B, A, C, A, A], 5),
]


@pytest.mark.parametrize(("labels", "capacity"), STREAMS)
@pytest.mark.parametrize("forced", [False, True])
def test_law_is_that_of_the_literal_loop(labels: list[int], capacity: int, forced: bool) -> None:
    law = exact_law(lambda chance: tuple(sorted(brs(labels, capacity, chance, forced))))
    found = outcomes(lambda: BalancedReservoir(forced=forced), capacity, labels, 2000)
    assert p_value(found, law) > 1e-3


@pytest.mark.parametrize(("labels", "capacity"), STREAMS)
def test_compat_mammoth_follows_the_wrong_book(labels: list[int], capacity: int) -> None:
    law = exact_law(lambda chance: tuple(sorted(balancoir_with_wrong_book(labels, capacity, chance))))
    found = outcomes(lambda: BalancedReservoir(compat="mammoth"), capacity, labels, 2000)
    assert p_value(found, law) > 1e-3


@settings(deadline=None, max_examples=60)
@given(y=short_streams, capacity=st.integers(1, 20), cut=st.integers(1, 20), seed=st.integers(0, 99))
def test_the_largest_count_never_grows_once_filled(y: list[int], capacity: int, cut: int, seed: int) -> None:
    policy = BalancedReservoir()
    memory = Buffer(capacity, policy, seed=seed)
    largest = None
    for start in range(0, len(y), cut):
        feed(memory, y[start : start + cut])
        assert policy.slots.counts() == counts(memory)
        assert len(memory) == min(capacity, memory.seen)
        if len(memory) == capacity:
            assert largest is None or policy.slots.most <= largest
            largest = policy.slots.most


@given(y=short_streams, capacity=st.integers(2, 20), forced=st.booleans(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_only_a_largest_class_loses_rows(y: list[int], capacity: int, forced: bool, seed: int) -> None:
    memory = Buffer(capacity, BalancedReservoir(forced=forced), seed=seed)
    for label in y:
        before = counts(memory)
        full = len(memory) == capacity
        feed(memory, [label])
        after = counts(memory)
        lost = [c for c in before if after.get(c, 0) < before[c]]
        assert all(full and before[c] == max(before.values()) for c in lost)


def test_ties_are_broken_for_the_class_that_comes_in() -> None:
    for seed in range(200):
        memory = fed(BalancedReservoir(), 10, [A] * 5 + [B] * 5 + [B], seed=seed)
        assert counts(memory) == {A: 5, B: 5}


def test_one_class_has_the_law_of_the_reservoir() -> None:
    labels = [A] * 6
    law = exact_law(lambda chance: tuple(sorted(brs(labels, 3, chance))))
    assert all(p == pytest.approx(1 / 20) for p in law.values())
    assert len(law) == 20
    assert p_value(outcomes(BalancedReservoir, 3, labels, 2000), law) > 1e-3
    assert p_value(outcomes(Reservoir, 3, labels, 2000), law) > 1e-3


def test_rare_classes_are_not_protected() -> None:
    runs, rare = 2000, [A] * 95 + [B] * 5
    times = kept(outcomes(BalancedReservoir, 10, rare, runs), 100)
    stored = times[95:].sum() / runs
    expected = sum(10 / i for i in range(96, 101))
    assert expected == pytest.approx(0.510, abs=1e-3)
    spread = np.sqrt(sum(10 / i * (1 - 10 / i) for i in range(96, 101)) / runs)
    assert abs(stored - expected) < 3.5 * spread
    # `forced` lets in every row of a class that is below the median
    assert kept(outcomes(lambda: BalancedReservoir(forced=True), 10, rare, 100), 100)[95:].sum() == 500


def test_classes_in_sequence_end_level() -> None:
    labels, found = in_sequence(10, 500), []
    for seed in range(10):
        stored = counts(fed(BalancedReservoir(), 100, labels, cut=10, seed=seed))
        assert sum(stored.values()) == 100
        assert max(stored.values()) <= 12
        found.append([stored[c] for c in range(10)])
    # Class c is accepted 100 ln((c + 1) / c) times: 10.5 for the last one, with deviation 3, and no row beyond
    # the level stays. So the last classes are a little below 10 on average, the others a little above.
    assert all(7.5 < mean < 11 for mean in np.mean(found, 0))
    forced = counts(fed(BalancedReservoir(forced=True), 100, labels, cut=10))
    assert all(9 <= forced[c] <= 11 for c in range(10))


def test_forced_rows_enter_whatever_the_draw() -> None:
    labels = [A] * 200 + [B]
    for seed in range(20):
        memory = fed(BalancedReservoir(forced=True), 10, labels, seed=seed)
        assert counts(memory) == {A: 9, B: 1}
    assert any(B not in counts(fed(BalancedReservoir(), 10, labels, seed=seed)) for seed in range(20))


def test_the_bug_of_mammoth_and_its_repair() -> None:
    labels = in_sequence(10, 500)
    assert counts(fed(BalancedReservoir(compat="mammoth"), 500, labels, cut=10))[0] >= 499
    found = counts(fed(BalancedReservoir(forced=True), 500, labels, cut=10))
    assert all(45 <= found[c] <= 55 for c in range(10))
    shuffled = np.random.default_rng(0).permutation(in_sequence(4, 500)).tolist()
    assert counts(fed(BalancedReservoir(compat="mammoth"), 100, shuffled, cut=10))[0] >= 99
    assert counts(fed(BalancedReservoir(forced=True), 100, shuffled, cut=10)) == dict.fromkeys(range(4), 25)


def test_acceptance_is_that_of_the_reservoir_whatever_the_class() -> None:
    rng, accepted = np.random.default_rng(0), []
    y = torch.from_numpy(rng.choice(4, 200, p=[0.7, 0.2, 0.05, 0.05]))
    for _ in range(60):
        policy, table, entered = BalancedReservoir(), Table(20), 0
        table.offer(policy, {"y": y[:100]}, rng)
        for start in range(100, 200):
            table.offer(policy, {"y": y[start : start + 1]}, rng)
            entered += table.seen - 1 in table.rows.values()
        accepted.append(entered)
    assert mean_p_value(accepted, sum(20 / i for i in range(101, 201))) > 1e-3


def test_shrinking_drops_rows_of_the_largest_classes_uniformly() -> None:
    runs, labels = 2000, [A] * 5 + [B] * 2
    found = outcomes(BalancedReservoir, 7, labels, runs, resized=(7, 4))
    pairs = {(i, j, 5, 6): 0.1 for i in range(5) for j in range(i + 1, 5)}
    assert p_value(found, pairs) > 1e-3  # two uniform rows of A, both of B
    memory = fed(BalancedReservoir(), 7, labels)
    memory.resize(4)
    feed(memory, [C] * 200)
    assert Counter(memory["y"].tolist()) == memory.policy.slots.counts()  # type: ignore[attr-defined]


def test_growing() -> None:
    memory = fed(BalancedReservoir(), 4, [A, A, B, B, A])
    with pytest.raises(ValueError, match="1 rows that were dropped"):
        memory.resize(6)
    memory.resize(6, grow="naive")
    feed(memory, [C, C, C])
    assert counts(memory)[C] >= 2
    assert len(memory) == 6


def test_unknown_compat() -> None:
    with pytest.raises(ValueError, match="compat"):
        BalancedReservoir(compat="avalanche")  # type: ignore[arg-type]
