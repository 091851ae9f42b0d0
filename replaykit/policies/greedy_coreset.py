"""Greedy coresets by bilevel optimisation: rows on which a kernel model learns what the stream teaches.

Source: Borsos, Mutny and Krause, Coresets via Bilevel Optimization for Continual Learning and Streaming,
NeurIPS 2020, section 4, and the released `cl_streaming`.
Keeps: nothing outside columns. Columns written: ``weight``, float64, the weight of a row in replay: that of its
slot times its own, which has mean 1 when the slot is filled; ``rank``, int64, its place in the greedy order of its
slot; ``coreset_slot``, int64, the slot, numbered from the oldest, or the task; ``coreset_batches``, int64, how
many batches the slot stands for (1 for a task).
Probe: none is needed; with one, ``x`` is compared as its `prepare` makes it, and without as a fraction of 255 if
it is uint8. What else a selector of your own needs.
Cost per add of B rows: a selection of q from B, and one of q from 2q when slots are merged, with q the rows of a
slot: kernel matrices of B and 2q rows, O(q² (B + 2q)) to grow the coresets (see `replaykit.selectors.bilevel`).
The rows of a batch are held while they are chosen from, none is dropped before.
Law: the selector's. ``layout="stream"`` is merge-reduce (`replaykit.selectors.merge_reduce`): the memory has
`slots` slots of capacity / slots rows, every add is reduced to one of them, and two neighbours are merged when
there is one too many, where each row counts as its slot in the outer loss. ``layout="tasks"``: every add is a
task; of t tasks each has capacity / t rows, and those of old tasks are the first of their greedy order.
Departures:
- Weights of the selector count in replay. The release stores ones, which is what ``max_outer=0`` gives; its own
  single step of weight optimisation (``max_outer=1``) moves them by a hundredth.
- With more tasks than rows, the newest tasks hold one row each (the release would hold none).
- `resize`: every slot or task keeps its first rows. Growing (``grow="naive"``) cannot bring rows back; slots to
  come are larger.

Published (class-imbalanced stream of Split-MNIST, batches of 125): memory 100, one slot, ridge 1e-4, replay loss
times 10; balanced streams: 10 slots, ridge 1e-3; tasks: memory 100, ridge 1e-3. Their kernel is a convolutional
NTK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from replaykit.plan import Plan, Policy, check_growth, labels, row_count
from replaykit.policies.coreset import (
    RANK,
    SLOT,
    WEIGHT,
    check_held,
    check_own_columns,
    columns_read,
    pool_of,
    preferred,
    probed,
)
from replaykit.policies.joined import joined
from replaykit.policies.keeping import keeping
from replaykit.selectors.bilevel import Bilevel
from replaykit.selectors.kernels import RBF, Kernel
from replaykit.selectors.merge_reduce import Slot, merge_reduce
from replaykit.selectors.pool import Pool, Selector
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe

BATCHES = "coreset_batches"
_RBF = RBF()


class GreedyCoreset(Policy):
    """A weighted coreset of a stream in slots (merge-reduce), or of each task.

    Args:
        slots: of the memory; only for ``layout="stream"``.
        layout: ``"stream"`` or ``"tasks"``.
        kernel, quantity, ridge, max_outer, on_support, compat: of `replaykit.selectors.Bilevel`, such as
            ``kernel=ConvolutionalNTK()``.
        selector: another selector instead of `Bilevel`.

    Raises:
        ValueError: on construction, fewer than 1 slot, an unknown layout, slots of tasks, or options of `Bilevel`
            beside a selector; on `add`, labels that are not integers >= 0, columns of the names that this policy
            writes, more slots than rows, and what the selector refuses.

    Example:
        >>> import torch
        >>> from replaykit import Buffer, policies
        >>> memory = Buffer(4, policies.GreedyCoreset())
        >>> for start in (0.0, 10.0):
        ...     _ = memory.add({"x": start + torch.arange(10.0)[:, None], "y": torch.arange(10) % 2})
        >>> memory["weight"].tolist(), sorted(memory["rank"].tolist())
        ([2.0, 2.0, 2.0, 2.0], [0, 1, 2, 3])
    """

    per_task = True
    fails_late = True
    columns: tuple[str, ...] = ("y",)
    writes = (WEIGHT, RANK, SLOT, BATCHES)

    def __init__(
        self,
        slots: int = 1,
        *,
        layout: Literal["stream", "tasks"] = "stream",
        kernel: Kernel | None = _RBF,
        quantity: str = "x",
        ridge: float = 1e-4,
        max_outer: int = 0,
        on_support: bool = False,
        compat: bool = False,
        selector: Selector | None = None,
    ) -> None:
        if layout not in ("stream", "tasks"):
            raise ValueError(f"layout is 'stream' or 'tasks', got {layout!r}")
        if slots < 1 or (slots > 1 and layout == "tasks"):
            raise ValueError(f"slots is a number >= 1, and 1 for layout='tasks'; got {slots} for {layout!r}")
        options = (kernel, quantity, ridge, max_outer, on_support, compat)
        if selector is not None and options != (_RBF, "x", 1e-4, 0, False, False):
            raise ValueError("kernel, ridge, ... are options of Bilevel; with another selector give them to that")
        self.slots, self.layout = slots, layout
        self.selector: Selector = selector or Bilevel(
            kernel, quantity, ridge, max_outer=max_outer, on_support=on_support, compat=compat
        )
        self.needs, self.prefers = probed(self.selector), preferred(self.selector)
        self.columns = ("y", *columns_read(self.selector))

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        labels(arrivals)
        check_own_columns(arrivals, {WEIGHT, RANK, SLOT, BATCHES})
        check_held(arrivals, self.columns)
        held = _in_order(store)
        stored = _slots(store, held)
        if self.layout == "tasks":
            pool = pool_of(
                arrivals, torch.ones(row_count(arrivals), dtype=torch.float64), 0, probe, self.columns[1:]
            )
            return self._with_task(store, held, stored, pool, rng)
        rows = joined(store, held, arrivals)
        n = row_count(rows)
        pool = pool_of(rows, torch.ones(n, dtype=torch.float64), len(held), probe, self.columns[1:])
        new = merge_reduce(
            stored, torch.arange(len(held), n), pool, self.selector, store.capacity, self.slots, rng
        )
        return _plan(store, held, new, range(len(new)))

    def _with_task(
        self, store: Store, held: IntArray, stored: list[Slot], pool: Pool, rng: np.random.Generator
    ) -> Plan:
        """The plan that makes room for one more task, and for its coreset."""
        tasks: list[int] = np.unique(store.host(SLOT)[held]).tolist() if len(held) else []
        task = tasks[-1] + 1 if tasks else 0
        share, oldest = _share(store.capacity, task + 1)
        chosen, weights = self.selector.select(pool, share, rng)
        slots = [Slot(slot.rows[:share], slot.weights[:share], 1) for slot in stored]
        slots.append(Slot(chosen.cpu() + len(held), weights, 1))
        numbered = [(slot, number) for slot, number in zip(slots, [*tasks, task], strict=True) if number >= oldest]
        return _plan(store, held, [slot for slot, _ in numbered], [number for _, number in numbered])

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        check_growth(store, capacity, grow)
        held = _in_order(store)
        if len(held) == 0:
            return held
        slot, rank = store.host(SLOT)[held], store.host(RANK)[held]
        if self.layout == "tasks":
            share, oldest = _share(capacity, int(slot[-1]) + 1)
            return held[(rank < share) & (slot >= oldest)]
        if capacity < self.slots:
            raise ValueError(f"{self.slots} slots need at least as many rows, got a capacity of {capacity}")
        return held[rank < capacity // self.slots]


def _share(capacity: int, tasks: int) -> tuple[int, int]:
    """Rows for each of some tasks, and the oldest task that has any."""
    return max(capacity // tasks, 1), max(tasks - capacity, 0)


def _in_order(store: Store) -> IntArray:
    """The filled slots of the memory, by slot of the coreset and then by rank."""
    held = np.sort(store.filled)
    if len(held) == 0:
        return held
    return held[np.lexsort((store.host(RANK)[held], store.host(SLOT)[held]))]


def _slots(store: Store, held: IntArray) -> list[Slot]:
    """The slots of the coreset, the oldest first; their rows are numbers in `held`."""
    if len(held) == 0:
        return []
    batches, weight = store.host(BATCHES)[held], store.host(WEIGHT)[held]
    ends = np.flatnonzero(np.diff(store.host(SLOT)[held])) + 1
    return [
        Slot(torch.from_numpy(rows), torch.from_numpy(weight[rows] / batches[rows]), int(batches[rows[0]]))
        for rows in np.split(np.arange(len(held)), ends)
    ]


def _plan(store: Store, held: IntArray, slots: list[Slot], numbers: Any) -> Plan:
    """The plan after which these slots of the coreset, with these numbers, are the memory."""
    sizes = torch.tensor([len(slot.rows) for slot in slots])

    def repeated(values: Any) -> Tensor:
        return torch.tensor(list(values)).repeat_interleave(sizes)

    weight = torch.cat([_of_mean_one(slot.weights) * slot.batches for slot in slots])
    columns = {
        WEIGHT: weight,
        RANK: torch.cat([torch.arange(len(slot.rows)) for slot in slots]),
        SLOT: repeated(numbers),
        BATCHES: repeated(slot.batches for slot in slots),
    }
    return keeping(store, held, torch.cat([slot.rows.cpu() for slot in slots]).numpy(), columns)


def _of_mean_one(weights: Tensor) -> Tensor:
    weights = weights.detach().cpu().double()
    mean = weights.mean()
    return weights / mean if mean > 0 else torch.ones_like(weights)
