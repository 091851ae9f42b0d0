"""GSS-Clust: rows whose gradients keep a distance from each other.

Source: Aljundi, Lin, Goujaud and Bengio, Gradient based sample selection for online continual learning, NeurIPS
2019 (supplement), in the form of the authors' code; ``distance="outputs"`` is its baseline FSS-Clust.
Keeps: the distance, a count. Columns written: ``recent``, bool: stored since the last selection.
Probe: gradients (``distance="outputs"``: logits) of all stored rows and of the arrivals, each time that a batch
finds too few free slots.
Cost per add: O(batch); at a selection among n rows one pass, their n² distances, and O(n · room) for each of the
distances tried, about log(growth of the distance) / growth.
Law: rows that came since the last selection are dropped if they lie within `delta` of a row that it kept. If the
others do not fit, delta becomes the smallest distance in the pool and grows by a factor 1 + growth until a scan
keeps few enough: it begins with a random row and goes through the pool, oldest selection first, keeping each row
that is farther than delta from all rows kept. So a memory may end well below its room.
Departures:
- The rows between two selections lie in the memory, are replayed and count in its bytes: a published memory of
  m slots with a recent buffer of T_r is one of m + T_r here. The authors keep the recent buffer outside and
  replay from the m only.
- A selection is made when a batch does not fit, with its rows as further candidates, not after each T_r rows:
  slots that a selection leaves empty are filled by the next rows, whatever their distance.
- Distances that cannot bring the rows down to the room, as the pool falls into more groups than that, are passed
  over without a scan.
- A pool with rows at distance 0 whose other rows do not fit goes on with its smallest distance above 0; the
  authors' code never ends.
- A gradient shorter than 1e-8 has distance 1 from all others; the authors' code divides by its length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from replaykit.gradients.cosines import Numbers, cosines
from replaykit.policies.select_when_full import SelectWhenFull
from replaykit.store import Batch, IntArray

if TYPE_CHECKING:
    from replaykit.probe import Probe

Distance: TypeAlias = Literal["gradients", "outputs"]


class GSSClust(SelectWhenFull):
    """Stores rows until a batch finds no room, then keeps rows that are farther than a distance from each other.

    Args:
        recent: slots that a selection leaves free at least, fewer than the memory has; with 0 each batch that
            comes to a full memory is a selection.
        growth: by which the distance grows from one scan to the next, relative to itself.
        distance: ``"gradients"``, 1 - the cosine of two gradients; ``"outputs"``, the squared Euclidean distance
            of two outputs of the model (FSS-Clust).

    Attributes:
        delta: the distance now.
        degenerate: candidates of all selections so far whose gradient was shorter than 1e-8.

    Published: 100 recent rows, growth 0.01 (FSS-Clust: 1); m = 300 for MNIST, 1,000 for CIFAR-10.
    """

    def __init__(self, recent: int = 100, *, growth: float = 0.01, distance: Distance = "gradients") -> None:
        if not (math.isfinite(growth) and growth > 0):
            raise ValueError(f"growth is a finite number above 0, got {growth}")
        if distance not in ("gradients", "outputs"):
            raise ValueError(f"distance is 'gradients' or 'outputs', got {distance!r}")
        self.growth, self.distance = growth, distance
        self.needs = ("gradients",) if distance == "gradients" else ("logits",)
        super().__init__(recent)

    def reset(self) -> None:
        self.delta, self.degenerate = 0.0, 0

    def choose(
        self, candidates: Batch, selected: int, room: int, rng: np.random.Generator, probe: Probe
    ) -> IntArray:
        if self.distance == "gradients":
            table, degenerate = cosines(probe.gradients(candidates).gram().double().cpu().numpy())
            distances = 1 - table
        else:
            distances, degenerate = squared_distances(probe.logits(candidates).double().cpu().numpy()), 0
        kept, self.delta = spread(distances, selected, room, self.delta, self.growth, rng)
        self.degenerate += degenerate
        return kept

    def state_dict(self) -> dict[str, Any]:
        return {"delta": self.delta, "degenerate": self.degenerate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        delta, degenerate = state.get("delta"), state.get("degenerate")
        known = (
            state.keys() == {"delta", "degenerate"} and isinstance(delta, float) and isinstance(degenerate, int)
        )
        if not known or not 0 <= state["delta"] < math.inf or state["degenerate"] < 0:
            raise ValueError(f"not the state of GSSClust: {dict(state)!r}")
        self.delta, self.degenerate = state["delta"], state["degenerate"]


def squared_distances(rows: Numbers) -> Numbers:
    """Squared Euclidean distances [n, n] of vectors [n, c]."""
    total = np.zeros((len(rows), len(rows)))
    for column in rows.T:
        total += np.square(column[:, None] - column)
    return total


def spread(
    distances: Numbers, selected: int, room: int, delta: float, growth: float, rng: np.random.Generator
) -> tuple[IntArray, float]:
    """At most `room` of n candidates that are farther than a distance from each other, and that distance.

    Args:
        distances: [n, n], 0 on the diagonal.
        selected: how many of the first candidates are the outcome of an earlier selection; if none, the very
            first one stands in.
        delta: the distance so far; 0 at the beginning.
    """
    selected = max(selected, 1)
    if delta == 0:
        delta = _smallest(distances[:selected, :selected])
    far = selected + np.flatnonzero(distances[selected:, :selected].min(1) > delta)
    pool = np.concatenate((np.arange(selected), far))
    if len(pool) <= room:
        return pool, delta
    distances = distances[np.ix_(pool, pool)]
    delta = _smallest(distances) * (1 + growth)
    needed = grouping_distance(distances, room)
    while True:
        if delta >= needed:
            kept = scanned(distances <= delta, int(rng.integers(len(pool))))
            if len(kept) <= room:
                return pool[kept], delta
        delta = delta * (1 + growth) if delta else float(distances[distances > 0].min())


def scanned(close: NDArray[np.bool_], first: int) -> IntArray:
    """The first row, and in order all rows that are not close to one kept before.

    Args:
        close: bool [n, n], true on the diagonal.
    """
    kept, covered = [first], close[first].copy()
    while not covered.all():
        row = int(covered.argmin())
        kept.append(row)
        covered |= close[row]
    return np.array(kept)


def grouping_distance(distances: Numbers, k: int) -> float:
    """The smallest distance at which chains of rows no farther apart than this form `k` groups or fewer.

    A scan at a smaller distance keeps more than `k` rows: at least one of each group.
    """
    n = len(distances)
    # The edges of a shortest spanning tree (Prim): each one up to a distance joins two of its groups.
    nearest, edges = distances[0].copy(), np.zeros(n - 1)
    outside = np.ones(n, bool)
    outside[0] = False
    for edge in range(n - 1):
        row = int(np.where(outside, nearest, np.inf).argmin())
        edges[edge], outside[row] = nearest[row], False
        np.minimum(nearest, distances[row], out=nearest)
    return float(np.sort(edges)[n - k - 1])


def _smallest(distances: Numbers) -> float:
    """The smallest distance of two different rows; 0 for one row."""
    pairs = distances[~np.eye(len(distances), dtype=bool)]
    return float(pairs.min()) if len(pairs) else 0.0
