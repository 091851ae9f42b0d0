"""Experience Replay with Asymmetric Metric Learning (ER-AML)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from avalanche.models.utils import is_multi_task_module
from torch import Tensor

from replaykit.augment import Views
from replaykit.avalanche import Replay, Template
from replaykit.avalanche.tasks import task_of
from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.losses import CrossEntropy, Features, FeatureSource, asymmetric_metric, draw_partners
from replaykit.losses.base import check_temperature
from replaykit.probe import Probe


class ERAML(Template):
    """A metric loss of the stream that pushes new classes away from each other alone, and replayed cross-entropy.

    Each row of the stream gets one positive (its label, another row) and one negative (another label among those
    of the batch) out of the memory and the batch, drawn from the buffer's generator of draws; rows without either
    are left out. The loss is that of `replaykit.losses.asymmetric_metric` + CE(memory): three forward passes, of
    the stream, the partners and the replayed rows. In the first task the stream has cross-entropy. A batch of one
    class has no negatives, so it adds nothing.

    Source: Caccia et al., New Insights on Reducing Abrupt Representation Change in Online Continual Learning, ICLR
    2022, and the authors' code.
    Departures: replay begins with the second batch of the first task, as in `replaykit.strategies.ER`.

    Args:
        model, optimizer: what is trained.
        buffer: the memory.
        batch_size_mem: rows of a memory batch; default: `train_mb_size`.
        temperature, base_temperature: T and T₀ of the metric loss.
        task_free: the metric loss in the first task too, so that no boundary is needed. Sub-experiences of an
            online stream belong to the experience that they were cut from.
        features: see `replaykit.losses.Features`; default: what enters the last layer.
        views, retrieval, probe, update, fast_loader: see `replaykit.avalanche.Replay`.
        plugins: further plugins, called after the replay.
        template: arguments of Avalanche's `SupervisedTemplate`.

    Published: Split CIFAR-10 and CIFAR-100, one pass, batch 10 + 10, SGD with lr 0.1, reduced ResNet-18,
    reservoir, T = 0.2, T₀ = 0.07.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        buffer: Buffer,
        batch_size_mem: int | None = None,
        temperature: float = 0.2,
        base_temperature: float = 0.07,
        task_free: bool = False,
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
            raise ValueError("ER-AML compares all classes in one space; give a model that takes no task labels")
        self.temperature = check_temperature("temperature", temperature)
        self.base_temperature = check_temperature("base_temperature", base_temperature)
        self.task_free, self.embedding = task_free, Features(features)
        self._anchors: Tensor | None = None
        self.replay = _Partners(
            buffer,
            batch_size_mem,
            loss=CrossEntropy(),
            views=views,
            retrieval=retrieval,
            probe=probe,
            update=update,
            fast_loader=fast_loader,
        )
        plugins = [self.replay, *(plugins or ())]
        super().__init__(model=model, optimizer=optimizer, plugins=plugins, **template)

    def forward(self) -> Tensor:
        self._anchors = None
        if not self.is_training or not (self.task_free or task_of(self.experience)):
            z: Tensor = super().forward()
            return z
        self._anchors, z = self.embedding.both(self.model, {"x": self.mb_x})
        return z

    def criterion(self) -> Tensor:
        if self._anchors is None:
            loss: Tensor = super().criterion()
            return loss
        rows, batch = self.replay.partners(self)
        anchors, self._anchors = self._anchors[rows], None
        if len(rows) == 0:
            return anchors.sum()  # 0, and the step may go on without a gradient of the stream
        return asymmetric_metric(
            anchors,
            self.mb_y[rows],
            self.embedding(self.model, batch),
            batch["y"],
            self.temperature,
            self.base_temperature,
        )


class _Partners(Replay):
    """Replay that also finds partners for the rows of the stream, in the memory and among themselves."""

    def partners(self, strategy: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Rows of the mini-batch that have both [v], and their positives, then their negatives: x and y [2v]."""
        store, device = self.buffer.store, strategy.device
        y = self._arrivals["y"].cpu().numpy()
        slots = store.filled
        held = store.host("y")[slots] if len(store) else np.empty(0, y.dtype)
        pool = np.concatenate([held, y])
        rows, *both = draw_partners(y, pool, len(held), self.buffer.draws)
        chosen = np.concatenate(both)
        stored = chosen < len(held)
        raw = self._arrivals["x"]
        x = raw.new_empty((len(chosen), *raw.shape[1:]))
        where = torch.from_numpy(stored).to(device)
        if stored.any():
            x[where] = self.buffer.read(slots[chosen[stored]], ["x"])["x"].to(device)
        x[~where] = raw[torch.from_numpy(chosen[~stored] - len(held)).to(device)]
        if self.views is not None and len(x):
            x = self.views.train(x)
        return torch.from_numpy(rows).to(device), {"x": x, "y": torch.from_numpy(pool[chosen]).to(device)}
