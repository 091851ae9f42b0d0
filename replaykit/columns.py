"""One column of the table: an array in main memory, in a file, or a tensor on an accelerator.

On the CPU a column is a NumPy array that shares its memory with a tensor, because NumPy copies rows several
times faster than torch does there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntArray: TypeAlias = NDArray[np.int64]

# NumPy has no bfloat16, and 8-bit floats come and go; such a column is carried as integers of the same size.
_CARRIER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class HostColumn:
    """A column in main memory, or in a file mapped into it."""

    def __init__(self, capacity: int, row: torch.Size, dtype: torch.dtype, file: Path | None = None) -> None:
        self.row, self.dtype, self.file = row, dtype, file
        self._carrier = _carrier(dtype)
        shape, kind = (capacity, *row), torch.empty(0, dtype=self._carrier).numpy().dtype
        if file is None:
            self._share(np.zeros(shape, kind))
        else:
            # A new file, so that a mapping of the old one stays readable. np.asarray drops the memmap
            # subclass, whose indexing is several times slower.
            file.unlink(missing_ok=True)
            self._share(np.asarray(np.lib.format.open_memmap(file, "w+", kind, shape)))

    def _share(self, array: NDArray[Any]) -> None:
        """Look at one piece of memory in three ways."""
        self.array = array
        self.fitting: torch.Size | None = None  # shape of the rows that were admitted last
        self.tensor = torch.from_numpy(array).view(self.dtype)
        # Each row as one opaque item: NumPy then copies a row at a time, whatever its shape.
        self._item = np.dtype((np.void, max(1, array.nbytes // len(array))))
        self._items: NDArray[Any] | None = None
        if array.size:
            self._items = array.reshape(len(array), -1).view(self._item).reshape(-1)

    def __getstate__(self) -> dict[str, Any]:
        """The rows once: a copy must not have three memories of its own. It leaves the file behind."""
        return {"row": self.row, "dtype": self.dtype, "_carrier": self._carrier, "array": self.array}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.row, self.dtype, self._carrier, self.file = state["row"], state["dtype"], state["_carrier"], None
        self._share(np.array(state["array"]))

    @property
    def nbytes(self) -> int:
        return int(self.array.nbytes)

    def read(self, slots: IntArray, below: int) -> Tensor:
        """Rows of slots, which must be below `below`: `take` checks that on its way."""
        rows = torch.from_numpy(self.array[:below].take(slots, axis=0))
        return rows if self._carrier is self.dtype else rows.view(self.dtype)

    def write(self, slots: IntArray, rows: Tensor, source: IntArray | None) -> None:
        self.commit(slots, self.stage(rows, source))

    def stage(self, rows: Tensor, source: IntArray | None) -> NDArray[Any]:
        """Rows as `commit` takes them: all that may lack memory, before anything is written."""
        if rows.device.type != "cpu":
            rows, source = _gather(rows, source).cpu(), None
        return self.staged(self.host(rows), source)

    def host(self, rows: Tensor) -> NDArray[Any]:
        """Rows on the CPU as an array that shares their memory, in the type that carries this column."""
        if rows.requires_grad:
            rows = rows.detach()
        if self._carrier is not self.dtype:
            rows = rows.contiguous().view(self._carrier)
        try:
            return rows.numpy()
        except RuntimeError:  # a conjugated or negated view, which torch has not computed yet
            return rows.resolve_conj().resolve_neg().numpy()

    def staged(self, rows: NDArray[Any], source: IntArray | None) -> NDArray[Any]:
        """Rows of an array of `host` as `commit` takes them."""
        if self._items is None or len(rows) == 0:
            return rows
        items = np.frombuffer(rows if rows.flags.c_contiguous else rows.copy(), self._item)
        return items if source is None else items.take(source)

    def commit(self, slots: IntArray, items: NDArray[Any]) -> None:
        if self._items is not None and len(items):
            self._items[slots] = items


class DeviceColumn:
    """A column that stays on an accelerator."""

    def __init__(self, capacity: int, row: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
        self.row, self.dtype = row, dtype
        self.tensor = torch.zeros((capacity, *row), dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        return self.tensor.numel() * self.tensor.element_size()

    def read(self, slots: Tensor, below: int) -> Tensor:
        return self.tensor.index_select(0, slots)

    def write(self, slots: Tensor, rows: Tensor, source: IntArray | None) -> None:
        self.commit(slots, self.stage(rows, source))

    def stage(self, rows: Tensor, source: IntArray | None) -> Tensor:
        # The surviving rows are gathered where they are, so that only they travel.
        return _gather(rows, source).to(self.tensor.device, non_blocking=True)

    def commit(self, slots: Tensor, items: Tensor) -> None:
        self.tensor.index_copy_(0, slots, items)


Column: TypeAlias = HostColumn | DeviceColumn


def _carrier(dtype: torch.dtype) -> torch.dtype:
    try:
        torch.empty(0, dtype=dtype).numpy()
    except TypeError:
        return _CARRIER[torch.empty(0, dtype=dtype).element_size()]
    return dtype


def _gather(rows: Tensor, source: IntArray | None) -> Tensor:
    if source is None:
        return rows
    return rows.index_select(0, torch.from_numpy(source).to(rows.device, non_blocking=True))
