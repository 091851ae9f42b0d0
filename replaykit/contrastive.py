"""Supervised contrastive loss: embeddings of one class close together, those of others apart.

For an anchor a among m embeddings, with P(a) the others of its label and s = ⟨z, z'⟩ / τ,

    ℓ_a = -(1/|P(a)|) Σ_{p in P(a)} [ s_ap - log Σ_{q ≠ a} exp(s_aq) ]

Source: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, equation 2 (L_out).
Departures: the mean over anchors without the factor τ / τ₀, which is 1 in the published settings; an anchor that
is alone with its label has no positive and says nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def supervised_contrastive(
    z: Tensor, y: Tensor, temperature: float = 0.07, weight: Tensor | None = None, normalise: bool = True
) -> Tensor:
    """Mean loss over the anchors that have a positive; 0 without any.

    Args:
        z: embeddings [m, d]; several views of a row are rows of their own, with its label.
        y: labels [m].
        temperature: τ.
        weight: of each anchor in the mean [m], >= 0; equal by default. Only ratios matter.
        normalise: scale embeddings to length 1.

    Raises:
        ValueError: shapes that do not fit, or a temperature that is not positive.
    """
    if z.ndim != 2 or y.shape != z.shape[:1] or (weight is not None and weight.shape != y.shape):
        shapes = [list(z.shape), list(y.shape), None if weight is None else list(weight.shape)]
        raise ValueError(f"embeddings [m, d], labels [m] and weights [m] expected, got {shapes}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is a positive number, got {temperature}")
    if normalise:
        z = functional.normalize(z, dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similarity = z @ z.T / temperature
    log_share = similarity - similarity.masked_fill(itself, -math.inf).logsumexp(1, keepdim=True)
    positive = (y[:, None] == y) & ~itself
    count = positive.sum(1)
    losses = -log_share.where(positive, 0.0).sum(1) / count.clamp_min(1)
    share = (count > 0).to(losses.dtype)
    if weight is not None:
        share = share * weight.to(losses.dtype)
    return (share @ losses) / share.sum().clamp_min(torch.finfo(losses.dtype).tiny)
