"""Selections as one writes them down with NumPy or scikit-learn: what scripts/bench_selectors.py compares with."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp
from torch import Tensor

Array: TypeAlias = NDArray[np.float32]


class Cover:
    """Facility location of (1 + cosine) / 2."""

    def __init__(self, points: Array) -> None:
        self.points = points
        self._similarity: Array | None = None

    def similarity(self) -> Array:
        unit = self.points / np.linalg.norm(self.points, axis=1, keepdims=True)
        return (1 + unit @ unit.T) / 2

    def greedy(self, k: int) -> Tensor:
        similarity = self.similarity()
        best, rows = np.zeros(len(similarity), similarity.dtype), list[int]()
        for _ in range(k):
            gains = np.maximum(similarity - best, 0).sum(1)
            gains[rows] = -1
            rows.append(int(gains.argmax()))
            best = np.maximum(best, similarity[rows[-1]])
        return torch.tensor(rows)

    def stochastic(self, k: int, seed: int, eps: float = 0.01) -> Tensor:
        similarity, rng = self.similarity(), np.random.default_rng(seed)
        n = len(similarity)
        size = math.ceil(n / k * math.log(1 / eps))
        best, rows = np.zeros(n, similarity.dtype), list[int]()
        for _ in range(k):
            rest = np.setdiff1d(np.arange(n), rows)
            sample = rng.choice(rest, min(size, len(rest)), replace=False)
            gains = np.maximum(similarity[sample] - best, 0).sum(1)
            rows.append(int(sample[gains.argmax()]))
            best = np.maximum(best, similarity[rows[-1]])
        return torch.tensor(rows)

    def value(self, rows: Tensor) -> float:
        if self._similarity is None:
            self._similarity = self.similarity()
        return float(self._similarity[rows.numpy()].max(0).sum(dtype=np.float64))


def k_center(points: Array, k: int) -> Tensor:
    first = int(((points - points.mean(0)) ** 2).sum(1).argmin())
    rows, nearest = [first], np.full(len(points), np.inf, points.dtype)
    while True:
        nearest = np.minimum(nearest, np.linalg.norm(points - points[rows[-1]], axis=1))
        if len(rows) == k:
            return torch.tensor(rows)
        rows.append(int(nearest.argmax()))


def radius(points: Array, rows: Tensor) -> float:
    """Largest distance of a row to the nearest chosen one."""
    squares = (points.astype(np.float64) ** 2).sum(1)
    chosen = rows.numpy()
    nearest = np.full(len(points), np.inf)
    for part in np.array_split(chosen, max(1, len(chosen) // 256)):
        inner = (points @ points[part].T).astype(np.float64)
        nearest = np.minimum(nearest, (squares[:, None] + squares[part] - 2 * inner).min(1))
    return float(np.sqrt(max(nearest.max(), 0)))


def orthogonal_matching_pursuit(atoms: Array, k: int) -> Tensor:
    """scikit-learn's weights may be negative, which makes its problem easier."""
    weights: Any = orthogonal_mp(atoms.T, atoms.sum(0), n_nonzero_coefs=k)
    return torch.from_numpy(np.flatnonzero(weights))


def residual(atoms: Array, rows: Tensor) -> float:
    """Relative distance of the sum of all atoms to the best non-negative combination of the chosen ones."""
    chosen, target = atoms[rows.numpy()].astype(np.float64), atoms.sum(0, dtype=np.float64)
    factor = np.linalg.qr(np.concatenate([chosen, target[None]]).T, mode="r")
    return float(nnls(factor[:, :-1], factor[:, -1], maxiter=100 * len(rows))[1] / np.linalg.norm(target))


def herding(points: Array, k: int) -> Tensor:
    mean, total, rows = points.mean(0), np.zeros_like(points[0]), list[int]()
    for j in range(1, k + 1):
        distances = np.linalg.norm(mean - (points + total) / j, axis=1)
        distances[rows] = np.inf
        rows.append(int(distances.argmin()))
        total += points[rows[-1]]
    return torch.tensor(rows)


def distance_of_means(points: Array, rows: Tensor) -> float:
    return float(np.linalg.norm(points.mean(0, dtype=np.float64) - points[rows.numpy()].mean(0, dtype=np.float64)))


def bilevel_scores(model: Any, weight: Tensor, ridge: float) -> Tensor:
    """Implicit scores with the Hessian of the support written out, and one candidate after the other.

    Args:
        model: a fitted `replaykit.selectors.proxy.Representer`.
    """
    n, m, c = len(model.gram), len(model.rows), model.targets.shape[1]
    rows = model.gram.rows(torch.tensor(model.rows)).double().numpy()
    square, a, targets = rows[:, model.rows], model.coefficients.numpy(), model.targets.double().numpy()

    def softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)  # type: ignore[no-any-return]

    residuals = softmax(rows.T @ a) - targets
    p = softmax(square @ a)
    u = residuals / (2 * ridge * n)
    u[model.rows] = 0
    curvature = weight.numpy()[:, None, None] * (p[:, :, None] * np.eye(c) - p[:, :, None] * p[:, None, :])
    hessian = 2 * ridge * m * np.eye(m * c) + np.einsum("iab,ij->iajb", curvature, square).reshape(m * c, m * c)
    outside = np.einsum("iab,ib->ia", curvature, rows @ u)
    right = m * residuals[model.rows] / n - outside
    u[model.rows] = np.linalg.solve(hessian, right.flatten()).reshape(m, c)
    scores = [-residuals[i] @ (model.gram.rows(torch.tensor([i]))[0].double().numpy() @ u) / m for i in range(n)]
    return torch.tensor(np.array(scores))
