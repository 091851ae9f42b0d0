"""Least confidence, margin and entropy: how undecided the model is about a row.

Source: Settles, Active Learning Literature Survey, 2009, section 3.1.
Weights: ones. The most uncertain row comes first; with two classes the three agree on the order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from replaykit.selectors.pool import Pool, Selection, working_dtype
from replaykit.selectors.ranking import Order, highest, lowest, ranked


def least_confidence(probabilities: Tensor) -> Tensor:
    """1 - max p, of [n, c]: high where uncertain [n]."""
    return 1 - probabilities.max(1).values


def margin(probabilities: Tensor) -> Tensor:
    """Largest minus second largest p, of [n, c]: low where uncertain [n]. With one class it is p."""
    top = probabilities.topk(min(2, probabilities.shape[1]), dim=1).values
    return top[:, 0] - top[:, 1] if top.shape[1] == 2 else top[:, 0]


def entropy(probabilities: Tensor) -> Tensor:
    """-Σ p ln p in nats, with 0 ln 0 = 0, of [n, c]: high where uncertain [n]."""
    terms: Tensor = torch.special.entr(probabilities)
    return terms.sum(1)


class _Undecided:
    score: Callable[[Tensor], Tensor]
    order: Order

    def __init__(self, quantity: str = "logits", skip: int = 0) -> None:
        self.needs = (quantity,)
        self.skip = skip

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        logits = pool.tensor(self.needs[0]).to(working_dtype(pool.n))
        scores = type(self).score(logits.softmax(1))
        return ranked(scores, k, type(self).order, self.skip, type(self).__name__, self.needs[0])


class LeastConfidence(_Undecided):
    """The smallest largest probability first.

    Args:
        quantity: of the pool: logits [n, c]. A masked head's -inf is a probability of 0.
        skip: number of rows to leave out before the first.
    """

    score = staticmethod(least_confidence)
    order = staticmethod(highest)


class Margin(_Undecided):
    """The smallest gap between the two largest probabilities first; arguments of `LeastConfidence`."""

    score = staticmethod(margin)
    order = staticmethod(lowest)


class Entropy(_Undecided):
    """The highest entropy first; arguments of `LeastConfidence`."""

    score = staticmethod(entropy)
    order = staticmethod(highest)
