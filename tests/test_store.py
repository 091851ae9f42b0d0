from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit import Batch, Store
from replaykit.columns import DeviceColumn
from replaykit.store import WIDTH, IntArray
from replaykit.testing import reloaded, same

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn),
]
SHAPES = [(), (3,), (2, 3), (0,), (1, 1, 1)]


def slots(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def some(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.rand(shape, generator=draws) < 0.5
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=draws).to(dtype)
    return torch.randint(0, 100, shape, generator=draws).to(dtype)


# -- columns of every kind ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_come_back_to_the_bit(dtype: torch.dtype, shape: tuple[int, ...], device: str) -> None:
    store, rows = Store(7, device), some(dtype, 5, *shape)
    store.write(slots(6, 0, 3), {"a": rows.to(device)}, slots(4, 1, 2))
    read = store.read(slots(3, 6, 0, 3))["a"]
    assert read.dtype == dtype and read.device.type == device
    assert same(read.cpu(), torch.stack([rows[2], rows[4], rows[1], rows[2]]))
    assert store.columns["a"].nbytes == 7 * rows[0].numel() * rows.element_size()


def test_rows_of_any_layout_and_with_gradient() -> None:
    base = some(torch.float32, 6, 4).requires_grad_()
    views = {
        "transposed": base.T,
        "strided": base[::2],
        "expanded": base[:1].expand(4, 4),
        "flipped": base.flip(0),
    }
    for name, rows in views.items():
        store = Store(4)
        store.write(slots(2, 1), {name: rows}, slots(0, 1))
        read = store.read(slots(2, 1))[name]
        assert same(read, rows[:2].detach()) and not read.requires_grad


def test_views_that_torch_has_not_computed_yet() -> None:
    z = some(torch.complex64, 3)
    for rows in (z.conj(), z.conj().imag):
        store = Store(3)
        for _ in range(2):
            assert store.admit({"a": rows})[0] == 3
            store.write(slots(0, 1, 2), {"a": rows})
            store.put(slots(0, 1, 2), {"a": rows}, None)
        assert torch.equal(store.read(slots(0, 1, 2))["a"], rows)


def test_a_sparse_batch_is_refused_after_a_dense_one_of_its_shape() -> None:
    store = Store(3)
    store.write(slots(0, 1, 2), {"a": torch.eye(3)})
    assert store.admit({"a": torch.eye(3)}) == (3, True)
    with pytest.raises(TypeError, match="sparse"):
        store.admit({"a": torch.eye(3).to_sparse()})


def test_what_was_read_is_a_copy() -> None:
    store = Store(3)
    store.write(slots(0, 1, 2), {"a": torch.zeros(3, 2)})
    store.read(slots(1))["a"] += 1
    store.read(store.filled)["a"] += 1
    assert not store.read(slots(1))["a"].any()


def test_uint8_stays_uint8_and_bytes_are_counted() -> None:
    store = Store(1000)
    store.write(
        slots(0), {"x": torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "y": torch.zeros(1, dtype=torch.int64)}
    )
    assert store.columns["x"].nbytes == 1000 * 3072 and store.columns["y"].nbytes == 8000
    assert store.nbytes == 1000 * (3072 + 8) + 2 * 8000  # and the book-keeping


@settings(max_examples=60, deadline=None)
@given(
    writes=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=10, unique=True), min_size=1, max_size=8),
    releases=st.lists(st.sets(st.integers(0, 9), max_size=4), min_size=8, max_size=8),
)
def test_reads_return_the_last_write(writes: list[list[int]], releases: list[set[int]]) -> None:
    """Against a dict, with slots released in between."""
    store, expected, value = Store(10), {}, 0
    for written, released in zip(writes, releases, strict=False):
        rows = torch.arange(value, value + len(written))
        value += len(written)
        store.write(np.array(written), {"a": rows, "b": rows[:, None].float()})
        expected.update(zip(written, rows.tolist(), strict=True))
        gone = slots(*(released & expected.keys()))
        store.release(gone)
        for slot in gone.tolist():
            del expected[slot]
        assert sorted(store.filled.tolist()) == sorted(expected) and len(store) == len(expected)
        assert store.is_filled(np.arange(10)).tolist() == [slot in expected for slot in range(10)]
        assert store.free(10).tolist() == [slot for slot in range(10) if slot not in expected]
        assert store.free(2).tolist() == store.free(10).tolist()[:2]
        batch = store.read(store.filled)
        assert batch["a"].tolist() == [expected[slot] for slot in store.filled.tolist()]
        assert batch["b"][:, 0].tolist() == batch["a"].tolist()
        for empty in store.free(10).tolist():
            with pytest.raises(IndexError):
                store.read(slots(empty))


