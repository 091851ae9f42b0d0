"""Gradients by function transforms: per row for any model, along directions, and of weighted sums."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from replaykit.gradients.blocks import Block, Direct
from replaykit.gradients.objective import Objective
from replaykit.store import Batch

# Models whose forward pass cannot be mapped over rows (control flow that depends on the data).
_unmappable: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def explicit(
    objective: Objective, names: list[str], args: tuple[Any, ...], batch: Batch, route: str = "auto"
) -> dict[str, Block]:
    """Gradients of every row with respect to some parameters, as one `Direct` block a layer.

    Args:
        route: "func" maps over rows (`torch.func`), "loop" takes one backward pass a row, "auto" loops only
            where mapping fails.
    """
    if route == "loop" or (route == "auto" and objective.model in _unmappable):
        formed = looped(objective, names, args, batch)
    elif route == "func":
        formed = mapped(objective, names, args, batch)
    else:
        try:
            formed = mapped(objective, names, args, batch)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError:
            formed = looped(objective, names, args, batch)
            _unmappable[objective.model] = True
    owners: dict[str, list[str]] = {}
    for name in names:
        owners.setdefault(name.rpartition(".")[0], []).append(name)
    return {owner: Direct(tuple(own), tuple(formed[name] for name in own)) for owner, own in owners.items()}


def mapped(objective: Objective, names: list[str], args: tuple[Any, ...], batch: Batch) -> dict[str, Tensor]:
    """Per-row gradients {name: [n, size]} by vmap of grad."""
    n = next(iter(batch.values())).shape[0]
    per_row = [isinstance(arg, Tensor) and arg.ndim > 0 and arg.shape[0] == n for arg in args]

    def loss(parameters: dict[str, Tensor], row_args: list[Any], row: Batch) -> Tensor:
        lifted = [arg[None] if rows else arg for arg, rows in zip(row_args, per_row, strict=True)]
        one = {name: value[None] for name, value in row.items()}
        return objective.losses_at(parameters, tuple(lifted), one)[0]

    parameters = {name: objective.structure.parameters[name].detach() for name in names}
    axes = [0 if rows else None for rows in per_row]
    with _plain_attention():
        formed: dict[str, Tensor] = vmap(grad(loss), in_dims=(None, axes, 0), randomness="different")(
            parameters, list(args), batch
        )
    return {name: value.flatten(1) if value.ndim > 1 else value[:, None] for name, value in formed.items()}


def looped(objective: Objective, names: list[str], args: tuple[Any, ...], batch: Batch) -> dict[str, Tensor]:
    """Per-row gradients {name: [n, size]} by one forward and backward pass a row."""
    n = next(iter(batch.values())).shape[0]
    leaves = objective.leaves(names)
    formed = {name: leaf.new_zeros(n, leaf.numel()) for name, leaf in leaves.items()}
    for i in range(n):
        row = {name: value[i : i + 1] for name, value in batch.items()}
        losses = objective.losses_at(leaves, row_of(args, i, n), row)
        for name, value in gradients(losses[0], leaves).items():
            formed[name][i] = value.flatten()
    return formed


def row_of(args: tuple[Any, ...], i: int, n: int) -> tuple[Any, ...]:
    """Arguments of a model that belong to row i of n."""
    return tuple(
        arg[i : i + 1] if isinstance(arg, Tensor) and arg.ndim > 0 and arg.shape[0] == n else arg for arg in args
    )


def gradients(value: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Dense gradients of a scalar with respect to the leaves it depends on."""
    if not value.requires_grad:
        return {}
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {
        name: part.to_dense() if part.is_sparse else part
        for name, part in zip(leaves, found, strict=True)
        if part is not None
    }


def weighted_sum(objective: Objective, args: tuple[Any, ...], batch: Batch, weights: Tensor) -> dict[str, Tensor]:
    """Σ_i weights_i G_i by one backward pass."""
    leaves = objective.leaves()
    losses = objective.losses_at(leaves, args, batch)
    return gradients((weights.to(losses.dtype) * losses).sum(), leaves)


def along(objective: Objective, args: tuple[Any, ...], batch: Batch, directions: Tensor) -> Tensor:
    """Products of every row's gradient with k directions [k, p]: [n, k], without per-row gradients.

    One forward-mode derivative of the loss vector for each direction; where an operation has none, the
    derivative with respect to s of <grad of s·losses, direction> (double backward).
    """
    parameters = {name: leaf.detach() for name, leaf in objective.leaves().items()}

    def losses(values: dict[str, Tensor]) -> Tensor:
        return objective.losses_at(values, args, batch)

    columns = []
    _load_forward_mode()
    with _plain_attention():
        for direction in directions:
            split = objective.layout.split(direction.to(next(iter(parameters.values())).dtype))
            tangent = {name: split[name].view_as(value) for name, value in parameters.items()}
            try:
                columns.append(jvp(losses, (parameters,), (tangent,))[1])
            except RuntimeError:
                columns.append(double_backward(objective, args, batch, tangent))
    return torch.stack(columns, 1)


def double_backward(
    objective: Objective, args: tuple[Any, ...], batch: Batch, tangent: Mapping[str, Tensor]
) -> Tensor:
    """Products [n] of every row's gradient with one direction, by differentiating twice."""
    leaves = objective.leaves()
    losses = objective.losses_at(leaves, args, batch)
    s = torch.ones_like(losses, requires_grad=True)
    found = torch.autograd.grad(losses, list(leaves.values()), s, create_graph=True, allow_unused=True)
    product = losses.new_zeros(())
    for name, part in zip(leaves, found, strict=True):
        if part is not None:
            product = product + (part * tangent[name]).sum()
    if not product.requires_grad:
        return torch.zeros_like(losses)
    return torch.autograd.grad(product, s)[0]


@cache
def _load_forward_mode() -> None:
    """Forward mode loads its rules when first used; torch then warns about torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        jvp(torch.neg, (torch.zeros(()),), (torch.zeros(()),))


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention in elementary operations: fused ones cannot be mapped over, nor derived in forward mode."""
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
