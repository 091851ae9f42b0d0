"""GraNd and EL2N: the size of a row's gradient, or of its error, early in training.

    GraNd_i = E_runs ‖g_i‖        EL2N_i = E_runs ‖p_i - e_{y_i}‖

Source: Paul, Ganguli and Dziugaite, Deep Learning on a Data Diet, NeurIPS 2021, definitions 2.1 and 2.2. They
average ten runs, each early in training (EL2N: epoch 20 of 200 on CIFAR-10), and keep the highest scores.
Weights: ones.
Departures: they keep half of the data or more; at the ratios of a replay memory the highest scores are
outliers, so the order (`highest`, `lowest`, `middle`) and a number of rows to skip can be chosen. One run
unless several quantities are given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from replaykit.selectors.pool import Pool, Selection, checked_vectors, working_dtype
from replaykit.selectors.ranking import Order, highest, ranked


def el2n(probabilities: Tensor, y: Tensor) -> Tensor:
    """‖p - e_y‖ [n] of probabilities [n, c] and labels [n]."""
    error = probabilities.clone()
    error[torch.arange(len(y), device=y.device), y] -= 1
    return error.square().sum(1).sqrt()


def grand_last_layer(error: Tensor, features: Tensor, bias: bool = True) -> Tensor:
    """‖p - e_y‖ sqrt(‖h‖² + 1) [n]: the norm of a linear last layer's gradient, without forming it.

    Args:
        error: p - e_y, or any gradient with respect to the logits [n, c].
        features: inputs h of the layer [n, d].
        bias: the layer has one; the 1 is its part.
    """
    squares = features.square().sum(1) + float(bias)
    return (error.square().sum(1) * squares).sqrt()


class GraNd:
    """Rows by the norm of their gradient, averaged over the quantities named in `runs`."""

    def __init__(self, runs: Sequence[str] = ("gradients",), order: Order = highest, skip: int = 0) -> None:
        self.needs = tuple(runs)
        self.order, self.skip = order, skip

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        norms = [checked_vectors(pool, name, "GraNd").norms() for name in self.needs]
        return ranked(torch.stack(norms).mean(0), k, self.order, self.skip, "GraNd", "gradients")


class EL2N:
    """Rows by the norm of their error, averaged over the logits named in `runs`; the pool needs labels."""

    def __init__(self, runs: Sequence[str] = ("logits",), order: Order = highest, skip: int = 0) -> None:
        self.needs = tuple(runs)
        self.order, self.skip = order, skip

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        if pool.y is None:
            raise ValueError("EL2N: the pool has no labels; build it with y=...")
        scores = []
        for name in self.needs:
            logits = pool.tensor(name).to(working_dtype(pool.n))
            y = pool.y.to(logits.device)
            if logits.ndim != 2 or (len(y) and not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]):
                raise ValueError(
                    f"EL2N: {name} [n, c] with a column for each label expected, got {list(logits.shape)} for "
                    f"labels {sorted(set(y.tolist()))}; give the model an output for every class"
                )
            scores.append(el2n(logits.softmax(1), y))
        return ranked(torch.stack(scores).mean(0), k, self.order, self.skip, "EL2N", "logits")
