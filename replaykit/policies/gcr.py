"""GCR: few weighted rows whose replay gradients sum to what those of the old memory and the new data sum to.

Source: Tiwari, Killamsetty, Iyer and Shenoy, GCR: Gradient Coreset Based Replay Buffer Selection for Continual
Learning, CVPR 2022, algorithms 1 and 2, and its released code. The pursuit is told in
`replaykit.selectors.gradient_matching`, the frame (budget, candidates, recent) in `replaykit.policies.coreset`.
Keeps: of each class a share of the slots that follows its rows in the pool. Whole experiences need a bound on the
`candidates` (the strategy `GCR` offers a reservoir instead), or the newest classes take nearly all slots.
Columns written: ``weight``, what a row stands for, and ``rank`` (see `Coreset`); with ``layout="per_task"``
``coreset_slot`` too, int64, the number of its task.
Probe: gradients of the replay loss. For the published one give the probe
``loss=weighted((alpha, squared_error()), (beta, cross_entropy()))`` of `replaykit.gradients.losses`, and rows with
logits; of the last layer with ``layers="last"``.
Cost per add of B rows: gradients of memory and candidates, and a pursuit within each class.
Departures:
- A row's coefficient takes the place of its weight (it was found for weighted targets); the release multiplies the
  atoms by the old weight and stores the coefficient as the new one.
- Quotas add up to the capacity, the weights solve the non-negative least squares problem, and classes whose
  pursuit ends early are filled at their mean weight (the selector's departures).
- ``layout="per_task"`` is the release's memory: of t tasks the old ones have capacity // t rows each, chosen anew
  among their own, and the newest has what remains. Every add is a task then. With more tasks than slots the newest
  alone is kept.
- `resize` keeps the rows of lowest rank of the memory, or of every task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from replaykit import selectors
from replaykit.plan import Plan, check_growth, labels, row_count
from replaykit.policies.coreset import RANK, SLOT, WEIGHT, Budget, Coreset, check_own_columns, pool_of
from replaykit.policies.joined import joined
from replaykit.policies.keeping import keeping
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe


class GCR(Coreset):
    """Gradient matching of memory and candidates together, or of each task by itself.

    Args:
        lam, eps, relative: of `selectors.GCR`.
        layout: ``"union"``, or ``"per_task"`` for the release.
        budget: ``"global"`` gives the classes slots in proportion to their rows, as published, ``"per_class"``
            equally many.
        candidates, recent: of `Coreset`; only for ``layout="union"``.

    Raises:
        ValueError: on construction, an unknown layout, or candidates or recent rows beside ``layout="per_task"``.

    Published: lam 0.5, 200 candidates held for 200 slots, alpha 0.1 and beta 0.5.
    """

    def __init__(
        self,
        lam: float = 0.5,
        eps: float = 0.0,
        relative: bool = True,
        layout: Literal["union", "per_task"] = "union",
        *,
        budget: Budget = "global",
        candidates: int | None = None,
        recent: int = 0,
    ) -> None:
        super().__init__(selectors.GCR("gradients", lam, eps, relative), budget, candidates, recent)
        if layout not in ("union", "per_task"):
            raise ValueError(f"layout is 'union' or 'per_task', got {layout!r}")
        if layout == "per_task" and (candidates is not None or recent):
            raise ValueError("layout='per_task' chooses among whole tasks; leave candidates and recent out")
        self.layout = layout
        if layout == "per_task":
            self.writes = (WEIGHT, RANK, SLOT)

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        if self.layout == "union":
            return super().plan(arrivals, store, rng, probe)
        labels(arrivals)
        check_own_columns(arrivals, {WEIGHT, RANK, SLOT})
        held = np.sort(store.filled)
        task = np.concatenate([_tasks(store, held), np.full(row_count(arrivals), _next_task(store, held))])
        weight = torch.ones(len(task), dtype=torch.float64)
        if len(held):
            weight[: len(held)] = torch.from_numpy(store.host(WEIGHT)[held])
        pool = pool_of(joined(store, held, arrivals), weight, len(held), probe)
        rows, weights, ranks = [], [], []
        for number, size in _sizes(store.capacity, task[-1]):
            members = torch.from_numpy(np.flatnonzero(task == number))
            chosen, given = self.selector.select(pool.subset(members), size, rng)
            rows.append(members[chosen.cpu()])
            weights.append(given.cpu().double())
            ranks.append(torch.arange(len(chosen)))
        kept = torch.cat(rows).numpy()
        columns = {WEIGHT: torch.cat(weights), RANK: torch.cat(ranks), SLOT: torch.from_numpy(task[kept])}
        return keeping(store, held, kept, columns)

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        if self.layout == "union" or len(store) == 0:
            return super().resize(store, capacity, rng, grow)
        check_growth(store, capacity, grow)
        held = np.sort(store.filled)
        task, rank = _tasks(store, held), store.host(RANK)[held]
        sizes = dict(_sizes(capacity, task.max()))
        return held[[rank[i] < sizes.get(number, 0) for i, number in enumerate(task.tolist())]]


def _tasks(store: Store, held: IntArray) -> IntArray:
    """Tasks of some slots."""
    if len(held) == 0:
        return held
    tasks: IntArray = store.host(SLOT)[held]
    return tasks


def _next_task(store: Store, held: IntArray) -> int:
    return int(_tasks(store, held).max(initial=-1)) + 1


def _sizes(capacity: int, newest: int) -> list[tuple[int, int]]:
    """Tasks that keep rows, and how many."""
    share = capacity // (int(newest) + 1)
    old = [(task, share) for task in range(int(newest))] if share else []
    return [*old, (int(newest), capacity - share * int(newest))]
