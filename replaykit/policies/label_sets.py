"""Rows that carry several labels: reading them from a batch, and the distinct label sets of a memory."""

from __future__ import annotations

from replaykit.plan import labels
from replaykit.store import Batch


def label_sets(arrivals: Batch, column: str) -> list[tuple[int, ...]]:
    """The labels of each row, ascending: of an integer column [n], or of a {0, 1} matrix [n, c].

    Raises:
        ValueError: the column is missing, of another shape, or the matrix has other values than 0 and 1.
    """
    y = arrivals.get(column)
    if y is None or y.ndim != 2:
        return [(label,) for label in labels(arrivals, column).tolist()]
    marks = (y.detach().double() if y.dtype.is_floating_point else y).cpu().numpy()
    rows, carried = marks.nonzero()
    values = marks[rows, carried]
    if not (values == 1).all():
        raise ValueError(f"a label matrix {column!r} holds 0 and 1 only, got {values[values != 1][0].item()}")
    found: list[list[int]] = [[] for _ in range(len(marks))]
    for row, label in zip(rows.tolist(), carried.tolist(), strict=True):
        found[row].append(label)
    return [tuple(labels_of_row) for labels_of_row in found]


class LabelSets:
    """The distinct label sets that are present, and which of them carry a label: equal rows are scored once."""

    def __init__(self) -> None:
        self._carriers: dict[int, dict[tuple[int, ...], None]] = {}

    def add(self, key: tuple[int, ...]) -> None:
        for label in key:
            self._carriers.setdefault(label, {})[key] = None

    def remove(self, key: tuple[int, ...]) -> None:
        for label in key:
            del self._carriers[label][key]

    def carrying(self, label: int) -> list[tuple[int, ...]]:
        """The sets that hold a label, in any order."""
        return list(self._carriers.get(label, ()))
