"""The memory of X-DER: logits that are made at the end of a task and kept up to date."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from replaykit.avalanche import Replay
from replaykit.avalanche.reading import experience_batches
from replaykit.buffer import Buffer
from replaykit.losses.base import NoTerm
from replaykit.store import Batch, IntArray
from replaykit.xder import Heads, Settings, Stage, attenuate, full, implant, training_mode, untracked

VISITS = "xder_visits"


class LogitKeeper(Replay):
    """Offers the memory every task at its end, with logits, and writes later heads into rows of earlier tasks.

    Visits of rows within a task are notes of the store: they are saved with it.

    Attributes:
        task: tasks finished so far; during training the number of the present one.
    """

    def __init__(
        self, buffer: Buffer, batch_size_mem: int | None, *, heads: Heads, settings: Settings, **replay: Any
    ) -> None:
        super().__init__(buffer, batch_size_mem, loss=NoTerm("x", "y"), update="experience", **replay)
        self.heads, self.settings, self.task = heads, settings, 0
        self._begun = 0
        self._stage: tuple[tuple[Any, ...], Stage] | None = None

    def stage(self, z: Tensor) -> Stage:
        """The outputs as the present task sees them."""
        key = (self.task, z.shape[1], z.device)
        if self._stage is None or self._stage[0] != key:
            self._stage = key, self.heads.stage(self.task, z.shape[1], z.device)
        return self._stage[1]

    @property
    def seen(self) -> list[int]:
        """Labels of the tasks whose training has begun."""
        return [label for classes in self.heads.tasks[: max(self.task, self._begun)] for label in classes]

    @property
    def replays(self) -> bool:
        """Whether rows of earlier tasks are there."""
        return self.task > 0 and len(self.buffer) > 0

    def state_dict(self) -> dict[str, Any]:
        return {"task": self.task}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        task = state.get("task")
        if set(state) != {"task"} or type(task) is not int or not 0 <= task <= len(self.heads):
            raise ValueError(f"not the state of X-DER, a number of finished tasks: {dict(state)!r}")
        self.task = self._begun = task

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._check_task(strategy.experience)
        self._begun = self.task + 1
        super().before_training_exp(strategy, *args, **kwargs)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Offer the task's rows with their logits, then bring those of older rows up to date."""
        for batch in experience_batches(strategy.experience.dataset, None, self._kept):
            batch["logits"] = self._logits_to_store(strategy, batch)
            self.buffer.add(batch, self._probe(strategy))
        if self.replays and self.settings.memory_update:
            self._implant_all(strategy)
        self.buffer.store.note(VISITS, 0.0)[:] = 0.0
        self._probed = None
        self.task += 1

    # -- inside ---------------------------------------------------------------------------------------

    def _logits_to_store(self, strategy: Any, batch: Batch) -> Tensor:
        """Outputs [n, c] for the rows of a task, those of past heads attenuated."""
        x, how = batch["x"], self.settings
        z = self._outputs(strategy, len(x), lambda rows: x.index_select(0, torch.from_numpy(rows).to(x.device)))
        if self.task:
            past = self.stage(z).past
            truth = z.gather(1, batch["y"].to(z.device)[:, None])[:, 0]
            z[:, past] = attenuate(z[:, past], truth, how.gamma, how.attenuation, how.nonpositive)
        return z.to(x.device)

    def _implant_all(self, strategy: Any) -> None:
        """Write later heads into all rows of earlier tasks, with one pass over the memory."""
        slots = self.buffer.store.filled.copy()
        z = self._outputs(strategy, len(slots), lambda rows: self.buffer.read(slots[rows], ("x",))["x"])
        older = self.stage(z).past[self._rows(z.device, slots, ("y",))["y"]]
        if bool(older.any()):
            self._implant(slots[older.cpu().numpy()], z[older])

    def _implant(self, slots: IntArray, z: Tensor) -> None:
        """Write present and future heads of outputs [n, c] into the logits of rows."""
        rows, how = self._rows(z.device, slots, ("y", "logits")), self.settings
        heads = self.stage(z).later
        new = implant(rows["logits"], z, rows["y"], heads, how.gamma, how.attenuation, how.nonpositive)
        self.buffer.store.revise(slots, {"logits": new})

    def _outputs(self, strategy: Any, n: int, read: Callable[[IntArray], Tensor]) -> Tensor:
        """Outputs [n, c] in training mode, each row in a random batch and view; BatchNorm records nothing."""
        order = torch.randperm(n).numpy()
        with training_mode(strategy.model), untracked(strategy.model), torch.no_grad():
            outputs = [
                full(strategy.model(self._seen(read(rows).to(strategy.device))))
                for rows in parts(order, strategy.train_mb_size)
            ]
        shuffled = torch.cat(outputs)
        z = torch.empty_like(shuffled)
        z[torch.from_numpy(order).to(z.device)] = shuffled
        return z

    def _rows(self, device: torch.device, slots: IntArray, names: tuple[str, ...] = ("x", "y", "logits")) -> Batch:
        rows = self.buffer.read(slots, names)
        return {name: column.to(device, non_blocking=True) for name, column in rows.items()}

    def _seen(self, x: Tensor) -> Tensor:
        return x if self.views is None else self.views.train(x)

    def _check_task(self, experience: Any) -> None:
        """Refuse an experience that is not the next task of the map."""
        tasks = self.heads.tasks
        if self.task >= len(tasks):
            raise ValueError(f"classes_per_task lists {len(tasks)} tasks, and they are all trained; list more")
        classes = getattr(experience, "classes_in_this_experience", None)
        if classes is None:
            classes = set(map(int, experience.dataset.targets))
        if other := sorted(set(map(int, classes)) - set(tasks[self.task])):
            raise ValueError(
                f"classes {other} do not belong to task {self.task}, which has {sorted(tasks[self.task])} by "
                "classes_per_task; X-DER trains whole tasks, one experience each, in the order of that list"
            )


def parts(rows: IntArray, size: int) -> list[IntArray]:
    """Rows in batches of `size` or a few more: BatchNorm cannot train on a single row that is left over."""
    return np.array_split(rows, max(1, len(rows) // size))
