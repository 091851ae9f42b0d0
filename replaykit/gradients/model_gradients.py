"""Per-sample gradients of a whole model."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from replaykit.gradients import functional, ghost
from replaykit.gradients.budget import DEFAULT, UNLIMITED, Allocations, Budget, row_bytes, tensor_bytes
from replaykit.gradients.factored import FactoredGradients
from replaykit.gradients.layers import refuse_side_effects
from replaykit.gradients.losses import RowLoss, cross_entropy
from replaykit.gradients.objective import Chosen, Inputs, Objective, chosen_layout
from replaykit.gradients.result import Blocks, PerSampleGradients, nbytes
from replaykit.gradients.rows import columns, cut, moved, only_x, row_count, row_numbers, take, together
from replaykit.gradients.scoring import refuse_mixing, scoring
from replaykit.gradients.structure import Structure
from replaykit.store import Batch, IntArray

ROUTES = ("auto", "ghost", "func", "loop")
# For each model and form of batch, whether forward mode gives the products of the backward pass.
_forward_mode: WeakKeyDictionary[nn.Module, dict[Hashable, bool]] = WeakKeyDictionary()


def per_sample_gradients(
    model: nn.Module,
    batch: Batch,
    loss: RowLoss | None = None,
    *,
    inputs: Inputs | None = None,
    parameters: Chosen = None,
    route: str = "auto",
    mode: str = "eval",
    groups: Tensor | None = None,
    budget: int = DEFAULT,
    structure: Structure | None = None,
) -> PerSampleGradients:
    """Exact gradients of the losses of n rows, each with respect to all p trainable parameters.

    Nothing of the model changes: not `.grad`, the mode, buffers, hooks or any global generator.

    Args:
        loss: (outputs, batch) -> losses [n]; cross-entropy with column ``y`` by default.
        inputs: makes the model's arguments of a batch; its column ``x`` by default.
        parameters: which of the trainable parameters to differentiate with respect to: names, or a function
            of the name. All by default.
        route: "ghost" keeps factors of layers of known kinds (linear, convolution, embedding, normalisation)
            and refuses others; "func" maps over rows by `torch.func`; "loop" takes one backward pass a row.
            "auto" is "ghost" where that is right, "func" for the other parameters, "loop" where that fails.
        mode: "eval" scores in evaluation mode and restores the mode; "keep" scores the model as it stands
            and refuses BatchNorm and dropout in training mode.
        groups: int [n]; rows of different groups never share a pass (the heads of a multi-task model).
        budget: bytes of working memory. Results, and vectors of the size of the parameters, come on top.
        structure: of the model, where it is known and has not changed since.

    Raises:
        ValueError: no trainable parameter, a mode or route that does not exist, a model that cannot be
            scored row by row, columns of different lengths.

    Example:
        >>> import torch
        >>> from replaykit.gradients import per_sample_gradients
        >>> g = per_sample_gradients(torch.nn.Linear(4, 3), {"x": torch.ones(5, 4), "y": torch.arange(5) % 3})
        >>> g.norms().shape, g.gram().shape, g.mean().shape
        (torch.Size([5]), torch.Size([5, 5]), torch.Size([15]))
    """
    if route not in ROUTES:
        raise ValueError(f"route is one of {ROUTES}, got {route!r}")
    structure = structure or Structure(model)
    layout = chosen_layout(structure, parameters)
    objective = Objective(structure, loss or cross_entropy(), inputs or only_x, layout)
    return ModelGradients(objective, batch, route, mode, groups, Budget(budget))


class ModelGradients(PerSampleGradients):
    """Gradients with respect to any parameters of a model, computed chunk by chunk when asked for."""

    def __init__(
        self, objective: Objective, batch: Batch, route: str, mode: str, groups: Tensor | None, budget: Budget
    ) -> None:
        like = objective.structure.parameters[next(iter(objective.layout.shapes))]
        super().__init__(objective.layout, row_count(batch), like, budget)
        self._objective, self._batch = objective, batch
        self._route, self._mode, self._groups = route, mode, groups
        self._plan: list[Tensor] | None = None
        self._cache: dict[int, Blocks] = {}
        refuse_side_effects(objective.structure)
        refuse_mixing(objective.structure, mode)

    def rows(self, index: Tensor | IntArray | Sequence[int]) -> PerSampleGradients:
        if self._at_hand and self._plan:
            held = [(rows, self._cache[chunk]) for chunk, rows in enumerate(self._plan)]
            return FactoredGradients(self.layout, self._n, self._like, self._budget, held).rows(index)
        numbers = row_numbers(index, self._n)
        batch = take(self._batch, numbers)
        groups = None if self._groups is None else self._groups[numbers.to(self._groups.device)]
        return ModelGradients(self._objective, batch, self._route, self._mode, groups, self._budget)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        if self._at_hand and not self._objective.structure.changed():
            return super().weighted_sum(weights)
        total, weights = self._empty(self.p), self._weights(weights)
        for rows in self._chunks():
            args, batch = self._at(rows)
            with scoring(self._objective.structure, self._mode):
                parts = functional.weighted_sum(self._objective, args, batch, weights[rows])
            joined = self.layout.join(parts, total)
            total = joined if len(rows) == self._n else total + joined
        return self._finite_sum(total)

    # -- inside -----------------------------------------------------------------------------------

    @property
    def _at_hand(self) -> bool:
        """Whether the factors of all rows were computed before and kept."""
        return self._plan is not None and len(self._cache) == len(self._plan)

    def _dots(self, directions: Tensor) -> Tensor:
        # One forward-mode pass costs less than the factors, two or more cost more, unless factors are there.
        if self._route == "auto" and len(directions) == 1 and not self._at_hand:
            products = self._along(directions)
            if products is not None:
                return products
        return super()._dots(directions)

    def _along(self, directions: Tensor) -> Tensor | None:
        """Products by forward-mode derivatives, where these have proved to agree with the backward pass.

        They need not: an embedding's padding row, a gradient that a hook changes. So the first time, a
        weighted sum of the products is compared with the weighted sum of the gradients.
        """
        known = _forward_mode.setdefault(self._objective.model, {})
        form = (tuple(self.layout.shapes.items()), columns(self._batch))
        if known.get(form) is False:
            return None
        products = self._empty(self._n, directions.shape[0])
        try:
            for rows in self._chunks():
                args, batch = self._at(rows)
                with scoring(self._objective.structure, self._mode):
                    products[rows] = functional.along(self._objective, args, batch, directions)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError:
            if self._objective.structure.changed():
                raise
            known[form] = False
            return None
        if form not in known:
            weights = ghost.generic_weights(products[:, 0])
            error = (weights @ products - directions @ self.weighted_sum(weights)).abs().sum()
            size = (weights[:, None] * products).abs().sum()
            agrees = bool(error <= ghost.TOLERANCE.get(size.dtype, 5e-2) * size)
            if not agrees or size > 0:
                known[form] = agrees
            if not agrees:
                return None
        return products

    def _chunks(self) -> list[Tensor]:
        if self._plan is None:
            plan: list[Tensor] = []
            for part in together(self._n, self._groups):
                plan += cut(part.to(self._like.device), self._rows_per_pass(part))
            self._plan = plan
        return self._plan

    def _rows_per_pass(self, rows: Tensor) -> int:
        form = (self._route, self._like.dtype, tuple(self.layout.shapes.items()), columns(self._batch))
        size = row_bytes(self._objective.model, form, lambda: self._measure(rows[:2]))
        return self._budget.rows_per_pass(size)

    def _measure(self, rows: Tensor) -> int:
        """Bytes of a pass for each of one or two rows: what is allocated, forward and backward."""
        args, batch = self._at(rows)
        with scoring(self._objective.structure, self._mode):
            with Allocations() as made:
                self._objective.losses(args, batch)
            rest = list(self.layout.shapes)
            if self._route in ("auto", "ghost"):
                rest = ghost.factors(self._objective, args, batch, UNLIMITED)[1]
        formed = sum(self.layout.shapes[name].numel() for name in rest) * self._like.element_size()
        given = tensor_bytes(*args, *batch.values())
        return (2 * int(made.nbytes) + given) // len(rows) + 3 * formed

    def _blocks(self, chunk: int) -> Blocks:
        if chunk in self._cache:
            return self._cache[chunk]
        rows = self._chunks()[chunk]
        blocks = self._pass(rows)
        if nbytes(blocks) / len(rows) * self._n <= self._budget.held:
            self._cache[chunk] = blocks
        return blocks

    def _pass(self, rows: Tensor) -> Blocks:
        args, batch = self._at(rows)
        objective, rest = self._objective, list(self.layout.shapes)
        blocks: Blocks = {}
        with scoring(objective.structure, self._mode):
            if self._route in ("auto", "ghost"):
                blocks, rest = ghost.factors(objective, args, batch, self._budget, rows)
            if rest and self._route == "ghost":
                raise ValueError(
                    f"route 'ghost' has no factors for {', '.join(rest[:6])}: layers of an unknown kind, "
                    "with shared or frozen parameters, or called in an unusual way; use route='auto'"
                )
            if rest:
                blocks |= functional.explicit(objective, rest, args, batch, self._route)
        return blocks

    def _at(self, rows: Tensor) -> tuple[tuple[Any, ...], Batch]:
        """The model's arguments and the batch of some rows, on the model's device."""
        if self._objective.structure.changed():
            raise RuntimeError(
                "the model has changed since these gradients were asked for; ask for them again, or put the "
                "question before the step"
            )
        whole = len(rows) == self._n and self._groups is None
        batch = self._batch if whole else take(self._batch, rows)
        batch = moved(batch, self._like.device)
        return self._objective.arguments(batch), batch
