"""Greedy coreset by bilevel optimisation: rows on which a kernel model learns what the whole pool teaches.

    min over w >= 0 with at most k nonzeros of f(h*(w)),   h*(w) = argmin g(h, w)

The support grows by the row whose weight has the most negative derivative of the outer loss; the derivatives
of all candidates come from one implicit system (see `proxy`).

Source: Borsos, Mutny and Krause, Coresets via Bilevel Optimization for Continual Learning and Streaming,
NeurIPS 2020, and its released code.
Weights returned: ones without weight optimisation (as in the published continual-learning runs), else the
optimised ones, scaled to mean 1.
Cost per row of the coreset: the inner fit, O(iterations m^2 c) on the host, and one product with the kernel
matrix, O(n^2 c) on the pool's device (O(n m c) with coefficients on the support alone).
Bytes: the kernel matrix if it fits into `max_bytes`, and k of its rows.

Departures:
- Every remaining row is a candidate, and the inner loss is averaged over the support alone. `compat` draws
  200 candidates a step and averages over support and candidates while it scores, as the code does.
- The inner problem is solved by Newton steps from the previous solution instead of L-BFGS from noise. It is
  convex, so the solution is the same.
- Scores have the sign and scale of the derivative. The code scales the system by 1e-3; Adam and the argmin do
  not see that, and the clip at 1 hardly ever acts there.
- k >= n returns all rows in greedy order, because memories are later cut to a prefix; the code returns them
  in the order of the pool.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from replaykit.draws import distinct
from replaykit.selectors.gram import Gram, pool_gram
from replaykit.selectors.kernels import RBF, Kernel
from replaykit.selectors.pool import Pool, Selection, checked_weight, take_count
from replaykit.selectors.proxy import Representer
from replaykit.selectors.proxy_loss import CrossEntropy, Loss
from replaykit.selectors.rows import MAX_BYTES
from replaykit.selectors.ties import first_max

#: Candidates that the released code draws for a step.
COMPAT_CANDIDATES = 200


@dataclass
class Bilevel:
    """Greedy bilevel coreset over labels and one quantity of the pool.

    Args:
        kernel: of the proxy model: `RBF` (median distance), `Linear`, `FullyConnectedNTK`,
            `ConvolutionalNTK`; None for the inner products of the quantity's vectors.
        quantity: what the kernel compares, normalised as in training.
        ridge: the proxy's regularisation λ > 0.
        loss: `CrossEntropy` or `SquaredError`.
        classes: outputs of the proxy; by default the classes that occur in the pool.
        on_support: the proxy has coefficients on the selected rows alone (the paper's text), instead of the
            code's free coefficients on the whole pool. Selections differ; accuracies were found alike.
        max_outer: steps of weight optimisation after every new row: 0 keeps weights of 1; 10 is usual.
        outer_rate: learning rate of Adam for these steps.
        start: random rows that the support begins with.
        candidates: rows drawn as candidates for each step; None for all.
        compat: candidates and averaging of the released code.
        tolerance: of the inner problem and the implicit system, relative.
        max_bytes: hold the kernel matrix if it takes no more than this.
    """

    kernel: Kernel | None = field(default_factory=RBF)
    quantity: str = "x"
    ridge: float = 1e-4
    loss: Loss = field(default_factory=CrossEntropy)
    classes: int | None = None
    on_support: bool = False
    max_outer: int = 0
    outer_rate: float = 0.05
    start: int = 1
    candidates: int | None = None
    compat: bool = False
    tolerance: float = 1e-7
    max_bytes: int = MAX_BYTES
    needs: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.needs = (self.quantity,)
        name = type(self).__name__
        if not 0 < self.ridge < math.inf:
            raise ValueError(f"{name}: ridge must be positive and finite, got {self.ridge}")
        if self.start < 1 or self.max_outer < 0 or (self.candidates is not None and self.candidates < 1):
            raise ValueError(
                f"{name}: start >= 1, max_outer >= 0 and candidates >= 1 expected, got {self.start}, "
                f"{self.max_outer}, {self.candidates}"
            )
        if self.candidates is None and self.compat:
            self.candidates = COMPAT_CANDIDATES

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        """min(k, n) rows of the pool in greedy order, and their weights.

        The pool's weights are the data weights v of the outer loss.

        Raises:
            ValueError: no labels, NaN or infinity, a kernel that is none, an inner problem that does not
                converge.
        """
        name = type(self).__name__
        k = take_count(k, pool.n, name)
        if pool.y is None:
            raise ValueError(f"{name} needs labels; build the pool with y")
        if k == 0:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
        try:
            return self.greedy(self.gram(pool, rng), self.loss.targets(pool.y, self.classes), k, pool.weight, rng)
        except ValueError as error:
            message = str(error)
            raise ValueError(message if message.startswith(name) else f"{name}: {message}") from error

    def gram(self, pool: Pool, rng: np.random.Generator) -> Gram:
        """The kernel matrix of a pool."""
        return pool_gram(pool, self.quantity, self.kernel, self.max_bytes, type(self).__name__)

    @torch.no_grad()
    def greedy(
        self, gram: Gram, targets: Tensor, k: int, data_weight: Tensor, rng: np.random.Generator
    ) -> Selection:
        """The selection from a kernel matrix, targets [n, c] and data weights [n], for k <= n."""
        n = len(gram)
        data_weight = checked_weight(data_weight, type(self).__name__)
        # What a step draws depends on the seed and the step alone, so a smaller coreset is a prefix of a larger.
        first, seed = distinct(n, min(self.start, n), rng), int(rng.integers(2**63))
        model = Representer(gram, targets, data_weight, self.ridge, self.loss, k, self.tolerance)
        for row in first[:k].tolist():
            model.add(row)
        while True:
            weight = torch.ones(len(model.rows), dtype=torch.float64)
            model.fit(weight)
            weight = self._optimised(model, weight)
            if len(model.rows) == k:
                break
            model.add(self._next(model, weight, np.random.default_rng([seed, len(model.rows)])))
        total = float(weight.sum())
        weight = weight * (k / total) if total > 0 else torch.ones_like(weight)
        return torch.tensor(model.rows, device=gram.device), weight.to(gram.device)

    def _optimised(self, model: Representer, weight: Tensor) -> Tensor:
        """Weights [m] after `max_outer` steps of projected Adam on the outer loss."""
        mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
        for step in range(1, self.max_outer + 1):
            gradient = model.weight_gradient(weight).clamp_(-1, 1)
            mean.mul_(0.9).add_(gradient, alpha=0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            direction = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
            weight = (weight - self.outer_rate * direction).clamp_(min=0)
            model.fit(weight)
        return weight

    def _next(self, model: Representer, weight: Tensor, rng: np.random.Generator) -> int:
        """The candidate whose weight has the most negative derivative; ties to the smallest row."""
        rest = np.setdiff1d(np.arange(len(model.gram)), model.rows)
        if self.candidates is not None:
            rest = rest[np.sort(distinct(len(rest), min(self.candidates, len(rest)), rng))]
        total = len(model.rows) + len(rest) if self.compat else None
        gain = -model.scores(weight, total, self.on_support)
        # Scores of equal rows differ by the rounding of sums over the pool.
        tolerance = 1e3 * torch.finfo(gain.dtype).eps * gain.abs().max()
        among = torch.from_numpy(rest).to(gain.device)
        return int(among[first_max(gain.index_select(0, among), tolerance)])
