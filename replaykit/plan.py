"""A plan says which arrival goes into which slot; a policy is what makes plans.

Planning happens on the host, on small numbers: labels, counters, keys, scores. The payload is not
looked at, and nothing is written before the whole batch is planned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from replaykit.store import Batch, IntArray, Store, check_capacity

if TYPE_CHECKING:
    from replaykit.probe import Probe

_NONE: IntArray = np.empty(0, np.int64)
_NONE.flags.writeable = False  # shared by all empty plans


@dataclass(slots=True)
class Plan:
    """What changes in the table. Built by policies, applied by `Buffer.add`.

    Attributes:
        source: rows of the arrivals that enter [e].
        slot: where each of them goes [e], all distinct: the last writer has already won.
        columns: columns to write beside the payload, one row for each entering row [e, ...].
        release: filled slots to empty [r], before anything is written.
        revise: filled slots that stay and the new values of some of their columns ([k], each [k, ...]).
        distinct: the slots are known to be distinct and valid; otherwise they are checked.
    """

    source: IntArray = field(default_factory=lambda: _NONE)
    slot: IntArray = field(default_factory=lambda: _NONE)
    columns: Batch = field(default_factory=dict)
    release: IntArray | None = None
    revise: tuple[IntArray, Batch] | None = None
    distinct: bool = False

    def __len__(self) -> int:
        return len(self.slot)

    @classmethod
    def of(cls, writers: dict[int, int]) -> Plan:
        """The plan that puts row `writers[slot]` into each slot: a dict keeps the last writer by itself."""
        if not writers:
            return NOTHING
        n = len(writers)
        source, slot = np.fromiter(writers.values(), np.int64, n), np.fromiter(writers.keys(), np.int64, n)
        return cls(source, slot, distinct=True)

    @classmethod
    def last_writer(cls, source: IntArray, slot: IntArray) -> Plan:
        """The plan that has the effect of writing `source[i]` into `slot[i]` one after the other."""
        return cls.of(dict(zip(slot.tolist(), source.tolist(), strict=True)))


#: The plan that changes nothing, shared by everyone who has nothing to write.
NOTHING = Plan()


class Policy:
    """Decides what a memory keeps. One algorithm, one subclass, one file.

    A subclass implements `plan`. It keeps per-row state in columns (`Plan.columns`), other state in
    attributes that `state_dict` returns, and draws only from the generator it is given. `plan` checks its
    input before it changes any state, so that an error leaves the memory as it was.
    """

    #: Quantities of the probe that `plan` reads, e.g. ``("gradients",)``. Without them, no probe is made.
    needs: tuple[str, ...] = ()
    #: Columns that arrivals must have.
    columns: tuple[str, ...] = ()
    #: Whether each `add` is taken as all that a task has to offer, and so must come at the end of one.
    per_task: bool = False
    #: What it wants to know of replayed rows: ``("loss",)`` keeps the column ``loss`` at the last known losses.
    observes: tuple[str, ...] = ()
    #: Whether it looks at the notes ``replayed``, which count how often each stored row was drawn.
    counts: bool = False
    #: Whether `plan` can fail after it has drawn, as a selection can; so can all that have `needs`. The generator
    #: is then put back, which costs a microsecond an add.
    fails_late: bool = False
    #: Columns that it writes beside the batch's; None: it does not say.
    writes: tuple[str, ...] | None = None

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        """Say which arrivals [n, ...] go where. `store.seen` counts the rows offered before these."""
        raise NotImplementedError

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        """Slots to keep, in their new order, when the capacity changes; own state follows.

        New slot i gets the row of the i-th of them; -1 leaves it empty.

        Raises:
            ValueError: the policy has no law for this change.
        """
        raise ValueError(f"{type(self).__name__} cannot change its capacity; build a new memory and add to it")

    def reset(self) -> None:
        """Forget everything, like a new policy."""

    def state_dict(self) -> dict[str, Any]:
        """State that is not in columns: tensors, numbers, strings, lists and dicts of those."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state, or raise `ValueError` and keep the present one."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, got {sorted(state)}")


