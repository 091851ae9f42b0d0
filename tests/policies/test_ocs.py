"""OCS as a memory: shares of tasks and classes, whose rows stay, and what a stored rank is good for."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ocs as reference
from reference import small_networks as nets
from reference.per_sample_gradients import flat, one_by_one
from torch import Tensor, nn

from replaykit import Batch, Buffer
from replaykit.gradients import cross_entropy
from replaykit.policies.ocs import OCS, taking_turns
from replaykit.probe import Probe
from replaykit.testing import check_policy, same


def given_gradients() -> Probe:
    """Gradients are the rows of x [n, 2]."""
    return Probe(nn.Linear(2, 1, bias=False).double(), loss=lambda outputs, _: outputs[:, 0])


def task(gradients: list[list[float]] | Tensor, y: list[int] | None = None, first: int = 0, t: int = 0) -> Batch:
    x = torch.as_tensor(gradients, dtype=torch.float64)
    return {
        "id": torch.arange(first, first + len(x)),
        "x": x,
        "y": torch.tensor([0] * len(x) if y is None else y),
        "t": torch.full((len(x),), t),
    }


HAND = [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]]


def stored(buffer: Buffer, column: str = "ocs_task") -> dict[int, list[int]]:
    """Ids of each task in the order of their rank, which must be 0, 1, 2, ..."""
    held: dict[int, list[tuple[int, int]]] = {}
    for number, rank, row in zip(*(buffer[name].tolist() for name in (column, "ocs_rank", "id")), strict=True):
        held.setdefault(number, []).append((rank, row))
    for rows in held.values():
        rows.sort()
        assert [rank for rank, _ in rows] == list(range(len(rows)))
    return {number: [row for _, row in rows] for number, rows in sorted(held.items())}


# -- whose rows stay ------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "rows"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 0]), (9, [1, 2, 0, 3])])
def test_the_first_task_keeps_the_best_by_similarity_and_diversity(keep: int, rows: list[int]) -> None:
    buffer = Buffer(keep, OCS())
    assert buffer.add(task(HAND), given_gradients()) == min(keep, 4)
    assert stored(buffer) == {0: rows}


@pytest.mark.parametrize(("tau", "first"), [(0.0, [1, 2]), (1.0, [2, 1])])
def test_a_later_task_also_by_affinity(tau: float, first: list[int]) -> None:
    buffer = Buffer(4, OCS(tau))
    buffer.add(task([[0, 1], [0, 1], [0, 1]], first=10), given_gradients())
    buffer.add(task(HAND), given_gradients())
    assert stored(buffer) == {0: [10, 11], 1: first}


LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(
    tasks=st.lists(LABELS, min_size=1, max_size=5),
    capacity=st.integers(1, 14),
    tau=st.sampled_from([0.0, 1.0, 1e3]),
)
def test_the_memory_is_that_of_the_literal_loop(tasks: list[list[int]], capacity: int, tau: float) -> None:
    torch.manual_seed(0)
    model = nets.mlp().double()
    buffer, literal = Buffer(capacity, OCS(tau, reference="all")), reference.Memory(capacity)
    x = torch.randn(sum(map(len, tasks)), 12, dtype=torch.float64)
    y = torch.tensor([label for labels in tasks for label in labels])
    edges = np.cumsum([0, *map(len, tasks)]).tolist()
    for low, high in pairwise(edges):
        nn.init.normal_(model[1].weight)  # the model has been trained since
        formed = flat(one_by_one(model, {"x": x, "y": y}, cross_entropy()))
        before = [row for rows in literal.tasks for row in rows]
        mean = formed[before].mean(0) if before else None
        values = reference.scores(formed[low:high], tau, mean)
        order = reference.ranking(values, tau if before else 0.0)
        literal.end_of_task([low + i for i in order], y.tolist())
        buffer.add({"id": torch.arange(low, high), "x": x[low:high], "y": y[low:high]}, Probe(model))
        assert list(stored(buffer).values()) == [rows for rows in literal.tasks if rows]
    assert len(buffer) == min(capacity, len(x))


def test_chunks_do_not_matter_for_a_large_task() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    batch = {"id": torch.arange(12_000), "x": torch.randn(12_000, 20), "y": torch.arange(12_000) % 5}
    held = []
    for budget in (2**28, 2**20):
        buffer = Buffer(60, OCS())
        for start in (0, 6_000):
            part = {name: column[start : start + 6_000] for name, column in batch.items()}
            buffer.add(part, Probe(model, budget=budget))
        held.append(stored(buffer))
    # Sums in another order move a few scores over the edge of a step of equal ones.
    assert all(len(set(a) & set(b)) >= 28 for a, b in zip(*map(dict.values, held), strict=True))


def test_the_coefficient_and_the_reference_change_what_is_stored() -> None:
    torch.manual_seed(1)
    model, x, y = nets.mlp().double(), torch.randn(60, 12, dtype=torch.float64), torch.arange(60) % 5
    kept = []
    for policy in (OCS(), OCS(0.0), OCS(reference=1)):
        buffer = Buffer(16, policy)
        for start in (0, 30):
            rows = torch.arange(start, start + 30)
            buffer.add({"id": rows, "x": x[rows], "y": y[rows]}, Probe(model))
        kept.append(stored(buffer)[1])
    assert kept[0] != kept[1] and kept[0] != kept[2]


def test_the_reference_is_drawn_without_repetition_and_only_where_there_is_a_choice() -> None:
    for rows, drawn in ((4, False), (3, True)):
        rng = np.random.default_rng(0)
        buffer = Buffer(4, OCS(reference=rows), seed=rng)
        for first in (0, 4):
            buffer.add(task(HAND, first=first), given_gradients())
        assert (rng.random() != np.random.default_rng(0).random()) == drawn


# -- shares ---------------------------------------------------------------------------------------


def sizes(capacity: int, tasks: list[int]) -> list[int]:
    buffer, first = Buffer(capacity, OCS()), 0
    for rows in tasks:
        g = torch.Generator().manual_seed(first)
        buffer.add(task(torch.randn(rows, 2, generator=g), first=first), given_gradients())
        first += rows
    held = stored(buffer)
    return [len(held.get(number, [])) for number in range(len(tasks))]


@pytest.mark.parametrize(
    ("capacity", "tasks", "shares"),
    [
        (100, [120] * 3, [33, 33, 34]),
        (10, [20] * 4, [2, 2, 3, 3]),
        (10, [3, 20], [3, 7]),  # a task leaves what it cannot fill
        (10, [3, 20, 20], [3, 3, 4]),
        (10, [20, 2, 20], [4, 2, 4]),
        (10, [2, 3], [2, 3]),
    ],
)
def test_every_task_has_an_equal_share(capacity: int, tasks: list[int], shares: list[int]) -> None:
    assert sizes(capacity, tasks) == shares


def test_with_more_tasks_than_slots_the_newest_are_remembered() -> None:
    buffer = Buffer(3, OCS())
    for first in range(0, 20, 4):
        buffer.add(task(HAND, first=first), given_gradients())
    assert {number: len(rows) for number, rows in stored(buffer).items()} == {2: 1, 3: 1, 4: 1}


@given(y=st.lists(st.integers(0, 4), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_every_beginning_of_a_task_is_balanced_by_class(y: list[int], seed: int) -> None:
    best = np.random.default_rng(seed).permutation(len(y))
    order = taking_turns(best, np.array(y)).tolist()
    for keep in range(len(y) + 1):
        assert order[:keep] == reference.balanced_prefix(best.tolist(), y, keep)


def test_classes_share_a_task_whatever_their_scores() -> None:
    buffer = Buffer(5, OCS())
    buffer.add(task([[1, 0.1 * i] for i in range(12)], [7] * 9 + [2, 2, 4]), given_gradients())
    held = buffer.read(buffer.store.filled)
    assert sorted(held["y"].tolist()) == [2, 2, 4, 7, 7]


def test_old_tasks_lose_their_last_rows_and_are_not_scored_again() -> None:
    torch.manual_seed(0)
    buffer, held = Buffer(12, OCS()), {}
    for number in range(5):
        buffer.add(task(torch.randn(20, 2), [0, 1] * 10, first=20 * number), given_gradients())
        now = stored(buffer)
        assert all(held[old][: len(now[old])] == now[old] for old in held)
        held = now


# -- tasks that a column names --------------------------------------------------------------------


def test_more_rows_of_a_task_compete_with_those_it_has() -> None:
    """The hand case in two halves: the second add scores all four rows together, and the stored one wins the tie."""
    buffer = Buffer(2, OCS(group="t"))
    buffer.add(task(HAND[2:], first=2), given_gradients())
    assert stored(buffer, "t") == {0: [2, 3]}
    buffer.add(task(HAND[:2]), given_gradients())
    assert stored(buffer, "t") == {0: [2, 1]} and "ocs_task" not in buffer.store.columns


@settings(max_examples=20, deadline=None)
@given(
    adds=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=5),
    capacity=st.integers(1, 12),
)
def test_named_tasks_are_those_of_the_literal_loop(adds: list[list[int]], capacity: int) -> None:
    n = sum(map(len, adds))
    x, t = (
        torch.randn(n, 2, generator=torch.Generator().manual_seed(n), dtype=torch.float64),
        torch.tensor([t for named in adds for t in named]),
    )
    y = torch.arange(n) % 3
    buffer = Buffer(capacity, OCS(10.0, group="t", reference="all"))
    held: dict[int, list[int]] = {}
    low = 0
    for named in adds:
        high = low + len(named)
        before = {number: list(rows) for number, rows in held.items()}
        slots = (
            {row: slot for slot, row in zip(buffer.store.filled.tolist(), buffer["id"].tolist(), strict=True)}
            if low
            else {}
        )
        for number in set(named):
            rows = sorted(before.get(number, []), key=slots.__getitem__)
            rows += [row for row in range(low, high) if t[row] == number]
            others = [row for other, of in before.items() if other != number for row in of]
            values = reference.scores(x[rows], 10.0, x[others].mean(0) if others else None)
            order = [rows[i] for i in reference.ranking(values, 10.0 if others else 0.0)]
            held[number] = reference.balanced_prefix(order, y.tolist(), len(order))
        newest_first = sorted(held, reverse=True)
        shares = reference.quotas(capacity, [len(held[number]) for number in newest_first])
        held = {number: held[number][:share] for number, share in zip(newest_first, shares, strict=True) if share}
        buffer.add(
            {"id": torch.arange(low, high), "x": x[low:high], "y": y[low:high], "t": t[low:high]},
            given_gradients(),
        )
        assert stored(buffer, "t") == held
        low = high


# -- the released code ----------------------------------------------------------------------------


def released(capacity: int, seed: int, tasks: int = 1) -> Buffer:
    buffer = Buffer(capacity, OCS(compat="release"), seed=seed)
    for number in range(tasks):
        g = torch.Generator().manual_seed(number)
        buffer.add(task(torch.randn(30, 2, generator=g), [0, 1, 2] * 10, first=30 * number), given_gradients())
    return buffer


def test_the_released_code_keeps_random_rows_of_a_new_task() -> None:
    kept = [set(released(9, seed)["id"].tolist()) for seed in range(20)]
    assert len(set.union(*kept)) > 25  # each of 30 rows with probability 0.3
    for seed in range(3):
        assert sorted(released(9, seed)["y"].tolist()) == [0] * 3 + [1] * 3 + [2] * 3
    ours = Buffer(9, OCS())
    ours.add(
        task(torch.randn(30, 2, generator=torch.Generator().manual_seed(0)), [0, 1, 2] * 10), given_gradients()
    )
    assert set(ours["id"].tolist()) not in kept


def test_the_released_code_ranks_old_tasks_anew() -> None:
    """By S + V of their own rows, V with the row itself: which the default does not do, and the paper not so."""
    rows = torch.tensor([[1.0, 0.0], [2.0, -2.0], [-3.0, 0.0]], dtype=torch.float64)
    for compat, first in (("release", 1), (None, 2)):
        buffer = Buffer(3, OCS(compat=compat), seed=4)
        buffer.add(task(rows), given_gradients())
        buffer.add(task(HAND, first=10), given_gradients())
        kept = stored(buffer)[0]
        assert kept[0] == first and len(kept) == 1


def test_an_old_task_that_need_not_shrink_keeps_its_order() -> None:
    buffer = Buffer(30, OCS(compat="release"))
    buffer.add(task(HAND), given_gradients())
    before = stored(buffer)[0]
    buffer.add(task(HAND, first=10), given_gradients())
    assert stored(buffer)[0] == before


def test_the_released_shares_are_the_same_over_many_tasks() -> None:
    held = stored(released(20, 0, tasks=6))
    assert [len(rows) for rows in held.values()] == [3, 3, 3, 3, 4, 4]


# -- its life -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"group": "t", "compat": "release", "reference": 2}])
def test_contract(options: dict) -> None:
    check_policy(lambda: OCS(**options), rows=40, capacity=8)


def test_tasks_are_taken_whole_unless_a_column_names_them() -> None:
    assert OCS().per_task and not OCS(group="t").per_task


@pytest.mark.parametrize("group", [None, "t"])
def test_shrinking_keeps_the_first_rows_of_every_task(group: str | None) -> None:
    torch.manual_seed(0)
    buffer = Buffer(12, OCS(group=group))
    for number in range(3):
        buffer.add(task(torch.randn(9, 2), [0, 1, 2] * 3, first=9 * number, t=number), given_gradients())
    before = stored(buffer, group or "ocs_task")
    buffer.resize(7)
    assert stored(buffer, group or "ocs_task") == {0: before[0][:2], 1: before[1][:2], 2: before[2][:3]}
    buffer.add(task(torch.randn(9, 2), first=27, t=3), given_gradients())
    assert [len(rows) for rows in stored(buffer, group or "ocs_task").values()] == [1, 2, 2, 2]


def test_growing_is_refused_unless_named_and_gives_room_to_new_tasks() -> None:
    buffer = Buffer(3, OCS())
    buffer.resize(2)
    buffer.add(task(HAND), given_gradients())
    with pytest.raises(ValueError, match="cannot bring back the 2 rows"):
        buffer.resize(6)
    buffer.resize(6, grow="naive")
    buffer.add(task(HAND, first=10), given_gradients())
    assert [len(rows) for rows in stored(buffer).values()] == [2, 4]


def test_rows_without_a_direction_are_counted() -> None:
    buffer = Buffer(9, OCS())
    buffer.add(task([[0, 0], [1, 0], [0, 1e-9]]), given_gradients())
    buffer.add(task([[0, 0], [1, 0]]), given_gradients())
    assert buffer.policy.degenerate == 3
    other = Buffer(9, OCS())
    other.load_state_dict(buffer.state_dict())
    assert other.policy.degenerate == 3
    buffer.clear()
    assert buffer.policy.degenerate == 0


def test_nan_changes_nothing() -> None:
    buffer = Buffer(2, OCS())
    buffer.add(task(HAND), given_gradients())
    before = buffer.state_dict()
    with pytest.raises(ValueError, match="OCS: losses are NaN or infinite in rows"):
        buffer.add(task([[1, 0], [float("nan"), 0]], first=4), given_gradients())
    assert same(buffer.state_dict(), before)


def test_devices_agree(device: str) -> None:
    model = nets.mlp().double()
    held = []
    for where in ("cpu", device):
        buffer = Buffer(9, OCS(reference=3), device=where)
        for number in range(3):
            torch.manual_seed(number)
            batch = {"id": torch.arange(8) + 8 * number, **nets.rows(8, 12)}
            buffer.add({name: column.to(where) for name, column in batch.items()}, Probe(model.to(where)))
        held.append(stored(buffer))
    assert held[0] == held[1]


# -- errors ---------------------------------------------------------------------------------------


def test_arguments_that_make_no_sense() -> None:
    for tau in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="tau is a coefficient"):
            OCS(tau)
    for rows in (0, "some"):
        with pytest.raises(ValueError, match=f"reference is a number of rows >= 1 or 'all', got {rows!r}"):
            OCS(reference=rows)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="compat is None or 'release', got 'official'"):
        OCS(compat="official")  # type: ignore[arg-type]


def test_batches_that_do_not_fit() -> None:
    buffer = Buffer(2, OCS(group="t"))
    bad = task(HAND)
    with pytest.raises(ValueError, match="OCS: needs a label column 't'"):
        buffer.add({name: bad[name] for name in ("x", "y")}, given_gradients())
    for name in ("ocs_rank", "ocs_task"):
        with pytest.raises(ValueError, match=rf"columns \['{name}'\] are written by this policy"):
            buffer.add({**bad, name: torch.arange(4)}, given_gradients())
    with pytest.raises(ValueError, match="OCS needs gradients of a probe"):
        buffer.add(bad)
    assert len(buffer) == 0


@pytest.mark.parametrize("state", [{}, {"degenerate": -1}, {"degenerate": 1.0}, {"degenerate": 0, "more": 1}])
def test_states_that_are_not_ours_are_refused(state: dict) -> None:
    with pytest.raises(ValueError, match="not the state of OCS"):
        OCS().load_state_dict(state)
