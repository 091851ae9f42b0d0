"""What all class-balanced memories promise: the book, batch cuts, saving, refusals."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_streams import counts, fed, feed, ids, short_streams

from replaykit import Buffer, Policy
from replaykit.policies import (
    BalancedReservoir,
    ClassBalancedReservoir,
    GreedyBalanced,
    PartitioningReservoir,
    Reservoir,
)
from replaykit.testing import reloaded

POLICIES: dict[str, Callable[[], Any]] = {
    "cbrs": ClassBalancedReservoir,
    "cbrs first item": lambda: ClassBalancedReservoir(full_from="first_item"),
    "cbrs readmit": lambda: ClassBalancedReservoir(readmit_extinct=True),
    "brs": BalancedReservoir,
    "brs forced": lambda: BalancedReservoir(forced=True),
    "brs mammoth": lambda: BalancedReservoir(compat="mammoth"),
    "greedy": GreedyBalanced,
    "prs": PartitioningReservoir,
    "prs tail": lambda: PartitioningReservoir(rho=-0.03),
    "prs official": lambda: PartitioningReservoir(compat="official"),
}
every_policy = pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES.keys())
quiet = pytest.mark.filterwarnings("ignore:CBRS has")


def same(a: Buffer, b: Buffer) -> bool:
    if not len(a):
        return not len(b)
    return bool(torch.equal(a["id"], b["id"]) and torch.equal(a["y"], b["y"])) and a.seen == b.seen


def stored_counts(policy: Any) -> dict[int, int]:
    found: dict[int, int] = {}
    for key, n in policy.slots.counts().items():
        found[key[0] if isinstance(key, tuple) else key] = n
    return found


@every_policy
@quiet
@given(y=short_streams, capacity=st.integers(1, 20), cuts=st.lists(st.integers(1, 20), min_size=60, max_size=60))
@settings(deadline=None, max_examples=15)
def test_the_memory_does_not_depend_on_the_cuts(
    make: Callable[[], Policy], y: list[int], capacity: int, cuts: list[int]
) -> None:
    whole, parts = fed(make(), capacity, y), Buffer(capacity, make())
    start = 0
    for cut in cuts:
        if start < len(y):
            feed(parts, y[start : start + cut])
            start += cut
            assert stored_counts(parts.policy) == counts(parts)
    assert same(whole, parts)
    assert repr(whole.policy.state_dict()) == repr(parts.policy.state_dict())


@every_policy
@quiet
@given(y=short_streams, capacity=st.integers(1, 12), at=st.integers(0, 60))
@settings(deadline=None, max_examples=15)
def test_a_resumed_memory_goes_on_bit_for_bit(
    make: Callable[[], Policy], y: list[int], capacity: int, at: int
) -> None:
    straight = fed(make(), capacity, y[:at], cut=9, seed=3)
    resumed = Buffer(capacity, make(), seed=77)
    resumed.load_state_dict(reloaded(straight.state_dict()))
    for memory in (straight, resumed):
        feed(memory, y[at:] + y, cut=5)
    assert same(straight, resumed)
    assert repr(straight.policy.state_dict()) == repr(resumed.policy.state_dict())


@every_policy
@quiet
def test_resizing_renumbers_the_book(make: Callable[[], Policy]) -> None:
    y = np.random.default_rng(0).integers(0, 4, 60).tolist()
    memory = fed(make(), 20, y[:30], cut=7)
    for capacity in (13, 13, 6):
        memory.resize(capacity)
        assert len(memory) == memory.capacity == capacity
        assert stored_counts(memory.policy) == counts(memory)
    memory.resize(8, grow="naive")
    for label in y[30:]:
        feed(memory, [label])
        labels = memory.store.host("y")
        for key in memory.policy.slots.counts():  # type: ignore[attr-defined]
            label = key[0] if isinstance(key, tuple) else key
            assert (labels[list(memory.policy.slots.of(key))] == label).all()  # type: ignore[attr-defined]
    assert len(memory) == 8


@every_policy
@quiet
def test_a_resize_that_is_refused_changes_nothing(make: Callable[[], Policy]) -> None:
    memory = fed(make(), 5, [0, 1, 2, 3, 0, 1, 2, 3, 0, 0])
    before = repr(memory.policy.state_dict())
    stored = ids(memory)
    for capacity, grow in ((0, "forbid"), (9, "forbid"), (9, "bernoulli"), (3, "somehow")):
        with pytest.raises(ValueError, match=r"capacity|grow"):
            memory.resize(capacity, grow)
    with pytest.raises(TypeError):
        memory.resize(2.5)  # type: ignore[arg-type]
    assert repr(memory.policy.state_dict()) == before
    assert ids(memory) == stored


@every_policy
@quiet
def test_clear_starts_anew(make: Callable[[], Policy]) -> None:
    memory, fresh = fed(make(), 6, [0, 1, 2] * 10), make()
    memory.clear()
    assert repr(memory.policy.state_dict()) == repr(fresh.state_dict())
    feed(memory, [1] * 10)
    assert counts(memory) == {1: 6}


@every_policy
@quiet
@pytest.mark.parametrize("state", [{}, {"slots": {}}, {"rate": 0.5}, {"slots": 3, "offered": {}, "full": []}])
def test_other_states_are_refused(make: Callable[[], Policy], state: Any) -> None:
    policy = fed(make(), 6, [0, 1, 2] * 10).policy
    before = repr(policy.state_dict())
    with pytest.raises(ValueError, match="state"):
        policy.load_state_dict(state)
    assert repr(policy.state_dict()) == before


def test_states_that_contradict_themselves_are_refused() -> None:
    for make, changes in (
        (ClassBalancedReservoir, ({"offered": {0: 1}}, {"full": [5]}, {"full": 0}, {"offered": [1]})),
        (PartitioningReservoir, ({"offered": {0: 1}}, {"shares": {0: 1.0}}, {"shares": None})),
    ):
        policy = fed(make(), 6, [0, 1, 2] * 10).policy
        state = policy.state_dict()
        for change in changes:
            with pytest.raises(ValueError, match=r"state|targets"):
                policy.load_state_dict({**state, **change})
            assert repr(policy.state_dict()) == repr(state)
    official = PartitioningReservoir(compat="official")
    with pytest.raises(ValueError, match="compat='official'"):
        official.load_state_dict(fed(PartitioningReservoir(), 2, [0, 1]).policy.state_dict())


@every_policy
@quiet
@pytest.mark.parametrize(
    "y", [torch.tensor([0, -1]), torch.tensor([0.5, 1.0]), torch.tensor(3), torch.ones(2, dtype=torch.bool)]
)
def test_bad_labels_change_nothing(make: Callable[[], Policy], y: torch.Tensor) -> None:
    memory = fed(make(), 4, [0, 1, 2] * 5)
    before, stored = repr(memory.policy.state_dict()), ids(memory)
    with pytest.raises(ValueError):
        memory.policy.plan({"y": y}, memory.store, memory.rng)
    with pytest.raises(ValueError, match="needs a label column 'y'"):
        memory.policy.plan({"x": torch.zeros(2)}, memory.store, memory.rng)
    assert repr(memory.policy.state_dict()) == before
    assert ids(memory) == stored


@every_policy
def test_a_policy_keeps_the_book_of_one_memory(make: Callable[[], Policy]) -> None:
    policy = make()
    fed(policy, 4, [0, 1])
    with pytest.raises(ValueError, match="a policy object of its own"):
        fed(policy, 4, [0, 1])


@every_policy
@quiet
def test_another_label_column_and_payload_that_is_not_looked_at(make: Callable[[], Any]) -> None:
    policy = make()
    policy.column, policy.columns = "t", ("t",)
    memory = Buffer(3, policy)
    for start in range(0, 40, 8):
        t = torch.arange(start, start + 8) % 3
        memory.add({"x": torch.full((8, 2), float("nan")), "t": t})
    assert sum(stored_counts(policy).values()) == 3


def test_a_plain_reservoir_keeps_no_book() -> None:
    with pytest.raises(ValueError, match="kept by Reservoir"):
        Buffer(4, BalancedReservoir()).load_state_dict(fed(Reservoir(), 4, [0, 1]).state_dict())
