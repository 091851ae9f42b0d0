"""From what was recorded of a layer to the block of its per-sample gradients.

One function a kind of layer: (module, names of its parameters, calls) -> Block, where each call is the
output gradient and the input, both [n, ...].
"""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import partial
from typing import Any, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from replaykit.gradients.blocks import Block, Direct, sum_of
from replaykit.gradients.outer import Lookup, Outer, Tokens
from replaykit.gradients.structure import Structure

Builder: TypeAlias = Callable[[Any, tuple[str, ...], list[Tokens]], Block]


def linear(module: nn.Linear, names: tuple[str, ...], calls: list[Tokens]) -> Block:
    flat = [(_tokens_last(b), _tokens_last(a)) for b, a in calls]
    tokens = sum(b.shape[1] for b, _ in flat)
    return Outer(names, flat, (tokens, module.out_features, module.in_features))


def convolution(module: nn.Conv2d, names: tuple[str, ...], calls: list[Tokens]) -> Block:
    tokens = sum(b.shape[2:].numel() for b, _ in calls)
    o = module.out_channels // module.groups
    i = module.in_channels // module.groups * _product(module.kernel_size)
    return Outer(names, calls, (tokens, o, i), module.groups, partial(unfolded, module))


def unfolded(module: nn.Conv2d, b: Tensor, a: Tensor) -> Tokens:
    """Output gradients [r, T, o] and input patches [r, T, i] of a convolution over any number of axes."""
    r, g = a.shape[0], module.groups
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    if any(module._reversed_padding_repeated_twice):
        a = F.pad(a, module._reversed_padding_repeated_twice, mode=mode)
    axes = b.ndim - 2
    steps = a.stride()[2:]
    windows = a.as_strided(
        (r, a.shape[1], *b.shape[2:], *module.kernel_size),
        (
            *a.stride()[:2],
            *(step * by for step, by in zip(steps, module.stride, strict=True)),
            *(step * by for step, by in zip(steps, module.dilation, strict=True)),
        ),
        a.storage_offset(),
    )
    # [r, channels, *positions, *kernel] -> [r, *positions, channels, *kernel]
    positions, kernel = range(2, 2 + axes), range(2 + axes, 2 + 2 * axes)
    u = windows.permute(0, *positions, 1, *kernel).reshape(r, b.shape[2:].numel(), g, -1)
    b = b.flatten(2).transpose(1, 2).reshape(r, -1, g, b.shape[1] // g)
    return (b, u) if g > 1 else (b[:, :, 0], u[:, :, 0])


def embedding(module: nn.Embedding, names: tuple[str, ...], calls: list[Tokens]) -> Block:
    flat = []
    for b, index in calls:
        b, index = b.reshape(b.shape[0], -1, b.shape[-1]), index.reshape(index.shape[0], -1, 1)
        if module.padding_idx is not None:
            b = b.masked_fill(index == module.padding_idx, 0.0)
        flat.append((b, index.long()))
    tokens = sum(b.shape[1] for b, _ in flat)
    return Lookup(names, flat, (tokens, module.embedding_dim, module.num_embeddings))


def layer_norm(module: nn.LayerNorm, names: tuple[str, ...], calls: list[Tokens]) -> Block:
    shape = module.normalized_shape
    return _affine(names, [(b, F.layer_norm(a, shape, eps=module.eps)) for b, a in calls], last=len(shape))


def rms_norm(module: nn.RMSNorm, names: tuple[str, ...], calls: list[Tokens]) -> Block:
    shape = module.normalized_shape
    scaled = [(b, F.rms_norm(a, list(shape), eps=module.eps)) for b, a in calls]
    return _affine(names, scaled, last=len(shape))


def group_norm(module: nn.GroupNorm, names: tuple[str, ...], calls: list[Tokens]) -> Block:
    return _affine(names, [(b, F.group_norm(a, module.num_groups, eps=module.eps)) for b, a in calls])


def batch_norm(module: nn.BatchNorm2d, names: tuple[str, ...], calls: list[Tokens]) -> Block:
    mean, variance = module.running_mean, module.running_var
    return _affine(names, [(b, F.batch_norm(a, mean, variance, eps=module.eps)) for b, a in calls])


def _affine(names: tuple[str, ...], calls: list[Tokens], last: int = 0) -> Block:
    """Scale and shift per channel (axis 1), or per entry of the `last` axes."""
    scales: list[Tensor] = []
    shifts: list[Tensor] = []
    for b, normal in calls:
        for terms, values in ((scales, b * normal), (shifts, b)):
            n = values.shape[0]
            if last:
                terms.append(values.reshape(n, -1, values.shape[-last:].numel()).sum(1))
            else:
                terms.append(values.reshape(n, values.shape[1], -1).sum(2))
    return Direct(names, (sum_of(scales), sum_of(shifts))[: len(names)])


def _tokens_last(values: Tensor) -> Tensor:
    return values.reshape(values.shape[0], -1, values.shape[-1])


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


# kind of layer: its builder, and the numbers of axes that an input of several rows may have
LAYERS: dict[type[nn.Module], tuple[Builder, range]] = {
    nn.Linear: (linear, range(2, 9)),
    nn.Conv1d: (convolution, range(3, 4)),
    nn.Conv2d: (convolution, range(4, 5)),
    nn.Conv3d: (convolution, range(5, 6)),
    nn.Embedding: (embedding, range(1, 9)),
    nn.LayerNorm: (layer_norm, range(2, 9)),
    nn.RMSNorm: (rms_norm, range(2, 9)),
    nn.GroupNorm: (group_norm, range(2, 9)),
    nn.BatchNorm1d: (batch_norm, range(2, 4)),
    nn.BatchNorm2d: (batch_norm, range(4, 5)),
    nn.BatchNorm3d: (batch_norm, range(5, 6)),
}


def candidates(structure: Structure, selected: Container[str]) -> dict[str, tuple[nn.Module, tuple[str, ...]]]:
    """Layers of a known kind whose parameters are all selected and belong to them alone."""
    found = {}
    for path, module in structure.modules.items():
        if type(module) not in LAYERS:
            continue
        own = {name: value for name, value in module._parameters.items() if value is not None}
        names = tuple(f"{path}.{name}" if path else name for name in own)
        if next(iter(own), "") != "weight":
            continue
        if all(name in selected for name in names) and structure.shared.isdisjoint(map(id, own.values())):
            if isinstance(module, nn.Embedding) and module.scale_grad_by_freq:
                continue
            found[path] = (module, names)
    return found


def refuse_side_effects(structure: Structure) -> None:
    """Raise `ValueError` for a layer that changes its parameters in a forward pass."""
    for name, module in structure.modules.items():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            raise ValueError(
                f"embedding {name!r} has max_norm, which rewrites its weight in every forward pass: "
                "it cannot be scored without changing it; build it with max_norm=None"
            )
