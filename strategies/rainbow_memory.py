"""The training of Rainbow Memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from avalanche.models.utils import is_multi_task_module
from torch import Tensor

from replaykit.augment import Views
from replaykit.avalanche import FreshOptimizer, Replay
from replaykit.avalanche.memory_passes import WARM_UP, MemoryPasses, scale_rates
from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.embedding import last_layer
from replaykit.perturb import AutoAugment
from replaykit.probe import Probe


class RainbowMemory(MemoryPasses):
    """One slow pass over the stream with replay, then many passes over the memory alone.

    While the stream passes, rows of the memory are appended to every mini-batch, and the learning rate is a tenth
    of the optimiser's. At the end of the experience the memory is updated, and `passes` passes over it follow with
    the learning rate of `replaykit.avalanche.memory_passes.rate`. The optimiser forgets its state when an
    experience begins.

    Source: Bang, Kim, Yoo, Ha and Choi, Rainbow Memory, CVPR 2021, and its released code, online setting.
    Departures:
    - The last layer stays as it is between experiences; the released code makes it anew (`reset_head`).
    - A last mini-batch that is short is used; the released code drops it.
    - The augmentations are kornia's, see `replaykit.perturb`.

    Args:
        model, optimizer: what is trained; the optimiser's learning rate is the largest one.
        buffer: the memory; the paper's policy is `replaykit.policies.RainbowMemory`, but any will do.
        passes: over the memory, after each experience.
        batch_size_mem: rows of the memory in a step, both beside those of the stream and alone; default:
            `train_mb_size`, so half of a mini-batch.
        reset_head: give the last layer fresh random weights when a later experience begins.
        cutmix: probability of CutMix in a step (images only); the paper's is 0.5.
        auto_augment: perturb the raw rows of every training batch by AutoAugment's policy for CIFAR-10, before
            `views` (images in [0, 1] or bytes).
        clip: largest norm of the gradient in steps on the memory alone; None for none.
        views, retrieval, probe, update, fast_loader: see `replaykit.avalanche.Replay`.
        plugins: further plugins, called after the replay.
        template: arguments of Avalanche's `SupervisedTemplate`.

    Published (SGD with Nesterov momentum 0.9 and weight decay 1e-4, crops and flips, CutMix 0.5 and AutoAugment; a
    batch of b is b / 2 rows of the stream and b / 2 of the memory, or b / 2 of the memory): MNIST, lr 0.05, batch
    16, 5 passes, 500 rows; CIFAR-10, 0.05, 16, 256, 200 to 1,000; CIFAR-100, 0.03, 16, 256, 2,000; ImageNet, 0.05
    in steps, 256, 100, 20,000. All with `reset_head`.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        buffer: Buffer,
        passes: int = 256,
        batch_size_mem: int | None = None,
        reset_head: bool = False,
        cutmix: float = 0.0,
        auto_augment: bool = False,
        clip: float | None = None,
        views: Views | Callable[[Tensor], Tensor] | None = None,
        retrieval: AnyRetrieval | None = None,
        probe: Callable[[Any], Probe] | None = None,
        update: str | None = None,
        fast_loader: bool = True,
        plugins: Sequence[Any] | None = None,
        train_mb_size: int = 1,
        **template: Any,
    ) -> None:
        if reset_head and is_multi_task_module(model):
            raise ValueError("reset_head is for one head that all tasks share, the model has one for each task")
        self.replay: Replay = _SlowPass(
            buffer,
            batch_size_mem,
            views=_augmented(views) if auto_augment else views,
            retrieval=retrieval,
            probe=probe,
            update=update,
            fast_loader=fast_loader,
        )
        self.reset_head = reset_head
        self.batches = 0  # of the stream in this experience so far
        super().__init__(
            passes=passes,
            batch_size_mem=batch_size_mem or train_mb_size,
            clip=clip,
            cutmix=cutmix,
            model=model,
            optimizer=optimizer,
            plugins=[self.replay, FreshOptimizer(), *(plugins or ())],
            train_mb_size=train_mb_size,
            **template,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.keys() != {"batches"} or type(state["batches"]) is not int or state["batches"] < 0:
            raise ValueError(f"not the state of Rainbow Memory's training: it has {sorted(map(str, state))}")
        self.batches = state["batches"]

    def fresh_head(self) -> None:
        """New random weights for the layer that the present mini-batch enters last."""
        head = last_layer(self.model, self.mbatch[0][:1])
        if not callable(reset := getattr(head, "reset_parameters", None)):
            raise ValueError(f"reset_head needs a last layer with reset_parameters, got {type(head).__name__}")
        reset()


class _SlowPass(Replay):
    """Replay at a tenth of the learning rate, and the passes over the memory at the end."""

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, *args, **kwargs)
        scale_rates(strategy.optimizer, WARM_UP)

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        super().before_training_iteration(strategy, *args, **kwargs)
        if strategy.batches == 0 and strategy.reset_head and len(self.buffer):
            strategy.fresh_head()
        strategy.mix()

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        super().after_training_iteration(strategy, *args, **kwargs)
        strategy.batches += 1

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        super().after_training_exp(strategy, *args, **kwargs)
        strategy.train_on_memory()
        strategy.batches = 0


class _Augmented:
    def __init__(self, view: Callable[[Tensor], Tensor] | None) -> None:
        self.augment, self.view = AutoAugment(), view

    def __call__(self, x: Tensor) -> Tensor:
        x = self.augment(x)
        return x if self.view is None else self.view(x)


def _augmented(views: Views | Callable[[Tensor], Tensor] | None) -> Views:
    """The same views, with AutoAugment before that of training."""
    if views is None:
        return Views(_Augmented(None), _unchanged)
    if isinstance(views, Views):
        return Views(_Augmented(views.train), views.eval)
    return Views(_Augmented(views), views)


def _unchanged(x: Tensor) -> Tensor:
    return x
