"""Greedy Sampler and Dumb Learner (GDumb)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from replaykit.augment import Views
from replaykit.avalanche import Replay
from replaykit.avalanche.memory_passes import MemoryPasses
from replaykit.buffer import Buffer
from replaykit.probe import Probe
from replaykit.store import LOSS


class GDumb(MemoryPasses):
    """Only fills the memory while the stream passes, and then trains a fresh network on the memory alone.

    At the end of every experience, and so before it is evaluated, the network goes back to the weights that it had
    when the strategy was made, the optimiser forgets its state, and `passes` passes over the memory follow, with
    the learning rates of `replaykit.avalanche.memory_passes.rate`: a tenth of the optimiser's in the first pass,
    all of it in the second, then a cosine down to a hundredth with warm restarts after 1, 2, 4, ... passes. Units
    that a head has gained since start from the weights that they were given when they came.

    Of the events of an iteration, those of the iteration itself are fired for the stream, and those of steps are
    not. With metrics in the evaluator, the rows of the stream are also put to the network as it is, in evaluation
    mode.

    Source: Prabhu, Torr and Dokania, GDumb, ECCV 2020, section 3.
    Departures:
    - Asked for at the end of experiences; in between the last network answers.
    - With several epochs the rows of the stream are offered to the memory as often.
    - The authors' code fills the memory from a list of all rows, and reports the epoch that is best on test data;
      here the last one counts.

    Args:
        model, optimizer: what is trained; the optimiser's learning rate is the largest one.
        buffer: the memory; the paper's policy is `replaykit.policies.GreedyBalanced`, but any will do that needs
            no logits.
        passes: over the memory, after each experience.
        batch_size_mem: rows of a step.
        clip: largest norm of the gradient; None for none.
        cutmix: probability of CutMix in a step (images only); the paper's is 0.5 where it is used.
        views, probe, update, fast_loader: see `replaykit.avalanche.Replay`.
        plugins: further plugins, called after the replay.
        template: arguments of Avalanche's `SupervisedTemplate`.

    Published (SGD with momentum 0.9 and weight decay 1e-6, lr 0.05, batch 16, clip 10): 256 passes, with CutMix
    on images; MNIST, 128 passes without.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        buffer: Buffer,
        passes: int = 256,
        batch_size_mem: int = 16,
        clip: float | None = 10.0,
        cutmix: float = 0.0,
        views: Views | Callable[[Tensor], Tensor] | None = None,
        probe: Callable[[Any], Probe] | None = None,
        update: str | None = None,
        fast_loader: bool = True,
        plugins: Sequence[Any] | None = None,
        **template: Any,
    ) -> None:
        self.replay: Replay = _Filling(
            buffer, batch_size_mem, views=views, probe=probe, update=update, fast_loader=fast_loader
        )
        if self.replay.store_logits:
            raise ValueError(
                "GDumb does not run the network on the stream, so there are no logits to store; use another "
                f"policy than {type(buffer.policy).__name__}"
            )
        if self.replay.store_loss and LOSS in buffer.policy.columns:
            raise ValueError(
                "GDumb does not run the network on the stream, so there are no losses to store; use "
                f"update='experience' or another policy than {type(buffer.policy).__name__}"
            )
        super().__init__(
            passes=passes,
            batch_size_mem=batch_size_mem,
            clip=clip,
            cutmix=cutmix,
            model=model,
            optimizer=optimizer,
            plugins=[self.replay, *(plugins or ())],
            **template,
        )
        self.initial: dict[str, Tensor] = {}
        self.remember_new()

    def state_dict(self) -> dict[str, Any]:
        return {"initial": {name: value.clone() for name, value in self.initial.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.keys() != {"initial"} or not all(isinstance(v, Tensor) for v in state["initial"].values()):
            raise ValueError(f"not the initial weights of GDumb: it has {sorted(map(str, state))}")
        self.initial = {name: value.clone() for name, value in state["initial"].items()}

    def train_minibatch(self, **kwargs: Any) -> None:
        """The stream only fills the memory."""
        if self.evaluator.metrics:
            self._look()

    def remember_new(self) -> None:
        """Take down the weights of parameters, or of parts of them, that were not there before."""
        for name, value in self.model.state_dict().items():
            old = self.initial.get(name)
            if old is None or old.shape != value.shape:
                self.initial[name] = value.clone()
                if old is not None:
                    self.initial[name][tuple(map(slice, old.shape))] = old.to(value.device)

    def start_afresh(self) -> None:
        """Back to the initial weights, with an optimiser that has seen nothing."""
        self.remember_new()
        self.model.load_state_dict(self.initial)
        self.optimizer.state.clear()

    def _look(self) -> None:
        """Outputs and loss of the stream's rows, for metrics."""
        raw = self.mbatch[0]
        if self.replay.views is not None:
            self.mbatch[0] = self.replay.views.eval(raw)
        self.model.eval()
        with torch.no_grad():
            self.mb_output = self.forward()
            self.loss = self.criterion()
        self.model.train()


class _Filling(Replay):
    """Offers rows to the memory, replays none, and has the network trained anew at the end."""

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, *args, **kwargs)
        strategy.remember_new()

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._keep_arrivals(strategy)
        self.from_memory = strategy.from_memory = self._marked(len(strategy.mbatch[0]), 0, strategy.device)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        super().after_training_exp(strategy, *args, **kwargs)
        strategy.start_afresh()
        strategy.train_on_memory()
