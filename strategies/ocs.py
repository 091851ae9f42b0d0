"""Online Coreset Selection (OCS)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from replaykit.augment import Views
from replaykit.avalanche import Template
from replaykit.avalanche.pooled import PooledReplay
from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.draws import distinct
from replaykit.gradients.result import DEGENERATE
from replaykit.losses import CrossEntropy, Draw, Model
from replaykit.policies.reservoir import Reservoir
from replaykit.probe import Probe
from replaykit.selectors.ocs_scores import affinity, best_first, of_gram
from replaykit.store import Batch, IntArray


class OCS(Template):
    """Trains on the best `kappa` rows of every stream batch, and stores a selection of them after every task.

    Of the `train_mb_size` rows of a stream batch those `kappa` with the highest score S + V + τ A are trained on,
    together with a memory batch Q: mean loss of the picked rows + λ · mean loss of Q. A is the affinity with the
    gradient of Q; while the memory is empty the score is S + V (see `replaykit.selectors.ocs_scores`). The picked
    rows go to a pool, and at the end of an experience the memory is offered the whole pool at once.

    Scoring takes a forward and a backward pass over batch and Q, and their inner products: about as long as the
    step for a perceptron, several times as long for a convolutional network. There the gradients of the last layer
    are the cheaper choice: ``probe=lambda strategy: Probe(strategy.model, layers="last")``.

    Source: Yoon, Madaan, Yang and Hwang, Online Coreset Selection for Rehearsal-based Continual Learning, ICLR
    2022, algorithm 1.
    Departures:
    - Scores are those of the evaluation mode and view, over all trainable parameters. The authors' code scores
      the MNIST network with active dropout, and the ResNet without the parameters of BatchNorm.
    - The pool is bounded: a uniform sample of the picked rows (the authors' code draws it at the end). With
      several epochs it holds rows of the last one, as there.
    - The authors' code takes the affinity from the whole memory (``reference="all"``), divides the loss of Q by
      its size once more (``replay_norm="mean_over_count"``), picks at random in the first 100 batches of a task
      (``warmup=100``), has the row itself in the mean of V, and draws Q from one old task after the other.

    Args:
        model, optimizer: what is trained.
        buffer: the memory; the paper's policy is `replaykit.policies.OCS`, but any will do.
        kappa: rows to pick; a batch that has no more of them is taken whole.
        tau: coefficient of the affinity in the score.
        lam: λ, coefficient of the memory's loss.
        replay_norm: ``"mean"`` over the rows of Q; ``"mean_over_count"`` divides it by their number again.
        reference: rows whose gradient the affinity is taken with: ``"batch"`` for Q, ``"all"`` for the memory.
        batch_size_mem: rows of Q; default: `kappa`.
        pool: rows of the pool, which is `replay.pool`, a `replaykit.Buffer` with bytes of its own.
        warmup: stream batches at the beginning of every experience from which rows are picked at random.
        seed: of the pool and of the random picks.
        views, retrieval, probe, fast_loader: see `replaykit.avalanche.Replay`.
        plugins: further plugins, called after the replay: they see the picked rows alone.
        template: arguments of Avalanche's `SupervisedTemplate`.

    Published (SGD with momentum 0.8, κ = 10, τ = 1000, `train_mb_size` / κ epochs): Rotated MNIST, 200 rows, batch
    100, pool 1,000, lr 0.005 times 0.75 a task, effective λ 1; Split CIFAR-100 in 20 tasks, 100 rows, batch 20,
    pool 250, lr 0.1275 times 0.9 a task, effective λ 0.1 at the end (their flags, 10 and 0.5, are divided by the
    rows of Q).
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        buffer: Buffer,
        kappa: int = 10,
        tau: float = 1000.0,
        lam: float = 1.0,
        replay_norm: Literal["mean", "mean_over_count"] = "mean",
        reference: Literal["batch", "all"] = "batch",
        batch_size_mem: int | None = None,
        pool: int = 1000,
        warmup: int = 0,
        seed: int = 0,
        views: Views | Callable[[Tensor], Tensor] | None = None,
        retrieval: AnyRetrieval | None = None,
        probe: Callable[[Any], Probe] | None = None,
        fast_loader: bool = True,
        plugins: Sequence[Any] | None = None,
        **template: Any,
    ) -> None:
        if replay_norm not in ("mean", "mean_over_count"):
            raise ValueError(f"replay_norm is 'mean' or 'mean_over_count', got {replay_norm!r}")
        self.replay = PickedReplay(
            buffer,
            kappa,
            tau,
            reference,
            Buffer(pool, Reservoir(), device=buffer.device, seed=seed),
            warmup,
            batch_size_mem=kappa if batch_size_mem is None else batch_size_mem,
            loss=CrossEntropy(lam) if replay_norm == "mean" else _MeanOverCount(lam),
            views=views,
            retrieval=retrieval,
            probe=probe,
            fast_loader=fast_loader,
        )
        plugins = [self.replay, *(plugins or ())]
        super().__init__(model=model, optimizer=optimizer, plugins=plugins, **template)

    def state_dict(self) -> dict[str, Any]:
        return self.replay.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.replay.load_state_dict(state)