def test_released_rows_cannot_be_read_or_revised() -> None:
    store = Store(4)
    store.write(slots(0, 1, 2), {"a": torch.arange(3)})
    store.release(slots(1))
    with pytest.raises(IndexError, match=r"\[0, 1\] are empty or do not exist"):
        store.read(slots(0, 1))
    with pytest.raises(IndexError, match=r"\[1\] are empty, nothing to revise"):
        store.revise(slots(1), {"a": torch.tensor([5])})
    store.revise(slots(2), {"a": torch.tensor([5])})
    assert store.read(slots(2, 0))["a"].tolist() == [5, 0]


def test_reading_some_columns_and_slots_that_do_not_exist(device: str) -> None:
    store = Store(4, device)
    store.write(slots(0, 1), {"a": torch.arange(2).to(device), "b": torch.arange(2).to(device)})
    assert store.read(slots(1), ["b"]).keys() == {"b"}
    with pytest.raises(KeyError, match=r"no column 'c'; the memory holds \['a', 'b'\]"):
        store.read(slots(1), ["c"])
    for bad in (2, 4, 99):
        with pytest.raises(IndexError):
            store.read(slots(0, bad))


def test_host_is_a_view_on_the_cpu() -> None:
    store = Store(3)
    store.write(slots(1), {"a": torch.tensor([7])})
    assert store.host("a")[1] == 7 and np.shares_memory(store.host("a"), store.host("a"))
    with pytest.raises(KeyError, match="no column 'b'"):
        store.host("b")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_host_gives_numbers_that_numpy_lacks_as_float32(dtype: torch.dtype, device: str) -> None:
    store, rows = Store(3, device), torch.tensor([0.5, -2.0, 1.25]).to(dtype)
    store.write(slots(2, 0, 1), {"loss": rows.to(device)})
    assert store.host("loss").dtype == np.float32 and store.host("loss").tolist() == [-2.0, 1.25, 0.5]


# -- columns that come late, or grow --------------------------------------------------------------


def test_a_column_that_comes_late_has_width_0_in_older_rows(device: str) -> None:
    store = Store(5, device)
    store.write(slots(0, 1), {"y": torch.arange(2).to(device)})
    store.write(slots(2, 1), {"y": torch.arange(2).to(device), "logits": torch.ones(2, 3, device=device)})
    batch = store.read(slots(0, 1, 2))
    assert batch["logits" + WIDTH].tolist() == [0, 3, 3]
    assert batch["logits"][1:].eq(1).all() and batch["logits"].shape == (3, 3)
    assert "y" + WIDTH not in batch


def test_a_late_column_without_trailing_dimension_counts_as_width_1() -> None:
    store = Store(3)
    store.write(slots(0), {"y": torch.tensor([1])})
    store.write(slots(1), {"y": torch.tensor([1]), "score": torch.tensor([2.0])})
    assert store.read(slots(0, 1))["score" + WIDTH].tolist() == [0, 1]


def test_wider_logits_widen_the_column_and_every_row_keeps_its_width(device: str) -> None:
    store = Store(4, device)
    two, five = some(torch.float32, 2, 2), some(torch.float32, 2, 5, seed=1)
    store.write(slots(0, 1), {"logits": two.to(device)})
    assert "logits" + WIDTH not in store.read(slots(0, 1))
    store.write(slots(2, 1), {"logits": five.to(device)})
    batch = store.read(slots(0, 1, 2))
    assert batch["logits" + WIDTH].tolist() == [2, 5, 5]
    assert same(batch["logits"][0].cpu(), torch.cat([two[0], torch.zeros(3)]))
    assert same(batch["logits"][1:].cpu(), five[[1, 0]])
    store.write(slots(3), {"logits": two[:1].to(device)})
    last = store.read(slots(3))
    assert last["logits" + WIDTH].tolist() == [2] and same(last["logits"][0, :2].cpu(), two[0])
    assert not last["logits"][0, 2:].any()


