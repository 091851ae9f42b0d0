"""Forward passes in training mode that leave BatchNorm's running statistics as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@contextmanager
def untracked(model: nn.Module, when: bool = True) -> Iterator[None]:
    """Layers in training mode normalise by the batch and record nothing; those in evaluation mode are as ever."""
    # Without tracking, a layer in evaluation mode would not read its running statistics either.
    layers = [m for m in model.modules() if isinstance(m, _NormBase) and m.training] if when else []
    before = [layer.track_running_stats for layer in layers]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer, tracked in zip(layers, before, strict=True):
            layer.track_running_stats = tracked


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """All modules in training mode; each goes back to its own mode after."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
