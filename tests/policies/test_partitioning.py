from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_streams import Table, batch, counts, fed, feed, ids, kept, outcomes, short_streams
from laws import exact_law, mean_p_value, p_value, uniform_subset_p_value
from reference.prs import candidates, prs, prs_official, sample_in
from torch import Tensor

from replaykit import Buffer
from replaykit.policies import PartitioningReservoir
from replaykit.policies.label_sets import distances, least_protected
from replaykit.policies.partitioning import acceptance, surplus

A, B, C = 0, 1, 2


def matrix(*rows: str) -> Tensor:
    """Labels of rows written like "ab": a {0, 1} matrix with columns a, b, c, ..."""
    width = max(ord(letter) - ord("a") for row in rows for letter in row) + 1
    marks = torch.zeros(len(rows), width, dtype=torch.uint8)
    for i, row in enumerate(rows):
        for letter in row:
            marks[i, ord(letter) - ord("a")] = 1
    return marks


def one_hot(labels: list[int]) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(labels))


def row_counts(memory: Buffer) -> dict[int, int]:
    return {c: n for c, n in enumerate(memory["y"].sum(0).tolist()) if n} if len(memory) else {}


MULTI = [
    (matrix("a", "ab", "a", "bc", "b", "ac", "bc"), 3),
    (matrix("a", "a", "b", "b", "a", "c", "ab"), 2),
    (matrix("abc", "a", "b", "c", "ab", "bc"), 3),
    (matrix("ab", "cd", "ac", "bd", "a", "d"), 3),
    (matrix("a", "", "b", "a", "", "ab"), 2),
    (matrix("a", "a", "a", "a", "a"), 2),
]


# -- the law ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("y", "capacity"), MULTI)
@pytest.mark.parametrize("rho", [0.0, 1.0, -0.5])
def test_law_is_that_of_the_literal_loop(y: Tensor, capacity: int, rho: float) -> None:
    marks = y.numpy().astype(np.int64)
    law = exact_law(lambda chance: tuple(sorted(prs(marks, capacity, rho, chance))))
    assert p_value(outcomes(lambda: PartitioningReservoir(rho=rho), capacity, y, 1500), law) > 1e-3


@pytest.mark.parametrize(("y", "capacity"), MULTI)
@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_compat_official_follows_the_released_code(y: Tensor, capacity: int, rho: float) -> None:
    marks = y.numpy().astype(np.int64)
    law = exact_law(lambda chance: tuple(sorted(prs_official(marks, capacity, rho, chance))))
    found = outcomes(lambda: PartitioningReservoir(rho=rho, compat="official"), capacity, y, 1500)
    assert p_value(found, law) > 1e-3


def test_one_label_is_algorithm_r() -> None:
    runs, n, size = 2000, 12, 3
    found = outcomes(PartitioningReservoir, size, [A] * n, runs)
    assert uniform_subset_p_value(kept(found, n), runs, size) > 1e-3
    small = exact_law(lambda chance: tuple(sorted(prs(np.ones((5, 1), np.int64), 2, 0.0, chance))))
    assert small == pytest.approx(dict.fromkeys(small, 1 / 10))
    assert len(small) == 10


@given(
    y=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=40),
    capacity=st.integers(1, 12),
    cut=st.integers(1, 15),
    rho=st.sampled_from([0.0, 1.0, -0.03]),
    compat=st.sampled_from([None, "official"]),
)
@settings(deadline=None, max_examples=60)
def test_counts_are_the_column_sums(y: Any, capacity: int, cut: int, rho: float, compat: Any) -> None:
    policy = PartitioningReservoir(rho=rho, compat=compat)
    memory = Buffer(capacity, policy)
    marks = torch.tensor(y)
    for start in range(0, len(y), cut):
        feed(memory, marks[start : start + cut])
        assert {c: n for c, n in policy.stored.items() if n} == row_counts(memory)
        offered = marks[: start + cut].sum(0).tolist()
        assert policy.offered == {c: n for c, n in enumerate(offered) if n}
        shares = policy.shares()
        if shares and not compat:
            assert sum(shares.values()) == pytest.approx(1)
            total = sum(n**rho for n in offered if n)
            assert shares == pytest.approx({c: n**rho / total for c, n in enumerate(offered) if n})
        if not compat and len(memory):
            assert bool(memory["y"].any(1).all())  # a row without a label is never stored


