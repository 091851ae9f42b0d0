"""ABS: clean rows of the present task, complex rows of the past ones.

Source: Millunzi, Bonicelli, Porrello, Credi, Kolm, Calderara, May the Forgetting Be with You: Alternate Replay for
Learning with Noisy Labels, BMVC 2024, asymmetric balanced sampling.
Keeps: the number of rows that passed the filter. Columns written: ``loss`` (float32) when a probe makes it;
otherwise it comes with the arrivals. Probe: none, or the losses of arrivals that have no such column.
Cost per add of B rows: O(B), and O(capacity) for each row that is accepted into a full memory.
Law: of a batch only the round((1 - alpha) B) rows of lowest loss are offered, in the order of the batch; a row
that is offered is accepted with probability capacity / rows offered so far. It then meets a group with probability
in proportion to its size: stored rows of earlier tasks than its own, of which row i leaves with probability in
proportion to max L - L_i (complex rows stay), or the others, of which it leaves in proportion to L_i - min L (rows
that are learnt easily, so probably of the right label, stay). Maximum and minimum are those of the group; losses
that are all equal within it give equal chances.
Departures:
- Past and present are told apart by a column of task numbers, or by the label and the number of classes a task;
  the authors' code compares labels with the first one of the present task.
- At least one row of a batch is offered, so that a stream that comes row by row is not lost.
- One draw a row decides acceptance and, rescaled, the victim. Losses are those of the training step.
- `resize`: shrinking evicts rows by the law that a row of the last stored task would find, one after the other;
  growing (``grow="naive"``) appends until the new slots are taken.
- ``compat="mammoth"`` accepts with probability capacity / (rows offered - 1), as the authors' code does.
- The alternate replay of the paper is a matter of training, not of this memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from replaykit.plan import NOTHING, Plan
from replaykit.policies.evict_by_loss import Compat, EvictByLoss, FloatArray, above_least
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe


class ABS(EvictByLoss):
    """Asymmetric balanced sampling.

    Args:
        alpha: share of each batch that is left out, the rows of highest loss.
        task: integer column with the task of a row; or a number k, for streams whose tasks have k classes each,
            in the order of the labels: then row y belongs to task y // k.
        column: integer column with the label, for a number k.
        compat: ``"mammoth"`` for the acceptance of the authors' code.

    Attributes:
        offered: rows that passed the filter so far.

    Published: alpha 0.75, batches of 32.
    """

    def __init__(
        self, alpha: float = 0.75, *, task: str | int = "t", column: str = "y", compat: Compat | None = None
    ) -> None:
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha is the share of a batch that is left out, in [0, 1), got {alpha}")
        if isinstance(task, int) and task < 1:
            raise ValueError(f"task is a column, or a number of classes a task >= 1, got {task}")
        self.groups = (task if isinstance(task, str) else column,)
        super().__init__(compat)
        self.alpha, self.task, self.column = alpha, task, column
        self.reset()

    def reset(self) -> None:
        self.offered = 0

    def weights(self, losses: FloatArray, groups: list[IntArray], entering: list[int] | None) -> FloatArray:
        task = groups[0] if isinstance(self.task, str) else groups[0] // self.task
        now = int(task.max()) if entering is None else entering[0]
        if entering is not None and isinstance(self.task, int):
            now //= self.task
        weights, past = np.empty(len(losses)), task < now
        for group, scores in ((past, -losses), (~past, losses)):
            chances = above_least(scores[group])
            total = chances.sum()
            weights[group] = group.sum() * chances / total if total > 0 else 1.0
        return weights

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        losses, groups = self._looked_at(arrivals, probe)
        n = max(1, round((1 - self.alpha) * len(losses)))
        rows = np.sort(np.argsort(losses, kind="stable")[:n])
        plan = self.choose(losses[rows], [group[rows] for group in groups], store, rng)
        self.offered += n
        if plan is NOTHING:
            return plan
        plan.source = rows[plan.source]
        return self._with_losses(plan, arrivals, losses)

    def state_dict(self) -> dict[str, Any]:
        return {"offered": self.offered}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        offered = state.get("offered")
        if state.keys() != {"offered"} or type(offered) is not int or offered < 0:
            raise ValueError(f"not the state of ABS: {dict(state)!r}")
        self.offered = offered

    def _seen(self, store: Store) -> int:
        return self.offered
