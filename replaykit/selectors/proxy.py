"""The inner problem of a bilevel coreset: a kernel model fitted to weighted rows, and its implicit gradient.

For a support S of m rows with weights w >= 0 and a kernel matrix K of the whole pool of n rows

    g(h, w) = (1/m) Σ_{i in S} w_i l(h_i, y_i) + λ |h|²,     f(h) = (1/n) Σ_i v_i l(h_i, y_i)

where h is a function of the kernel's space, at the optimum h = K_XS a with a [m, c]. With the residuals
r_i = ∂l_i/∂h_i [c] and their Hessians D_i [c, c], the derivative of f(argmin g) in the weight of any row k is

    s_k = -(1/m) r_k · u_k,     u = K U,     2 λ U + (1/m) w D K U = (1/n) v r.

Outside S (w = 0) the system is solved by U_k = v_k r_k / (2 λ n); one system over S remains (see `newton`)
and serves all candidates. This is the form of the released code, in which a candidate brings its own
coefficient. With coefficients on S alone, as the paper writes it, u is the same on S and is continued
to the pool by K_XS K_SS⁻¹ u_S.

Source: Borsos, Mutny and Krause, Coresets via Bilevel Optimization, NeurIPS 2020, and its released code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from replaykit.selectors.gram import Gram
from replaykit.selectors.newton import fit, solve
from replaykit.selectors.proxy_loss import Loss


class Representer:
    """A kernel model on a growing support of a pool.

    The kernel's rows stay on the pool's device; the small systems over the support are solved on the host.

    Args:
        gram: of the pool [n, n].
        targets: [n, c].
        data_weight: v [n].
        capacity: rows that the support will have at most.
        tolerance: of the inner fit and the implicit system, relative.
    """

    def __init__(
        self,
        gram: Gram,
        targets: Tensor,
        data_weight: Tensor,
        ridge: float,
        loss: Loss,
        capacity: int,
        tolerance: float = 1e-8,
    ) -> None:
        self.gram, self.ridge, self.loss, self.tolerance = gram, ridge, loss, tolerance
        self.targets = targets.to(gram.device, gram.dtype)
        self.data_weight = data_weight.to(gram.device, gram.dtype)
        self.rows: list[int] = []
        self.coefficients = torch.zeros(0, targets.shape[1], dtype=torch.float64)
        self._kernel = torch.empty(capacity, len(gram), dtype=gram.dtype, device=gram.device)
        self._square = torch.empty(capacity, capacity, dtype=torch.float64)
        self._labels = torch.empty(capacity, targets.shape[1], dtype=torch.float64)

    def add(self, row: int) -> None:
        """Put a row into the support, with coefficient 0."""
        m = len(self.rows)
        self.rows.append(row)
        index = torch.tensor(self.rows, device=self.gram.device)
        self._kernel[m] = self.gram.rows(index[-1:])[0]
        line = self._kernel[m].index_select(0, index).cpu().double()
        self._square[m, : m + 1] = line
        self._square[: m + 1, m] = line
        self._labels[m] = self.targets[row].cpu()
        self.coefficients = torch.cat([self.coefficients, self.coefficients.new_zeros(1, self._labels.shape[1])])

    @property
    def square(self) -> Tensor:
        """Kernel matrix of the support [m, m]."""
        return self._square[: len(self.rows), : len(self.rows)].contiguous()

    def fit(self, weight: Tensor) -> None:
        """Solve the inner problem for weights [m] of the support, from the present coefficients."""
        m = len(self.rows)
        self.coefficients = fit(
            self.square, self._labels[:m], weight, self.ridge, self.loss, self.coefficients, self.tolerance
        )

    def predictions(self) -> Tensor:
        """Of the whole pool [n, c]."""
        return self._kernel[: len(self.rows)].T @ self.coefficients.to(self._kernel)

    def outer(self) -> float:
        """f, the weighted mean loss over the pool."""
        return float(self.data_weight @ self.loss.values(self.predictions(), self.targets)) / len(self.gram)

    def weight_gradient(self, weight: Tensor) -> Tensor:
        """∂f/∂w of the support [m] at its optimal coefficients, float64."""
        residuals, u, z = self._implicit(weight, len(self.rows))
        index = torch.tensor(self.rows, device=self.gram.device)
        on_support = self._on_support(u, z)
        return -(residuals.index_select(0, index).cpu().double() * on_support).sum(1) / len(self.rows)

    def scores(self, weight: Tensor, total: int | None = None, on_support: bool = False) -> Tensor:
        """s [n] of every row of the pool.

        Args:
            weight: of the support [m].
            total: number of rows over which the inner loss is averaged; m by default.
            on_support: candidates bring no coefficient of their own.
        """
        total = len(self.rows) if total is None else total
        residuals, u, z = self._implicit(weight, total)
        if on_support:
            continued = _continued(self.square, self._on_support(u, z))
            product = self._kernel[: len(self.rows)].T @ continued.to(self._kernel)
        else:
            u[torch.tensor(self.rows, device=u.device)] = z.to(u)
            product = self.gram.product(u)
        return -(residuals * product).sum(1) / total

    def _implicit(self, weight: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
        """Residuals [n, c], U outside the support [n, c] (0 on it), U on the support [m, c]."""
        m, shift = len(self.rows), 2 * self.ridge * total
        index = torch.tensor(self.rows, device=self.gram.device)
        residuals = self.loss.residuals(self.predictions(), self.targets)
        u = residuals * (self.data_weight / len(self.gram))[:, None]
        own = u.index_select(0, index).cpu().double()
        u.div_(2 * self.ridge)[index] = 0
        curvature = self.loss.curvature(self.square @ self.coefficients, weight)
        outside = (self._kernel[:m] @ u).cpu().double()
        rhs = total * own - curvature(outside)
        z, _ = solve(self.square, curvature, shift, rhs, self.tolerance)
        return residuals, u, z

    def _on_support(self, u: Tensor, z: Tensor) -> Tensor:
        """K U on the support [m, c]."""
        return (self._kernel[: len(self.rows)] @ u).cpu().double() + self.square @ z


def _continued(square: Tensor, values: Tensor) -> Tensor:
    """Coefficients [m, c] whose function takes the given values on the support."""
    # The shift is far below the values' own digits and makes room for duplicates in the support.
    shift = 1e-12 * square.diagonal().sum()
    eye = torch.eye(len(square), dtype=square.dtype)
    while True:
        factor, info = torch.linalg.cholesky_ex(square + shift * eye)
        if not int(info):
            return torch.cholesky_solve(values, factor)
        shift = 10 * shift + 1e-300
