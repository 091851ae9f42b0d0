"""ASER: replay the rows that help what is stored and stand against what arrives.

Source: Shim et al., Online Class-Incremental Continual Learning with Adversarial Shapley Value, AAAI 2021.
Keeps: nothing.
Probe: features of the arrivals and of the rows drawn from the memory (two forward passes).
Cost per draw: O(stored rows) to draw evenly over the classes, then O(e c log c) for e evaluation rows and c
candidates.
Departures:
- A number of rows a class that is no integer, such as the published 1.5, means ⌊1.5 · classes + ½⌋ rows for
  candidates and as many for evaluation, spread over the classes as evenly as possible, at random. The released
  code draws 1 row a class here, and 1.5 · classes rows in its memory update.
- Candidates are at least as many as the rows asked for, and where a class has too few rows, others give more.
  The released code returns fewer rows then.
- If the candidates leave no row for the cooperative evaluation, its part of the score is 0 (there NaN).
- Rows of equal score: one at random (rounding errors of the sums do not count).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from replaykit.plan import labels
from replaykit.retrieval.base import GuidedRetrieval, groups_of
from replaykit.retrieval.shapley import knn_shapley, ranked
from replaykit.retrieval.uniform import Uniform
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe

_UNIFORM = Uniform()


class ASER(GuidedRetrieval):
    """Of class-balanced candidates, those with the highest adversarial Shapley value.

    Values are those of a K-nearest-neighbour classifier of features (`replaykit.retrieval.shapley`): adversarial
    ones with the arrivals as queries, cooperative ones with another class-balanced draw from the memory. While
    every row offered so far is stored, replay is uniform.

    Args:
        neighbours: K.
        per_class: candidates, and rows of the cooperative evaluation, for each class in the memory. To leave a
            choice, per_class · classes must exceed the number of rows that are asked for.
        mode: the score, ``"mean"`` (ASV_μ): mean cooperative value minus mean adversarial one; ``"extreme"``
            (ASV): largest cooperative minus smallest adversarial; ``"negative"``: minus the adversarial sum.

    Published: K = 3 (the released command line has 5), ASV_μ, 1.5 to 9 rows a class by data set and memory, 10
    replayed rows for batches of 10, lr 0.1.
    """

    def __init__(
        self,
        neighbours: int = 3,
        per_class: float = 1.5,
        mode: Literal["mean", "extreme", "negative"] = "mean",
    ) -> None:
        if mode not in ("mean", "extreme", "negative"):
            raise ValueError(f"mode is 'mean', 'extreme' or 'negative', got {mode!r}")
        check_sizes(neighbours, per_class)
        self.neighbours, self.per_class, self.mode = neighbours, per_class, mode

    def rows(self, store: Store, n: int, rng: np.random.Generator, arrivals: Batch, probe: Probe) -> IntArray:
        if store.seen == len(store):
            return _UNIFORM.rows(store, n, rng)
        arrived, arrived_y = probe.features(arrivals), labels(arrivals)
        y = groups_of(store, "y").astype(np.int64)
        share = rows_of(self.per_class, len(np.unique(y)))
        candidates = min(len(store), max(n, share))
        drawn = balanced(y, candidates if self.mode == "negative" else candidates + share, rng)
        slots: IntArray = store.filled[drawn]
        if candidates <= n:
            return slots[:candidates]
        features = probe.features(store.read(slots, inputs_of(store)))
        rows, rows_y = features[:candidates], y[drawn[:candidates]]
        adversarial = self._values(arrived, arrived_y, rows, rows_y)
        cooperative = self._values(features[candidates:], y[drawn[candidates:]], rows, rows_y)
        return slots[ranked(self._score(cooperative, adversarial))[:n]]

    def _values(self, query: Tensor, query_y: IntArray, rows: Tensor, rows_y: IntArray) -> Tensor:
        """Values [q, n], or zeros [1, n]: an evaluation without rows says nothing of any candidate."""
        if len(query_y) == 0:
            return rows.new_zeros(1, len(rows), dtype=torch.float64)
        on_device = [torch.from_numpy(y).to(rows.device) for y in (query_y, rows_y)]
        return knn_shapley(query, on_device[0], rows, on_device[1], self.neighbours)

    def _score(self, cooperative: Tensor, adversarial: Tensor) -> Tensor:
        """Score [n] of values [e, n] and [b, n]."""
        if self.mode == "negative":
            return -adversarial.sum(0)
        if self.mode == "extreme":
            return cooperative.amax(0) - adversarial.amin(0)
        return cooperative.mean(0) - adversarial.mean(0)


def check_sizes(neighbours: int, per_class: float) -> None:
    if neighbours < 1:
        raise ValueError(f"neighbours is a number of rows >= 1, got {neighbours}")
    if not 1 <= per_class < np.inf:
        raise ValueError(f"per_class is a number of rows a class >= 1, got {per_class}")


def rows_of(per_class: float, classes: int) -> int:
    """Number of rows of a draw with `per_class` rows for each class."""
    return int(per_class * classes + 0.5)


def balanced(y: IntArray, k: int, rng: np.random.Generator) -> IntArray:
    """Positions of `k` distinct rows with labels y [n], or all, spread evenly over the classes: O(n log n).

    The classes take turns, in random order each time, as long as they have rows, so that every part of the result
    is as even as the rest allows.
    """
    order = rng.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]  # class by class, and at random within a class
    start = np.flatnonzero(np.diff(y[order], prepend=y.min() - 1))
    turn = np.arange(len(y)) - np.repeat(start, np.diff(start, append=len(y))) + rng.random(len(y))
    if k < len(y):
        first = np.argpartition(turn, k)[:k]
        order, turn = order[first], turn[first]
    return order[np.argsort(turn)]


def inputs_of(store: Store) -> list[str]:
    """The columns of a store that features are made of."""
    return [name for name in ("x", "t") if name in store.columns]