def test_only_growing_columns_may_change_their_shape() -> None:
    store = Store(4, growing=["z"])
    for name, grows in (("z", True), ("logits", False)):
        store.clear()
        store.write(slots(0), {name: torch.zeros(1, 2, 3)})
        if grows:
            store.check({name: torch.zeros(1, 4, 3)})
        else:
            with pytest.raises(ValueError, match="convert the batch"):
                store.check({name: torch.zeros(1, 4, 3)})
        with pytest.raises(ValueError, match=r"holds rows \(2, 3\)"):
            store.check({name: torch.zeros(1, 2, 4)})


# -- the door -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "kind", "message"),
    [
        ({}, ValueError, "at least one column"),
        (
            {"x": torch.zeros(2), "y": torch.zeros(3)},
            ValueError,
            r"first dimension, got {x \[2\] float32, y \[3\]",
        ),
        ({"x": torch.tensor(1.0)}, ValueError, "first dimension"),
        ({"x": [1, 2]}, TypeError, "column 'x' is a list, expected a dense torch.Tensor"),
        ({"x": torch.eye(3).to_sparse()}, TypeError, "column 'x' is a torch.sparse_coo, expected a dense"),
        ({"x": np.zeros(2)}, TypeError, "ndarray"),
        ({3: torch.zeros(2)}, TypeError, "column names are strings, got 3"),
        ({"logits_width": torch.zeros(2)}, ValueError, "belong to the store; rename it"),
    ],
)
def test_batches_that_are_none(batch: Batch, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Store(4).check(batch)
    with pytest.raises(kind, match=message):
        Store(4).admit(batch)


def test_batches_that_do_not_fit_the_table() -> None:
    store = Store(4)
    store.write(slots(0, 1), {"x": torch.zeros(2, 3), "y": torch.zeros(2, dtype=torch.int64)})
    y = torch.zeros(2, dtype=torch.int64)
    cases: list[tuple[Batch, str]] = [
        (
            {"x": torch.zeros(2, 3).double(), "y": y},
            r"'x' holds rows \(3,\) of torch.float32, got .* of torch.float64",
        ),
        ({"x": torch.zeros(2, 4), "y": y}, r"got rows \(4,\)"),
        ({"x": torch.zeros(2, 3)}, r"columns \['x', 'y'\], the batch lacks \['y'\]; it has {x \[2, 3\] float32}"),
        ({"x": torch.zeros(2, 3), "y": y, "z": torch.zeros(1)}, "first dimension"),
    ]
    for door in (store.check, store.admit):
        assert door({"y": y, "x": torch.zeros(2, 3)}) and door({"y": y, "x": torch.zeros(2, 3), "more": y})
        for batch, message in cases:
            with pytest.raises(ValueError, match=message):
                door(batch)


def test_slots_must_be_distinct_and_exist() -> None:
    store = Store(4)
    for bad in (slots(0, 0), slots(-1), slots(4), slots(1, 2, 1)):
        with pytest.raises(ValueError, match=r"distinct and in \[0, 4\)"):
            store.write(bad, {"a": torch.zeros(len(bad))})
    assert len(store) == 0 and not store.columns


def test_a_write_that_fails_changes_nothing() -> None:
    store = Store(4)
    store.write(slots(0, 1), {"a": torch.zeros(2), "b": torch.zeros(2)})
    before = store.state_dict()
    with pytest.raises(ValueError, match="column 'b' holds rows"):
        store.write(slots(0), {"a": torch.ones(1), "b": torch.ones(1).double()})
    with pytest.raises(ValueError, match="column 'b' has 1 rows for 2 slots"):
        store.write(slots(0, 1), {"a": torch.ones(2), "b": torch.ones(1)})
    with pytest.raises(ValueError, match="column 'c' has 3 rows for 2 slots"):
        store.write(slots(0, 1), {"a": torch.ones(2)}, slots(0, 1), beside={"c": torch.ones(3)})
    assert same(store.state_dict(), before)


@pytest.mark.parametrize("capacity", [0, -3])
def test_capacity_below_1(capacity: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 slot, got {capacity}"):
        Store(capacity)


@pytest.mark.parametrize("capacity", [2.0, "3", True, None])
def test_capacity_of_another_kind(capacity: object) -> None:
    with pytest.raises(TypeError, match="number of slots"):
        Store(capacity)  # type: ignore[arg-type]


# -- columns of the policy ------------------------------------------------------------------------


def test_batches_need_not_bring_columns_of_the_policy(device: str) -> None:
    store = Store(4, device)
    for turn in range(2):
        batch = {"x": torch.arange(3).to(device) + 10 * turn}
        assert store.admit(batch)[0] == 3
        store.write(slots(turn, 3), batch, slots(2, 0), beside={"key": torch.tensor([0.5, 0.25]) + turn})
    assert store.own == {"key"}
    assert store.read(slots(0, 1, 3))["key"].tolist() == [0.5, 1.5, 1.25]
    assert store.read(slots(0, 1, 3))["x"].tolist() == [2, 12, 10]
    with pytest.raises(ValueError, match=r"lacks \['x'\]"):
        store.check({"key": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"lacks \['x'\]"):
        store.admit({"key": torch.zeros(3)})


def test_a_column_of_the_policy_wins_over_one_of_the_batch() -> None:
    store = Store(2)
    store.write(slots(0, 1), {"w": torch.ones(2)}, slots(0, 1), beside={"w": torch.tensor([3.0, 4.0])})
    assert store.read(slots(0, 1))["w"].tolist() == [3, 4] and not store.own


# -- the fast way in ------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    picks=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 5)), max_size=8, unique_by=lambda pick: pick[0]),
    dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from(SHAPES),
    transposed=st.booleans(),
)
def test_put_is_write(
    picks: list[tuple[int, int]], dtype: torch.dtype, shape: tuple[int, ...], transposed: bool
) -> None:
    first = {"a": some(dtype, 9, *shape), "b": torch.arange(9)}
    rows = some(dtype, 6, *shape, seed=1)
    if transposed and rows.ndim == 3:
        rows = rows.transpose(1, 2).contiguous().transpose(1, 2)
    batch = {"a": rows, "b": torch.arange(6) + 100}
    slot, source = (np.array(column, np.int64) for column in (zip(*picks, strict=True) if picks else ((), ())))
    stores = [Store(9) for _ in range(2)]
    for store in stores:
        store.write(np.arange(5), first, np.arange(5))
    assert stores[0].admit(batch) == (6, True)
    stores[0].put(slot, batch, source)
    stores[1].write(slot, batch, source)
    assert same(stores[0].state_dict(), stores[1].state_dict())


# -- columns of an accelerator, tried on the CPU ---------------------------------------------------


class Elsewhere(Store):
    """Holds its columns as on an accelerator."""

    def _address(self, slots: IntArray) -> torch.Tensor:
        return torch.from_numpy(slots)

    def _allocate(self, name: str, row: torch.Size, dtype: torch.dtype) -> DeviceColumn:
        return DeviceColumn(self.capacity, row, dtype, self.device)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.bfloat16, torch.float32], ids=str)