class PickedReplay(PooledReplay):
    """Replay that leaves in a mini-batch only the rows worth training on, and offers the memory no others.

    Attributes:
        pool: the picked rows of this epoch, or a uniform sample of them.
        picked: rows of the last stream batch that were trained on, int64 [<= kappa], the best first.
        degenerate: rows scored so far whose gradient was too short to have a direction.
    """

    def __init__(
        self,
        buffer: Buffer,
        kappa: int,
        tau: float,
        reference: Literal["batch", "all"],
        pool: Buffer,
        warmup: int,
        **replay: Any,
    ) -> None:
        if kappa < 1:
            raise ValueError(f"kappa is a number of rows >= 1, got {kappa}")
        if not (np.isfinite(tau) and tau >= 0):
            raise ValueError(f"tau is a coefficient, a finite number >= 0, got {tau}")
        if reference not in ("batch", "all"):
            raise ValueError(f"reference is 'batch' or 'all', got {reference!r}")
        if warmup < 0:
            raise ValueError(f"warmup is a number of batches >= 0, got {warmup}")
        super().__init__(buffer, pool, last_epoch=True, **replay)
        self.kappa, self.tau, self.reference, self.warmup = kappa, tau, reference, warmup
        self.picked: IntArray = np.empty(0, np.int64)
        self.degenerate = 0
        self._needs_probe = True
        self._memory: Batch = {}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "degenerate": self.degenerate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._check(state, "degenerate")
        super().load_state_dict(state)
        self.degenerate = int(state["degenerate"])

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Draw Q, pick rows and take the others out of the mini-batch."""
        mbatch = strategy.mbatch
        self._keep_arrivals(strategy)
        self._memory = self._sample(strategy, self._names) if len(self.buffer) else {}
        n = len(mbatch[0])
        if n <= self.kappa:
            self.picked = np.arange(n)
        elif self.batches < self.warmup:
            self.picked = distinct(n, self.kappa, self.pool.draws)
        else:
            self.picked = self._best(strategy)[: self.kappa]
        if len(self.picked) < n:
            index = torch.from_numpy(self.picked).to(strategy.device)
            mbatch[:] = [column.index_select(0, index) for column in mbatch]
        super().before_training_iteration(strategy, *args, **kwargs)

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        super().after_training_iteration(strategy, *args, **kwargs)
        self._memory = {}

    # -- inside ---------------------------------------------------------------------------------------

    def _best(self, strategy: Any) -> IntArray:
        """Rows of the stream batch by their score, the best first."""
        probe, rows, n = self._probe(strategy), self._arrivals, len(self._arrivals["x"])
        assert probe is not None
        together = self.reference == "batch" and bool(self._memory)
        if together:
            rows = {name: torch.cat((column, self._memory[name])) for name, column in rows.items()}
        gradients = probe.gradients(rows)
        # A mini-batch is small: one pass and all inner products cost less than sums and more passes.
        gram, tau = gradients.gram().double().cpu().numpy(), self.tau if self._memory else 0.0
        values = of_gram(gram, n, tau)
        if self._memory and not together:
            everything = self.buffer.read(self.buffer.store.filled, self._names)
            direction = probe.gradients(everything).mean()
            values = values + tau * affinity(gradients, direction).double().cpu().numpy()
        self.degenerate += int((gram.diagonal()[:n] < DEGENERATE**2).sum())
        return best_first(values, tau)

    def _draw(self, strategy: Any) -> Batch:
        """The memory batch that the scores were taken with, as the model wants it."""
        batch = dict(self._memory)
        if self.views is not None:
            batch["x"] = self.views.train(batch["x"])
        return batch


class _MeanOverCount(CrossEntropy):
    """The mean cross-entropy, divided by the number of rows once more."""

    def __call__(self, model: Model, draw: Draw) -> Tensor:
        batch = draw()
        return super().__call__(model, lambda: batch) / len(batch["y"])
