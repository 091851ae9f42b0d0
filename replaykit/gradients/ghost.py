"""One forward and one backward pass that give the factors of every row's gradient.

Hooks record the input of each layer of a known kind and the place of its output in the graph; the backward
pass stops at those places, so no parameter gradient is formed. Whether the factors mean what they seem to
(rows along the first axis, no use of the weights behind the layer's back, no row that feels another one) is
checked, not assumed: with fixed weights s, Σ_i s_i G_i from the factors must be the gradient of Σ_i s_i l_i.
As this is linear in s, it holds for generic s only if every G_i is right. A layer that fails goes to the
functional route. The check costs a second backward pass, once for each form of call.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from replaykit.gradients.blocks import Block
from replaykit.gradients.budget import Budget
from replaykit.gradients.layers import LAYERS, candidates
from replaykit.gradients.objective import Objective, refuse_nan
from replaykit.store import Batch

Layers: TypeAlias = dict[str, tuple[nn.Module, tuple[str, ...]]]

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
# For each model and form of call, the layers that passed the check.
_passed: WeakKeyDictionary[nn.Module, dict[Hashable, frozenset[str]]] = WeakKeyDictionary()


@dataclass(slots=True)
class Call:
    """One call of a layer: its input, and where its output stands in the graph."""

    layer: str
    input: Tensor | None
    version: int
    edge: GradientEdge
    shape: torch.Size


def factors(
    objective: Objective, args: tuple[Any, ...], batch: Batch, budget: Budget, rows: Tensor | None = None
) -> tuple[dict[str, Block], list[str]]:
    """Blocks of the rows' gradients by layer, and the names of the parameters that need another route.

    With the numbers of the rows given, losses that are not finite are refused.
    """
    layers = candidates(objective.structure, objective.layout.shapes)
    if not layers:
        return {}, list(objective.layout.shapes)
    with _recording(layers) as calls:
        losses = objective.losses(args, batch)
    if rows is not None:
        refuse_nan(losses.detach(), "losses", rows)
    form = _form(objective, calls, losses.shape[0])
    known = _passed.setdefault(objective.model, {})
    passed = known.get(form)
    blocks = _blocks(layers, calls, losses, keep_graph=passed is None)
    if passed is None:
        passed, certain = _check(layers, blocks, losses, objective.structure.parameters, budget)
        if certain:
            if len(known) >= 64:
                known.clear()
            known[form] = passed
    covered = {name for layer in passed for name in layers[layer][1]}
    rest = [name for name in objective.layout.shapes if name not in covered]
    return {layer: block for layer, block in blocks.items() if layer in passed}, rest


@contextmanager
def _recording(layers: Layers) -> Iterator[list[Call]]:
    calls: list[Call] = []

    def record(layer: str, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            # The place in the graph outlives an in-place operation on the output, the tensor would not.
            given = args[0] if args and isinstance(args[0], Tensor) else None
            version = 0 if given is None else given._version
            kept = None if given is None else given.detach()
            calls.append(Call(layer, kept, version, get_gradient_edge(output), output.shape))

    handles = [
        module.register_forward_hook(lambda _, args, output, layer=layer: record(layer, args, output))
        for layer, (module, _) in layers.items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _blocks(layers: Layers, calls: list[Call], losses: Tensor, keep_graph: bool) -> dict[str, Block]:
    """The block of every layer whose calls all have the expected form."""
    if not losses.requires_grad or not calls:
        return {}
    gradients = torch.autograd.grad(
        losses.sum(), [call.edge for call in calls], retain_graph=keep_graph, allow_unused=True
    )
    n = losses.shape[0]
    recorded: dict[str, list[tuple[Tensor, Tensor]]] = {}
    odd = set()
    for call, b in zip(calls, gradients, strict=True):
        axes = LAYERS[type(layers[call.layer][0])][1]
        a = call.input
        if b is None:
            continue
        if a is None or a.ndim not in axes or a.shape[0] != n or b.shape[0] != n or a._version != call.version:
            odd.add(call.layer)
        else:
            recorded.setdefault(call.layer, []).append((b, a))
    blocks = {}
    for layer, pairs in recorded.items():
        if layer not in odd:
            module, names = layers[layer]
            blocks[layer] = LAYERS[type(module)][0](module, names, pairs)
    return blocks


def _check(
    layers: Layers, blocks: dict[str, Block], losses: Tensor, parameters: dict[str, Tensor], budget: Budget
) -> tuple[frozenset[str], bool]:
    """Layers whose factors reproduce the gradient of a weighted loss, and whether that proves anything."""
    weights = generic_weights(losses)
    names = [name for _, (_, own) in layers.items() for name in own]
    true: dict[str, Tensor | None] = dict.fromkeys(names)
    if losses.requires_grad:
        found = torch.autograd.grad(losses, [parameters[name] for name in names], weights, allow_unused=True)
        true = dict(zip(names, found, strict=True))
    passed, certain = set(), True
    for layer, (_, own) in layers.items():
        if layer not in blocks:
            if all(true[name] is None for name in own):
                passed.add(layer)  # not used: gradient zero
            continue
        made = blocks[layer].weighted_sum(weights, budget)
        differences = [_difference(made[name], true[name]) for name in own]
        error, size = (sum(pair[k] for pair in differences) for k in (0, 1))
        tolerance = TOLERANCE.get(losses.dtype, 5e-2)
        if error > tolerance * size:
            scale = float((blocks[layer].squares(budget).clamp(min=0).sqrt() * weights).sum())
            if error > tolerance * scale:
                continue
        passed.add(layer)
        certain = certain and size > 0
    return frozenset(passed), certain


def generic_weights(like: Tensor) -> Tensor:
    """Fixed weights [n] that are distinct and away from zero: multiples of the golden ratio, modulo 1."""
    numbers = torch.arange(1, like.shape[0] + 1, device=like.device, dtype=torch.float64)
    return ((numbers * 0.6180339887).frac() + 0.5).to(like.dtype)


def _difference(made: Tensor, true: Tensor | None) -> tuple[float, float]:
    """Norm of the difference, and sum of the norms."""
    if true is None:
        return float(made.norm()), float(made.norm())
    true = (true.to_dense() if true.is_sparse else true).flatten()
    return float((made - true).norm()), float(made.norm() + true.norm())


def _form(objective: Objective, calls: list[Call], n: int) -> Hashable:
    """What the outcome of the check may depend on: the calls with their shapes, n written as a symbol."""

    def symbolic(shape: torch.Size) -> tuple[int, ...]:
        return tuple(-1 if size == n else size for size in shape)

    return (
        n == 1,
        getattr(objective.loss, "__code__", type(objective.loss)),
        tuple(objective.layout.shapes.items()),
        tuple(
            (call.layer, symbolic(call.shape), None if call.input is None else symbolic(call.input.shape))
            for call in calls
        ),
    )
