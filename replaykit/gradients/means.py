"""Mean gradients of groups of rows, as rows of their own."""

from __future__ import annotations

import torch

from replaykit.gradients.blocks import Block, Direct
from replaykit.gradients.factored import FactoredGradients
from replaykit.gradients.result import PerSampleGradients


def group_means(gradients: PerSampleGradients, size: int) -> PerSampleGradients:
    """Mean gradients of every `size` consecutive rows of n: gradients of n / size rows.

    A mean is a sum of outer products like a row is, with as many more of them; so it is not formed either.
    Where the rows do not fit into the budget together, it is: n / size vectors of p numbers.

    Raises:
        ValueError: the rows cannot be cut into groups of this size.
    """
    n = len(gradients)
    if size < 1 or n % size:
        raise ValueError(f"{n} rows cannot be cut into groups of {size}")
    if size == 1 or n == 0:
        return gradients
    chunks, like = gradients._chunks(), gradients._like
    numbers = torch.arange(n, device=like.device)
    if len(chunks) == 1 and torch.equal(chunks[0], numbers):
        means: dict[str, Block] = {layer: block.means(size) for layer, block in gradients._blocks(0).items()}
    else:
        groups = torch.arange(n // size, device=like.device)
        flat = torch.stack([gradients.weighted_sum((numbers // size == group) / size) for group in groups])
        parts, layers = gradients.layout.split(flat), dict[str, list[str]]()
        for name in parts:
            layers.setdefault(name.rpartition(".")[0], []).append(name)
        means = {layer: Direct(tuple(own), tuple(parts[name] for name in own)) for layer, own in layers.items()}
    rows = numbers[: n // size]
    return FactoredGradients(gradients.layout, len(rows), like, gradients._budget, [(rows, means)])
