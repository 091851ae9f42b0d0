"""MIR: replay the rows whose loss the coming step would raise most.

Source: Aljundi et al., Online Continual Learning with Maximally Interfered Retrieval, NeurIPS 2019, section 3.1
(ER-MIR).
Keeps: nothing; with ``best=True`` a note of each slot in the store, its lowest loss so far (8 bytes a slot).
Probe: the mean gradient of the b arrivals (a forward and a backward pass), then the losses of c candidates before
and after a virtual step: two forward passes, one when only the last layer moves (``Probe(layers="last")``).
Cost per draw: these passes, O(c) draws, a second set of the p parameters.
Departures:
- Gradient and both losses are computed in evaluation mode, without augmentation: dropout is off and BatchNorm
  uses its running statistics, which stay as they are. The released code takes the gradient of the training step.
- Candidates come from the whole memory. The released code leaves out rows of the current task, and does not
  replay at all in the first one.
- MI-2: the lowest loss is that of all calls in which the row was a candidate, this one included, and begins with
  the first of them. The released code begins with the loss at the time the row was stored.
- Rows of equal score: the one that was drawn first. So without a step (``lr=0``) the choice is uniform.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from replaykit.draws import distinct
from replaykit.retrieval.base import GuidedRetrieval
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe

_BEST = "mir_best_loss"


class MIR(GuidedRetrieval):
    """Of uniformly drawn candidates, those that a step on the arrivals alone interferes with most.

    The score of a row is its loss after the virtual step θ - lr · (mean gradient of the arrivals), minus its loss
    before it (MI-1), or minus the lowest loss that the row has had so far (MI-2, ``best=True``).

    Args:
        lr: of the virtual plain gradient step, without momentum or weight decay; usually that of the optimiser.
        candidates: rows drawn uniformly without replacement; at least as many as are asked for.
        best: MI-2.

    Published: lr 0.1 (Permuted MNIST 0.05), 50 candidates, 10 replayed rows for batches of 10.
    """

    def __init__(self, lr: float = 0.1, candidates: int = 50, *, best: bool = False) -> None:
        if not (math.isfinite(lr) and lr >= 0):
            raise ValueError(f"lr is the size of the virtual step, a finite number >= 0, got {lr}")
        if candidates < 1:
            raise ValueError(f"candidates is a number of rows >= 1, got {candidates}")
        self.lr, self.candidates, self.best = lr, candidates, best

    def rows(self, store: Store, n: int, rng: np.random.Generator, arrivals: Batch, probe: Probe) -> IntArray:
        gradients = probe.gradients(arrivals)
        step = gradients.layout.split(-self.lr * gradients.mean())
        drawn = min(len(store), max(self.candidates, n))
        slots: IntArray = store.filled.take(distinct(len(store), drawn, rng))
        losses = probe.losses_around(store.read(slots), step)
        before, after = (values.double().cpu().numpy() for values in losses)
        if self.best:
            lowest = store.note(_BEST, math.inf)
            before = lowest[slots] = np.minimum(before, lowest[slots])
        return slots[np.argsort(before - after, kind="stable")[:n]]
