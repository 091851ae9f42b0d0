"""Rows that carry several labels: reading them from a batch, and comparing the distinct label sets of a memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from replaykit.plan import labels
from replaykit.store import Batch

Labels: TypeAlias = tuple[int, ...]


def label_sets(arrivals: Batch, column: str) -> list[Labels]:
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
        self._carriers: dict[int, dict[Labels, None]] = {}

    def add(self, key: Labels) -> None:
        for label in key:
            self._carriers.setdefault(label, {})[key] = None

    def remove(self, key: Labels) -> None:
        for label in key:
            del self._carriers[label][key]

    def carrying(self, label: int) -> list[Labels]:
        """The sets that hold a label, in any order."""
        return list(self._carriers.get(label, ()))


def least_protected(keys: list[Labels], protected: set[int]) -> list[Labels]:
    """The label sets that hold the fewest of the protected labels."""
    held = [len(protected.intersection(key)) for key in keys]
    fewest = min(held)
    return [key for key, n in zip(keys, held, strict=True) if n == fewest]


def distances(
    keys: list[Labels], stored: Mapping[int, int], share: Mapping[int, float], only_stored: bool = False
) -> list[float]:
    """For each label set, how far the label counts are from their targets without one such row.

    With `only_stored`, labels that would not be stored any more are left out.
    """
    total, before, away = sum(stored.values()), {}, []
    for key in keys:
        left = total - len(key)
        if left not in before:  # the sum over all labels, as if the row had none of them
            before[left] = sum(
                abs(count - share[label] * left) for label, count in stored.items() if count or not only_stored
            )
        far = before[left]
        for label in key:
            beyond, gone = stored[label] - share[label] * left, only_stored and stored[label] == 1
            far += (0.0 if gone else abs(beyond - 1)) - abs(beyond)
        away.append(far)
    return away