@given(y=short_streams, capacity=st.integers(1, 12), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_integers_and_one_hot_rows_leave_the_same_memory(y: list[int], capacity: int, seed: int) -> None:
    single, multi = (fed(PartitioningReservoir(), capacity, rows, seed=seed) for rows in (y, one_hot(y)))
    assert single["id"].tolist() == multi["id"].tolist()


# -- the hand case: rows a: {1}, b: {1, 2}, c: {1}, d: {2, 3}, offered n = (10, 4, 1) ------------------------

HELD = [(1,), (1, 2), (1,), (2, 3)]
STORED, EQUAL = {1: 3, 2: 2, 3: 1}, {1: 1 / 3, 2: 1 / 3, 3: 1 / 3}


def hand_case(compat: Any = None) -> tuple[PartitioningReservoir, Table]:
    policy, table = PartitioningReservoir(compat=compat), Table(4)
    policy.load_state_dict(
        {
            "slots": {
                "classes": [(1,), (1, 2), (2, 3)],
                "counts": torch.tensor([2, 1, 1]),
                "ranks": torch.tensor([0, 0, 1]),
                "slots": torch.tensor([0, 2, 1, 3]),
            },
            "offered": {1: 10, 2: 4, 3: 1},
            "shares": dict(EQUAL) if compat else {},
        }
    )
    table.rows, table.seen = dict(enumerate(range(4))), 15
    return policy, table


def test_hand_case_numbers() -> None:
    policy, _ = hand_case()
    assert policy.stored == STORED
    assert policy.shares() == pytest.approx(EQUAL)
    excess = surplus(STORED, EQUAL)
    assert excess == pytest.approx({1: 1, 2: 0, 3: -1})
    weights = np.exp(list(excess.values()))
    assert weights / weights.sum() == pytest.approx([0.665, 0.245, 0.090], abs=5e-4)
    protected = {label for label, beyond in excess.items() if beyond <= 0}
    assert [len(protected - set(key)) for key in HELD[:3]] == [2, 1, 2]  # the scores
    assert least_protected([(1,), (1, 2)], protected) == [(1,)]
    assert distances([(1,)], STORED, EQUAL) == pytest.approx([4 / 3])
    marks = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 1, 1]])
    assert candidates(marks, np.full(3, 1 / 3), 0) == ([0, 2], pytest.approx([4 / 3, 4 / 3]))


@pytest.mark.parametrize(("offered", "chance"), [([5, 2], 0.6477), ([4, 1], 0.9684)])
def test_hand_case_sample_in(offered: list[int], chance: float) -> None:
    assert acceptance(offered, [1 / 3, 1 / 3], 4) == pytest.approx(chance, abs=5e-5)
    y, n = np.array([1, 1]), np.array(offered, np.float64)
    assert sample_in(n, np.full(2, 1 / 3), y, 4) == pytest.approx(chance, abs=5e-5)


@pytest.mark.parametrize(
    ("compat", "chance", "victims"),
    [
        (None, 0.6477, {0: 0.3326, 2: 0.3326, 1: 0.2447, 3: 0.0900}),
        ("official", 0.9684, {0: 0.6652, 1: 0.2447, 3: 0.0900}),  # of a and c always the lower slot
    ],
)
def test_hand_case_sample_out(compat: Any, chance: float, victims: dict[int, float]) -> None:
    found: Counter[Any] = Counter()
    rng, y = np.random.default_rng(0), torch.tensor([[0, 0, 1, 1]])
    for _ in range(1500):
        policy, table = hand_case(compat)
        table.offer(policy, {"y": y}, rng)
        found[next((slot for slot, row in table.rows.items() if row == 15), None)] += 1
    law = {None: 1 - chance, **{slot: chance * p for slot, p in victims.items()}}
    assert p_value(found, law) > 1e-3


# -- single labels ----------------------------------------------------------------------------------------


def test_the_first_row_of_a_label_is_always_let_in() -> None:
    for seed in range(50):
        memory = fed(PartitioningReservoir(), 6, [A] * 200 + [B] * 50 + [C], seed=seed)
        assert counts(memory)[C] == 1


