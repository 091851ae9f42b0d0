"""ASER's memory update: rows that help to classify by nearest neighbours replace rows that do not.

Source: Shim et al., Online Class-Incremental Continual Learning with Adversarial Shapley Value, AAAI 2021, the
memory update; its retrieval is `replaykit.retrieval.ASER`.
Keeps: nothing. Columns written: none.
Probe: features of the arrivals and of the rows drawn from the memory, once the memory is full.
Cost per add of B rows: O(capacity) to draw evenly over the classes, two forward passes of features, and
O(e c log c) for e evaluation rows and c = candidates + B rows in competition.
Law: none; stored rows that were not drawn as candidates stay. Where features separate the classes, each row of a
class is worth (evaluation rows of the class) / (rivals of the class): classes of many rivals lose rows, at random.
Departures:
- Rows are stored until the memory is full; the rest of that batch competes, as in the released code, with a memory
  that holds the first part.
- A number of rows a class that is no integer: see `replaykit.retrieval.aser`. The evaluation takes at most half of
  the memory, so that candidates are left in a small one (the released code then never changes it again).
- Rows of equal value: at random (rounding errors of the sums do not count).
- `resize`: shrinking keeps a uniform subset; growing (``grow="naive"``) stores every row until the new slots are
  taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replaykit.draws import distinct
from replaykit.plan import Plan, Policy, check_growth, labels
from replaykit.retrieval.aser import balanced, check_sizes, inputs_of, rows_of
from replaykit.retrieval.shapley import knn_shapley, ranked
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe

_PAIRS = 2**21  # of an evaluation row and a row in competition, worked on at a time: 16 MB a temporary


class ShapleyReservoir(Policy):
    """Arrivals and drawn memory rows compete by their Shapley value in a K-nearest-neighbour classifier.

    The value of a row is summed over a class-balanced draw from the memory and over the arrivals of minority
    classes: those whose share of the memory is below u / classes, with one uniform u in [0, 1) an add. As many
    rows as were drawn from the memory win; arrivals among them take the slots of the drawn rows that lost.

    Args:
        neighbours: K.
        per_class: memory rows in the evaluation, for each class in the memory, and in the competition, for each
            of the `classes`.
        classes: number of classes, when it is known (as in the released code); None: those in the memory and the
            batch.

    Published: K = 3, and 1.5 to 9 rows a class by data set and memory.
    """

    needs = ("features",)
    columns = ("y",)
    writes = ()

    def __init__(self, neighbours: int = 3, per_class: float = 1.5, classes: int | None = None) -> None:
        check_sizes(neighbours, per_class)
        if classes is not None and classes < 1:
            raise ValueError(f"classes is a number of classes >= 1, got {classes}")
        self.neighbours, self.per_class, self.classes = neighbours, per_class, classes

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        y, held = labels(arrivals, classes=self.classes), len(store)
        free = store.free(len(y))
        if len(free) == len(y):
            return Plan(np.arange(len(y)), free, distinct=True)
        assert probe is not None
        # Rows have numbers: those stored first, then the arrivals. The first `capacity` of them are the memory.
        features = _Features(arrivals, store, probe)
        stored_y: IntArray = store.host("y")[store.filled].astype(np.int64) if held else y[:0]
        everyone_y, slots = np.concatenate([stored_y, y]), np.concatenate([store.filled, free])
        evaluation, rivals = self._drawn(everyone_y, store.capacity, rng)
        order = rivals[ranked(self._values(evaluation, rivals, everyone_y, features))]
        seats = int((rivals < store.capacity).sum())
        winners, losers = order[:seats], order[seats:]
        entering, leaving = winners[winners >= store.capacity], losers[losers < store.capacity]
        writers = dict(zip(free.tolist(), range(len(free)), strict=True))
        writers.update(zip(slots[leaving].tolist(), (entering - held).tolist(), strict=True))
        return Plan.of(writers)

    def _drawn(self, y: IntArray, capacity: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Rows of the evaluation, and rivals in random order: candidates of the memory and all new rows."""
        new = np.arange(capacity, len(y))
        _, group = np.unique(y, return_inverse=True)
        stored = np.bincount(group[:capacity], minlength=int(group.max()) + 1)
        classes = self.classes or len(stored)
        minority = new[stored[group[new]] / capacity < rng.random() / classes]
        drawn = balanced(y[:capacity], capacity, rng)
        evaluated = min(rows_of(self.per_class, int((stored > 0).sum())), capacity // 2)
        others = drawn[evaluated:]
        candidates = others[distinct(len(others), min(len(others), rows_of(self.per_class, classes)), rng)]
        return np.concatenate([drawn[:evaluated], minority]), rng.permutation(np.concatenate([candidates, new]))

    def _values(self, evaluation: IntArray, rivals: IntArray, y: IntArray, features: _Features) -> Tensor:
        """Sums of the values [n] of the rivals over the rows of the evaluation."""
        both = np.concatenate([evaluation, rivals])
        known = features.of(both)
        label = torch.from_numpy(y[both]).to(known.device)
        e, step = len(evaluation), max(1, _PAIRS // len(rivals))
        total = known.new_zeros(len(rivals), dtype=torch.float64)
        for start in range(0, e, step):
            part = slice(start, min(e, start + step))
            total += knn_shapley(known[part], label[part], known[e:], label[e:], self.neighbours).sum(0)
        return total

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        check_growth(store, capacity, grow)
        if capacity >= len(store):
            return np.sort(store.filled)
        return np.sort(store.filled[distinct(len(store), capacity, rng)])


class _Features:
    """Features of rows that have numbers: first those stored, then the arrivals."""

    def __init__(self, arrivals: Batch, store: Store, probe: Probe) -> None:
        self.store, self.probe, self.arrived = store, probe, probe.features(arrivals)

    def of(self, rows: IntArray) -> Tensor:
        """[len(rows), d]"""
        stored = rows < len(self.store)
        features = self.arrived.new_empty(len(rows), self.arrived.shape[1])
        if stored.any():
            batch = self.store.read(self.store.filled[rows[stored]], inputs_of(self.store))
            features[_on(features, stored)] = self.probe.features(batch)
        features[_on(features, ~stored)] = self.arrived[_on(features, rows[~stored] - len(self.store))]
        return features


def _on(features: Tensor, array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array).to(features.device)
