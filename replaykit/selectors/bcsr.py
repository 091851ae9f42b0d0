"""BCSR: a coreset from weights on the simplex, pushed to be sparse by a smoothed top-k regulariser.

    min over w in the simplex of F(θ*(w)) + R(w),     θ*(w) = argmin Σ_i w_i l_i(θ)
    F = (1/n) Σ_i l_i,     R(w) = -λ E_z [sum of the k largest entries of w + δ z],  z ~ N(0, I)

A few gradient steps follow θ*(w); the derivative of F through θ* comes from a truncated Neumann series, that
of R is -λ times the frequency with which an entry is among the k largest.

Source: Hao, Ji and Liu, Bilevel Coreset Selection in Continual Learning: A New Formulation and Algorithm,
NeurIPS 2023, and its released code.
Weights returned: ones. Order: descending w, ties to the smallest row; then, if fewer than k weights are
positive, ascending derivative.
Cost: outer_steps · (inner_steps + neumann + 3) passes over the pool. Bytes: the problem's own.

Departures from the paper and its code:
- R acts. In the released code its derivative never reaches the update; `compat` restores that, the missing
  step size in the Neumann sum and the softmax over w in the derivative of F.
- λ, δ and the step size are scaled to the problem: with the declared values a regulariser that acts would
  collapse w onto random rows in one step. λ = `sparsity` times the median |dF/dw_i| of the first step, the
  first step moves w by at most 0.5/n, δ = 0.1/n. Fixed values are options.
- Losses are not divided by n on top of the weights: a published inner rate of 10 for 50 rows is 0.2 here.
- Rows are the largest weights; `draw` samples in proportion to w as the code does, but never a row of
  weight 0 while there are others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from replaykit.draws import distinct, weighted
from replaykit.selectors.pool import Pool, Selection, finite, take_count
from replaykit.selectors.problem import InnerLoss, Parameters, Problem, linear_problem
from replaykit.selectors.quotas import Shares, by_class
from replaykit.selectors.simplex import project_simplex


@dataclass
class BCSR:
    """Bilevel coreset selection via regularisation.

    Args:
        problem: makes the inner problem of a pool: `linear_problem` on its features (default),
            `model_problem` of a network, or any function of the pool.
        needs: the quantities of the pool that the problem reads.
        outer_steps: updates of w (published 5, which may stop before w is sparse).
        inner_steps: gradient steps on θ per update.
        inner_rate: their step size a, below 2 / |H|.
        neumann: terms of the Neumann series beyond the first.
        sparsity: strength of R relative to F.
        penalty: λ itself, instead of `sparsity`.
        outer_rate: step size b of w; by default the first step moves no weight by more than 0.5/n.
        smoothing: δ; 0.1/n by default (published 1e-3).
        noise_draws: draws of z per update.
        batch: rows that estimate each inner gradient, outer gradient and Hessian product; None for all.
        draw: sample the rows in proportion to w instead of taking the largest.
        compat: the update of the released code.
        shares: of the classes, such as `equal`: the largest weights of each class (w itself is of all rows
            together); None: of all.
    """

    problem: Callable[[Pool], Problem] = field(default_factory=linear_problem)
    needs: tuple[str, ...] = ("features",)
    outer_steps: int = 20
    inner_steps: int = 1
    inner_rate: float = 0.1
    neumann: int = 3
    sparsity: float = 0.3
    penalty: float | None = None
    outer_rate: float | None = None
    smoothing: float | None = None
    noise_draws: int = 16
    batch: int | None = None
    draw: bool = False
    compat: bool = False
    shares: Shares | None = None

    def __post_init__(self) -> None:
        whole = {"outer_steps": 1, "inner_steps": 0, "neumann": 0, "noise_draws": 1, "batch": 1}
        for name, least in whole.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"BCSR: {name} must be at least {least}, got {value}")
        for name in ("inner_rate", "sparsity", "penalty", "outer_rate", "smoothing"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"BCSR: {name} must be finite and >= 0, got {value}")

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        """min(k, n) rows and weights of 1.

        Raises:
            ValueError: losses or gradients that are not finite, or a Neumann series that grows.
        """
        k = take_count(k, pool.n, "BCSR")
        if k == 0:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
        try:
            w, derivative = self.weigh(self.problem(pool), pool.n, k, rng)
        except ValueError as error:
            message = str(error)
            raise ValueError(message if message.startswith("BCSR") else f"BCSR: {message}") from error
        weighed = Pool(pool.n, pool.y, w=w, derivative=derivative)
        if self.shares is None:
            return self._heaviest(weighed, k, rng)
        return by_class(self._heaviest, weighed, k, rng, "BCSR", self.shares)

    def weigh(
        self, problem: Problem, n: int, k: int, rng: np.random.Generator, start: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Weights on the simplex [n] after all updates, and the derivative of the last one [n], float64.

        Args:
            start: weights to begin with [n]; equal ones by default.
        """
        parameters = problem.parameters
        device = next(iter(parameters.values())).device
        w = torch.full((n,), 1 / n, dtype=torch.float64, device=device) if start is None else start.double()
        penalty, rate = self.penalty, self.outer_rate
        delta = 0.1 / n if self.smoothing is None else self.smoothing
        for _ in range(self.outer_steps):
            for _ in range(self.inner_steps):
                step = self._gradient(problem, parameters, w, rng)
                parameters = add(parameters, step, -self.inner_rate)
            derivative = self._derivative(problem, parameters, w, rng)
            finite(derivative, "BCSR", "the derivative")
            if penalty is None:
                penalty = self.sparsity * float(derivative.abs().median())
            if rate is None:
                # Without any derivative there is nowhere to go.
                largest = float(derivative.abs().max())
                rate = 0.5 / n / largest if largest > 0 else 0.0
            frequency = top_frequency(w, k, delta, self.noise_draws, rng)
            if not self.compat:
                derivative = derivative - penalty * frequency
            w = project_simplex(w - rate * derivative)
        return w, derivative

    def _gradient(
        self, problem: Problem, parameters: Parameters, w: Tensor, rng: np.random.Generator
    ) -> Parameters:
        """Gradient of Σ w_i l_i, or its estimate from a batch."""
        return InnerLoss(problem, parameters, w, self._batch(w, rng)).gradient()

    def _derivative(self, problem: Problem, parameters: Parameters, w: Tensor, rng: np.random.Generator) -> Tensor:
        """dF/dw_i = -⟨∇l_i, H⁻¹ ∇F⟩ by a Neumann series, [n]."""
        inner = w.softmax(0) if self.compat else w
        v = self._gradient(problem, parameters, torch.full_like(w, 1 / len(w)), rng)
        first, u = size(v), v
        whole = InnerLoss(problem, parameters, inner, torch.arange(len(w), device=w.device))
        for _ in range(self.neumann):
            part = whole if self.batch is None else InnerLoss(problem, parameters, inner, self._batch(w, rng))
            v = add(v, part.hessian_product(v), -self.inner_rate)
            u = add(u, v, 1.0)
        # A factor of 2 and more per term means inner_rate · |H| > 1 beyond any use (or > 3 if H is positive).
        if not size(v) <= 2**self.neumann * first:
            raise ValueError(
                f"BCSR: the Neumann series grows from {first:.1e} to {size(v):.1e} in {self.neumann} terms; lower "
                f"inner_rate ({self.inner_rate}) below 2 / |H|, or look for NaN in the losses"
            )
        derivative = -whole.slopes(u)
        if not self.compat:
            return self.inner_rate * derivative
        return inner * (derivative - inner @ derivative)

    def _batch(self, w: Tensor, rng: np.random.Generator) -> Tensor:
        if self.batch is None or self.batch >= len(w):
            return torch.arange(len(w), device=w.device)
        return torch.from_numpy(distinct(len(w), self.batch, rng)).to(w.device)

    def _heaviest(self, weighed: Pool, k: int, rng: np.random.Generator) -> Selection:
        rows = self._rows(weighed.tensor("w"), weighed.tensor("derivative"), k, rng)
        return rows, torch.ones(k, dtype=torch.float64, device=rows.device)

    def _rows(self, w: Tensor, derivative: Tensor, k: int, rng: np.random.Generator) -> Tensor:
        """Rows [k]: positive weights first, then the most promising of the others."""
        if self.draw:
            chosen = weighted(w.cpu().numpy(), k, rng)
            first = torch.from_numpy(chosen[:k]).to(w.device)
        else:
            order = w.sort(descending=True, stable=True).indices[:k]
            first = order[w[order] > 0]
        rest = derivative.clone()
        rest[first] = math.inf
        return torch.cat([first, rest.sort(stable=True).indices[: k - len(first)]])


def top_frequency(w: Tensor, k: int, delta: float, draws: int, rng: np.random.Generator) -> Tensor:
    """How often each entry of w [n] is among the k largest of w + delta z, z ~ N(0, I): float64 [n]."""
    noise = torch.from_numpy(rng.standard_normal((draws, len(w)))).to(w)
    top = (w + delta * noise).topk(min(k, len(w)), dim=1).indices
    return torch.bincount(top.flatten(), minlength=len(w)).double() / draws


def add(x: Parameters, y: Parameters, factor: float) -> Parameters:
    """x + factor y."""
    return {name: value + factor * y[name] for name, value in x.items()}


def size(x: Parameters) -> float:
    """Euclidean norm over all parameters."""
    return float(torch.stack([value.double().square().sum() for value in x.values()]).sum().sqrt())
