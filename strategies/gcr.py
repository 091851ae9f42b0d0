"""Gradient Coreset Replay (GCR)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from replaykit.augment import Views
from replaykit.avalanche import Template
from replaykit.avalanche.fit import check_features
from replaykit.avalanche.pooled import PooledReplay
from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.contrastive import supervised_contrastive
from replaykit.gradients import cross_entropy, squared_error, weighted
from replaykit.losses import Draw, Features, Model, outputs
from replaykit.policies.joined import together
from replaykit.policies.reservoir import Reservoir
from replaykit.probe import Probe
from replaykit.store import Batch, IntArray

_NONE: IntArray = np.empty(0, np.int64)
_SQUARED = squared_error()


class GCR(Template):
    """DER++ on a weighted coreset: CE(stream) + α Σ wᵢ MSEᵢ + β Σ wᵢ CEᵢ + γ SupCon, with weights that sum to 1.

    Rows of the present experience go to a reservoir, with the logits of their step. At its end the memory is
    offered the whole reservoir, and its policy selects by the gradients of α MSE + β CE. The three terms have
    memory batches of their own, which mix coreset and reservoir: of n rows

        min(n, rows held, ⌈K / (t + 1)⌉, ⌊n N / (N + N')⌋)

    come from the reservoir, where K is the capacity of the memory, t the number of finished experiences, N the
    number of rows that this experience and N' that the ones before it have presented; in the first, all do.

    Source: Tiwari, Killamsetty, Iyer and Shenoy, GCR: Gradient Coreset Based Replay Buffer Selection for Continual
    Learning, CVPR 2022; the released code for the mixture.
    Departures:
    - The weights of the rows from the coreset are divided by their mean before both parts are weighted together;
      those of the reservoir are 1. So weights matter by their ratios, and how much of the past is replayed is left
      to the mixture. In the released code weights that stand for many rows count on top of it.
    - γ: both views of a row are anchors, in a weighted mean; the released code sums the two views.
    - With several epochs the reservoir is one of presentations, so a row may be in it more than once.

    Args:
        model, optimizer: what is trained.
        buffer: the memory; the paper's policy is `replaykit.policies.GCR`, but any will do. Its column ``weight``
            is used if there is one.
        alpha, beta, gamma: coefficients of logits, labels and contrast. With 0 a term costs nothing.
        temperature: of the contrast.
        embedding: what is contrasted: ``"logits"``, as in the released code, or ``"features"``, what enters the
            last layer; both are scaled to length 1.
        batch_size_mem: rows of each memory batch; default: `train_mb_size`.
        reservoir_size: rows of the reservoir, which is `replay.pool`, a `replaykit.Buffer` with bytes of its own.
        correct_only: let only rows into the reservoir that the network got right in their step.
        seed: of the reservoir.
        probe: makes the probe of a strategy; its loss becomes α MSE + β CE. Default: the strategy's model, rows in
            their evaluation view, gradients of the last layer.
        views, retrieval, fast_loader: see `replaykit.avalanche.Replay`; the retrieval is that of the coreset.
        plugins: further plugins, called after the replay.
        template: arguments of Avalanche's `SupervisedTemplate`.

    Published (flags of the release: SGD without momentum, Split CIFAR-10, batch 32 + 32): lr 0.03, α 0.1, β 0.5,
    γ 0, 200 slots, reservoir 200, and `correct_only` with more than one epoch.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        buffer: Buffer,
        alpha: float = 0.1,
        beta: float = 0.5,
        gamma: float = 0.0,
        temperature: float = 0.07,
        embedding: Literal["logits", "features"] = "logits",
        batch_size_mem: int | None = None,
        reservoir_size: int = 200,
        correct_only: bool = False,
        seed: int = 0,
        views: Views | Callable[[Tensor], Tensor] | None = None,
        retrieval: AnyRetrieval | None = None,
        probe: Callable[[Any], Probe] | None = None,
        fast_loader: bool = True,
        plugins: Sequence[Any] | None = None,
        **template: Any,
    ) -> None:
        loss = GCRLoss(alpha, beta, gamma, temperature, embedding)
        if gamma:
            check_features(model, loss)
        self.replay = CoresetReplay(
            buffer,
            Buffer(reservoir_size, Reservoir(), device=buffer.device, seed=seed),
            loss,
            correct_only,
            batch_size_mem=batch_size_mem,
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


class GCRLoss:
    """The terms of GCR on the memory. Draws have x, y, logits and weight, and with γ x2, a second view of x."""

    columns: tuple[str, ...] = ("x", "y", "logits")

    def __init__(self, alpha: float, beta: float, gamma: float, temperature: float, embedding: str) -> None:
        for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is a coefficient, a finite number >= 0, got {value}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is a positive number, got {temperature}")
        if embedding not in ("logits", "features"):
            raise ValueError(f"embedding is 'logits' or 'features', got {embedding!r}")
        self.alpha, self.beta, self.gamma, self.temperature = alpha, beta, gamma, temperature
        self.embedding: Callable[[Model, Batch], Tensor] = _active if embedding == "logits" else Features()

    def __call__(self, model: Model, draw: Draw) -> Tensor:
        terms: list[Tensor] = []
        if self.alpha:
            batch = draw()
            terms.append(self.alpha * _mean(_SQUARED(outputs(model, batch).float(), batch), batch))
        if self.beta:
            batch = draw()
            losses = functional.cross_entropy(outputs(model, batch), batch["y"], reduction="none")
            terms.append(self.beta * _mean(losses, batch))
        if self.gamma:
            batch = draw()
            twice = {name: torch.cat((rows, rows)) for name, rows in batch.items() if name != "x2"}
            twice["x"] = torch.cat((batch["x"], batch["x2"]))
            z = self.embedding(model, twice)
            terms.append(
                self.gamma * supervised_contrastive(z, twice["y"], self.temperature, twice["weight"].to(z.dtype))
            )
        return sum(terms[1:], terms[0]) if terms else torch.zeros(())

    def of_rows(self, z: Tensor, batch: Batch) -> Tensor:
        """α MSE + β CE of every row [n], whose gradients select; CE alone where there are no logits."""
        if "logits" not in batch or self.alpha == 0:
            return cross_entropy()(z, batch)
        return weighted((self.alpha, _SQUARED), (self.beta, cross_entropy()))(z, batch)


class CoresetReplay(PooledReplay):
    """Replay of a mixture of the memory and of the pool of the present experience.

    Attributes:
        experiences: finished so far.
        past, now: rows presented in the experiences before this one, and in this one.
    """

    def __init__(self, buffer: Buffer, pool: Buffer, loss: GCRLoss, correct_only: bool, **replay: Any) -> None:
        super().__init__(buffer, pool, loss=loss, store_logits=True, **replay)
        self.terms, self.correct_only = loss, correct_only
        self.experiences = self.past = self.now = 0

    def state_dict(self) -> dict[str, Any]:
        counts = {"experiences": self.experiences, "past": self.past, "now": self.now}
        return {**super().state_dict(), **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._check(state, "experiences", "past", "now")
        super().load_state_dict(state)
        self.experiences, self.past, self.now = (int(state[n]) for n in ("experiences", "past", "now"))

    def share(self, n: int) -> int:
        """How many of n replayed rows come from the pool."""
        most = min(n, len(self.pool))
        if self.experiences == 0 or len(self.buffer) == 0:
            return most
        of_capacity = -(-self.buffer.capacity // (self.experiences + 1))
        return min(most, of_capacity, n * self.now // max(1, self.past + self.now))

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if len(self.buffer) or len(self.pool):
            self._add_loss(strategy)

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.now += len(self._arrivals["x"])
        if self.correct_only:
            right = self._arrivals["logits"].argmax(1) == self._arrivals["y"]
            self._arrivals = {name: rows[right] for name, rows in self._arrivals.items()}
        super().after_training_iteration(strategy, *args, **kwargs)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        super().after_training_exp(strategy, *args, **kwargs)
        self.experiences, self.past, self.now = self.experiences + 1, self.past + self.now, 0

    # -- inside ---------------------------------------------------------------------------------------

    def _draw(self, strategy: Any) -> Batch:
        n = self.batch_size_mem or strategy.train_mb_size
        of_pool, parts = self.share(n), []
        self._drawn = _NONE
        if len(self.buffer) and of_pool < n:
            slots = self.buffer.draw(
                n - of_pool, self.retrieval, arrivals=self._arrivals, probe=self._probe(strategy)
            )
            if not of_pool:
                self._drawn = slots  # whose losses are told to the memory: of batches that are all from it
            parts.append(_weighted(self.buffer.drawn(slots, self.retrieval)))
        if of_pool:
            parts.append(_weighted(self.pool.read(self.pool.draw(of_pool))))
        mixture = together(parts, {"logits"})
        batch = {name: rows.to(strategy.device, non_blocking=True) for name, rows in mixture.items()}
        if self.terms.gamma:
            batch["x2"] = batch["x"] if self.views is None else self.views.train(batch["x"])
        if self.views is not None:
            batch["x"] = self.views.train(batch["x"])
        return batch

    def _probe(self, strategy: Any) -> Probe | None:
        if self._needs_probe and self._probed is None:
            prepare = None if self.views is None else self.views.eval
            self._probed = (
                self.probe(strategy) if self.probe else Probe(strategy.model, prepare=prepare, layers="last")
            )
            self._probed.loss = self.terms.of_rows
        return self._probed if self._needs_probe else None


def _active(model: Model, batch: Batch) -> Tensor:
    """Logits [n, c] with 0 for the units that `IncrementalClassifier` switches off by -1000."""
    z = outputs(model, batch)
    return z.masked_fill(z.detach() == -1000, 0.0)


def _weighted(rows: Batch) -> Batch:
    """The rows with weights of mean 1; equal ones if they have none, or only zeros."""
    weight = rows.get("weight")
    if weight is None:
        weight = torch.ones(len(rows["y"]), dtype=torch.float64, device=rows["y"].device)
    total = weight.double().sum()
    return {**rows, "weight": (weight.double() * len(weight) / total).where(total > 0, 1.0)}


def _mean(losses: Tensor, batch: Batch) -> Tensor:
    weight = batch["weight"].to(losses.dtype)
    return (weight @ losses) / weight.sum()
