"""Per-sample gradients of the last linear layer, in closed form.

They are outer products of the residual r_i = d l_i / d logits_i and the features h_i, and stay so:
n (C + d) numbers instead of n C (d + 1). The residuals come from differentiating the losses with respect to
the layer's output alone, so any row loss serves (label smoothing, masked heads, squared errors, sums), and
the model below the layer is run without gradients.

    <g_i, g_j> = (r_i · r_j) (h_i · h_j + 1),    |g_i| = |r_i| sqrt(|h_i|² + 1)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from replaykit.gradients.budget import DEFAULT, Budget
from replaykit.gradients.factored import FactoredGradients
from replaykit.gradients.heads import cut_at, find_head
from replaykit.gradients.layers import linear, refuse_side_effects
from replaykit.gradients.losses import RowLoss, cross_entropy
from replaykit.gradients.objective import Inputs, Layout, Objective, refuse_nan, rows_per_pass
from replaykit.gradients.result import Blocks, PerSampleGradients
from replaykit.gradients.rows import cut, moved, only_x, row_count, take, together
from replaykit.gradients.scoring import scoring
from replaykit.gradients.structure import Structure
from replaykit.store import Batch


def last_layer_gradients(
    model: nn.Module,
    batch: Batch,
    loss: RowLoss | None = None,
    *,
    inputs: Inputs | None = None,
    layer: str | None = None,
    mode: str = "eval",
    groups: Tensor | None = None,
    budget: int = DEFAULT,
    structure: Structure | None = None,
) -> PerSampleGradients:
    """Exact gradients of the losses of n rows with respect to weight and bias of the last linear layer.

    One forward pass, at once; the result does not change with the model.

    Args:
        layer: name of the layer; by default the module with parameters that is entered last.
        loss, inputs, mode, groups, budget, structure: as in `per_sample_gradients`.

    Raises:
        ValueError: the last layer is not an `nn.Linear`, is called more than once, or the losses are not one
            finite number a row.
    """
    n, limit = row_count(batch), Budget(budget)
    like = next(model.parameters(), None)
    if like is None:
        raise ValueError("the model has no parameters, so it has no last layer")
    structure = structure or Structure(model)
    refuse_side_effects(structure)
    objective = Objective(structure, loss or cross_entropy(), inputs or only_x, Layout({}))
    chunks, heads = [], set()
    with scoring(structure, mode, gradients=False):
        for rows in together(n, groups):
            for part in cut(rows, rows_per_pass(objective, batch, rows, like.device, limit)):
                head, blocks = _pass(objective, batch, part, like.device, layer)
                heads.add(head)
                chunks.append((part.to(like.device), blocks))
    shapes = {
        name: value.shape for name, value in structure.parameters.items() if name.rpartition(".")[0] in heads
    }
    return FactoredGradients(Layout(shapes), n, like, limit, chunks)


def _pass(
    objective: Objective, batch: Batch, rows: Tensor, device: torch.device, layer: str | None
) -> tuple[str, Blocks]:
    """Name of the last layer, and the factors of some rows."""
    batch = moved(batch if len(rows) == row_count(batch) else take(batch, rows), device)
    args, n = objective.arguments(batch), row_count(batch)
    name = find_head(objective.structure, args, n) if layer is None else layer
    module = _linear(objective.structure, name)
    calls: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad(), cut_at(module, calls):
        losses = objective.losses(args, batch)
        refuse_nan(losses.detach().cpu(), "losses", rows)
        if len(calls) != 1 or calls[0][1].shape[0] != n or not losses.requires_grad:
            raise ValueError(
                f"the last layer {name!r} must be called once, on {n} rows, and decide the losses; it was "
                f"called on {[list(h.shape) for h, _ in calls]}; use per_sample_gradients instead"
            )
        h, out = calls[0]
        residual = _residuals(losses, out, name)
    names = tuple(f"{name}.{own}" if name else own for own, p in module._parameters.items() if p is not None)
    return name, {name: linear(module, names, [(residual, h)])}


def _residuals(losses: Tensor, out: Tensor, name: str) -> Tensor:
    """d l_i / d out_i [n, ...]; with more axes than two, which of them counts the rows is checked."""
    if out.ndim == 2:
        return torch.autograd.grad(losses.sum(), out)[0]
    residual = torch.autograd.grad(losses.sum(), out, retain_graph=True)[0]
    scale = torch.arange(1, len(losses) + 1, device=out.device).to(losses)
    scaled = torch.autograd.grad(losses, out, scale)[0]
    if not torch.allclose(scaled, residual * scale.reshape(-1, *[1] * (out.ndim - 1)), rtol=1e-3, atol=1e-6):
        raise ValueError(f"the last layer {name!r} does not keep rows on the first axis; use per_sample_gradients")
    return residual


def _linear(structure: Structure, name: str) -> nn.Linear:
    if name not in structure.modules:
        raise ValueError(f"the model has no module {name!r}")
    module = structure.modules[name]
    own = [value for value in module._parameters.values() if value is not None]
    if type(module) is not nn.Linear:
        raise ValueError(
            f"the last layer {name!r} is a {type(module).__name__}, and the closed form needs an nn.Linear; "
            "name one by layer=, or use per_sample_gradients"
        )
    if module._forward_hooks or module._forward_pre_hooks or any(id(p) in structure.shared for p in own):
        raise ValueError(
            f"the last layer {name!r} has hooks or shares its parameters, so the closed form does not hold; "
            "use per_sample_gradients"
        )
    return module
