"""The inner solver of the proxy models: regularised fits in a kernel's space, by Newton steps.

The published code runs L-BFGS for 200 to 300 iterations from a random start. The problem is convex, so any
solver finds the same minimum; from the previous solution, one more row costs about five steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from replaykit.selectors.proxy_loss import NOT_A_KERNEL, Curvature, Loss

#: Largest support whose systems are solved by factors rather than by conjugate gradients.
DIRECT = 96


def solve(
    gram: Tensor, curvature: Curvature, shift: float, rhs: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    """x [m, c] with ``shift x + curvature(gram x) = rhs``, and `gram x`.

    Up to `DIRECT` rows, and where conjugate gradients do not get there, by Cholesky factors.

    Raises:
        ValueError: the kernel has a negative direction.
    """
    if len(gram) > DIRECT:
        x, gram_x, left = conjugate_gradients(gram, curvature, shift, rhs, tolerance)
        if left <= tolerance:
            return x, gram_x
    return factored(gram, curvature, shift, rhs)


def factored(gram: Tensor, curvature: Curvature, shift: float, rhs: Tensor) -> tuple[Tensor, Tensor]:
    """`solve` by Cholesky factors and one step of refinement: O(c m^3)."""
    once = curvature.factor(gram, shift)
    x = once(rhs)
    x += once(rhs - shift * x - curvature(gram @ x))
    return x, gram @ x


def conjugate_gradients(
    gram: Tensor, curvature: Curvature, shift: float, rhs: Tensor, tolerance: float, most: int = 300
) -> tuple[Tensor, Tensor, float]:
    """`solve` by conjugate gradients, O(c m^2) per step; also the relative residual left.

    They run in the inner product of the kernel, in which the operator is self-adjoint: one product with the
    kernel per step and no power of its condition number. Sizes are measured in that inner product too, so
    parts that the kernel cannot see do not count.
    """
    # Each pair holds a vector and its product with the kernel, so that both are updated at once.
    solution = torch.zeros(2, *rhs.shape, dtype=rhs.dtype)
    residual = torch.stack([rhs, gram @ rhs])
    direction = residual.clone()
    trace = float(gram.diagonal().sum())
    size = first = _inner(residual[0], residual[1], trace)
    gram_p = direction[1].view(-1)
    for _ in range(most):
        if size <= tolerance**2 * first:
            break
        q = curvature(direction[1]).add_(direction[0], alpha=shift)
        bend = float(gram_p.dot(q.view(-1)))
        if bend <= 0:
            break
        solution.add_(direction, alpha=size / bend)
        residual[0].sub_(q, alpha=size / bend)
        torch.mm(gram, residual[0], out=residual[1])
        previous, size = size, _inner(residual[0], residual[1], trace)
        direction.mul_(size / previous).add_(residual)
    return solution[0], solution[1], (size / first) ** 0.5 if first > 0 else 0.0


def _inner(r: Tensor, gram_r: Tensor, trace: float) -> float:
    """r · K r, at least 0, for a kernel matrix of this trace."""
    value = float(r.view(-1).dot(gram_r.view(-1)))
    if value < 0 and value < -1e-6 * trace * float(r.square().sum()):
        raise ValueError(NOT_A_KERNEL)
    return max(value, 0.0)


def fit(
    gram: Tensor,
    targets: Tensor,
    weight: Tensor,
    ridge: float,
    loss: Loss,
    start: Tensor | None = None,
    tolerance: float = 1e-8,
) -> Tensor:
    """Coefficients a [m, c] that minimise ``(1/m) Σ w_i l((K a)_i, y_i) + ridge tr(aᵀ K a)``.

    Newton steps by conjugate gradients, with backtracking; from `start` if given.

    Args:
        gram: kernel matrix of the rows [m, m], float64.
        targets: [m, c].
        weight: >= 0 [m].
        tolerance: size of the gradient, relative to that of m unrelated rows at a = 0.

    Raises:
        ValueError: the gradient stays above 1e-4 of that, or the kernel is not positive semi-definite.
    """
    m, shift = len(gram), 2 * ridge * len(gram)
    zero = torch.zeros_like(targets)
    a = zero if start is None else start
    data = weight[:, None] * loss.residuals(zero, targets)
    # Not the data's own gradient: that may cancel, as between duplicates with different labels.
    trace = float(gram.diagonal().sum())
    scale = float(data.norm()) * math.sqrt(max(trace, 0.0) / m)
    if scale == 0:
        return zero
    predictions = gram @ a
    size = 0.0

    def objective(a: Tensor, predictions: Tensor) -> float:
        value = weight @ loss.values(predictions, targets) / m + ridge * (a * predictions).sum()
        return float(value)

    value = objective(a, predictions)
    for _ in range(200):
        gradient = weight[:, None] * loss.residuals(predictions, targets) + shift * a
        size = _inner(gradient, gram @ gradient, trace) ** 0.5
        if size <= tolerance * scale:
            return a
        if not math.isfinite(size):
            break
        loose = min(0.1, (size / scale) ** 0.5)
        step, gram_step = solve(gram, loss.curvature(predictions, weight), shift, -gradient, loose)
        slope = float((gradient * gram_step).sum()) / m
        length, before = 1.0, value
        while True:
            value = objective(a + length * step, predictions + length * gram_step)
            if value <= before + 1e-4 * length * slope + 1e-15 * abs(before) or length < 1e-10:
                break
            length /= 2
        if not value < before and size <= 1e-6 * scale:
            return a  # no digit of the objective is left to gain
        if length < 1e-10:
            break
        a, predictions = a + length * step, predictions + length * gram_step
    if size <= 1e-4 * scale:
        return a
    raise ValueError(
        f"the inner problem did not converge: its gradient stays at {size / scale:.0e} of the start; a ridge "
        f"above {ridge:g} or a kernel of smaller scale is easier"
    )
