"""Frozen embeddings: any data, seen once by a network that learns no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from replaykit.benchmarks.data import Data


def embedded(data: Data, embed: Callable[[Tensor], Tensor], chunk: int = 512) -> Data:
    """The same rows as float32 vectors [n, d]: what `embed` makes of them, computed once.

    Args:
        data: images, feature rows or token ids.
        embed: raw rows [n, ...] to vectors [n, d]. A module is asked in evaluation mode, which is put back.
        chunk: rows at a time.

    Raises:
        ValueError: what comes out is not one vector a row.
    """
    modes = [(module, module.training) for module in embed.modules()] if isinstance(embed, nn.Module) else []
    for module, _ in modes:
        module.training = False
    try:
        x_train, x_test = (_embedded(x, embed, chunk) for x in (data.x_train, data.x_test))
    finally:
        for module, training in modes:
            module.training = training
    name = f"embedded_{data.name}"
    return replace(data, name=name, x_train=x_train, x_test=x_test, mean=(), std=(), vocabulary=())


@torch.no_grad()
def _embedded(x: Tensor, embed: Callable[[Tensor], Tensor], chunk: int) -> Tensor:
    parts = []
    for part in torch.split(x, chunk):
        vectors = embed(part)
        if vectors.ndim != 2 or len(vectors) != len(part):
            raise ValueError(
                f"an embedding is one vector a row, [{len(part)}, d], got shape {list(vectors.shape)}; flatten "
                "or pool"
            )
        parts.append(vectors.float().cpu())
    return torch.cat(parts)
