"""The book of the class-balanced memories: which slots hold which class, and which classes hold most.

Keeps: the slots of each class, and the classes that share a count. Every change is O(1) time (a removed slot
leaves its place in the class to the last one), 8 bytes a stored row, whatever the capacity.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from replaykit.plan import check_book, check_growth
from replaykit.store import IntArray, Store

#: A class is a label, or the tuple of labels that a multi-label row carries.
Label = TypeVar("Label", int, tuple[int, ...])


class SlotsByClass(Generic[Label]):
    """Slots of each class, in an order that depends on the stream alone.

    Attributes:
        most: rows that the largest class holds, 0 when the book is empty.
    """

    def __init__(self) -> None:
        self.most = 0
        self._held: dict[Label, array[int]] = {}
        self._with: dict[int, list[Label]] = {}  # classes by the number of rows they hold
        self._rank: dict[Label, int] = {}  # place of a class in that list
        self._total = 0

    def __len__(self) -> int:
        return self._total

    def __contains__(self, label: Label) -> bool:
        return label in self._held

    @property
    def classes(self) -> int:
        """Number of classes with at least one stored row."""
        return len(self._held)

    def count(self, label: Label) -> int:
        """Rows stored of a class."""
        held = self._held.get(label)
        return 0 if held is None else len(held)

    def counts(self) -> dict[Label, int]:
        """Rows stored of each class present, in the order in which the classes entered."""
        return {label: len(held) for label, held in self._held.items()}

    def of(self, label: Label) -> array[int]:
        """The slots of a class that is present (a view: do not write)."""
        return self._held[label]

    @property
    def largest(self) -> list[Label]:
        """The classes that hold `most` rows (a view: do not write)."""
        return self._with.get(self.most, [])

    def draw_largest(self, u: float) -> tuple[Label, int]:
        """The row at fraction `u` of [0, 1) of all rows of the largest classes, as class and place in it.

        A class uniformly, then a row of it uniformly, is the same law: tied classes hold equally many.
        """
        place = int(u * (self.most * len(self.largest)))
        return self.largest[place // self.most], place % self.most

    # -- changes ----------------------------------------------------------------------------------

    def add(self, label: Label, slot: int) -> None:
        """A row of the class now sits in `slot`."""
        held = self._held.get(label)
        if held is None:
            self._held[label] = held = array("q")
        held.append(slot)
        self._total += 1
        self._move(label, len(held) - 1, len(held))
        if len(held) > self.most:
            self.most = len(held)

    def remove(self, label: Label, place: int) -> int:
        """Take the row at a place of a class out of the book; returns its slot."""
        held = self._held[label]
        slot = held[place]
        held[place] = held[-1]
        held.pop()
        self._total -= 1
        self._move(label, len(held) + 1, len(held))
        if self.most not in self._with:
            self.most -= 1  # the class that just left it is there
        if not held:
            del self._held[label]
        return slot

    def compact(self) -> IntArray:
        """Renumber the slots 0, 1, ... in ascending order; returns the old slot of each new one."""
        keep = np.sort(np.fromiter((slot for held in self._held.values() for slot in held), np.int64))
        new = np.empty(int(keep[-1]) + 1 if len(keep) else 0, np.int64)
        new[keep] = np.arange(len(keep))
        for label, held in self._held.items():
            self._held[label] = array("q", new[np.frombuffer(held, np.int64)].tobytes())
        return keep

    def _move(self, label: Label, before: int, after: int) -> None:
        if before:
            peers, rank = self._with[before], self._rank.pop(label)
            last = peers.pop()
            if rank < len(peers):
                peers[rank] = last
                self._rank[last] = rank
            elif not peers:
                del self._with[before]
        if after:
            peers = self._with.setdefault(after, [])
            self._rank[label] = len(peers)
            peers.append(label)

    # -- checks and saving ------------------------------------------------------------------------

    def check(self, store: Store) -> None:
        """Refuse to plan for a store that this book does not describe."""
        check_book(self._total, store)

    def check_resize(self, store: Store, capacity: int, grow: str) -> None:
        """Refuse a change of capacity that the memory cannot make.

        Raises:
            ValueError: the capacity is below 1, or it grows after rows were dropped and `grow` is not "naive".
        """
        self.check(store)
        check_growth(store, capacity, grow)

    def state_dict(self) -> dict[str, Any]:
        held = self._held
        return {
            "classes": list(held),
            "counts": torch.tensor([len(slots) for slots in held.values()], dtype=torch.int64),
            "ranks": torch.tensor([self._rank[label] for label in held], dtype=torch.int64),
            "slots": torch.tensor([slot for slots in held.values() for slot in slots], dtype=torch.int64),
        }

    @classmethod
    def from_state(cls, state: Any, kind: type[Label]) -> SlotsByClass[Label]:
        """The book that was saved, or `ValueError`. `kind` is what its classes are: int, or tuple."""
        checked_keys(state, {"classes", "counts", "ranks", "slots"}, "a book of slots by class")
        classes = state["classes"]
        if not isinstance(classes, list) or not all(isinstance(label, kind) for label in classes):
            raise ValueError(f"corrupt state: the classes are not a list of {kind.__name__}")
        counts, ranks, slots = (_vector(state[name], name) for name in ("counts", "ranks", "slots"))
        if not len(set(classes)) == len(classes) == len(counts) == len(ranks) or sum(counts) != len(slots):
            raise ValueError("corrupt state: classes, counts and slots do not fit each other")
        if min(counts, default=1) < 1 or min(slots, default=0) < 0 or len(set(slots)) != len(slots):
            raise ValueError("corrupt state: a class without rows, or slots that are negative or repeated")
        book = cls()
        rows = iter(slots)
        for label, count in zip(classes, counts, strict=True):
            book._held[label] = array("q", (next(rows) for _ in range(count)))
        for rank, count, label in sorted(zip(ranks, counts, classes, strict=True)):
            peers = book._with.setdefault(count, [])
            if rank != len(peers):
                raise ValueError("corrupt state: the ranks of the classes have holes")
            book._rank[label] = rank
            peers.append(label)
        book.most, book._total = max(counts, default=0), len(slots)
        return book


def checked_keys(state: Any, keys: Iterable[str], what: str) -> None:
    """Raise `ValueError` unless a state is a mapping with exactly these keys."""
    if not isinstance(state, Mapping) or set(state) != set(keys):
        given = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"not the state of {what}: expected {sorted(keys)}, got {given}")


def checked_counts(state: Any, what: str) -> dict[int, int]:
    """A saved count for each class, or `ValueError`."""
    if not isinstance(state, Mapping) or not all(
        isinstance(label, int) and isinstance(n, int) and n >= 0 for label, n in state.items()
    ):
        raise ValueError(f"corrupt state: {what} is not a dict from labels to counts")
    return dict(state)


def _vector(value: Any, name: str) -> list[int]:
    if not isinstance(value, Tensor) or value.ndim != 1 or value.dtype != torch.int64:
        raise ValueError(f"corrupt state: {name} is not a vector of int64")
    numbers: list[int] = value.tolist()
    return numbers