def test_device_columns_behave_like_host_columns(dtype: torch.dtype) -> None:
    stores = [Store(6), Elsewhere(6)]
    for store in stores:
        store.write(slots(0, 4, 5), {"x": some(dtype, 3, 2)})
        store.write(slots(1, 4), {"x": some(dtype, 3, 2, seed=1), "logits": torch.ones(3, 2)}, slots(2, 0))
        store.write(slots(2), {"x": some(dtype, 1, 2), "logits": torch.ones(1, 4)}, beside={"key": torch.ones(1)})
        store.revise(slots(4), {"logits": torch.zeros(1, 4)})
        store.release(slots(0))
        with pytest.raises(IndexError, match="empty or do not exist"):
            store.read(slots(0))
        store.rearrange(slots(4, -1, 2, 1), 5)
    assert same(stores[0].state_dict(), stores[1].state_dict())
    assert same(stores[0].read(slots(2, 0)), stores[1].read(slots(2, 0)))
    assert np.array_equal(stores[0].host("key")[:3], stores[1].host("key")[:3])
    loaded = Elsewhere(5)
    loaded.load_state_dict(reloaded(stores[0].state_dict()))
    assert same(loaded.state_dict(), stores[0].state_dict()) and stores[1].nbytes == stores[0].nbytes


