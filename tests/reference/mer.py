"""Meta-Experience Replay as its authors' loops do it: copies of the state, one optimiser step a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

Row = tuple[Tensor, Tensor]  # x [1, ...], y [1]
Criterion = Callable[[Tensor, Tensor], Tensor]


def towards(model: nn.Module, before: dict[str, Tensor], rate: float) -> None:
    """before + rate (state - before) for everything that is a floating-point number."""
    after = model.state_dict()
    model.load_state_dict(
        {
            name: before[name] + rate * (value - before[name]) if value.is_floating_point() else value
            for name, value in after.items()
        }
    )


def step(model: nn.Module, sgd: torch.optim.Optimizer, criterion: Criterion, row: Row, scale: float = 1.0) -> None:
    sgd.zero_grad()
    (scale * criterion(model(row[0]), row[1])).backward()
    sgd.step()


def algorithm_1(model, sgd, criterion, row: Row, draw: Callable[[], Sequence[Row]], steps, beta, gamma) -> None:
    first = deepcopy(model.state_dict())
    for _ in range(steps):
        before = deepcopy(model.state_dict())
        for each in [row, *draw()]:
            step(model, sgd, criterion, each)
        towards(model, before, beta)
    towards(model, first, gamma)


def algorithm_6(model, sgd, criterion, row: Row, draw: Callable[[], Sequence[Row]], steps, gamma) -> None:
    for _ in range(steps):
        before = deepcopy(model.state_dict())
        for each in [*draw(), row]:
            step(model, sgd, criterion, each)
        towards(model, before, gamma)


def algorithm_7(
    model, sgd, criterion, row: Row, draw, permutation: Callable[[int], Sequence[int]], gamma, cur_scale
) -> None:
    before = deepcopy(model.state_dict())
    rows = [*draw(), row]
    for place in permutation(len(rows)):
        step(model, sgd, criterion, rows[place], cur_scale if place == len(rows) - 1 else 1.0)
    towards(model, before, gamma)
