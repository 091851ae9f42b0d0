"""Non-negative least squares by its normal matrix: min ½ wᵀHw - cᵀw over w >= 0.

With H = AᵀA + lam I and c = Aᵀt this is min ½ ‖Aw - t‖² + lam/2 ‖w‖². It is not what a least-squares solver
returns for the matrix AᵀA and the target Aᵀt: that minimises the norm of the gradient, not the residual.

Source: Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23; Bro and de Jong, A Fast
Non-negativity-constrained Least Squares Algorithm, 1997 (the form that needs H and c alone).
"""

from __future__ import annotations

import torch
from torch import Tensor


class ActiveSet:
    """A problem that grows by one variable at a time, each solution the start of the next.

    Args:
        capacity: number of variables at most.
        noise: relative size of what rounding may leave in H and c.
    """

    def __init__(self, capacity: int, noise: float = 1e-12) -> None:
        self.noise = noise
        self.size = 0
        self._h = torch.zeros(capacity, capacity, dtype=torch.float64)
        self._c = torch.zeros(capacity, dtype=torch.float64)
        self._w = torch.zeros(capacity, dtype=torch.float64)
        # H of the positive variables, in the order in which they became so, is L Lᵀ, and u = L⁻¹c.
        self._l = torch.zeros(capacity, capacity, dtype=torch.float64)
        self._u = torch.zeros(capacity, dtype=torch.float64)
        self._order = torch.zeros(capacity, dtype=torch.int64)
        self._count = 0

    @property
    def weights(self) -> Tensor:
        """The last solution, float64 [size]."""
        return self._w[: self.size]

    def append(self, column: Tensor, product: float) -> None:
        """Add a variable: its column of H [size + 1], the diagonal last, and its c."""
        m = self.size
        self._h[m, : m + 1] = column
        self._h[: m + 1, m] = column
        self._c[m] = product
        self.size = m + 1

    def value(self) -> float:
        """wᵀHw - 2 cᵀw of the last solution, which is -cᵀw there."""
        return -float(self._c[: self.size] @ self.weights)

    def solve(self) -> Tensor:
        """The solution [size]: w >= 0, Hw - c >= 0 (up to rounding), and w (Hw - c) = 0.

        Raises:
            ValueError: it does not converge, as H is not positive semi-definite.
        """
        m = self.size
        h, c, w = self._h[:m, :m], self._c[:m], self._w[:m]
        tolerance = self.noise * float(c.abs().max()) if m else 0.0
        idle = torch.ones(m, dtype=torch.bool)
        # Every round lowers the objective, so a set of positive variables never comes back.
        for _ in range(10 * m + 10):
            idle[self._positive] = False
            waiting = idle.nonzero()[:, 0]
            slack = c[waiting] - h[waiting] @ w
            if len(waiting) == 0 or slack.max() <= tolerance:
                return w
            new = int(waiting[slack.argmax()])
            idle[new] = False
            if self._enter(new):
                # One that leaves at once entered by rounding alone; it would come back for ever.
                idle[[j for j in self._descend(w) if j != new]] = True
        raise ValueError(
            f"non-negative least squares did not converge on {m} variables; is the matrix positive "
            "semi-definite? A larger lam helps"
        )

    @property
    def _positive(self) -> Tensor:
        return self._order[: self._count]

    def _descend(self, w: Tensor) -> list[int]:
        """Go to the minimum over the positive variables; those that reach 0 on the way leave."""
        left: list[int] = []
        while True:
            p, positive = self._count, self._positive
            upper = self._l[:p, :p].T
            minimum = torch.linalg.solve_triangular(upper, self._u[:p, None], upper=True)[:, 0]
            if minimum.min() > 0:
                w[positive] = minimum
                return left
            now = w[positive]
            low = minimum <= 0
            step = (now[low] / (now[low] - minimum[low]).clamp(min=1e-300)).min()
            now += step * (minimum - now)
            gone = low & (now <= self.noise * now.abs().max())
            now[gone] = 0
            w[positive] = now
            left += positive[gone].tolist()
            self._leave(gone)

    def _enter(self, new: int) -> bool:
        """Append a row to L; False if the variable depends on the positive ones."""
        p = self._count
        column = self._h[new, self._positive]
        row = torch.linalg.solve_triangular(self._l[:p, :p], column[:, None], upper=False)[:, 0]
        pivot = float(self._h[new, new] - row @ row)
        if pivot <= self.noise * float(self._h[new, new]):
            return False
        self._l[p, :p] = row
        self._l[p, p] = pivot**0.5
        self._u[p] = (self._c[new] - row @ self._u[:p]) / self._l[p, p]
        self._order[p] = new
        self._count += 1
        return True

    def _leave(self, gone: Tensor) -> None:
        """Remove some of the positive variables and factor again what came after the first of them."""
        first = int(gone.nonzero()[0])
        stay = self._positive[~gone]
        kept, rest, p = stay[:first], stay[first:], len(stay)
        self._order[:p] = stay
        self._count = p
        if len(rest) == 0:
            return
        side = torch.linalg.solve_triangular(self._l[:first, :first], self._h[kept][:, rest], upper=False)
        block = torch.linalg.cholesky(self._h[rest][:, rest] - side.T @ side)
        self._l[first:p, :first] = side.T
        self._l[first:p, first:p] = block
        right = (self._c[rest] - side.T @ self._u[:first])[:, None]
        self._u[first:p] = torch.linalg.solve_triangular(block, right, upper=False)[:, 0]


def nnls(matrix: Tensor, products: Tensor) -> Tensor:
    """The minimiser [m] of ½ wᵀHw - cᵀw over w >= 0.

    Args:
        matrix: H, symmetric and positive semi-definite [m, m].
        products: c [m].

    Raises:
        ValueError: NaN or infinity, or no convergence.
    """
    if not bool(matrix.isfinite().all()) or not bool(products.isfinite().all()):
        raise ValueError("nnls: the matrix or the products hold NaN or infinity")
    problem = ActiveSet(len(products))
    h = matrix.double().cpu()
    for j, product in enumerate(products.tolist()):
        problem.append(h[j, : j + 1], product)
    return problem.solve().clone().to(matrix.device)
