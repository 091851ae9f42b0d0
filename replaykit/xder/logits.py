"""What happens to the logits that a memory holds: later heads are written into old rows, attenuated."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replaykit.store import IntArray

Rule: TypeAlias = Literal["code", "paper"]
NonPositive: TypeAlias = Literal["compat", "safe"]


def attenuate(
    u: Tensor, g: Tensor, gamma: float = 0.85, rule: Rule = "code", nonpositive: NonPositive = "compat"
) -> Tensor:
    """Logits that do not rival those of the ground truth: scaled so that the largest is γ g.

    Args:
        u: logits of some heads [n, h].
        g: stored logit of the label of each row [n].
        rule: ``"code"`` scales rows whose largest logit is above g, as the published numbers were made;
            ``"paper"`` scales by min(γ g / max u, 1), so those above γ g too.
        nonpositive: what to do where g ≤ 0 or max u ≤ 0, and a factor cannot lower the logits. ``"compat"``
            multiplies all the same, which flips signs and the order of the logits, or gives NaN for a largest
            logit of 0. ``"safe"`` shifts those of the rows that are too large, so that the largest is
            g - (1 - γ) |g|; rows that are small enough stay as they are.
    """
    if u.shape[1] == 0:
        return u
    top, g = u.max(1, keepdim=True).values, g[:, None]
    factor = gamma * g / top
    if nonpositive == "compat":
        return u * factor.clamp_max(1.0) if rule == "paper" else torch.where(top > g, u * factor, u)
    bound = g - (1 - gamma) * g.abs()
    lowered = torch.where((g > 0) & (top > 0), u * factor, u - top + bound)
    return torch.where(top > (g if rule == "code" else bound), lowered, u)


def implant(
    stored: Tensor,
    z: Tensor,
    y: Tensor,
    heads: Tensor,
    gamma: float = 0.85,
    rule: Rule = "code",
    nonpositive: NonPositive = "compat",
) -> Tensor:
    """Stored logits [n, c] with those of some heads replaced by present ones, attenuated.

    Args:
        stored: the logits that the memory holds; that of the label bounds the new ones.
        z: present outputs [n, c] for the same rows.
        y: labels [n].
        heads: which outputs are replaced, bool [c].
    """
    truth = stored.gather(1, y[:, None])[:, 0]
    new = stored.clone()
    new[:, heads] = attenuate(z[:, heads].to(stored.dtype), truth, gamma, rule, nonpositive)
    return new


def first_of_each(slots: IntArray) -> IntArray:
    """Positions of the first occurrence of every slot, ascending."""
    return np.sort(np.unique(slots, return_index=True)[1])


def visit(visits: NDArray[np.float64], slots: IntArray, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Count a visit of distinct slots, and say which rows are implanted now: the v-th with probability 1/v.

    So the implant that survives is that of a uniformly drawn visit.

    Args:
        visits: counts by slot, which change.
    """
    visits[slots] += 1
    chosen: NDArray[np.bool_] = rng.random(len(slots)) * visits[slots] < 1
    return chosen
