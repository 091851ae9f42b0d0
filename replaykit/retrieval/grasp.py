"""GRASP: rows near the mean of their class first, then gradually others.

Source: Harun, Gallardo, Chen and Kanan, GRASP: A Rehearsal Policy for Efficient Online Continual Learning, CoLLAs
2024 (arXiv 2308.13646); what the paper leaves open as in the authors' code.
Keeps: two notes of each slot: the distance as it is now, and when the row was measured (16 bytes a slot).
Probe: features of all stored rows at the beginning of every cycle, in evaluation mode.
Cost: O(stored rows + n · rows of a class) a draw of n rows; a forward pass over the memory a cycle.
Law: a cycle begins with the cosine distances d of all stored rows to the mean feature of their class. Classes take
turns in random order. A class whose turn it is gives row i with probability in proportion to 1 / (d_i + 1e-7), and
then adds the largest distance of the class to d_i: rows near the mean come first, and once they came, others do.
Departures:
- The authors measure before a period of replay alone ("sleep") and draw all its rows at once. Here a cycle lasts
  until `every` rows were offered to the memory, and draws continue it. Rows that came in between take part from
  the next cycle on; when no measured row is left, a cycle begins.
- Rows of one draw are distinct. Where all measured rows are drawn and more are asked for, the rest is drawn
  uniformly from the rows that are not measured yet.
- The turns of a draw start with a random class; the authors go through the classes in one order.
- When distances exceed 1e100 those of the class are divided by it (they double with each round).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from replaykit.draws import distinct
from replaykit.retrieval.base import GuidedRetrieval, groups_of
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe

_DISTANCE, _CYCLE = "grasp_distance", "grasp_cycle"
_NEVER = -1.0
_LEAST = 1e-7  # distance
_LARGE = 1e100


class GRASP(GuidedRetrieval):
    """Prototypical rows first, less prototypical ones later, class by class.

    Args:
        every: rows offered to the memory that a cycle lasts; default: as many as the memory has slots, which
            costs one forward pass of one row for each row of the stream.
        column: integer column with the class of a row.
    """

    def __init__(self, every: int | None = None, *, column: str = "y") -> None:
        if every is not None and every < 1:
            raise ValueError(f"every is a number of rows of the stream >= 1, got {every}")
        self.every, self.column = every, column
        self.columns = tuple(dict.fromkeys(("x", column)))

    def rows(self, store: Store, n: int, rng: np.random.Generator, arrivals: Batch, probe: Probe) -> IntArray:
        distance, cycle = store.note(_DISTANCE, _NEVER), store.note(_CYCLE, _NEVER)
        filled, y = store.filled, groups_of(store, self.column)
        began = cycle[filled].max()
        if began < 0 or store.seen - began >= (self.every or store.capacity):
            distance[filled], cycle[filled] = self._measured(store, probe), store.seen
        measured = cycle[filled] >= 0
        slots = filled[measured]
        drawn = self._turns(slots, y[measured], distance, min(n, len(slots)), rng)
        rest = np.setdiff1d(filled, slots)
        missing = min(n - len(drawn), len(rest))
        return np.concatenate((drawn, rest[distinct(len(rest), missing, rng)])) if missing else drawn

    def _turns(
        self, slots: IntArray, y: IntArray, distance: NDArray[np.float64], n: int, rng: np.random.Generator
    ) -> IntArray:
        """`n` distinct slots, the classes in turn; `distance` by slot changes with each."""
        classes = [slots[y == label] for label in np.unique(y)]
        left, drawn, rounds = dict(enumerate(classes)), np.empty(n, np.int64), 0
        while rounds < n:
            order = rng.permutation(np.fromiter(left, np.int64))[: n - rounds]
            for label, u in zip(order.tolist(), rng.random(len(order)).tolist(), strict=True):
                place = nearest(distance[left[label]], u)
                slot = int(left[label][place])
                drawn[rounds], rounds = slot, rounds + 1
                distance[slot] += distance[classes[label]].max()
                if distance[slot] > _LARGE:
                    distance[classes[label]] /= _LARGE
                left[label] = np.delete(left[label], place)
                if not len(left[label]):
                    del left[label]
        return drawn

    def _measured(self, store: Store, probe: Probe) -> NDArray[np.float64]:
        """Distances of all stored rows to the mean feature of their class."""
        features = probe.features(store.read(store.filled, [n for n in ("x", "t") if n in store.columns])).double()
        if not bool(features.isfinite().all()):
            raise ValueError("features of stored rows are NaN or infinite: look at the learning rate")
        _, group = np.unique(groups_of(store, self.column), return_inverse=True)
        which = torch.from_numpy(group).to(features.device)
        means = features.new_zeros(int(group.max()) + 1, features.shape[1]).index_add_(0, which, features)
        cosines = (_directions(features) * _directions(means)[which]).sum(1)
        distances: NDArray[np.float64] = (1 - cosines).clamp(0, 2).cpu().numpy()
        return distances


def _directions(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors [n, d] of length 1; those shorter than 1e-8 have no direction and become 0."""
    lengths = vectors.norm(dim=1, keepdim=True)
    return torch.where(lengths < 1e-8, 0.0, vectors / lengths.clamp_min(1e-8))


def nearest(distance: NDArray[np.float64], u: float) -> int:
    """The position at fraction `u` of [0, 1) of the weights 1 / (distance + 1e-7)."""
    total = np.cumsum(1 / (distance + _LEAST))
    return min(int(np.searchsorted(total, u * total[-1], side="right")), len(distance) - 1)