class FunctionPolicy(Policy):
    """A bare function ``(arrivals, store, rng) -> Plan`` as a policy."""

    def __init__(self, function: Callable[[Batch, Store, np.random.Generator], Plan]) -> None:
        self.function = function
        self.__name__ = getattr(function, "__name__", type(function).__name__)

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        return self.function(arrivals, store, rng)


def row_count(batch: Batch) -> int:
    return next(iter(batch.values())).shape[0]


def labels(arrivals: Batch, column: str = "y", classes: int | None = None) -> IntArray:
    """Integer labels [n] of a batch, on the host.

    Raises:
        ValueError: the column is missing, not a vector of integers, negative, or not below `classes`.
    """
    y = arrivals.get(column)
    if y is None:
        raise ValueError(f"needs a label column {column!r}, the batch has {sorted(arrivals)}")
    if y.ndim != 1 or y.dtype.is_floating_point or y.dtype.is_complex or y.dtype == torch.bool:
        raise ValueError(f"labels {column!r} must be integers of shape [n], got {list(y.shape)} of {y.dtype}")
    array: IntArray = y.cpu().numpy().astype(np.int64, copy=False)
    if len(array) and array.min() < 0:
        raise ValueError(f"labels {column!r} must not be negative, got {int(array.min())}")
    if classes is not None and len(array) and array.max() >= classes:
        raise ValueError(f"labels {column!r} must be below the declared {classes} classes, got {int(array.max())}")
    return array


def weights(arrivals: Batch, column: str = "weight") -> NDArray[np.float64]:
    """Positive weights [n] of a batch, on the host.

    Raises:
        ValueError: the column is missing, not a vector of real numbers, or not finite and above 0 everywhere.
    """
    w = arrivals.get(column)
    if w is None:
        raise ValueError(f"needs a weight column {column!r}, the batch has {sorted(arrivals)}")
    if w.ndim != 1 or w.dtype.is_complex or w.dtype == torch.bool:
        raise ValueError(f"weights {column!r} must be real numbers of shape [n], got {list(w.shape)} of {w.dtype}")
    array: NDArray[np.float64] = w.detach().to("cpu", torch.float64).numpy()
    wrong = ~(np.isfinite(array) & (array > 0))
    if wrong.any():
        raise ValueError(
            f"weights {column!r} must be finite and above 0, got {array[wrong][0]} in row "
            f"{int(wrong.argmax())}; leave such rows out of the batch"
        )
    return array


def check_book(rows: int, store: Store) -> None:
    """Refuse to plan for a store that is not the one that a policy's own book of `rows` rows describes."""
    if rows != len(store):
        raise ValueError(
            f"this policy keeps the book of {rows} rows, the memory has {len(store)}; "
            "give every Buffer a policy object of its own"
        )


def check_growth(store: Store, capacity: int, grow: str, ways: tuple[str, ...] = ("naive",)) -> None:
    """Refuse a way of growing that a policy does not have, and growing without one.

    While no row was dropped growing is exact and needs no name.
    """
    if grow not in ("forbid", *ways):
        raise ValueError(f"grow is {_either(('forbid', *ways))} here, got {grow!r}")
    dropped = store.seen - len(store)
    if check_capacity(capacity) > store.capacity and dropped and grow == "forbid":
        raise ValueError(
            f"growing from {store.capacity} to {capacity} slots cannot bring back the {dropped} rows that were "
            f"dropped; pass grow={_either(ways)} (the bias is documented), or build a new memory"
        )


def _either(names: tuple[str, ...]) -> str:
    """'a', 'b' or 'c'."""
    *first, last = map(repr, names)
    return f"{', '.join(first)} or {last}" if first else last
