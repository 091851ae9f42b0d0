"""BCSR: a memory of rows whose weights on the simplex stay large when the weights are pushed to be sparse.

Source: Hao, Ji and Liu, Bilevel Coreset Selection in Continual Learning: A New Formulation and Algorithm, NeurIPS
2023, and its released code. The selection is told in `replaykit.selectors.bcsr`, the columns and the frame
(budget, candidates, recent) in `replaykit.policies.coreset`.
Keeps: the rows of the largest weights of each class, w being found for memory and candidates together; all weights
are 1. Probe: features.
Cost per add of B rows: features of memory and candidates, n rows of d numbers; outer_steps · (inner_steps +
neumann + 3) passes of a linear classifier over them, each O(n d c).
Departures (beside the selector's):
- θ is a linear classifier on the model's features, not the whole network; for that use
  ``Coreset(selectors.BCSR(selectors.model_problem(network), needs=("x",), shares=selectors.equal), "global")``.
- Old rows are chosen anew together with the new ones. The release keeps the old tasks' rows of the smallest loss,
  which it takes under the wrong head.
"""

from __future__ import annotations

from replaykit import selectors
from replaykit.policies.coreset import Budget, Coreset


class BCSR(Coreset):
    """Bilevel coreset selection via regularisation.

    Args:
        outer_steps, inner_steps, inner_rate, neumann, sparsity, penalty, outer_rate, smoothing, noise_draws, draw,
            compat: of `selectors.BCSR`.
        budget: ``"per_class"`` for the largest weights of each class, ``"global"`` for the largest of all.
        candidates, recent: of `Coreset`.

    Published: 5 outer steps with 1 inner one, 3 terms of Neumann, penalty 0.1 (without effect in the release),
    smoothing 1e-3. The defaults are scaled to the problem instead, see the selector.
    """

    def __init__(
        self,
        outer_steps: int = 20,
        inner_steps: int = 1,
        inner_rate: float = 0.1,
        neumann: int = 3,
        sparsity: float = 0.3,
        penalty: float | None = None,
        outer_rate: float | None = None,
        smoothing: float | None = None,
        noise_draws: int = 16,
        draw: bool = False,
        compat: bool = False,
        *,
        budget: Budget = "per_class",
        candidates: int | None = None,
        recent: int = 0,
    ) -> None:
        # Within a class there is nothing to learn: the weights are found for all, and then shared out.
        selector = selectors.BCSR(
            outer_steps=outer_steps,
            inner_steps=inner_steps,
            inner_rate=inner_rate,
            neumann=neumann,
            sparsity=sparsity,
            penalty=penalty,
            outer_rate=outer_rate,
            smoothing=smoothing,
            noise_draws=noise_draws,
            draw=draw,
            compat=compat,
            shares=selectors.equal if budget == "per_class" else None,
        )
        super().__init__(selector, budget, candidates, recent)
        self.selector = selector
