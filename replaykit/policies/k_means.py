"""Online k-means: each class keeps rows that lie near the centroids of its features.

Source: Chaudhry et al., On Tiny Episodic Memories in Continual Learning, 2019, Algorithm 4. There is no official
code for it, so all choices below are ours.
Keeps: the slots of each class (8 bytes a stored row).
Columns written: ``stored_feature`` [d], of the row when it entered or was last refreshed, in the model's dtype;
``centroid`` [d], in the same dtype, but float32 at least; ``centroid_count``, int64. A filled slot is a centroid
with the row that stands for it.
Probe: features of the arrivals (evaluation mode); of all stored rows with `refresh_every`.
Cost per add of B rows: one forward of B rows, O(B · q · d) time for q slots a class, and the reading of the
columns above for the classes in the batch (for all of them when a class is met for the first time).
Law: deterministic. The first q rows of a class are its seeds. Every later one is counted by the nearest centroid
(before it moves; of those that tie, the one that was seeded first), which moves to the mean of what it has
counted; the row is stored for it if it is strictly closer to the moved centroid than the stored row is. So a
class that offered at most q rows keeps all, its counts add up to its rows offered, and the mean of its centroids
weighted by their counts is the mean of its features. Rows have their effect one by one: for features that do not
depend on the batch, neither does the memory on how the stream is cut.
Departures:
- Both distances are taken when rows are compared. The distance at which a row entered is not kept: that of a seed
  would be 0, and nothing would ever be closer.
- Distances are computed in float64; a centroid is rounded to its column at every step, so that the memory does
  not depend on the cut. Distances that differ by no more than such rounding tie: the first row that a seed counts
  is exactly as far from the moved centroid as the seed is.
- Classes that are met as they come shrink (as do all of them in `resize`): a class keeps the centroids of largest
  counts, with their rows (of those that tie, the ones seeded first). Each of the others is merged into the nearest
  that is kept: their counts add up and the centroid becomes the weighted mean, so the sums above go on to hold.
- `refresh_every` = R: before the batch that holds the R-th, 2R-th, ... row offered, features of all stored rows
  are recomputed, and each centroid moves as far as its stored row did. So that batch and the memory are seen by
  one model.
- Growing (``grow="naive"``) gives the new places to the next rows of each class, as seeds.
- Repeated rows are not recognised: in a stream of several epochs two centroids may store the same example.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from replaykit.policies.feature_memory import (
    FEATURE,
    FeatureMemory,
    FloatArray,
    Group,
    Held,
    is_closer,
    nearest,
    squared_distances,
    with_room,
)
from replaykit.store import Batch, IntArray

CENTROID, COUNT = "centroid", "centroid_count"


class Clusters(Group):
    """The centroids of one class, float64 [places, d], and the rows that each has counted, int64 [places]."""

    def __init__(self, slots: list[int], held: Held, places: int, dtype: torch.dtype) -> None:
        super().__init__(slots, held, places)
        self.centroids: FloatArray = with_room(held[CENTROID], places)
        self.counts: IntArray = with_room(held[COUNT], places)
        self.rounded = np.float64 if centroid_dtype(dtype) is torch.float64 else np.float32
        self.unit = float(np.finfo(self.rounded).eps)

    def seed(self, slot: int, feature: FloatArray) -> None:
        place = len(self.slots)
        self.centroids[place], self.counts[place] = feature, 1
        super().seed(slot, feature)

    def offer(self, feature: FloatArray) -> int | None:
        place = nearest(squared_distances(self.centroids[: len(self.slots)], feature), feature, self.unit)
        self.counts[place] += 1
        centroid = self.centroids[place]
        centroid[:] = (centroid + (feature - centroid) / self.counts[place]).astype(self.rounded)
        self.changed.add(place)
        return place if is_closer(feature, self.features[place], centroid, self.unit) else None

    def drift(self, fresh: FloatArray) -> None:
        taken = len(self.slots)
        moved = self.centroids[:taken] + (fresh - self.features[:taken])
        self.centroids[:taken] = moved.astype(self.rounded)
        super().drift(fresh)

    def shrink(self, share: int) -> list[int]:
        taken = len(self.slots)
        largest_first = np.argsort(-self.counts[:taken], kind="stable")
        kept, dropped = np.sort(largest_first[:share]), largest_first[share:]
        counts, centroids = self.counts[kept], self.centroids[kept]
        moves = np.zeros_like(centroids)
        for place in dropped.tolist():
            # All of them go to the nearest centroid as it was, whatever was merged into it before.
            leaving = self.centroids[place]
            to = nearest(squared_distances(centroids, leaving), leaving, self.unit)
            counts[to] += self.counts[place]
            moves[to] += self.counts[place] * (leaving - centroids[to])
        self.counts[:share] = counts
        self.centroids[:share] = (centroids + moves / counts[:, None]).astype(self.rounded)
        freed = self.keep(kept)
        self.changed = set(range(share))
        return freed


class KMeans(FeatureMemory[Clusters]):
    """As many centroids for each class as it has slots, each with a stored row that is near it.

    Args:
        classes: number of classes, when it is known: each then has ⌊capacity / classes⌋ slots, and those beyond
            stay empty. None: classes are met as they come and share all slots.
        refresh_every: recompute the features of stored rows each time so many rows were offered. Without it,
            the centroids of a model that trains are means over features of different models.

    Attributes:
        slots: the slots of each class, in the order in which they were seeded.

    Raises:
        ValueError: on `add`, more classes than slots, labels that are not below `classes`, features that hold NaN
            or infinity, or that have another shape or dtype than those stored.
    """

    writes = (FEATURE, CENTROID, COUNT)

    def __init__(self, classes: int | None = None, *, refresh_every: int | None = None) -> None:
        super().__init__(classes, refresh_every)

    def group(self, label: int, slots: list[int], held: Held, places: int, dtype: torch.dtype) -> Clusters:
        return Clusters(slots, held, places, dtype)

    def nothing(self, width: int) -> Held:
        return {**super().nothing(width), CENTROID: np.empty((0, width)), COUNT: np.empty(0, np.int64)}

    def rows(self, at: Sequence[tuple[Clusters, int]], dtype: torch.dtype) -> Batch:
        centroids = np.array([group.centroids[place] for group, place in at])
        counts = torch.tensor([int(group.counts[place]) for group, place in at])
        return {
            **super().rows(at, dtype),
            CENTROID: torch.from_numpy(centroids).to(centroid_dtype(dtype)),
            COUNT: counts,
        }


def centroid_dtype(feature: torch.dtype) -> torch.dtype:
    """A mean of half-precision numbers would stop moving after a few hundred of them."""
    return torch.promote_types(feature, torch.float32)
