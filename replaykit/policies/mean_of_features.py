"""Mean of features (MoF): each class keeps the rows nearest to the running mean of its features.

Source: Chaudhry et al., On Tiny Episodic Memories in Continual Learning, 2019, Algorithm 5. There is no official
code for it, so all choices below are ours.
Keeps: the slots of each class (8 bytes a stored row); the mean of its features, float64 [d], and the rows offered
of it.
Columns written: ``stored_feature`` [d], of the row when it entered or was last refreshed, in the model's dtype.
Probe: features of the arrivals (evaluation mode); of all stored rows with `refresh_every`.
Cost per add of B rows: one forward of B rows, O(B · q · d) time for q slots a class, and the reading of the
features of the classes in the batch (of all of them when a class is met for the first time).
Law: deterministic. A row first moves the mean of its class. The first q rows of the class are stored; a later one
takes the place of the stored row farthest from the mean (of those that tie, the first place), if it is strictly
closer. With q = 1 the rows stored are those of `KMeans`. Rows have their effect one by one: for features that do
not depend on the batch, neither does the memory on how the stream is cut.
Departures:
- Distances are to the mean of now, in float64; those at which rows entered are not kept. Distances that differ by
  no more than rounding tie: two rows are equally far from their mean.
- `momentum` = α: the mean becomes α · mean + (1 - α) · feature, and starts as the first feature.
- Classes that are met as they come shrink (as do all of them in `resize`): the rows farthest from the mean leave,
  the one that would be replaced next first.
- `refresh_every` = R: before the batch that holds the R-th, 2R-th, ... row offered, features of all stored rows
  are recomputed, and the mean of a class moves as far as they did on average. So that batch and the memory are
  seen by one model.
- Growing (``grow="naive"``) gives the new places to the next rows of each class, whatever their features.
- Repeated rows are not recognised: in a stream of several epochs the same example may be stored twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from replaykit.policies.feature_memory import (
    FEATURE,
    FeatureMemory,
    FloatArray,
    Group,
    Held,
    farthest,
    is_closer,
    squared_distances,
)
from replaykit.policies.slots_by_class import checked_keys

_UNIT = float(np.finfo(np.float64).eps)


@dataclass
class Centre:
    """The running mean of the features of a class, float64 [d], and how many rows it has seen."""

    mean: FloatArray
    offered: int = 0

    def take(self, feature: FloatArray, momentum: float | None) -> None:
        self.offered += 1
        if self.offered == 1:
            self.mean[:] = feature
        elif momentum is None:
            self.mean += (feature - self.mean) / self.offered
        else:
            self.mean += (1 - momentum) * (feature - self.mean)


class Neighbours(Group):
    """The stored rows of one class around its centre."""

    def __init__(self, slots: list[int], held: Held, places: int, centre: Centre, momentum: float | None) -> None:
        super().__init__(slots, held, places)
        self.centre, self.momentum = centre, momentum

    def seed(self, slot: int, feature: FloatArray) -> None:
        self.centre.take(feature, self.momentum)
        super().seed(slot, feature)

    def offer(self, feature: FloatArray) -> int | None:
        self.centre.take(feature, self.momentum)
        place = farthest(self._squared(), self.centre.mean, _UNIT)
        return place if is_closer(feature, self.features[place], self.centre.mean, _UNIT) else None

    def drift(self, fresh: FloatArray) -> None:
        self.centre.mean += (fresh - self.features[: len(self.slots)]).mean(0)
        super().drift(fresh)

    def shrink(self, share: int) -> list[int]:
        kept, squared = np.arange(len(self.slots)), self._squared()
        while len(kept) > share:
            leaving = farthest(squared, self.centre.mean, _UNIT)
            kept, squared = np.delete(kept, leaving), np.delete(squared, leaving)
        return self.keep(kept)

    def _squared(self) -> FloatArray:
        return squared_distances(self.features[: len(self.slots)], self.centre.mean)


class MeanOfFeatures(FeatureMemory[Neighbours]):
    """The rows of each class that are nearest to the mean of its features.

    Args:
        classes: number of classes, when it is known: each then has ⌊capacity / classes⌋ slots, and those beyond
            stay empty. None: classes are met as they come and share all slots.
        momentum: weight of the old mean in an exponential average, in [0, 1). None: the mean of all rows.
        refresh_every: recompute the features of stored rows each time so many rows were offered.

    Attributes:
        slots: the slots of each class, in the order in which they were taken.
        centres: the mean of each class met so far.

    Raises:
        ValueError: on `add`, more classes than slots, labels that are not below `classes`, features that hold NaN
            or infinity, or that have another shape or dtype than those stored.
    """

    def __init__(
        self,
        classes: int | None = None,
        *,
        momentum: float | None = None,
        refresh_every: int | None = None,
    ) -> None:
        if momentum is not None and not 0 <= momentum < 1:
            raise ValueError(f"momentum is the weight of the old mean, in [0, 1), got {momentum}")
        self.momentum = momentum
        super().__init__(classes, refresh_every)

    def reset(self) -> None:
        super().reset()
        self.centres: dict[int, Centre] = {}

    def group(self, label: int, slots: list[int], held: Held, places: int, dtype: torch.dtype) -> Neighbours:
        if label not in self.centres:
            self.centres[label] = Centre(np.zeros(held[FEATURE].shape[1]))
        return Neighbours(slots, held, places, self.centres[label], self.momentum)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "means": {label: torch.from_numpy(centre.mean.copy()) for label, centre in self.centres.items()},
            "offered": {label: centre.offered for label, centre in self.centres.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        checked_keys(state, {"slots", "means", "offered"}, type(self).__name__)
        slots, means, offered = self._checked_slots(state["slots"]), state["means"], state["offered"]
        for name, saved in (("means", means), ("rows offered", offered)):
            if not isinstance(saved, Mapping) or saved.keys() != slots.keys():
                raise ValueError(f"corrupt state: the {name} are not a dict of the classes {sorted(slots)}")
        for label, mean in means.items():
            if not isinstance(mean, Tensor) or mean.ndim != 1 or mean.dtype != torch.float64:
                raise ValueError(f"corrupt state: the mean of class {label} is not a vector of float64")
            if not isinstance(offered[label], int) or offered[label] < max(1, len(slots[label])):
                raise ValueError(
                    f"corrupt state: class {label} stores {len(slots[label])} rows of {offered[label]!r}"
                )
        self.slots = slots
        self.centres = {label: Centre(means[label].numpy().copy(), offered[label]) for label in slots}
