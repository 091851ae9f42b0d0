"""An add that fails leaves the memory as it was; what a draw does not need it does not copy."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from replaykit import Batch, Buffer, Plan, Policy, Store
from replaykit.columns import HostColumn
from replaykit.policies import (
    LARS,
    BalancedReservoir,
    ClassBalancedReservoir,
    PartitioningReservoir,
    RandomKeyReservoir,
    Reservoir,
    RingBuffer,
)
from replaykit.retrieval import Prioritised
from replaykit.testing import same


def rows(n: int, first: int = 0) -> Batch:
    x = torch.arange(first, first + n)
    return {"id": x, "x": x[:, None].repeat(1, 3).float(), "y": x % 3, "loss": x * 0.1}


POLICIES: list[Callable[[], Policy]] = [
    Reservoir,
    RingBuffer,
    ClassBalancedReservoir,
    PartitioningReservoir,
    BalancedReservoir,
    RandomKeyReservoir,
    LARS,
]


def state(buffer: Buffer) -> object:
    return [buffer.state_dict(), sorted(buffer.store.columns), sorted(buffer.store.own), len(buffer)]


@pytest.mark.parametrize("make", POLICIES)
@pytest.mark.parametrize("stored", [0, 4, 30])
@pytest.mark.parametrize(
    "spoil",
    [
        {"x": torch.zeros(5, 4)},
        {"x": torch.zeros(5, 3, 1)},
        {"x": torch.zeros(5, 3, dtype=torch.float64)},
        {"y": torch.zeros(5)},
        {"loss": torch.zeros(4)},
        {"loss": torch.full((5,), float("nan"))},
        {"logits_width": torch.zeros(5)},
        {"x": [1, 2, 3, 4, 5]},
    ],
    ids=lambda spoil: " ".join(spoil),
)
def test_batches_that_do_not_fit_leave_everything(make, stored: int, spoil: dict) -> None:
    buffer = Buffer(8, make(), seed=0)
    if stored:
        buffer.add(rows(stored))
    elif isinstance(spoil.get("x", spoil.get("y")), torch.Tensor):
        return  # the first batch says what x and y are
    before = state(buffer)
    with pytest.raises((ValueError, TypeError)):
        buffer.add({**rows(5, 50), **spoil})
    assert same(before, state(buffer))


def explode(*_: object, **__: object) -> None:
    raise MemoryError("no room")


@pytest.mark.parametrize("make", POLICIES)
@pytest.mark.parametrize("stored", [0, 3, 30])
@pytest.mark.parametrize("where", ["staged", "_allocate"])
def test_no_room_for_new_columns_leaves_everything(make, stored: int, where: str, monkeypatch) -> None:
    """The first batch, or one that brings a new column or a wider one, explodes in the middle."""
    buffer, twin = Buffer(8, make(), seed=0), Buffer(8, make(), seed=0)
    for memory in (buffer, twin):
        if stored:
            memory.add({**rows(stored), "logits": torch.ones(stored, 2)})
    before = state(buffer)
    late = {**rows(40, 50), "logits": torch.ones(40, 4), "late": torch.ones(40)}
    real, calls = getattr(Store, where), []

    def second(store: Store, *args: object, **options: object) -> object:
        calls.append(1)
        if where == "staged" or len(calls) == 2:
            explode()
        return real(store, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Store, where, second)
        with pytest.raises(MemoryError, match="no room"):
            buffer.add(late)
    assert same(before, state(buffer))
    for memory in (buffer, twin):
        memory.add(late)
    assert same(state(twin), state(buffer))


@pytest.mark.parametrize("direct", [True, False])
def test_no_room_while_rows_are_gathered_leaves_the_table(direct: bool, monkeypatch) -> None:
    """Columns are there: all are gathered before any is written."""
    buffer = Buffer(8, Reservoir() if direct else RandomKeyReservoir(), seed=0)
    buffer.add(rows(8))
    before, calls, real = buffer.state_dict()["store"], [], HostColumn.staged

    def third(*args: object) -> object:
        calls.append(1)
        return explode() if len(calls) == 3 else real(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(HostColumn, "staged", third)
        with pytest.raises(MemoryError):
            buffer.add(rows(40, 50))
    assert same(before, buffer.state_dict()["store"])
    buffer.add(rows(40, 50))
    assert (buffer["id"].float() == buffer["x"][:, 0]).all()


def test_releases_and_revisions_wait_until_the_rows_are_gathered(monkeypatch) -> None:
    def plan(arrivals: Batch, store: Store, rng: np.random.Generator) -> Plan:
        if not len(store):
            return Plan(np.arange(4), np.arange(4), {"score": torch.zeros(4)})
        revise = (np.array([3]), {"score": torch.ones(1), "new": torch.ones(1)})
        return Plan(np.array([0]), np.array([1]), {"score": torch.ones(1)}, np.array([0, 1]), revise)

    buffer = Buffer(4, plan)
    buffer.add(rows(4))
    before, real = state(buffer), Store.staged
    with monkeypatch.context() as patch:
        patch.setattr(
            Store, "staged", lambda store, slots, *a: explode() if 1 in slots else real(store, slots, *a)
        )
        with pytest.raises(MemoryError):
            buffer.add(rows(4, 10))
    assert same(before, state(buffer))
    buffer.add(rows(4, 10))
    assert sorted(buffer["id"].tolist()) == [2, 3, 10]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("make", [RingBuffer, ClassBalancedReservoir, RandomKeyReservoir])
def test_a_write_that_is_broken_off_is_never_taken_for_a_memory(make, monkeypatch) -> None:
    buffer = Buffer(8, make(), seed=0)
    buffer.add(rows(30))
    saved, calls, real = buffer.state_dict(), [], HostColumn.commit

    def second(*args: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Interrupted
        real(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(HostColumn, "commit", second)
        with pytest.raises(Interrupted):
            while True:
                buffer.add(rows(9, 50))
    for use in (
        lambda: buffer.add(rows(2)),
        lambda: buffer.sample(2),
        buffer.state_dict,
        lambda: buffer.resize(4),
    ):
        with pytest.raises(
            RuntimeError, match=r"broken off while it wrote, .* at odds; clear\(\) the memory or load"
        ):
            use()
    buffer.load_state_dict(saved)
    assert same(buffer.state_dict(), saved) and buffer.add(rows(9, 50)) >= 0
    buffer.clear()
    assert buffer.add(rows(3)) == 3


@contextmanager
def no_second_column(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within, the second column that a table makes finds no room."""
    real, calls = Store._allocate, []

    def second(*args: object) -> object:
        calls.append(1)
        return explode() if len(calls) == 2 else real(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_allocate", second)
        yield


@pytest.mark.parametrize("make", POLICIES)
@pytest.mark.parametrize("capacity", [5, 20, 10**13])
def test_no_room_to_resize_leaves_everything(make, capacity: int, monkeypatch) -> None:
    """10^13 slots fail by themselves, the others while the second column is made anew."""
    buffer, twin = Buffer(8, make(), Prioritised(), seed=0), Buffer(8, make(), Prioritised(), seed=0)
    for memory in (buffer, twin):
        memory.add({**rows(7), "logits": torch.ones(7, 2)})
        memory.add({**rows(1, 7), "logits": torch.ones(1, 3)})
        memory.sample(3)
    before = state(buffer)
    with no_second_column(monkeypatch), pytest.raises(MemoryError):
        buffer.resize(capacity, grow="naive")
    assert same(before, state(buffer)) and buffer.capacity == 8
    for memory in (buffer, twin):
        memory.resize(5)
        memory.add({**rows(30, 50), "logits": torch.ones(30, 3)})
        memory.sample(3)
    assert same(state(twin), state(buffer))


@pytest.mark.parametrize("make", POLICIES)
def test_no_room_for_a_saved_memory_leaves_the_present_one(make, monkeypatch) -> None:
    source, buffer = Buffer(8, make(), seed=0), Buffer(8, make(), seed=1)
    source.add(rows(30))
    buffer.add(rows(5, 40))
    before = state(buffer)
    with no_second_column(monkeypatch), pytest.raises(MemoryError, match="no room"):
        buffer.load_state_dict(source.state_dict())
    assert same(before, state(buffer))
    assert buffer.add(rows(30, 50)) > 0


# -- what a draw copies -------------------------------------------------------------------------------


class Featured(Reservoir):
    """Writes a number and a vector of its own beside each row."""

    writes = ("score", "features")

    def plan(self, arrivals, store, rng, probe=None):
        plan = super().plan(arrivals, store, rng, probe)
        n = len(plan.slot)
        return Plan(plan.source, plan.slot, {"score": torch.ones(n), "features": torch.ones(n, 50)})


def test_wide_columns_of_the_policy_are_copied_for_nobody_who_did_not_ask(monkeypatch) -> None:
    buffer, copied, real = Buffer(8, Featured(), Prioritised(beta=1.0)), [], HostColumn.read
    buffer.add(rows(30))

    def read(column: HostColumn, *args: object) -> torch.Tensor:
        copied.append(tuple(column.row))
        return real(column, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(HostColumn, "read", read)
    assert sorted(buffer.sample(4)) == ["id", "importance", "loss", "score", "x", "y"] and (50,) not in copied
    slots = buffer.draw(4)
    assert buffer.drawn(slots, names=["features", "y"])["features"].shape == (4, 50) and (50,) in copied
    assert buffer.read(slots)["features"].shape == (4, 50) and buffer["features"].shape == (8, 50)


def test_wide_columns_of_the_batch_are_part_of_a_draw() -> None:
    buffer = Buffer(8, Reservoir())
    buffer.add({**rows(8), "features": torch.ones(8, 50)})
    assert buffer.sample(4)["features"].shape == (4, 50)
