"""Inner problems as functions of parameters: what a bilevel selector differentiates.

A `Problem` is a dictionary of parameters to start from and a function from such a dictionary and row
numbers to per-row losses, differentiable twice. `InnerLoss` is its weighted sum with the graph to do so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from replaykit.selectors.pool import Pool, finite, working_dtype

Parameters: TypeAlias = dict[str, Tensor]


class Problem(NamedTuple):
    """Parameters to start from, and losses [b] of given rows [b] as a function of parameters."""

    parameters: Parameters
    losses: Callable[[Parameters, Tensor], Tensor]


class InnerLoss:
    """Σ w_i l_i(θ) over some rows, times n / rows so that a batch estimates the whole.

    One forward and one backward pass when built, one backward pass per product. No `.grad` is written.

    Args:
        parameters: θ.
        w: weights of all rows [n].
        rows: those that are summed [b].
    """

    def __init__(self, problem: Problem, parameters: Parameters, w: Tensor, rows: Tensor) -> None:
        with torch.enable_grad():
            self._names = list(parameters)
            self._leaves = [value.detach().requires_grad_() for value in parameters.values()]
            self._weight = w.index_select(0, rows).detach().requires_grad_()
            losses = problem.losses(dict(zip(self._names, self._leaves, strict=True)), rows)
            self._scale = len(w) / len(rows)
            value = (losses.double() @ self._weight) * self._scale
            self._gradient = torch.autograd.grad(
                value, self._leaves, create_graph=True, allow_unused=True, materialize_grads=True
            )

    def gradient(self) -> Parameters:
        return {name: g.detach() for name, g in zip(self._names, self._gradient, strict=True)}

    def hessian_product(self, v: Parameters) -> Parameters:
        """The Hessian in θ times v."""
        product = self._backward(self._leaves, v)
        return dict(zip(self._names, product, strict=True))

    def slopes(self, u: Parameters) -> Tensor:
        """⟨∇l_i, u⟩ of every row, float64 [b]."""
        # The gradient is linear in the weights, so its derivative in a weight is that row's gradient.
        return self._backward([self._weight], u)[0] / self._scale

    def _backward(self, inputs: list[Tensor], v: Parameters) -> tuple[Tensor, ...]:
        directions = [v[name] for name in self._names]
        return torch.autograd.grad(
            self._gradient, inputs, directions, retain_graph=True, allow_unused=True, materialize_grads=True
        )


def linear_problem(quantity: str = "features") -> Callable[[Pool], Problem]:
    """A softmax classifier on one quantity of the pool, started at zero.

    The vectors are scaled to a mean square of 1, so that step sizes do not depend on their units.
    """

    def build(pool: Pool) -> Problem:
        x = pool.tensor(quantity).detach().flatten(1).to(working_dtype(pool.n))
        x = finite(x, "linear_problem", quantity)
        scale = x.square().sum(1).mean().sqrt()
        x = torch.cat([x / scale if scale > 0 else x, x.new_ones(pool.n, 1)], dim=1)
        classes, y = torch.unique(_labels(pool).to(x.device), return_inverse=True)

        def losses(parameters: Parameters, rows: Tensor) -> Tensor:
            logits = x.index_select(0, rows) @ parameters["weight"]
            return cross_entropy(logits, y.index_select(0, rows), reduction="none")

        return Problem({"weight": x.new_zeros(x.shape[1], len(classes))}, losses)

    return build


def model_problem(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    quantity: str = "x",
) -> Callable[[Pool], Problem]:
    """A model, started at its present parameters, on inputs of the pool that are ready for it.

    The model is called in evaluation mode with copies of its parameters and buffers: it stays as it is.

    Args:
        loss: (outputs [b, ...], labels [b]) to losses [b]; cross-entropy by default.
    """

    def build(pool: Pool) -> Problem:
        x, y = pool.tensor(quantity).detach(), _labels(pool)
        row_loss = loss if loss is not None else _cross_entropy
        trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        fixed = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
        fixed |= {name: buffer.detach().clone() for name, buffer in model.named_buffers()}

        def losses(parameters: Parameters, rows: Tensor) -> Tensor:
            with evaluating(model):
                outputs = functional_call(model, {**fixed, **parameters}, (x.index_select(0, rows.to(x.device)),))
            return row_loss(outputs, y.to(outputs.device).index_select(0, rows.to(outputs.device)))

        return Problem(trained, losses)

    return build


def _cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(outputs, y, reduction="none")


def _labels(pool: Pool) -> Tensor:
    if pool.y is None:
        raise ValueError("the problem needs labels; build the pool with y")
    return pool.y


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
