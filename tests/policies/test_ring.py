from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ring as reference

from replaykit import Buffer
from replaykit.policies import RingBuffer
from replaykit.testing import same

GROUPS = st.lists(st.integers(0, 4), max_size=60)
CUTS = st.lists(st.integers(0, 60), max_size=6)


def fill(buffer: Buffer, groups: Sequence[int], cuts: Sequence[int] = (), start: int = 0) -> Buffer:
    edges = sorted({0, len(groups), *(cut for cut in cuts if cut < len(groups))})
    for low, high in pairwise(edges):
        part = torch.tensor(list(groups[low:high]), dtype=torch.int64)
        buffer.add({"id": torch.arange(start + low, start + high), "y": part})
    return buffer


def by_slot(buffer: Buffer) -> dict[int, int]:
    slots = buffer.store.filled
    return dict(zip(slots.tolist(), buffer["id"].tolist(), strict=True))


def by_class(buffer: Buffer) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {}
    for row, label in sorted(zip(buffer["id"].tolist(), buffer["y"].tolist(), strict=True)):
        rows.setdefault(label, []).append(row)
    return rows


def last(groups: Sequence[int], kept: dict[int, int]) -> dict[int, list[int]]:
    rows = {c: [row for row, group in enumerate(groups) if group == c] for c in set(groups)}
    return {c: of[len(of) - min(len(of), kept[c]) :] for c, of in rows.items()}


# -- a declared number of classes -----------------------------------------------------------------


def test_hand_case() -> None:
    """M = 5, C = 2: two slots a class, one unused; five rows of class 0 leave (x5, x4)."""
    buffer = fill(Buffer(5, RingBuffer(2)), [0, 0, 0, 0, 0, 1, 1, 1])
    assert by_slot(buffer) == {0: 4, 1: 3, 2: 7, 3: 6}


