"""BCSR's loop with plain automatic differentiation on one flat vector of parameters."""

import numpy as np
import torch
from torch import Tensor


def projection(v: Tensor) -> Tensor:
    """Onto the simplex, by bisection on the shift."""
    low, high = float(v.min()) - 1, float(v.max())
    for _ in range(200):
        middle = (low + high) / 2
        if float((v - middle).clamp(min=0).sum()) > 1:
            low = middle
        else:
            high = middle
    return (v - high).clamp(min=0)


def softmax_losses(theta: Tensor, x: Tensor, y: Tensor, classes: int) -> Tensor:
    logits = x @ theta.reshape(x.shape[1], classes)
    return logits.logsumexp(1) - logits[torch.arange(len(y)), y]


def weights(
    x: Tensor,
    y: Tensor,
    k: int,
    steps: int,
    inner_rate: float,
    neumann: int,
    penalty: float,
    outer_rate: float,
    delta: float,
    draws: int,
    rng: np.random.Generator,
) -> Tensor:
    n, classes = len(x), int(y.max()) + 1
    theta = torch.zeros(x.shape[1] * classes, dtype=x.dtype)
    w = torch.full((n,), 1 / n, dtype=torch.float64)
    for _ in range(steps):
        theta = theta.detach().requires_grad_()
        inner = softmax_losses(theta, x, y, classes) @ w
        theta = (theta - inner_rate * torch.autograd.grad(inner, theta)[0]).detach().requires_grad_()
        losses = softmax_losses(theta, x, y, classes)
        v = torch.autograd.grad(losses.mean(), theta, retain_graph=True)[0]
        u = v.clone()
        slope = torch.autograd.grad(losses @ w, theta, create_graph=True)[0]
        for _ in range(neumann):
            v = v - inner_rate * torch.autograd.grad(slope @ v, theta, retain_graph=True)[0]
            u = u + v
        u = inner_rate * u
        rows = [torch.autograd.grad(loss, theta, retain_graph=True)[0] for loss in losses]
        d = -torch.stack(rows) @ u
        noisy = w.numpy() + delta * rng.standard_normal((draws, n))
        for row in noisy:
            d[torch.from_numpy(np.argsort(-row)[:k].copy())] -= penalty / draws
        w = projection(w - outer_rate * d)
    return w
