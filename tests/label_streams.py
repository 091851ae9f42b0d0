"""Streams of labels for the tests of memories that look at labels alone: rows are numbered by column ``id``."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from replaykit import Batch, Buffer, Policy


def batch(labels: Sequence[int] | Tensor, first: int = 0) -> Batch:
    y = labels if isinstance(labels, Tensor) else torch.tensor(list(labels), dtype=torch.int64)
    return {"y": y, "id": torch.arange(first, first + len(y))}


def fed(
    policy: Policy, capacity: int, labels: Sequence[int] | Tensor, cut: int | None = None, seed: int = 0
) -> Buffer:
    """A memory that was offered the labels, `cut` rows at a time."""
    memory = Buffer(capacity, policy, seed=seed)
    feed(memory, labels, cut)
    return memory


def feed(memory: Buffer, labels: Sequence[int] | Tensor, cut: int | None = None) -> None:
    cut = cut or max(1, len(labels))
    for start in range(0, len(labels), cut):
        memory.add(batch(labels[start : start + cut], memory.seen))


def ids(memory: Buffer) -> tuple[int, ...]:
    """What is stored, ascending."""
    return tuple(sorted(memory["id"].tolist())) if len(memory) else ()


def counts(memory: Buffer) -> dict[int, int]:
    """Rows of each class, recomputed from the stored labels."""
    return dict(Counter(memory["y"].tolist())) if len(memory) else {}


class Table:
    """What policies of labels look at in a store, without payload: for tests with thousands of runs."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.seen = capacity, 0
        self.rows: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def free(self, n: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.arange(len(self), min(len(self) + n, self.capacity))

    def offer(self, policy: Policy, arrivals: Batch, rng: np.random.Generator) -> None:
        plan = policy.plan(arrivals, self, rng)  # type: ignore[arg-type]
        for slot, row in zip(plan.slot.tolist(), plan.source.tolist(), strict=True):
            self.rows[slot] = self.seen + row
        self.seen += len(arrivals["y"])

    def resize(self, policy: Policy, capacity: int, rng: np.random.Generator) -> None:
        keep = policy.resize(self, capacity, rng)  # type: ignore[arg-type]
        self.capacity, self.rows = capacity, {new: self.rows[old] for new, old in enumerate(keep.tolist())}


def outcomes(
    make: Callable[[], Policy], capacity: int, labels: Any, runs: int, resized: tuple[int, int] | None = None
) -> Counter[tuple[int, ...]]:
    """How often each set of rows was left; `resized` is a row and the capacity that holds from it on."""
    rng, found, y = np.random.default_rng(0), Counter[tuple[int, ...]](), torch.as_tensor(labels)
    cut, smaller = resized or (len(y), capacity)
    for _ in range(runs):
        policy, table = make(), Table(capacity)
        table.offer(policy, {"y": y[:cut]}, rng)
        if resized:
            table.resize(policy, smaller, rng)
            table.offer(policy, {"y": y[cut:]}, rng)
        found[tuple(sorted(table.rows.values()))] += 1
    return found


def kept(found: Counter[tuple[int, ...]], n: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """How often each of the n rows was left, in all runs."""
    times = np.zeros(n, np.int64)
    for rows, runs in found.items():
        times[list(rows)] += runs
    return times


#: Streams of up to 5 classes with the cuts of their batches.
short_streams = st.lists(st.integers(0, 4), min_size=1, max_size=60)
