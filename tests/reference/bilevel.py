"""Bilevel coresets with every matrix written out: a dense Hessian over all coefficients, and dense solves."""

from itertools import combinations

import torch
from torch import Tensor


class CrossEntropy:
    @staticmethod
    def values(predictions: Tensor, targets: Tensor) -> Tensor:
        return predictions.logsumexp(1) - (predictions * targets).sum(1)

    @staticmethod
    def slopes(predictions: Tensor, targets: Tensor) -> Tensor:
        return predictions.softmax(1) - targets

    @staticmethod
    def curves(predictions: Tensor, targets: Tensor) -> Tensor:
        """Hessians [n, c, c]."""
        p = predictions.softmax(1)
        return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


class Squared:
    @staticmethod
    def values(predictions: Tensor, targets: Tensor) -> Tensor:
        return (predictions - targets).square().sum(1)

    @staticmethod
    def slopes(predictions: Tensor, targets: Tensor) -> Tensor:
        return 2 * (predictions - targets)

    @staticmethod
    def curves(predictions: Tensor, targets: Tensor) -> Tensor:
        return 2 * torch.eye(targets.shape[1], dtype=targets.dtype).expand(len(targets), -1, -1)


Loss = type[CrossEntropy] | type[Squared]


class Model:
    """Coefficients [s, c] on the rows `basis`; the inner loss is over `support`, divided by `total`."""

    def __init__(
        self, kernel: Tensor, targets: Tensor, v: Tensor, ridge: float, loss: Loss, basis: list[int]
    ) -> None:
        self.columns, self.square = kernel[:, basis], kernel[basis][:, basis]
        self.targets, self.v, self.ridge, self.loss = targets, v, ridge, loss

    def inner(self, a: Tensor, support: list[int], weight: Tensor, total: int) -> Tensor:
        losses = self.loss.values(self.columns[support] @ a, self.targets[support])
        return weight @ losses / total + self.ridge * (a * (self.square @ a)).sum()

    def outer(self, a: Tensor) -> Tensor:
        return self.v @ self.loss.values(self.columns @ a, self.targets) / len(self.v)

    def hessian(self, a: Tensor, support: list[int], weight: Tensor, total: int) -> Tensor:
        """Of `inner`, [s c, s c]."""
        rows, (s, c) = self.columns[support], a.shape
        curves = self.loss.curves(rows @ a, self.targets[support]) * (weight / total)[:, None, None]
        data = torch.einsum("is,it,icd->sctd", rows, rows, curves).reshape(s * c, s * c)
        return data + 2 * self.ridge * torch.kron(self.square, torch.eye(c, dtype=a.dtype))

    def fit(self, support: list[int], weight: Tensor, total: int) -> Tensor:
        """Newton's method with a step halved until it descends."""
        rows, targets = self.columns[support], self.targets[support]
        a = torch.zeros(len(self.square), targets.shape[1], dtype=torch.float64)
        for _ in range(100):
            slope = rows.T @ (self.loss.slopes(rows @ a, targets) * (weight / total)[:, None])
            slope = slope + 2 * self.ridge * self.square @ a
            step = -least_squares(self.hessian(a, support, weight, total), slope)
            before, length = self.inner(a, support, weight, total), 1.0
            while self.inner(a + length * step, support, weight, total) > before and length > 1e-9:
                length /= 2
            a = a + length * step
            if step.norm() < 1e-11 * (1 + a.norm()):
                break
        return a

    def scores(self, a: Tensor, support: list[int], weight: Tensor, total: int) -> Tensor:
        """-∇l_k · H⁻¹ ∇f / total for every row k of the pool."""
        slopes = self.loss.slopes(self.columns @ a, self.targets)
        outer = self.columns.T @ (slopes * (self.v / len(self.v))[:, None])
        u = least_squares(self.hessian(a, support, weight, total), outer)
        return -(slopes * (self.columns @ u)).sum(1) / total


def least_squares(matrix: Tensor, rhs: Tensor) -> Tensor:
    return torch.linalg.lstsq(matrix, rhs.flatten(), driver="gelsd").solution.reshape(rhs.shape)


def scores(
    kernel: Tensor,
    targets: Tensor,
    v: Tensor,
    ridge: float,
    loss: Loss,
    support: list[int],
    weight: Tensor,
    on_support: bool,
    total: int | None = None,
) -> Tensor:
    """Scores [n] at the inner optimum, which is that of the mean over the support whatever `total`."""
    basis = support if on_support else list(range(len(kernel)))
    model = Model(kernel, targets, v, ridge, loss, basis)
    a = model.fit(support, weight, len(support))
    return model.scores(a, support, weight, total or len(support))


def outer_value(
    kernel: Tensor,
    targets: Tensor,
    v: Tensor,
    ridge: float,
    loss: Loss,
    support: list[int],
    weight: Tensor,
    basis: list[int],
    total: int,
) -> float:
    """f at the inner optimum over coefficients on `basis`."""
    model = Model(kernel, targets, v, ridge, loss, basis)
    return float(model.outer(model.fit(support, weight, total)))


def greedy(
    kernel: Tensor, targets: Tensor, v: Tensor, ridge: float, loss: Loss, k: int, start: int, on_support: bool
) -> list[int]:
    chosen = [start]
    while len(chosen) < k:
        s = scores(kernel, targets, v, ridge, loss, chosen, torch.ones(len(chosen)).double(), on_support)
        s[chosen] = torch.inf
        chosen.append(int(s.argmin()))
    return chosen


def best_subsets(
    kernel: Tensor, targets: Tensor, ridge: float, loss: Loss, m: int
) -> list[tuple[float, tuple[int, ...]]]:
    """All subsets of m rows with unit weights and their outer losses, best first."""
    v = torch.ones(len(kernel)).double()
    found = []
    for subset in combinations(range(len(kernel)), m):
        rows = list(subset)
        found.append((outer_value(kernel, targets, v, ridge, loss, rows, torch.ones(m).double(), rows, m), subset))
    return sorted(found)