@settings(max_examples=80, deadline=None)
@given(groups=GROUPS, cuts=CUTS, capacity=st.integers(5, 23))
def test_declared_classes_go_round_in_their_own_slots(groups: list[int], cuts: list[int], capacity: int) -> None:
    buffer = fill(Buffer(capacity, RingBuffer(5)), groups, cuts)
    assert not groups or by_slot(buffer) == reference.declared(groups, capacity, 5)
    assert not groups or by_class(buffer) == last(groups, dict.fromkeys(range(5), capacity // 5))


def test_a_batch_longer_than_the_ring_leaves_its_last_rows() -> None:
    assert by_slot(fill(Buffer(3, RingBuffer(1)), [0] * 10)) == {0: 9, 1: 7, 2: 8}


def test_one_ring_a_task() -> None:
    buffer = Buffer(6, RingBuffer(3, group="t"))
    buffer.add({"id": torch.arange(9), "t": torch.arange(9) // 3, "y": torch.zeros(9, dtype=torch.int64)})
    assert by_slot(buffer) == {0: 2, 1: 1, 2: 5, 3: 4, 4: 8, 5: 7}


@settings(max_examples=60, deadline=None)
@given(groups=GROUPS, more=GROUPS, before=st.integers(5, 25), after=st.integers(5, 25))
def test_resizing_declared_rings(groups: list[int], more: list[int], before: int, after: int) -> None:
    buffer = fill(Buffer(before, RingBuffer(5)), groups)
    buffer.resize(after, grow="naive")
    quotas = [before // 5, after // 5]
    assert not groups or by_class(buffer) == last(groups, dict.fromkeys(range(5), min(quotas)))
    fill(buffer, more, start=len(groups))
    rows = by_class(buffer) if groups or more else {}
    for label, ids in rows.items():
        of = [row for row, group in enumerate(groups + more) if group == label]
        n_before, n_more = groups.count(label), more.count(label)
        kept = min(quotas[1], min(n_before, *quotas) + n_more)
        assert ids == of[len(of) - kept :]
        assert all(slot // quotas[1] == label for slot, row in by_slot(buffer).items() if row in ids)


# -- classes that are met as they come ------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(groups=GROUPS, cuts=CUTS, capacity=st.integers(5, 23))
def test_growing_rings_hold_the_newest_rows_of_each_class(
    groups: list[int], cuts: list[int], capacity: int
) -> None:
    buffer = fill(Buffer(capacity, RingBuffer()), groups, cuts)
    if groups:
        kept = reference.growing(groups, capacity)
        assert by_class(buffer) == kept
        assert kept == last(groups, {c: len(rows) for c, rows in kept.items()})


@settings(max_examples=120, deadline=None)
@given(groups=GROUPS, cuts=CUTS, capacity=st.integers(5, 23))
def test_lazy_rings_give_way_only_when_they_must(groups: list[int], cuts: list[int], capacity: int) -> None:
    buffer = fill(Buffer(capacity, RingBuffer(lazy=True)), groups, cuts)
    if groups:
        kept = reference.lazy(groups, capacity)
        assert by_class(buffer) == kept == last(groups, {c: len(rows) for c, rows in kept.items()})
        assert len(buffer) == min(capacity, len(groups))
        quota = reference.shares(set(groups), capacity)
        assert all(len(rows) >= min(groups.count(c), quota[c]) for c, rows in kept.items())


@pytest.mark.parametrize("lazy", [False, True])
def test_with_enough_rows_every_class_has_its_share_and_the_lowest_the_remainder(lazy: bool) -> None:
    groups = [c for c in (7, 2, 9) for _ in range(20)] * 2
    buffer = fill(Buffer(11, RingBuffer(lazy=lazy)), groups, [13, 29])
    assert {c: len(rows) for c, rows in by_class(buffer).items()} == {2: 4, 7: 4, 9: 3}


def test_lazy_rings_use_the_room_that_others_leave() -> None:
    groups = [0] * 10 + [1] * 2
    assert {c: len(r) for c, r in by_class(fill(Buffer(8, RingBuffer()), groups)).items()} == {0: 4, 1: 2}
    assert {c: len(r) for c, r in by_class(fill(Buffer(8, RingBuffer(lazy=True)), groups)).items()} == {0: 6, 1: 2}


@settings(max_examples=60, deadline=None)
@given(groups=GROUPS, more=GROUPS, before=st.integers(5, 20), after=st.integers(5, 20), lazy=st.booleans())
def test_resizing_growing_rings_keeps_the_newest(
    groups: list[int], more: list[int], before: int, after: int, lazy: bool
) -> None:
    buffer = fill(Buffer(before, RingBuffer(lazy=lazy)), groups)
    counts = {c: len(rows) for c, rows in by_class(buffer).items()} if groups else {}
    buffer.resize(after, grow="naive")
    fill(buffer, more, start=len(groups))
    if not groups + more:
        return
    now = by_class(buffer)
    for label, rows in now.items():  # always the last rows of the class, without a gap
        of = [row for row, group in enumerate(groups + more) if group == label]
        assert rows == of[len(of) - len(rows) :]
    if not more:
        quota = reference.shares(counts, after)
        assert sum(map(len, now.values())) <= after
        assert all(len(now[c]) >= min(counts[c], quota[c]) for c in now)


# -- GEM ------------------------------------------------------------------------------------------


def gem_memory(batches: Sequence[tuple[int, int]], capacity: int, make: Callable[[], RingBuffer]) -> Buffer:
    buffer, row = Buffer(capacity, make()), 0
    for task, rows in batches:
        buffer.add({"id": torch.arange(row, row + rows), "t": torch.full((rows,), task)})
        row += rows
    return buffer


def official() -> RingBuffer:
    return RingBuffer(2, group="t", compat="gem")


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 12)), min_size=1, max_size=30),
    capacity=st.integers(2, 30),
)
def test_gem_compat_is_the_official_write_position(sizes: list[tuple[int, int]], capacity: int) -> None:
    assert by_slot(gem_memory(sizes, capacity, official)) == reference.gem(sizes, capacity, 2)


def test_gem_compat_drops_what_does_not_fit_and_so_loses_the_last_rows() -> None:
    """256 slots a task and batches of 10: the 26th batch stores 6 rows and drops 4."""
    batches = [(0, 10)] * 27
    gem, ring = (gem_memory(batches, 512, make) for make in (official, lambda: RingBuffer(2, group="t")))
    assert sorted(ring["id"].tolist()) == list(range(270 - 256, 270))
    assert sorted(gem["id"].tolist()) == [*range(10, 256), *range(260, 270)]
    stored = Buffer(512, official())
    counts = [stored.add({"id": torch.arange(10), "t": torch.zeros(10, dtype=torch.int64)}) for _ in range(52)]
    assert [turn for turn, count in enumerate(counts, 1) if count != 10] == [26, 52]
    assert counts[25] == 6


def test_gem_compat_goes_on_where_the_last_task_stopped() -> None:
    """Slots before the position are never written; GEM reads them anyway, we do not."""
    buffer = gem_memory([(0, 3), (1, 4)], 10, official)
    assert by_slot(buffer) == {0: 0, 1: 1, 2: 2, 8: 3, 9: 4}
    assert set(buffer.sample(100)["id"].tolist()) == {0, 1, 2, 3, 4}
    with pytest.raises(ValueError, match="cannot change its capacity"):
        buffer.resize(4)


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [RingBuffer(5), RingBuffer(5, compat="gem")])
def test_more_declared_classes_than_slots(policy: RingBuffer) -> None:
    buffer = Buffer(4, policy)
    with pytest.raises(ValueError, match="5 classes for 4 slots leave a quota of 0; use at least 5 slots"):
        fill(buffer, [0])
    assert len(buffer) == 0 and buffer.seen == 0


@pytest.mark.parametrize("lazy", [False, True])
def test_more_classes_met_than_slots(lazy: bool) -> None:
    buffer = fill(Buffer(3, RingBuffer(lazy=lazy)), [0, 1, 0, 2])
    before = buffer.state_dict()
    with pytest.raises(ValueError, match="RingBuffer: 4 classes for 3 slots leave a quota of 0"):
        fill(buffer, [0, 1, 3])
    with pytest.raises(ValueError, match="quota of 0"):
        buffer.resize(2)
    assert same(buffer.state_dict(), before)
    assert by_class(fill(buffer, [0], start=4)) == {0: [4], 1: [1], 2: [3]}


def test_labels_beyond_the_declared_classes() -> None:
    with pytest.raises(ValueError, match="below the declared 2 classes, got 2"):
        fill(Buffer(4, RingBuffer(2)), [0, 2])


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="classes >= 1, got 0"):
        RingBuffer(0)
    with pytest.raises(ValueError, match="lazy=True is for classes that are met"):
        RingBuffer(3, lazy=True)
    with pytest.raises(ValueError, match="number of groups"):
        RingBuffer(compat="gem")
    with pytest.raises(ValueError, match="got 'agem'"):
        RingBuffer(compat="agem")  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", [RingBuffer, partial(RingBuffer, 2), partial(RingBuffer, lazy=True)])
