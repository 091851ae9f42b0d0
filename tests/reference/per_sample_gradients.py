"""Gradients of single rows by one backward pass each, as every text book does it."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


def one_by_one(
    model: nn.Module,
    batch: Batch,
    loss: Callable[[Tensor, Batch], Tensor],
    call: Callable[[nn.Module, Batch], Tensor] = lambda model, row: model(row["x"]),
) -> dict[str, Tensor]:
    """{name of a trainable parameter: gradients [n, size]} of a copy of the model in evaluation mode."""
    model = copy.deepcopy(model).eval()
    n = next(iter(batch.values())).shape[0]
    rows: dict[str, list[Tensor]] = {name: [] for name, p in model.named_parameters() if p.requires_grad}
    for i in range(n):
        row = {name: value[i : i + 1] for name, value in batch.items()}
        model.zero_grad(set_to_none=True)
        value = loss(call(model, row), row)[0]
        if value.requires_grad:
            value.backward()
        for name, parameter in model.named_parameters():
            if name in rows:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                rows[name].append((gradient.to_dense() if gradient.is_sparse else gradient).flatten().clone())
    return {name: torch.stack(gradients) for name, gradients in rows.items()}


def flat(gradients: dict[str, Tensor]) -> Tensor:
    """[n, p] in the order of ``named_parameters()``."""
    return torch.cat(list(gradients.values()), 1)
