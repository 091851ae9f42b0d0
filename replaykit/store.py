"""The store: a table of named columns with a fixed number of slots.

Columns are allocated when they are first written, with the dtype and trailing shape of the tensor
that arrives (uint8 stays uint8); see `replaykit.columns`. A store knows which slots are filled and never
reads another one.

A column may come late (logits that start with the second task) or grow (logits of a head that gained
classes). Then the store keeps, for each row, how many leading entries are valid, and `read` returns
that number beside the column as ``<name>_width``: 0 for a row that never had the column. As long as
every row is complete there is no such entry.

Whoever reads a memory may keep notes on its rows (how often each was replayed, say): one number a slot,
on the host, that starts anew when another row is written there. Notes are read by name like columns, and
what a reader derives from them (a tree of sums, say) it keeps up to date by `touched`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replaykit.columns import Column, DeviceColumn, HostColumn, IntArray

__all__ = ["LOSS", "REPLAYED", "WIDTH", "Batch", "IntArray", "Store", "check_capacity", "describe"]

Batch: TypeAlias = dict[str, Tensor]

WIDTH = "_width"
LOSS = "loss"  # the column of last known losses
REPLAYED = "replayed"  # the notes that count how often each row was drawn
_REMEMBERED = 256  # writes, for readers that keep up with them


class Store:
    """Named columns over `capacity` slots.

    Args:
        capacity: number of slots, at least 1.
        device: where the columns live. Decisions are made on the host whatever the device.
        folder: keep the columns in files of this folder (CPU only), for memories larger than RAM. The
            files are working space, replaced when a column of the same name is made; what outlives a
            process is the `state_dict`.
        growing: columns whose first trailing dimension may grow from one write to the next.
    """

    def __init__(
        self,
        capacity: int,
        device: torch.device | str = "cpu",
        folder: str | os.PathLike[str] | None = None,
        growing: Iterable[str] = ("logits",),
    ) -> None:
        self.capacity = check_capacity(capacity)
        self.device = torch.device(device)
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            if self.device.type != "cpu":
                raise ValueError(f"a memory-mapped store lives on the CPU, got device {self.device}; drop one")
            self.folder.mkdir(parents=True, exist_ok=True)
        self.growing = frozenset(growing)
        self.clear()

    def clear(self) -> None:
        """Forget every row, every column and the count of what was offered."""
        self.seen = 0
        self.columns: dict[str, Column] = {}
        self.widths: dict[str, NDArray[np.int32]] = {}
        self.own: set[str] = set()  # columns that the policy writes and batches do not bring
        self.notes: dict[str, tuple[NDArray[np.float64], float]] = {}  # by slot, and what a new row starts with
        self._touched: deque[IntArray] | None = None  # the last slots written or emptied, once somebody asked
        self._touches = 0
        self._filled: IntArray = np.empty(self.capacity, np.int64)
        self._rank: IntArray = np.full(self.capacity, -1, np.int64)
        self._count = 0
        self._top = 0  # one above the highest filled slot: equal to the count while there is no hole

    def __len__(self) -> int:
        return self._count

    @property
    def filled(self) -> IntArray:
        """The filled slots, in the order in which they were first filled (a view: do not write)."""
        return self._filled[: self._count]

    @property
    def nbytes(self) -> int:
        """Bytes held: all columns at full capacity, and the book-keeping."""
        payload = sum(column.nbytes for column in self.columns.values())
        widths = sum(width.nbytes for width in self.widths.values())
        notes = sum(array.nbytes for array, _ in self.notes.values())
        return int(payload + widths + notes + self._filled.nbytes + self._rank.nbytes)

    def free(self, n: int) -> IntArray:
        """The lowest `n` empty slots, or as many as there are."""
        start, end = self._count, min(self._count + n, self.capacity)
        if self._top == start:
            return np.arange(start, end)
        return np.flatnonzero(self._rank < 0)[:n]

    def is_filled(self, slots: IntArray) -> NDArray[np.bool_]:
        filled: NDArray[np.bool_] = self._rank[slots] >= 0
        return filled

    def host(self, name: str) -> NDArray[Any]:
        """A whole column, or the notes of this name, as a NumPy array [capacity, ...].

        A view on the CPU, a copy elsewhere; notes are a view always. A dtype that NumPy lacks (bfloat16, 8-bit
        floats) is copied to float32. Rows of empty slots hold leftovers: index it with `filled`.
        """
        if name in self.notes and name not in self.columns:
            return self.notes[name][0]
        held = self.columns[self._known(name)].tensor.cpu()
        try:
            array: NDArray[Any] = held.numpy()
        except TypeError:
            array = held.float().numpy()
        return array

    def note(self, name: str, start: float) -> NDArray[np.float64]:
        """The notes of one reader, by slot [capacity], to read and to write.

        They begin with `start`, and do so again whenever a row is written; saved with the table.

        Raises:
            ValueError: another reader keeps notes of this name, with another start.
        """
        if name not in self.notes:
            self.notes[name] = np.full(self.capacity, start), start
        array, begun = self.notes[name]
        if begun != start:
            raise ValueError(f"the notes {name!r} start with {begun}, not {start}: two readers use one name")
        return array

    def touch(self, slots: IntArray) -> None:
        """Say that notes of these slots were changed, to those who follow `touched`."""
        if self._touched is not None:
            self._touched.append(slots.copy())
            self._touches += 1

    def touched(self, mark: int) -> tuple[int, IntArray | None]:
        """The mark of now, and the slots [k] that were written, emptied or touched since an older mark.

        None: some of them are forgotten, look at all. So it is at the first call, and whenever the array of
        the notes is another one than before (`clear`, `rearrange`, `load_state_dict`).
        """
        if self._touched is None:
            self._touched = deque(maxlen=_REMEMBERED)
            return self._touches, None
        missed = self._touches - mark
        if not 0 <= missed <= len(self._touched):
            return self._touches, None
        recent = [self._touched[i] for i in range(-missed, 0)]
        return self._touches, np.concatenate(recent) if recent else np.empty(0, np.int64)

    # -- the door ---------------------------------------------------------------------------------

    def check(self, batch: Batch) -> int:
        """Number of rows of a batch that fits the table.

        Raises:
            TypeError: a value is not a tensor.
            ValueError: no column, columns of different lengths, a column with another dtype or row
                shape than the table's, or a column of the table that the batch lacks.
        """
        n = -1
        for name, value in batch.items():
            if name not in self.columns:
                self._check_name(name)
            if not isinstance(value, Tensor) or value.layout is not torch.strided:
                kind = value.layout if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"column {name!r} is a {kind}, expected a dense torch.Tensor")
            shape = value.shape
            if len(shape) == 0 or (n >= 0 and shape[0] != n):
                raise ValueError(f"columns must share their first dimension, got {describe(batch)}")
            n = shape[0]
            self._check_rows(name, value)
        if n < 0:
            raise ValueError("a batch needs at least one column, got none")
        missing = sorted(self.columns.keys() - self.own - batch.keys())
        if missing:
            raise ValueError(
                f"the memory has columns {sorted(self.columns)}, the batch lacks {missing}; "
                f"it has {describe(batch)}"
            )
        return n

    def admit(self, batch: Batch) -> tuple[int, bool]:
        """`check`, and whether `put` can write the batch: one on the CPU, exactly like the columns held."""
        if self.widths or len(batch) + len(self.own) != len(self.columns):
            return self.check(batch), False
        if self.own and not self.own.isdisjoint(batch):
            return self.check(batch), False
        n = -1
        for name, value in batch.items():
            column = self.columns.get(name)
            if not isinstance(column, HostColumn) or not isinstance(value, Tensor):
                return self.check(batch), False
            shape = value.shape
            if shape != column.fitting:
                if not shape or shape[1:] != column.row:
                    return self.check(batch), False
                column.fitting = shape
            if value.dtype is not column.dtype or not value.is_cpu or value.layout is not torch.strided:
                return self.check(batch), False
            if n >= 0 and shape[0] != n:
                return self.check(batch), False
            n = shape[0]
        return (n, True) if batch else (self.check(batch), False)

    def _check_name(self, name: Any) -> None:
        if not isinstance(name, str):
            raise TypeError(f"column names are strings, got {name!r}")
        if name.endswith(WIDTH):
            raise ValueError(f"column {name!r}: names in {WIDTH!r} belong to the store; rename it")
        if self.folder is not None and Path(name).name != name:
            raise ValueError(f"column {name!r} cannot name a file in {self.folder}; rename it")

    def _check_rows(self, name: str, rows: Tensor) -> None:
        column = self.columns.get(name)
        if column is None or (rows.dtype == column.dtype and rows.shape[1:] == column.row):
            return
        given, held = rows.shape[1:], column.row
        may_grow = name in self.growing and len(given) == len(held) >= 1 and given[1:] == held[1:]
        if rows.dtype != column.dtype or not may_grow:
            raise ValueError(
                f"column {name!r} holds rows {tuple(held)} of {column.dtype}, got rows "
                f"{tuple(given)} of {rows.dtype}; convert the batch or clear() the memory"
            )

    def _known(self, name: str) -> str:
        if name not in self.columns:
            raise KeyError(f"no column {name!r}; the memory holds {sorted(self.columns) or 'no column yet'}")
        return name

    # -- reading and writing ----------------------------------------------------------------------

    def read(self, slots: IntArray, names: Iterable[str] | None = None) -> Batch:
        """Copy of the rows of `slots`, in that order: of all columns, or of the named columns and notes.

        On the CPU, and while no slot was emptied, negative slots count back from the last filled one.

        Raises:
            KeyError: an unknown column.
            IndexError: a slot that is empty or does not exist.
        """
        # Without holes the filled slots are those below the count, which a column on the host checks itself.
        if (self._top != self._count or self.device.type != "cpu") and not self.holds(slots):
            raise IndexError(f"some of the slots {slots.tolist()} are empty or do not exist")
        where = self._address(slots)
        noted: list[str] = []
        if names is None:
            chosen = self.columns
        else:
            names = list(names)
            noted = [name for name in names if name in self.notes and name not in self.columns]
            chosen = {name: self.columns[self._known(name)] for name in names if name not in noted}
        batch = {name: column.read(where, self._top) for name, column in chosen.items()}
        for name in noted:
            batch[name] = torch.from_numpy(self.notes[name][0][slots]).to(self.device)
        for name, width in self.widths.items():
            if name in batch:
                batch[name + WIDTH] = torch.from_numpy(width[slots].astype(np.int64)).to(self.device)
        return batch

    def write(
        self,
        slots: IntArray,
        batch: Batch,
        source: IntArray | None = None,
        beside: Batch | None = None,
    ) -> None:
        """Put row `source[i]` of the batch (row i without `source`) into slot `slots[i]`.

        Slots are distinct. Columns that are not named keep their values. `beside` holds columns of the
        policy's own [len(slots), ...]; where it names a column of the batch too, it wins.
        """
        self.staged(slots, batch, source, beside)()
        self.start_notes(slots)

    def staged(
        self, slots: IntArray, batch: Batch, source: IntArray | None = None, beside: Batch | None = None
    ) -> Callable[[], None]:
        """A `write` that lies ready: all that can fail happens here, what is returned copies the rows.

        Notes stay as they are.
        """
        self.check_slots(slots)
        parts = ((batch, source), (beside or {}, None))
        for part, rows_of in parts:
            for name, rows in part.items():
                if rows_of is None and rows.shape[0] != len(slots):
                    raise ValueError(f"column {name!r} has {rows.shape[0]} rows for {len(slots)} slots")
        self.prepare(batch, beside or {})
        where: Any = self._address(slots)
        ready: list[tuple[str, int, Any]] = []
        for part, rows_of in parts:
            for name, rows in part.items():
                column = self.columns[name]
                padded = _padded(rows.detach() if rows.requires_grad else rows, column.row)
                ready.append((name, _width(rows.shape[1:]), column.stage(padded, rows_of)))

        def commit() -> None:
            if beside:
                self.own.update(beside.keys() - batch.keys())
            for name, width, items in ready:
                if name in self.widths:
                    self.widths[name][slots] = width
                self.columns[name].commit(where, items)
            self._occupy(slots)

        return commit

    def is_prepared(self, batch: Batch) -> bool:
        """Whether every column of a batch is there and as wide as its rows."""
        return all(
            name in self.columns and rows.shape[1:] == self.columns[name].row for name, rows in batch.items()
        )

    def prepare(self, *batches: Batch) -> None:
        """Make the columns that batches need, and widen those that are too narrow: all of them, or none."""
        columns, widths = dict(self.columns), dict(self.widths)
        try:
            for batch in batches:
                for name, rows in batch.items():
                    self._check_rows(name, rows)
                    self._prepare(name, rows)
        except BaseException:
            self.columns, self.widths = columns, widths
            raise

    def put(self, slots: IntArray, batch: Batch, source: IntArray | None) -> None:
        """`write` for a batch that `admit` lets pass and slots known to be distinct and below the capacity."""
        columns: Any = self.columns  # `admit` found them on the host
        ready = [
            (columns[name], columns[name].staged(columns[name].host(rows), source)) for name, rows in batch.items()
        ]
        for column, items in ready:
            column.commit(slots, items)
        if self.notes:
            self.start_notes(slots)
        if self._count < self.capacity:
            self._occupy(slots)

    def revise(self, slots: IntArray, batch: Batch) -> None:
        """Overwrite some columns of rows that stay: new weights, refreshed features. Notes stay too."""
        self.revised(slots, batch)()

    def revised(self, slots: IntArray, batch: Batch) -> Callable[[], None]:
        """A `revise` that lies ready, like `staged`."""
        if len(slots) and not self.is_filled(slots).all():
            raise IndexError(f"slots {slots[~self.is_filled(slots)].tolist()} are empty, nothing to revise")
        return self.staged(slots, batch)

    def release(self, slots: IntArray) -> None:
        """Empty some filled slots."""
        keep = self.filled[~np.isin(self.filled, slots)]
        self._rank[slots] = -1
        self._count = len(keep)
        self._filled[: self._count] = keep
        self._rank[keep] = np.arange(self._count)
        self._top = int(keep.max()) + 1 if self._count else 0
        self.touch(slots)

    def rearrange(self, slots: IntArray, capacity: int) -> None:
        """Change the capacity: new slot i holds what `slots[i]` held (nothing where it is -1).

        Everything else is dropped.
        """
        check_capacity(capacity)
        new = np.flatnonzero(slots != -1)
        if len(slots) > capacity:
            raise ValueError(f"{len(slots)} slots do not fit a capacity of {capacity}")
        slots = slots[new]
        self.check_slots(slots)
        if not self.is_filled(slots).all():
            raise ValueError(f"slots {slots[~self.is_filled(slots)].tolist()} are empty, they cannot be kept")
        held = self.read(slots)
        widths = {name: width[slots] for name, width in self.widths.items()}
        notes = {name: (array[slots], start) for name, (array, start) in self.notes.items()}
        with self._or_as_before():
            columns, seen, own = self.columns, self.seen, self.own
            self.capacity = capacity
            self.clear()
            self.seen, self.own = seen, own
            for name, column in columns.items():
                self.columns[name] = self._allocate(name, column.row, column.dtype)
            for name, width in widths.items():
                self.widths[name] = np.zeros(capacity, np.int32)
                self.widths[name][new] = width
            for name, (kept, start) in notes.items():
                self.note(name, start)[new] = kept
            where = self._address(new)
            for name, new_column in self.columns.items():
                new_column.write(where, held[name], None)
            self._occupy(new)

    # -- saving -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to rebuild the table: plain tensors and numbers."""
        slots = self.filled.copy()
        where = self._address(slots)
        return {
            "capacity": self.capacity,
            "seen": self.seen,
            "own": sorted(self.own),
            "slots": torch.from_numpy(slots),
            "columns": {name: column.read(where, self._top) for name, column in self.columns.items()},
            "widths": {name: torch.from_numpy(width[slots].copy()) for name, width in self.widths.items()},
            "notes": {
                name: {"start": start, "values": torch.from_numpy(array[slots])}
                for name, (array, start) in self.notes.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the saved table, or raise and stay what it was.

        Raises:
            ValueError, TypeError: a state of another capacity, a corrupt one, or column names that cannot be here.
        """
        slots, columns, widths = _checked_state(state, self.capacity)
        for name in columns:
            self._check_name(name)
        with self._or_as_before():
            self.clear()
            self.seen, self.own = int(state["seen"]), set(state["own"])
            where = self._address(slots)
            for name, rows in columns.items():
                self.columns[name] = self._allocate(name, rows.shape[1:], rows.dtype)
                self.columns[name].write(where, rows, None)
            for name, width in widths.items():
                self.widths[name] = np.zeros(self.capacity, np.int32)
                self.widths[name][slots] = width.numpy()
            for name, note in state.get("notes", {}).items():
                self.note(name, note["start"])[slots] = note["values"].numpy()
            self._occupy(slots)

    # -- inside -----------------------------------------------------------------------------------

    @contextmanager
    def _or_as_before(self) -> Iterator[None]:
        """Build another table in place of this one, which stays if that fails: `clear` makes everything anew."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            vars(self).update(before)
            raise

    def _address(self, slots: IntArray) -> Any:
        """Slots in the form that this store's columns index with."""
        if self.device.type == "cpu":
            return slots
        return torch.from_numpy(slots).to(self.device, non_blocking=True)

    def holds(self, slots: IntArray) -> bool:
        if len(slots) == 0:
            return True
        inside = int(slots.min()) >= 0 and int(slots.max()) < self.capacity
        return inside and int(self._rank[slots].min()) >= 0

    def check_slots(self, slots: IntArray) -> None:
        listed = slots.tolist()
        if listed and (len(set(listed)) != len(listed) or min(listed) < 0 or max(listed) >= self.capacity):
            raise ValueError(f"slots must be distinct and in [0, {self.capacity}), got {listed}")

    def _allocate(self, name: str, row: torch.Size, dtype: torch.dtype) -> Column:
        if self.device.type == "cpu":
            file = None if self.folder is None else self.folder / f"{name}.npy"
            return HostColumn(self.capacity, row, dtype, file)
        return DeviceColumn(self.capacity, row, dtype, self.device)

    def _prepare(self, name: str, rows: Tensor) -> None:
        """Make a new column, widen one that gets wider rows, count widths from the first ragged row on."""
        column = self.columns.get(name)
        row = rows.shape[1:]
        if column is None:
            self.columns[name] = self._allocate(name, row, rows.dtype)
            if self._count:
                self.widths[name] = np.zeros(self.capacity, np.int32)
        elif row != column.row:
            if name not in self.widths:
                self.widths[name] = np.zeros(self.capacity, np.int32)
                self.widths[name][self.filled] = _width(column.row)
            if row[0] > column.row[0]:
                held = column.read(self._address(self.filled), self._top)
                wider = self._allocate(name, row, column.dtype)
                wider.write(self._address(self.filled), _padded(held, row), None)
                self.columns[name] = wider

    def start_notes(self, slots: IntArray) -> None:
        """Other rows lie in these slots now."""
        for array, start in self.notes.values():
            array[slots] = start
        self.touch(slots)

    def _occupy(self, slots: IntArray) -> None:
        new = slots[self._rank[slots] < 0] if self._count < self.capacity else slots[:0]
        if len(new):
            end = self._count + len(new)
            self._filled[self._count : end] = new
            self._rank[new] = np.arange(self._count, end)
            self._count = end
            self._top = max(self._top, int(new.max()) + 1)


def check_capacity(capacity: int) -> int:
    if isinstance(capacity, bool) or not isinstance(capacity, (int, np.integer)):
        raise TypeError(f"capacity is a number of slots, got {capacity!r}")
    if capacity < 1:
        raise ValueError(f"capacity must be at least 1 slot, got {capacity}")
    return int(capacity)


def describe(batch: Batch) -> str:
    """The columns of a batch with shapes and dtypes, for messages."""
    columns = (
        f"{name} {list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        if isinstance(value, Tensor)
        else f"{name} {type(value).__name__}"
        for name, value in batch.items()
    )
    return "{" + ", ".join(columns) + "}"


def _width(row: torch.Size) -> int:
    return row[0] if len(row) else 1


def _padded(rows: Tensor, row: torch.Size) -> Tensor:
    if rows.shape[1:] == row:
        return rows
    wide = rows.new_zeros((rows.shape[0], *row))
    wide[:, : rows.shape[1]] = rows
    return wide


def _checked_state(state: dict[str, Any], capacity: int) -> tuple[IntArray, Batch, Batch]:
    if not isinstance(state, dict):
        raise ValueError(f"not the state of a store: a {type(state).__name__}")
    missing = {"capacity", "seen", "own", "slots", "columns", "widths"} - state.keys()
    if missing:
        raise ValueError(f"not the state of a store: it lacks {sorted(missing)}")
    if state["capacity"] != capacity:
        raise ValueError(
            f"the saved memory has {state['capacity']} slots, this one {capacity}; make one of that size"
        )
    listed, columns, widths = state["slots"], state["columns"], state["widths"]
    if not isinstance(listed, Tensor) or listed.ndim != 1 or listed.dtype != torch.int64:
        raise ValueError("corrupt state: the slots are not a vector of int64")
    slots: IntArray = listed.cpu().numpy()
    n = len(slots)
    if n > capacity or len(np.unique(slots)) != n or (n and not 0 <= slots.min() <= slots.max() < capacity):
        raise ValueError(f"corrupt state: {n} slots that are not distinct numbers below {capacity}")
    if not isinstance(state["seen"], int) or state["seen"] < 0:
        raise ValueError(f"corrupt state: {state['seen']!r} rows seen")
    if not isinstance(columns, dict) or not isinstance(widths, dict) or not widths.keys() <= columns.keys():
        raise ValueError("corrupt state: columns and widths are not dicts of the same names")
    for name, rows in [*columns.items(), *widths.items()]:
        if not isinstance(rows, Tensor) or rows.ndim == 0 or rows.shape[0] != n:
            raise ValueError(f"corrupt state: column {name!r} does not hold {n} rows")
    notes = state.get("notes", {})  # states of before there were notes lack them
    if not isinstance(notes, dict):
        raise ValueError(f"corrupt state: the notes are a {type(notes).__name__}, not a dict")
    for name, note in notes.items():
        values = note.get("values") if isinstance(note, dict) and isinstance(note.get("start"), float) else None
        if not isinstance(values, Tensor) or values.shape != (n,) or values.dtype != torch.float64:
            raise ValueError(f"corrupt state: the notes {name!r} are not a start and {n} numbers of float64")
    if not isinstance(state["own"], list) or not set(state["own"]) <= columns.keys():
        raise ValueError("corrupt state: a column of the policy is missing")
    return slots, columns, widths
