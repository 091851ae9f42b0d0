"""Notes that a reader keeps on the rows of a memory: one number a slot."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit import Buffer, Plan, Store
from replaykit.policies import Reservoir
from replaykit.testing import reloaded, same


def slots(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def y(*values: int) -> dict[str, torch.Tensor]:
    return {"y": torch.tensor(values)}


def noted() -> Store:
    """Five slots of which 3, 0 and 4 are filled, with the notes 30, 0 and 40."""
    store = Store(5)
    store.write(slots(3, 0, 4), y(3, 0, 4))
    store.note("visits", 0.0)[slots(3, 0, 4)] = 30, 0, 40
    return store


def test_they_begin_with_their_start_and_can_be_written() -> None:
    store = Store(4)
    notes = store.note("loss", math.inf)
    assert notes.dtype == np.float64 and notes.tolist() == [math.inf] * 4
    notes[2] = 0.5
    assert store.note("loss", math.inf) is notes and store.note("visits", 0.0).tolist() == [0] * 4


def test_two_starts_under_one_name_are_refused() -> None:
    store = noted()
    with pytest.raises(ValueError, match=r"notes 'visits' start with 0\.0, not inf: two readers use one name"):
        store.note("visits", math.inf)
    assert store.note("visits", 0.0)[3] == 30


def test_a_written_row_starts_anew_and_the_others_do_not() -> None:
    store = noted()
    store.write(slots(4, 1), y(7, 8))
    assert store.note("visits", 0.0).tolist() == [0, 0, 0, 30, 0]
    store.write(slots(3), {}, beside={"key": torch.ones(1)})
    assert store.note("visits", 0.0)[3] == 0


def test_a_write_that_fails_leaves_them() -> None:
    store = noted()
    with pytest.raises(ValueError):
        store.write(slots(3), {"y": torch.zeros(1, 2)})
    assert store.note("visits", 0.0)[3] == 30


def test_revised_columns_leave_them() -> None:
    store = noted()
    store.revise(slots(3, 4), {"score": torch.ones(2), **y(9, 9)})
    assert store.note("visits", 0.0).tolist() == [0, 0, 0, 30, 40]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("start", [0.0, math.inf, -1.5])
def test_rows_that_enter_a_buffer_start_anew(fast: bool, start: float) -> None:
    """On the fast path of `add` (a batch exactly like the columns held) and on the other one."""
    buffer = Buffer(6, lambda arrivals, store, rng: Plan(slots(1, 0), slots(4, 2)))
    buffer.store.write(np.arange(6), {"x": torch.zeros(6, 3)})
    buffer.store.note("visits", start)[:] = np.arange(6) + 10
    batch = {"x": torch.ones(2, 3)}
    if not fast:
        batch["late"] = torch.zeros(2)
    assert buffer.store.admit(batch) == (2, fast)
    assert buffer.add(batch) == 2
    assert buffer.store.note("visits", start).tolist() == [10, 11, start, 13, start, 15]


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), capacity=st.integers(1, 20), seed=st.integers(0, 9)
)
def test_a_count_of_visits_belongs_to_the_row(sizes: list[int], capacity: int, seed: int) -> None:
    """Against a book by the row's number, through replacement, resizing and resumption."""
    buffer, book, first = Buffer(capacity, Reservoir(), seed=seed), {}, 0
    for turn, size in enumerate(sizes):
        buffer.add({"id": torch.arange(first, first + size)})
        first += size
        visited = buffer.draw(3)
        buffer.store.note("visits", 0.0)[visited] += 1
        for row in buffer.read(visited)["id"].tolist():
            book[row] = book.get(row, 0) + 1
        if turn == 5:
            buffer.resize(max(1, capacity // 2))
        if turn == 8:
            state, buffer = reloaded(buffer.state_dict()), Buffer(buffer.capacity, Reservoir())
            buffer.load_state_dict(state)
        visits = buffer.store.note("visits", 0.0)[buffer.store.filled].tolist()
        assert visits == [book.get(row, 0) for row in buffer["id"].tolist()]


def test_they_move_with_their_rows() -> None:
    store = noted()
    store.rearrange(slots(4, -1, 3), 6)
    assert store.note("visits", 0.0).tolist() == [40, 0, 30, 0, 0, 0]
    store.rearrange(slots(2), 1)
    assert store.note("visits", 0.0).tolist() == [30]


def test_a_released_slot_starts_anew_when_it_is_filled_again() -> None:
    store = noted()
    store.release(slots(3))
    store.write(slots(3), y(1))
    assert store.note("visits", 0.0)[3] == 0


def test_clearing_forgets_them() -> None:
    store = noted()
    store.clear()
    assert store.notes == {} and store.note("visits", 1.0).tolist() == [1] * 5


def test_their_bytes_are_counted() -> None:
    store = Store(50)
    bare = store.nbytes
    store.note("visits", 0.0)
    assert store.nbytes == bare + 50 * 8
    store.note("visits", 0.0)
    store.note("loss", math.inf)
    assert store.nbytes == bare + 2 * 50 * 8


# -- saving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0.0, math.inf])
def test_they_are_saved_with_the_table(start: float, device: str) -> None:
    store = Store(5, device)
    store.write(slots(3, 0, 4), {"y": torch.tensor([3, 0, 4], device=device)})
    store.note("visits", start)[slots(3, 4)] = 30, 40
    state = store.state_dict()
    loaded = Store(5, device)
    loaded.note("other", 7.0)  # what the table had before is gone
    loaded.load_state_dict(reloaded(state))
    assert same(loaded.state_dict(), state) and list(loaded.notes) == ["visits"]
    assert loaded.note("visits", start).tolist() == [start, start, start, 30, 40]
    store.note("visits", start)[3] = 31
    assert state["notes"]["visits"]["values"].tolist() == [30, start, 40]  # a state does not follow the table
    loaded.write(slots(3), {"y": torch.tensor([1], device=device)})
    assert loaded.note("visits", start)[3] == start


def test_older_states_without_notes_load() -> None:
    state = noted().state_dict()
    del state["notes"]
    store = noted()
    store.load_state_dict(state)
    assert store.notes == {} and len(store) == 3


VALUES = torch.zeros(3, dtype=torch.float64)


@pytest.mark.parametrize(
    "note",
    [
        [1.0],
        {},
        {"start": 0.0},
        {"values": VALUES},
        {"start": 0, "values": VALUES},
        {"start": "0", "values": VALUES},
        {"start": 0.0, "values": VALUES[:2]},
        {"start": 0.0, "values": VALUES[:, None]},
        {"start": 0.0, "values": VALUES.float()},
        {"start": 0.0, "values": [0.0, 0.0, 0.0]},
    ],
    ids=str,
)
def test_corrupt_notes_leave_the_table_as_it_was(note: object) -> None:
    state, store = noted().state_dict(), noted()
    before = store.state_dict()
    for broken in ({**state, "notes": {"visits": note}}, {**state, "notes": {**state["notes"], "other": note}}):
        with pytest.raises(ValueError, match="corrupt state: the notes '(visits|other)'"):
            store.load_state_dict(broken)
        assert same(store.state_dict(), before)


@pytest.mark.parametrize("notes", [[1], None, 3], ids=str)
def test_notes_that_are_no_dict_of_names(notes: object) -> None:
    state, store = noted().state_dict(), noted()
    before = store.state_dict()
    with pytest.raises(ValueError, match="corrupt state"):
        store.load_state_dict({**state, "notes": notes})
    assert same(store.state_dict(), before)


def test_copies_of_a_memory_have_their_own() -> None:
    buffer = Buffer(4, Reservoir())
    buffer.add({"id": torch.arange(4)})
    buffer.store.note("visits", 0.0)[1] = 5
    twin = copy.deepcopy(buffer)
    twin.store.note("visits", 0.0)[1] = 6
    assert buffer.store.note("visits", 0.0)[1] == 5 and same(twin.store.state_dict()["slots"], torch.arange(4))
