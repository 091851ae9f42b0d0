"""Frozen embeddings: any data, seen once by a network that learns no more, and a stream of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from replaykit.benchmarks.data import Data
from replaykit.benchmarks.patches import PatchEmbedding
from replaykit.benchmarks.published import digits
from replaykit.benchmarks.scenarios import Groups
from replaykit.benchmarks.splits import SplitOptions, split
from replaykit.benchmarks.stream import Stream


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


def split_embedded_digits(tasks: int | Groups = 5, **options: Unpack[SplitOptions]) -> Stream:
    """Frozen embeddings of scikit-learn's digits, 100 numbers a row, without any file. Options of `split`.

    The network is a dictionary of 25 patches of 3 × 3 pixels, learned from all training images without labels.
    """
    images = digits()
    embed = PatchEmbedding(images.x_train, atoms=25, side=3, stride=1, patches=5000)
    return split(replace(embedded(images, embed), name="embedded_digits"), tasks, **options)
