"""Maximally interfered retrieval as its paper tells it: a copy of the model takes the step."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


def losses_around_a_step(
    model: nn.Module,
    arrivals: Batch,
    candidates: Batch,
    lr: float,
    loss: Callable[[Tensor, Batch], Tensor],
    last: str | None = None,
    call: Callable[[nn.Module, Batch], Tensor] = lambda model, batch: model(batch["x"]),
) -> tuple[Tensor, Tensor]:
    """Losses [c] of the candidates before and after one SGD step of a copy on the arrivals, in evaluation mode.

    last: name of the only module that moves.
    """
    virtual = copy.deepcopy(model).eval()
    with torch.no_grad():
        before = loss(call(virtual, candidates), candidates)
    moving = virtual if last is None else virtual.get_submodule(last)
    virtual.zero_grad()
    loss(call(virtual, arrivals), arrivals).mean().backward()
    torch.optim.SGD([p for p in moving.parameters() if p.requires_grad], lr=lr).step()
    with torch.no_grad():
        return before, loss(call(virtual, candidates), candidates)