# -- memory maps ----------------------------------------------------------------------------------


def test_a_folder_holds_the_same_bits_as_main_memory(tmp_path: Path) -> None:
    stores = [Store(6), Store(6, folder=tmp_path / "deep" / "er")]
    for store in stores:
        store.write(slots(0, 4), {"x": some(torch.bfloat16, 2, 3), "y": torch.arange(2)})
        store.write(
            slots(1, 4),
            {"x": some(torch.bfloat16, 2, 3, seed=2), "y": torch.arange(2), "logits": torch.ones(2, 2)},
        )
        store.write(slots(2), {"x": some(torch.bfloat16, 1, 3), "y": torch.arange(1), "logits": torch.ones(1, 4)})
        store.release(slots(0))
        store.rearrange(slots(4, 2, 1), 5)
    assert same(stores[0].state_dict(), stores[1].state_dict())
    assert stores[0].nbytes == stores[1].nbytes
    files = {file.name: file.stat().st_size for file in (tmp_path / "deep" / "er").iterdir()}
    assert files.keys() == {"x.npy", "y.npy", "logits.npy"} and files["logits.npy"] >= 5 * 4 * 4
    loaded = Store(5, folder=tmp_path / "other")
    loaded.load_state_dict(reloaded(stores[1].state_dict()))
    assert same(loaded.state_dict(), stores[0].state_dict())


def test_folders_are_for_the_cpu_and_for_names_that_are_file_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lives on the CPU, got device meta"):
        Store(3, "meta", tmp_path)
    store = Store(3, folder=tmp_path)
    with pytest.raises(ValueError, match=r"'\.\./x' cannot name a file"):
        store.check({"../x": torch.zeros(1)})


# -- other capacities -----------------------------------------------------------------------------


def ragged() -> Store:
    store = Store(5)
    store.write(slots(0, 1), {"y": torch.arange(2)})
    store.write(slots(2, 4), {"y": torch.arange(2, 4), "logits": torch.ones(2, 3)})
    store.write(
        slots(1), {"y": torch.tensor([9]), "logits": torch.ones(1, 2)}, beside={"key": torch.tensor([0.5])}
    )
    store.seen = 40
    return store


@pytest.mark.parametrize("capacity", [3, 4, 9])
def test_rearranging_moves_whole_rows(capacity: int) -> None:
    store = ragged()
    before = store.read(slots(4, 0, 1))
    store.rearrange(slots(4, 0, 1), capacity)
    assert store.capacity == capacity and store.seen == 40 and store.own == {"key"}
    assert same(store.read(slots(0, 1, 2)), before)
    assert store.filled.tolist() == [0, 1, 2] and store.free(9).tolist() == list(range(3, capacity))
    assert all(column.tensor.shape[0] == capacity for column in store.columns.values())


def test_rearranging_may_leave_holes() -> None:
    store = ragged()
    before = store.read(slots(4, 0))
    store.rearrange(slots(-1, 4, -1, 0), 4)
    assert store.filled.tolist() == [1, 3] and same(store.read(slots(1, 3)), before)
    store.rearrange(slots(-1, -1), 2)
    assert len(store) == 0 and store.columns.keys() == {"y", "logits", "key"}


def test_rearranging_what_is_not_there() -> None:
    store = ragged()
    before = store.state_dict()
    for bad, capacity in (
        (slots(3), 4),
        (slots(0, 0), 4),
        (slots(5), 4),
        (slots(0, 1, 2), 2),
        (slots(-2), 4),
        (slots(0), 0),
    ):
        with pytest.raises(ValueError):
            store.rearrange(bad, capacity)
    assert same(store.state_dict(), before)


