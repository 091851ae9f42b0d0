"""The terms of X-DER's loss, without their coefficients. Logits are [n, c]; sets of outputs are bool [c]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from replaykit.contrastive import supervised_contrastive


def restricted_cross_entropy(z: Tensor, y: Tensor, heads: Tensor) -> Tensor:
    """Mean cross-entropy of a softmax over some outputs; the others get a gradient of exactly 0."""
    return functional.cross_entropy(_only(z, heads), y)


def past_constraint(z: Tensor, past: Tensor, present: Tensor, margin: float) -> Tensor:
    """How far past heads come within `margin` of the present one, in probability; mean over rows that do.

    The probabilities of past heads are constants: rows of the stream lift the present head, they do not push
    the past ones down.
    """
    p = _only(z, past | present).softmax(1)
    return _mean_violation(_top(p, past).detach() + margin - _top(p, present))


def future_constraint(z: Tensor, own: Tensor, future: Tensor, margin: float) -> Tensor:
    """How far future heads come within `margin` of a row's own head, in logits; mean over rows that do.

    Args:
        own: outputs of the head of each row, bool [n, c].
    """
    return _mean_violation(_top(z, future) + margin - _top(z, own))


def future_preparation(z: Tensor, y: Tensor, heads: Sequence[Tensor], temperature: float) -> Tensor:
    """Supervised contrastive loss of the logits of each future head, scaled to length 1; mean over heads.

    Args:
        z: several views of a row are rows of their own.
        heads: indices of the outputs of every head; at least one head.
    """
    z = full(z)
    return torch.stack([supervised_contrastive(z[:, head], y, temperature) for head in heads]).mean()


def distance_preservation(z: Tensor, stored: Tensor, heads: Sequence[Tensor]) -> Tensor:
    """Squared distance of the Gram matrices of present and stored logits of each head; mean over heads.

    The rows of a Gram matrix [n, n] are divided by their sum of magnitudes, the distance by n².
    """
    z, stored = full(z), full(stored)
    distance = [(_relations(z[:, head]) - _relations(stored[:, head])).square().sum() for head in heads]
    return torch.stack(distance).mean() / len(z) ** 2


def full(z: Tensor) -> Tensor:
    """Outputs of a mixed-precision pass in single precision; others as they are."""
    return z.float() if z.element_size() < 4 else z


def _relations(z: Tensor) -> Tensor:
    return functional.normalize(z @ z.T, p=1.0, dim=1)


def _mean_violation(v: Tensor) -> Tensor:
    """Mean of the positive entries, 0 without any."""
    positive = v > 0
    return v.where(positive, 0.0).sum() / positive.sum().clamp_min(1)


def _only(z: Tensor, heads: Tensor) -> Tensor:
    return z.masked_fill(~heads, float("-inf"))


def _top(z: Tensor, heads: Tensor) -> Tensor:
    return _only(z, heads).max(1).values
