"""Online Coreset Selection (OCS): an equal share of the slots for each task, filled by gradient scores.

Source: Yoon, Madaan, Yang and Hwang, Online Coreset Selection for Rehearsal-based Continual Learning, ICLR 2022,
section 3. The training step that goes with it is `replaykit.strategies.OCS`.
Keeps: the number of degenerate gradients met. Columns written, int64: ``ocs_rank``, the place of a row in its
task, and, unless a column of the stream says it, ``ocs_task``, the number of the task.
Probe: gradients of the candidates, and of the rows drawn as reference.
Cost per add of n candidates: their norms, two weighted sums, and the products with three directions (a handful of
forward and backward passes, whatever n); O(n log n) to rank; O(capacity).
Law: deterministic, but for the draw of the reference.
- An add is the end of a task and brings its candidates. Their score is S + V + τ A among themselves (see
  `replaykit.selectors.ocs_scores`), with the mean gradient of stored rows of other tasks as the reference of A;
  without such rows it is S + V.
- The rows of a task are ranked by score within each class, and the classes take turns, the lowest label first. So
  the first q rows of the order hold equally many of each class that has them, by largest remainder, for every q.
- Each of t tasks keeps its first capacity / t rows, by largest remainder with the spare slots to the newest tasks;
  slots that a task cannot fill go to the others. With more tasks than slots, the newest hold one row each.
- With `group` an add may bring several tasks, and more of a stored one. Then the arrivals and the stored rows of a
  task are candidates together, scored anew at the present model. Only stored rows serve as reference. A task is
  newer the higher its number.
Departures:
- The reference is taken from `reference` stored rows, drawn uniformly.
- Scores that differ by rounding alone count as equal: stored rows win over arrivals, and the first of these wins.
- `resize`: every task keeps its first rows. Growing (``grow="naive"``) cannot bring rows back; new slots are
  filled by the tasks to come.
- ``compat="release"`` is the authors' code: the rows of a new task are ranked at random within their classes
  (there the order by score is overwritten by a permutation), and a task that must shrink is ranked anew, by S + V
  of its own rows with the row itself in the mean of V. Not taken over: ⌊capacity / t⌋ slots for every task, the
  rest of a task's slots to the best rows of any class, and labels of old tasks counted with the offset of the new.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from replaykit.draws import distinct
from replaykit.gradients import PerSampleGradients
from replaykit.gradients.rows import take
from replaykit.plan import Plan, Policy, check_growth, labels
from replaykit.policies.joined import joined
from replaykit.selectors.ocs_scores import FloatArray, best_first, scores
from replaykit.selectors.quotas import equal, largest_remainder
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe

RANK, TASK = "ocs_rank", "ocs_task"


class OCS(Policy):
    """Every task keeps its best rows by S + V + τ A, equally many of each class.

    Args:
        tau: coefficient of the affinity. With the published 1000, affinity decides from the second task on.
        reference: number of stored rows that the affinity's gradient is taken from, or ``"all"``.
        group: the integer column that says which task a row belongs to, such as ``"t"``; None: every `add` is a
            task of its own.
        compat: ``"release"`` for the authors' code, which has no use for `tau` and `reference`.

    Attributes:
        degenerate: rows scored so far whose gradient was too short to have a direction.

    Raises:
        ValueError: on construction, a `tau` that is negative or not finite, or a `reference` below 1 row; on
            `add`, labels or tasks that are not integers >= 0, or a column of the names that this policy writes.

    Published: τ = 1000 (imbalanced Split CIFAR-100: 10); 250 candidates a task, for Rotated MNIST 1,000.
    """

    needs = ("gradients",)
    writes = (RANK, TASK)

    def __init__(
        self,
        tau: float = 1000.0,
        *,
        reference: int | Literal["all"] = 100,
        group: str | None = None,
        compat: Literal["release"] | None = None,
    ) -> None:
        if not (np.isfinite(tau) and tau >= 0):
            raise ValueError(f"tau is a coefficient, a finite number >= 0, got {tau}")
        if reference != "all" and (isinstance(reference, str) or reference < 1):
            raise ValueError(f"reference is a number of rows >= 1 or 'all', got {reference!r}")
        if compat not in (None, "release"):
            raise ValueError(f"compat is None or 'release', got {compat!r}")
        self.tau, self.reference, self.group, self.compat = float(tau), reference, group, compat
        self.columns = ("y",) if group is None else ("y", group)
        self.per_task = group is None
        self.reset()

    def reset(self) -> None:
        self.degenerate = 0

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        assert probe is not None
        rows = _Rows(arrivals, store, self.group)
        scorer = _Scorer(rows, probe)
        tasks, count = np.unique(rows.task, return_counts=True)
        orders = [
            self._ranked(np.flatnonzero(rows.task == task), share, rows, scorer, rng)[:share]
            for task, share in zip(tasks.tolist(), _shares(store.capacity, count).tolist(), strict=True)
        ]
        self.degenerate += scorer.degenerate
        return rows.plan(np.concatenate(orders), np.concatenate([np.arange(len(order)) for order in orders]))

    def _ranked(
        self, members: IntArray, share: int, rows: _Rows, scorer: _Scorer, rng: np.random.Generator
    ) -> IntArray:
        """The rows of a task, of which it may keep `share`, the best first."""
        if members[-1] >= rows.held:
            if self.compat == "release":
                best = rng.permutation(members)
            else:
                best = scorer.by_affinity(members, self.tau, self._reference(rows, rows.task[members[0]], rng))
        elif self.compat == "release" and share < len(members):
            best = scorer.by_own_rows(members)
        else:
            return members[np.argsort(rows.rank[members])]
        return taking_turns(best, rows.y)

    def _reference(self, rows: _Rows, task: int, rng: np.random.Generator) -> IntArray:
        """Stored rows of other tasks."""
        others = np.flatnonzero(rows.task[: rows.held] != task)
        if self.reference == "all" or len(others) <= self.reference:
            return others
        return np.sort(others[distinct(len(others), self.reference, rng)])

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        check_growth(store, capacity, grow)
        if len(store) == 0:
            return store.filled
        slots = np.sort(store.filled)
        _, task, count = np.unique(store.host(self.group or TASK)[slots], return_inverse=True, return_counts=True)
        return slots[store.host(RANK)[slots] < _shares(capacity, count)[task]]

    def state_dict(self) -> dict[str, Any]:
        return {"degenerate": self.degenerate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        degenerate = state.get("degenerate")
        if set(state) != {"degenerate"} or not isinstance(degenerate, int) or degenerate < 0:
            raise ValueError(f"not the state of OCS, a count of degenerate gradients: {dict(state)!r}")
        self.degenerate = degenerate


def taking_turns(best: IntArray, y: IntArray) -> IntArray:
    """Rows in an order of which every beginning is balanced by class.

    Args:
        best: row numbers, the best first.
        y: labels of all rows, by number.
    """
    label = y[best]
    by_class = np.argsort(label, kind="stable")
    ends = np.cumsum(np.unique(label, return_counts=True)[1])
    turn = np.empty_like(best)
    turn[by_class] = np.concatenate([np.arange(n) for n in np.diff(ends, prepend=0)])
    return best[np.lexsort((label, turn))]


def _shares(capacity: int, held: IntArray) -> IntArray:
    """Slots of each task [t], the oldest first; spare ones go to the newest."""
    return largest_remainder(capacity, equal(held), held[::-1])[::-1]


class _Rows:
    """All rows that might be stored, by number: those of the memory in the order of slots, then the arrivals."""

    def __init__(self, arrivals: Batch, store: Store, group: str | None) -> None:
        if taken := sorted({RANK, TASK} & arrivals.keys()):
            raise ValueError(f"columns {taken} are written by this policy; rename those of the batch")
        self.arrivals, self.store, self.group = arrivals, store, group
        self.slots = np.sort(store.filled)
        self.held = len(self.slots)
        y, task = labels(arrivals), self._stored(group or TASK)
        new_task = np.full(len(y), task.max(initial=-1) + 1) if group is None else labels(arrivals, group)
        self.y = np.concatenate([self._stored("y"), y])
        self.task = np.concatenate([task, new_task])
        self.rank = np.concatenate([self._stored(RANK), np.full(len(y), -1)])

    def _stored(self, name: str) -> IntArray:
        if self.held == 0:
            return np.empty(0, np.int64)
        column: IntArray = self.store.host(name)[self.slots].astype(np.int64)
        return column

    def batch(self, rows: IntArray) -> Batch:
        """Columns of some rows in ascending order."""
        new, held = rows[rows >= self.held] - self.held, rows[rows < self.held]
        arrivals = self.arrivals
        if len(new) < len(self.y) - self.held:
            arrivals = take(arrivals, torch.from_numpy(new))
        return joined(self.store, self.slots[held], arrivals)

    def plan(self, kept: IntArray, rank: IntArray) -> Plan:
        """The plan that leaves these rows in the memory, with their places in their tasks."""
        new = kept >= self.held
        stay, stay_rank, entering = kept[~new], rank[~new], kept[new]
        left = np.delete(self.slots, stay)
        slot = np.concatenate([left, self.store.free(len(entering) - len(left))])
        columns = {RANK: torch.from_numpy(rank[new])}
        if self.group is None:
            columns[TASK] = torch.from_numpy(self.task[entering])
        moved = self.rank[stay] != stay_rank
        changed = (self.slots[stay[moved]], {RANK: torch.from_numpy(stay_rank[moved])})
        return Plan(entering - self.held, slot, columns, revise=changed if moved.any() else None, distinct=True)


class _Scorer:
    """Orders of rows by their gradients, and the count of gradients without a direction."""

    def __init__(self, rows: _Rows, probe: Probe) -> None:
        self.rows, self.probe, self.degenerate = rows, probe, 0

    def by_affinity(self, members: IntArray, tau: float, reference: IntArray) -> IntArray:
        """Rows by S + V + τ A, the best first."""
        gradients = self._gradients(members)
        if len(reference) == 0:
            return self._best(members, scores(gradients))
        direction = self.probe.gradients(self.rows.batch(reference)).mean()
        return self._best(members, scores(gradients, tau, direction), tau)

    def by_own_rows(self, members: IntArray) -> IntArray:
        """Rows by S + V, as the authors' code computes it."""
        return self._best(members, scores(self._gradients(members), with_self=True))

    def _gradients(self, members: IntArray) -> PerSampleGradients:
        gradients = self.probe.gradients(self.rows.batch(members))
        self.degenerate += gradients.degenerate
        return gradients

    @staticmethod
    def _best(members: IntArray, values: FloatArray, tau: float = 0.0) -> IntArray:
        best: IntArray = members[best_first(values, tau)]
        return best