def test_single_label_acceptance_and_eviction() -> None:
    """M = 4, the row offered is the fourth B: it enters with min(1, M p / n) = 2 / 4 and A or B loses a row."""
    y, rng, runs = torch.tensor([A, A, B, B, *[A] * 7, B, B]), np.random.default_rng(0), 1500
    entered, lost = 0, Counter[tuple[int, bool]]()
    for _ in range(runs):
        policy, table = PartitioningReservoir(), Table(4)
        table.offer(policy, {"y": y[:-1]}, rng)
        before = policy.stored[A]
        table.offer(policy, {"y": y[-1:]}, rng)
        if table.seen - 1 in table.rows.values():
            entered += 1
            lost[before, policy.stored[A] < before] += 1
    assert p_value({True: entered, False: runs - entered}, {True: 0.5, False: 0.5}) > 1e-3
    assert sum(n for (before, _), n in lost.items() if before in (1, 2, 3)) > 500
    for before in (1, 2, 3):
        surplus_a, surplus_b = before - 2, 2 - before
        a_loses = 1 / (1 + np.exp(surplus_b - surplus_a))
        law = {True: a_loses, False: 1 - a_loses}
        assert p_value({a_lost: lost[before, a_lost] for a_lost in law}, law) > 1e-3


@pytest.mark.parametrize("compat", [None, "official"])
@pytest.mark.parametrize(("rho", "means"), [(0.0, (10.0, 10.1, 10.0)), (1.0, (26.0, 3.9, 0.1))])
def test_final_counts_reach_the_target(rho: float, means: tuple[float, ...], compat: Any) -> None:
    rng, found = np.random.default_rng(0), []
    for _ in range(50):
        policy, table = PartitioningReservoir(rho=rho, compat=compat), Table(30)
        y = rng.permutation(np.repeat([A, B, C], [300, 60, 12]))
        table.offer(policy, {"y": torch.from_numpy(y)}, rng)
        found.append([policy.stored.get(c, 0) for c in (A, B, C)])
    assert np.mean(found, 0) == pytest.approx(means, abs=0.5)
    assert (np.std(found, 0) < 1.1).all()


def test_rho_one_accepts_like_a_reservoir_and_varies_less() -> None:
    labels = np.random.default_rng(1).permutation(np.repeat([A, B], [150, 50])).tolist()
    rng, y, accepted, stored = np.random.default_rng(0), torch.tensor(labels), [], []
    for _ in range(100):
        policy, table, entered = PartitioningReservoir(rho=1.0), Table(20), 0
        table.offer(policy, {"y": y[:100]}, rng)
        for start in range(100, 200):
            table.offer(policy, {"y": y[start : start + 1]}, rng)
            entered += table.seen - 1 in table.rows.values()
        accepted.append(entered)
        stored.append(policy.stored[A])
    assert mean_p_value(accepted, sum(20 / i for i in range(101, 201))) > 1e-3
    hypergeometric = 20 * 0.75 * 0.25 * (200 - 20) / 199
    assert np.var(stored) < hypergeometric / 2


# -- what the released code does otherwise -----------------------------------------------------------------


def test_official_ties_freeze_slots() -> None:
    runs, n = 300, 12
    frozen = kept(outcomes(lambda: PartitioningReservoir(compat="official"), 3, [A] * n, runs), n)
    assert (frozen[:3] == [0, runs, runs]).all()
    free = kept(outcomes(PartitioningReservoir, 3, [A] * n, runs), n)
    assert (free < runs / 2).all()
    assert (free > 0).all()


def test_official_counts_after_the_decision() -> None:
    """With one label the row after the fill is accepted with M / (i - 1) = 1 instead of M / i."""
    runs = 2000
    after = kept(outcomes(lambda: PartitioningReservoir(compat="official"), 3, [A] * 4, runs), 4)
    assert after[3] == runs
    times = int(kept(outcomes(PartitioningReservoir, 3, [A] * 4, runs), 4)[3])
    assert p_value({True: times, False: runs - times}, {True: 3 / 4, False: 1 / 4}) > 1e-3


def test_official_gives_up_on_distances_of_the_capacity_and_more() -> None:
    """M = 2 and rows of many labels: both candidates leave the counts farther than 2 from their targets."""
    y = matrix("deghij", "abcdehj", "abcdhij", "bfij")
    marks = y.numpy().astype(np.int64)
    found = outcomes(lambda: PartitioningReservoir(rho=3.0, compat="official"), 2, y, 2000)
    for patient in (False, True):
        law = exact_law(
            lambda chance, patient=patient: tuple(sorted(prs_official(marks, 2, 3.0, chance, patient)))
        )
        assert (p_value(found, law) > 1e-3) is not patient


