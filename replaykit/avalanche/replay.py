"""The plugin that gives any Avalanche strategy a replay memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from avalanche.models.utils import avalanche_forward, is_multi_task_module
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from replaykit.augment import Views
from replaykit.avalanche.dataset import Kept, NotTensors, column_names
from replaykit.avalanche.feedback import Feedback, RowLoss, cross_entropy_of_rows
from replaykit.avalanche.fit import (
    check_loss,
    check_retrieval,
    check_training_step,
    check_whole_tasks,
    columns_looked_at,
    reader_of_steps,
)
from replaykit.avalanche.loading import sliced
from replaykit.avalanche.reading import experience_batches
from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.losses import Model, ReplayLoss, TaskAware, columns_of
from replaykit.probe import Probe
from replaykit.retrieval import GuidedRetrieval
from replaykit.store import LOSS, Batch, IntArray

_NO_SLOTS: IntArray = np.empty(0, np.int64)


class Replay(SupervisedPlugin):
    """Replays rows of a buffer in every training iteration, and offers it the rows of the stream.

    Without a `loss`, memory rows are appended to the mini-batch, after the rows of the stream, and the
    strategy's own criterion averages over all of them: one forward pass, one BatchNorm batch. With a `loss`,
    the stream is trained as ever and the loss, with forward passes of its own, is added before the backward
    pass (only templates that fire `before_backward`: not the meta-learning ones).

    A step replays what was stored before it; the rows of the stream are offered after the optimiser's step:
    raw (as the loader gave them, before `views`), with label, task label and any other column of the
    mini-batch, and if asked for with the logits that the model gave for them in this step (weights before the
    update, the augmented view, detached), and their loss. Where the policy or the retrieval looks at losses, those
    of the replayed rows in this step are given to the memory after it (`Buffer.observe`).

    Args:
        buffer: the memory.
        batch_size_mem: rows of a memory batch; default: `train_mb_size`. Fewer while fewer are stored.
        loss: a replay loss of `replaykit.losses`, or any function ``(model, draw) -> Tensor []``.
        update: ``"iteration"`` offers each mini-batch, ``"experience"`` the whole data set of an experience
            (with its evaluation transforms, in its order) after training on it. Default: each mini-batch,
            unless the policy takes every add as a task (OCS).
        views: how raw rows become inputs, of the stream, of the memory and in evaluation; a single function
            serves for all. Plugins that read the data set themselves (EWC, A-GEM) bypass it.
        retrieval: which rows to replay; default: the buffer's own. One that looks at the model (MIR, ASER)
            sees the raw rows of the stream, before they are stored.
        store_logits: keep the logits of the stream's rows even if the loss does not name them.
        fast_loader: slice whole tensors instead of collating samples, where the data set allows it. Batches,
            their order and the use of random numbers stay the same.
        chunk: rows offered at a time by ``update="experience"``; default: all at once, which is what
            selection methods expect.
        probe: makes the probe of a strategy, once for each experience, if the policy or the retrieval needs
            one; default: the strategy's model, shown the rows in their evaluation view.
        row_loss: from outputs [n, c] and labels [n] to the losses [n] that policies (LARS) and retrievals
            (Prioritised) look at; default: the cross-entropy over all outputs, whatever the criterion. A policy
            that looks at losses asks the probe for those of the arrivals with ``update="experience"``.

    Attributes:
        from_memory: which rows of the current mini-batch came from the memory, bool [rows]; also
            `strategy.from_memory`.
        loading: how the current data set is loaded: ``"sliced"``, or ``"per sample: "`` and why.

    Raises:
        TypeError: something else than a buffer.
        ValueError: a memory batch below 1 row, an unknown `update`, logits with ``update="experience"``,
            mini-batches for a policy that takes every add as a task, a retrieval or a loss by a column that is
            not there (where only the stream can tell, before the first step on it).
    """

    def __init__(
        self,
        buffer: Buffer,
        batch_size_mem: int | None = None,
        *,
        loss: ReplayLoss | None = None,
        update: str | None = None,
        views: Views | Callable[[Tensor], Tensor] | None = None,
        retrieval: AnyRetrieval | None = None,
        store_logits: bool = False,
        fast_loader: bool = True,
        chunk: int | None = None,
        probe: Callable[[Any], Probe] | None = None,
        row_loss: RowLoss = cross_entropy_of_rows,
    ) -> None:
        super().__init__()
        if not isinstance(buffer, Buffer):
            raise TypeError(f"expected a replaykit.Buffer, got {type(buffer).__name__}")
        for name, value in (("batch_size_mem", batch_size_mem), ("chunk", chunk)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is a number of rows >= 1, got {value}")
        update = check_whole_tasks(buffer, update, chunk)
        self.buffer, self.batch_size_mem, self.loss = buffer, batch_size_mem, loss
        self.update, self.retrieval, self.chunk, self.probe = update, retrieval, chunk, probe
        self.views = views if views is None or isinstance(views, Views) else Views(views, views)
        self.columns = None if loss is None else columns_of(loss)
        by = retrieval or buffer.retrieval
        wanted = {*(self.columns or ()), *columns_looked_at(by)}
        policy_asks = LOSS in buffer.policy.columns
        self.store_logits = store_logits or "logits" in wanted or "logits" in buffer.policy.columns
        self.store_loss = update == "iteration" and (LOSS in wanted or policy_asks)
        losses = LOSS in wanted and not policy_asks
        check_training_step(buffer, self.store_logits, losses, update == "iteration", reader_of_steps(loss, by))
        check_retrieval(buffer, by)
        check_loss(buffer, loss, by)
        self.row_loss = row_loss
        self._feedback = Feedback(buffer, retrieval, row_loss) if buffer.observed(retrieval) else None
        self._needs_probe = (
            bool(buffer.policy.needs)
            or (policy_asks and update == "experience")
            or (isinstance(by, GuidedRetrieval) and by.needs_probe)
        )
        self.fast_loader = fast_loader
        self.loading = "per sample: no experience yet"
        self.from_memory = torch.zeros(0, dtype=torch.bool)
        self._kept = Kept()
        self._marks = torch.zeros(0, dtype=torch.bool)
        self._marked_as = (-1, -1)
        self._names: tuple[str, ...] = ()
        self._probed: Probe | None = None
        self._arrivals: Batch = {}
        self._drawn = _NO_SLOTS  # of the last memory batch of this iteration

    # -- loading ------------------------------------------------------------------------------------

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._names, self._probed = (), None
        self._exchange_loader(strategy)

    def before_eval_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._exchange_loader(strategy)

    def _exchange_loader(self, strategy: Any) -> None:
        if not self.fast_loader:
            self.loading = "per sample: fast_loader=False"
            return
        try:
            strategy.dataloader = sliced(strategy.dataloader, strategy.device, self._kept)
            self.loading = "sliced"
        except NotTensors as reason:
            self.loading = f"per sample: {reason}"

    # -- one training iteration -----------------------------------------------------------------------

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the raw rows, append memory rows (without a loss), make the view."""
        mbatch = strategy.mbatch
        self._keep_arrivals(strategy)
        rows, replayed = mbatch[0].shape[0], 0
        if self.loss is None and len(self.buffer):
            memory = self._sample(strategy, self._names)
            replayed = memory["x"].shape[0]
            for position, name in enumerate(self._names):
                mbatch[position] = torch.cat((mbatch[position], memory[name]))
        if self.views is not None:
            mbatch[0] = self.views.train(mbatch[0])
        self.from_memory = strategy.from_memory = self._marked(rows, replayed, strategy.device)

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        rows, z = len(self._arrivals["x"]), strategy.mb_output
        if self.store_logits:
            logits = z.detach()[:rows]
            self._arrivals["logits"] = logits.float() if logits.element_size() < 4 else logits
        if self.store_loss and LOSS not in self._names:
            self._arrivals[LOSS] = self.row_loss(z.detach()[:rows], strategy.mb_y[:rows]).detach()
        if self._feedback is not None and len(self._drawn) and len(z) == rows + len(self._drawn):
            self._feedback.saw(self._drawn, z[rows:], strategy.mb_y[rows:])

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if self.loss is not None and len(self.buffer):
            strategy.loss += self._replay_loss(strategy)

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if self._feedback is not None:
            self._feedback.deliver()

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if self.update == "iteration":
            self.buffer.add(self._arrivals, self._probe(strategy))
        self._arrivals = {}

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if self.update == "experience":
            for batch in experience_batches(strategy.experience.dataset, self.chunk, self._kept):
                self.buffer.add(batch, self._probe(strategy))
        self._probed = None

    # -- evaluation -----------------------------------------------------------------------------------

    def before_eval_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if self.views is not None:
            strategy.mbatch[0] = self.views.eval(strategy.mbatch[0])
        self.from_memory = strategy.from_memory = self._marked(len(strategy.mbatch[0]), 0, strategy.device)

    # -- inside ---------------------------------------------------------------------------------------

    def _keep_arrivals(self, strategy: Any) -> None:
        """The raw rows of the mini-batch, by column."""
        mbatch = strategy.mbatch
        if len(self._names) != len(mbatch):
            self._names = _names_of(strategy, mbatch)
            self._check_names()
        self._arrivals = dict(zip(self._names, mbatch, strict=True))
        self._drawn = _NO_SLOTS

    def _check_names(self) -> None:
        """What the stream brings is known from its first mini-batch on."""
        if self.store_logits and "logits" in self._names:
            raise ValueError(
                "the stream has a column 'logits', and this replay stores those of its own training steps under "
                "that name; rename the stream's"
            )
        given = {*self._names, *(["logits"] * self.store_logits), *([LOSS] * self.store_loss)}
        by = self.retrieval or self.buffer.retrieval
        check_retrieval(self.buffer, by, given)
        check_loss(self.buffer, self.loss, by, given)

    def _replay_loss(self, strategy: Any) -> Tensor:
        """The value of the replay loss; its draws and outputs are looked at where somebody wants their losses."""
        assert self.loss is not None
        model, draw = _model_of(strategy), partial(self._draw, strategy)
        if self._feedback is None:
            return self.loss(model, draw)

        def known() -> tuple[Batch, IntArray, Tensor]:
            batch = draw()
            y = batch["y"] if "y" in batch else self.buffer.read(self._drawn, ["y"])["y"].to(strategy.device)
            return batch, self._drawn, y

        with self._feedback.watching(strategy.model, known) as watched:
            return self.loss(model, watched)

    def _draw(self, strategy: Any) -> Batch:
        """A fresh memory batch, its x as the model wants it."""
        names = self.columns
        if names is not None and "t" in self._names and "t" not in names:
            names = (*names, "t")
        batch = self._sample(strategy, names)
        if self.views is not None:
            batch["x"] = self.views.train(batch["x"])
        return batch

    def _sample(self, strategy: Any, names: tuple[str, ...] | None) -> Batch:
        buffer = self.buffer
        n = self.batch_size_mem or strategy.train_mb_size
        slots = buffer.draw(n, self.retrieval, arrivals=self._arrivals, probe=self._probe(strategy))
        self._drawn = slots
        batch = buffer.drawn(slots, self.retrieval, names)
        if buffer.device == strategy.device:
            return batch
        return {name: rows.to(strategy.device, non_blocking=True) for name, rows in batch.items()}

    def _marked(self, rows: int, replayed: int, device: torch.device) -> Tensor:
        """False for `rows` rows, then True for `replayed` rows; shared between calls, not to be written."""
        if self._marked_as != (rows, replayed):
            self._marks = torch.arange(rows + replayed, device=device) >= rows
            self._marked_as = (rows, replayed)
        return self._marks

    def _probe(self, strategy: Any) -> Probe | None:
        if not self._needs_probe:
            return None
        if self._probed is None:
            prepare = None if self.views is None else self.views.eval
            self._probed = self.probe(strategy) if self.probe else Probe(strategy.model, prepare=prepare)
        return self._probed


def _names_of(strategy: Any, mbatch: Any) -> tuple[str, ...]:
    if not isinstance(mbatch, list):
        raise TypeError(f"Replay needs mini-batches that are lists [x, y, ...], got {type(mbatch).__name__}")
    return column_names(strategy.adapted_dataset, len(mbatch))


def _model_of(strategy: Any) -> Model:
    model: Model = strategy.model
    return TaskAware(partial(avalanche_forward, model)) if is_multi_task_module(model) else model