def test_clear() -> None:
    store = ragged()
    store.clear()
    assert same(store.state_dict(), Store(5).state_dict())
    store.write(slots(3), {"y": torch.zeros(1, 2)})  # another kind of column under the same name
    assert len(store) == 1


# -- saving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_saved_table_comes_back(dtype: torch.dtype, device: str) -> None:
    store = Store(6, device)
    store.write(slots(5, 2), {"a": some(dtype, 2, 3).to(device)})
    store.write(slots(3, 2), {"a": some(dtype, 2, 3, seed=1).to(device), "late": torch.ones(2, device=device)})
    store.seen = 17
    loaded = Store(6, device)
    loaded.load_state_dict(reloaded(store.state_dict()))
    assert same(loaded.state_dict(), store.state_dict())
    assert loaded.filled.tolist() == [5, 2, 3] and loaded.seen == 17
    assert same(loaded.read(slots(5, 3)), store.read(slots(5, 3)))
    for table in (store, loaded):
        table.write(slots(0), {"a": some(dtype, 1, 3).to(device), "late": torch.ones(1, device=device)})
    assert same(loaded.state_dict(), store.state_dict())


def test_a_state_does_not_follow_the_table() -> None:
    store = ragged()
    state, copy = store.state_dict(), reloaded(store.state_dict())
    store.write(
        slots(0, 1, 2), {"y": torch.full((3,), 77), "logits": torch.zeros(3, 3)}, beside={"key": torch.ones(3)}
    )
    store.release(slots(4))
    assert same(state, copy)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"capacity": 6}, "has 6 slots, this one 5; make one of that size"),
        ({"slots": torch.tensor([0, 1, 2, 2])}, "not distinct numbers below 5"),
        ({"slots": torch.tensor([0, 1, 2, 5])}, "not distinct numbers below 5"),
        ({"slots": torch.tensor([-1, 1, 2, 3])}, "not distinct numbers below 5"),
        ({"slots": torch.tensor([0, 1, 2])}, "does not hold 3 rows"),
        ({"slots": [0, 1, 2, 4]}, "not a vector of int64"),
        ({"slots": torch.arange(4.0)}, "not a vector of int64"),
        ({"columns": {"y": torch.zeros(3)}}, "column|names"),
        ({"columns": [1]}, "not dicts"),
        ({"widths": {"z": torch.zeros(4)}}, "same names"),
        ({"widths": {"y": torch.zeros(3)}}, "column 'y' does not hold 4 rows"),
        ({"seen": -1}, "-1 rows seen"),
        ({"seen": "many"}, "'many' rows seen"),
        ({"own": ["score"]}, "column of the policy is missing"),
    ],
)
def test_corrupt_states_leave_the_table_as_it_was(spoil: dict[str, object], message: str) -> None:
    state = ragged().state_dict()
    store = Store(5)
    store.write(slots(1), {"b": torch.ones(1)})
    before = store.state_dict()
    with pytest.raises(ValueError, match=message):
        store.load_state_dict({**state, **spoil})
    for missing in state.keys() - {"notes"}:  # which older states lack
        with pytest.raises(ValueError, match=f"it lacks \\['{missing}'\\]"):
            store.load_state_dict({name: value for name, value in state.items() if name != missing})
    with pytest.raises(ValueError, match="not the state of a store: a list"):
        store.load_state_dict([state])  # type: ignore[arg-type]
    assert same(store.state_dict(), before)


@pytest.mark.parametrize("name", ["../outside", "a/b", "y_width", 3])
def test_a_saved_column_with_a_name_that_none_can_have_is_refused(name: object, tmp_path: Path) -> None:
    """A state is not trusted: a name must not lead out of the folder."""
    state = ragged().state_dict()
    state["columns"][name] = torch.zeros(4)
    store = Store(5, folder=tmp_path / "columns")
    store.write(slots(1), {"b": torch.ones(1)})
    before = store.state_dict()
    with pytest.raises((ValueError, TypeError), match="rename it|column names are strings"):
        store.load_state_dict(state)
    assert same(store.state_dict(), before)
    assert [path.name for path in tmp_path.rglob("*")] == ["columns", "b.npy"]