def test_official_stores_rows_without_labels_for_ever() -> None:
    y = matrix("", "a", *["a", "b"] * 20, "")
    official = fed(PartitioningReservoir(compat="official"), 3, y)
    assert 0 in ids(official)
    assert len(y) - 1 not in ids(official)
    recommended = fed(PartitioningReservoir(), 3, y)
    assert {0, len(y) - 1}.isdisjoint(ids(recommended))


def test_official_keeps_the_last_target_of_a_label_that_is_gone() -> None:
    """M = 1: b pushes a out; a's target stays what it was, and the targets no longer sum to 1."""
    for seed in range(20):
        policy = PartitioningReservoir(compat="official")
        fed(policy, 1, [A, A, B], seed=seed)  # the first b is let in with certainty
        assert policy.shares() == {A: 1.0, B: 1.0}
    policy = PartitioningReservoir()
    fed(policy, 1, [A, A, B])
    assert policy.shares() == {A: 0.5, B: 0.5}


def test_where_the_official_code_fails_a_row_without_labels_goes() -> None:
    memory = fed(PartitioningReservoir(compat="official"), 2, matrix("", "", "a"))
    assert ids(memory) == (1, 2)


# -- capacity and arguments ---------------------------------------------------------------------------------


def test_shrinking_evicts_towards_the_target() -> None:
    labels = [A] * 12 + [B] * 4 + [C] * 2
    memory = fed(PartitioningReservoir(), 18, labels)
    memory.resize(6)
    assert counts(memory) == {A: 2, B: 2, C: 2}
    feed(memory, [A, B, C] * 10)
    assert sum(counts(memory).values()) == 6
    runs = 1000
    found = outcomes(PartitioningReservoir, 5, [A] * 5, runs, resized=(5, 2))
    assert uniform_subset_p_value(kept(found, 5), runs, 2) > 1e-3


def test_shrinking_an_official_memory_without_labels() -> None:
    memory = fed(PartitioningReservoir(compat="official"), 4, matrix("", "a", "", "ab"))
    memory.resize(1)
    assert ids(memory) == (2,)


def test_growing() -> None:
    memory = fed(PartitioningReservoir(), 3, [A] * 10)
    with pytest.raises(ValueError, match="7 rows that were dropped"):
        memory.resize(6)
    memory.resize(6, grow="naive")
    feed(memory, [B] * 3)
    assert counts(memory) == {A: 3, B: 3}


@pytest.mark.parametrize("y", [torch.tensor([[0, 2]]), torch.tensor([[0.5, 1.0]]), torch.tensor([[-1, 1]])])
def test_only_zeros_and_ones(y: Tensor) -> None:
    policy = PartitioningReservoir()
    with pytest.raises(ValueError, match="holds 0 and 1 only"):
        policy.plan({"y": y}, Buffer(2, policy).store, np.random.default_rng(0))
    assert policy.offered == {}


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_any_dtype_of_a_label_matrix(dtype: torch.dtype) -> None:
    y = matrix("a", "ab", "bc", "c", "a", "ab")
    plain, typed = fed(PartitioningReservoir(), 2, y), fed(PartitioningReservoir(), 2, y.to(dtype))
    assert ids(plain) == ids(typed)


@pytest.mark.parametrize("y", [torch.zeros(2, 2, 2), torch.tensor([0.0, 1.0]), torch.tensor([0, -1])])
def test_other_shapes_are_refused(y: Tensor) -> None:
    memory = Buffer(2, PartitioningReservoir())
    with pytest.raises(ValueError, match="labels 'y' must"):
        memory.add({"y": y})


@pytest.mark.parametrize("option", [{"rho": float("nan")}, {"rho": 11}, {"compat": "paper"}])
def test_bad_options(option: Any) -> None:
    with pytest.raises(ValueError, match=r"rho is|compat is"):
        PartitioningReservoir(**option)


def test_other_column() -> None:
    memory = Buffer(2, PartitioningReservoir("tags"))
    memory.add({"tags": matrix("a", "b", "ab")})
    with pytest.raises(ValueError, match="label column 'tags'"):
        Buffer(2, PartitioningReservoir("tags")).add(batch([1, 2]))
