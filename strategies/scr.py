"""Supervised Contrastive Replay (SCR)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn

from replaykit.augment import Views
from replaykit.avalanche import Replay, Template
from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.contrastive import supervised_contrastive
from replaykit.losses import Features, FeatureSource
from replaykit.losses.base import check_temperature
from replaykit.nearest_mean import NearestMean
from replaykit.probe import Probe


class SCR(Template):
    """The supervised contrastive loss of stream and memory rows in two views, and a nearest-mean classifier.

    Every row is seen plainly (its evaluation view) and augmented (a training view); the features of both, through
    the projection if there is one, are contrasted by label. Two forward passes a step. The last layer of the
    model is not trained: what predicts is `classifier`, whose means are those of the memory's features, without
    the projection.

    Source: Mai et al., Supervised Contrastive Replay: Revisiting the Nearest Class Mean Classifier in Online
    Class-Incremental Continual Learning, CVPR Workshops 2021, algorithm 1.
    Departures: the first batch, before anything is stored, is trained on too.

    Args:
        model, optimizer: what is trained.
        buffer: the memory.
        batch_size_mem: rows of a memory batch; default: `train_mb_size`.
        temperature: of the similarities.
        projection: what the features pass before they are contrasted: a module, or a number of outputs d for an
            MLP (width - width - d) over features of a width that the model says (`model.width`, or its last linear
            layer). Its parameters join the optimiser's first group. None: the features themselves.
        seed: of the MLP's first weights.
        features: see `replaykit.losses.Features`; default: what enters the last layer.
        views, retrieval, probe, update, fast_loader: see `replaykit.avalanche.Replay`. Without views that
            augment, the two views are the same.
        plugins: further plugins, called after the replay.
        template: arguments of Avalanche's `SupervisedTemplate`.

    Published: Split CIFAR-10, CIFAR-100 and Mini-ImageNet, one pass, batch 10 + 100, SGD with lr 0.1, reduced
    ResNet-18, reservoir, τ = 0.07, projection 128; crops, flips, colour jitter and grey.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        buffer: Buffer,
        batch_size_mem: int | None = None,
        temperature: float = 0.07,
        projection: nn.Module | int | None = None,
        seed: int = 0,
        features: FeatureSource = None,
        views: Views | Callable[[Tensor], Tensor] | None = None,
        retrieval: AnyRetrieval | None = None,
        probe: Callable[[Any], Probe] | None = None,
        update: str | None = None,
        fast_loader: bool = True,
        plugins: Sequence[Any] | None = None,
        **template: Any,
    ) -> None:
        if is_multi_task_module(model):
            raise ValueError("SCR compares all classes in one space; give a model that takes no task labels")
        self.temperature, self.embedding = check_temperature("temperature", temperature), Features(features)
        self.replay = _TwoViews(
            buffer,
            batch_size_mem,
            views=views,
            retrieval=retrieval,
            probe=probe,
            update=update,
            fast_loader=fast_loader,
        )
        plugins = [self.replay, *(plugins or ())]
        super().__init__(model=model, optimizer=optimizer, plugins=plugins, **template)
        self.projection = _mlp(model, projection, seed) if isinstance(projection, int) else projection
        if self.projection is not None:
            self.projection.to(self.device)
            _join(optimizer, self.projection)
        self._contrasted: list[Tensor] = []

    def forward(self) -> Tensor:
        if not self.is_training:
            z: Tensor = super().forward()
            return z
        first, z = self.embedding.both(self.model, {"x": self.mb_x})
        self._contrasted = [first, self.embedding(self.model, {"x": self.replay.second})]
        return z

    def criterion(self) -> Tensor:
        if not self.is_training:
            loss: Tensor = super().criterion()
            return loss
        z, y = torch.cat(self._contrasted), self.mb_y
        self._contrasted = []
        if self.projection is not None:
            z = self.projection(z)
        return supervised_contrastive(z, torch.cat([y, y]), self.temperature)

    def classifier(self) -> Any:
        """The nearest of the means of the memory's features; the model while nothing is stored."""
        buffer, views = self.replay.buffer, self.replay.views
        if len(buffer) == 0:
            return self.model
        rows = buffer.read(buffer.store.filled, ["x", "y"])
        x = rows["x"].to(self.device)
        x = x if views is None else views.eval(x)
        classes = Probe(self.model).logits({"x": x[:1]}).shape[1]
        return NearestMean(_Embedding(self.model, self.embedding)).fit(x, rows["y"].to(self.device), classes)

    def state_dict(self) -> dict[str, Any]:
        if self.projection is None:
            return {}
        return {"projection": {name: value.clone() for name, value in self.projection.state_dict().items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.keys() != self.state_dict().keys():
            raise ValueError(
                f"a state with {sorted(state) or 'nothing'} does not fit SCR "
                f"{'without' if self.projection is None else 'with'} a projection"
            )
        if self.projection is not None:
            try:
                self.projection.load_state_dict(state["projection"])
            except (RuntimeError, TypeError) as error:
                raise ValueError(f"the saved projection does not fit: {error}") from error


class _TwoViews(Replay):
    """Shows the rows of stream and memory plainly in the mini-batch, and augmented in `second`."""

    second: Tensor = torch.zeros(0)

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._probe(strategy)  # made while the views, which it shows rows in, are still there
        views, self.views = self.views, None  # the rows of both, raw
        try:
            super().before_training_iteration(strategy, *args, **kwargs)
        finally:
            self.views = views
        raw = strategy.mbatch[0]
        self.second = raw if views is None else views.train(raw)
        strategy.mbatch[0] = raw if views is None else views.eval(raw)


class _Embedding(nn.Module):
    """The features of a model as a module, so that its mode is the model's."""

    def __init__(self, model: nn.Module, embedding: Features) -> None:
        super().__init__()
        self.model, self.embedding = model, embedding

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding(self.model, {"x": x})


def _mlp(model: nn.Module, outputs: int, seed: int) -> nn.Module:
    width = getattr(model, "width", None)
    if width is None:
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise ValueError("SCR cannot tell the width of the features; pass the projection as a module")
        width = linear[-1].in_features
    if outputs < 1:
        raise ValueError(f"projection is a module or a number of outputs >= 1, got {outputs}")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)).to(dtype)


def _join(optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
    """Optimise the parameters of a module in the first group, unless that is done already."""
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    # Not a group of its own: a scheduler that is there already knows the learning rates of its groups.
    optimizer.param_groups[0]["params"] += [p for p in module.parameters() if id(p) not in known]