def test_growing_is_exact_as_long_as_nothing_was_dropped(policy) -> None:
    y = torch.arange(40) % 2
    grown, plain = Buffer(4, policy()), Buffer(8, policy())
    grown.resize(6)
    grown.add({"y": y[:3], "id": torch.arange(3)})
    grown.resize(8)
    plain.add({"y": y[:3], "id": torch.arange(3)})
    for memory in (grown, plain):
        memory.add({"y": y[3:], "id": torch.arange(3, 40)})
    assert sorted(grown["id"].tolist()) == sorted(plain["id"].tolist()) == list(range(32, 40))


def test_growing_is_refused_unless_named() -> None:
    buffer = fill(Buffer(4, RingBuffer()), [0] * 9)
    with pytest.raises(ValueError, match=r"from 4 to 6 slots.*grow='naive'"):
        buffer.resize(6)
    with pytest.raises(ValueError, match="got 'bernoulli'"):
        buffer.resize(6, grow="bernoulli")
    assert len(buffer) == 4 == buffer.capacity


def test_one_policy_cannot_serve_two_memories() -> None:
    for policy in (RingBuffer(2), RingBuffer()):
        fill(Buffer(4, policy), [0, 1, 1])
        with pytest.raises(ValueError, match="policy object of its own"):
            fill(Buffer(4, policy), [0])


@pytest.mark.parametrize(
    ("policy", "state"),
    [
        (RingBuffer(2), {}),
        (RingBuffer(2), {"written": {2: 1}}),
        (RingBuffer(2), {"written": [1]}),
        (RingBuffer(2, compat="gem"), {"position": -1}),
        (RingBuffer(2, compat="gem"), {"written": {}}),
        (RingBuffer(), {"position": 0}),
        (RingBuffer(), {"rings": {0: [1]}}),
        (RingBuffer(), {"rings": {0: torch.tensor([1]), 1: torch.tensor([1])}}),
    ],
)
def test_states_that_are_not_ours_are_refused(policy: RingBuffer, state: dict[str, object]) -> None:
    before = policy.state_dict()
    with pytest.raises(ValueError, match="state"):
        policy.load_state_dict(state)
    assert same(policy.state_dict(), before)


def test_the_generator_is_not_used() -> None:
    rng = np.random.default_rng(0)
    fill(Buffer(4, RingBuffer(), seed=rng), [0, 1] * 20)
    assert rng.random() == np.random.default_rng(0).random()
