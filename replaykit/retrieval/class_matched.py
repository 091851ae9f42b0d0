"""Class-matched replay: the memory batch has the labels of the batch that just came.

Source: the retrieval called ``match`` of the code of Mai et al., Supervised Contrastive Replay, CVPR Workshops
2021 (RaptorMai/online-continual-learning).
Keeps: nothing. Probe: none; it looks at the labels of the arrivals.
Cost: O(stored rows).
Law: n rows are shared out among the classes of the arrivals in proportion to how often each comes, by largest
remainders (ties to the lower label), and drawn uniformly without replacement within each class.
Departures:
- Where a class has fewer stored rows than its share, all of them are taken and the places that are left go to
  rows drawn uniformly from the rest of the memory; so a batch of new classes is met by uniform replay. The
  released code replays nothing as soon as one class lacks rows.
- The batch may be of another size than the arrivals'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from replaykit.draws import distinct
from replaykit.plan import labels
from replaykit.retrieval.base import GuidedRetrieval, groups_of
from replaykit.shares import largest_remainders
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe


class ClassMatched(GuidedRetrieval):
    """Rows with the label histogram of the arriving batch.

    Args:
        column: integer column to match: labels, task labels, any group.
    """

    needs_probe = False

    def __init__(self, column: str = "y") -> None:
        self.column = column
        self.columns = (column,)

    def rows(self, store: Store, n: int, rng: np.random.Generator, arrivals: Batch, probe: Probe) -> IntArray:
        classes, came = np.unique(labels(arrivals, self.column), return_counts=True)
        slots = store.filled
        if n >= len(slots):
            return np.array(slots)
        held = groups_of(store, self.column)
        parts = []
        for label, share in zip(classes.tolist(), largest_remainders(came, n).tolist(), strict=True):
            of_class = np.flatnonzero(held == label)
            parts.append(of_class[distinct(len(of_class), min(share, len(of_class)), rng)])
        places = np.concatenate(parts)
        if len(places) < n:
            rest = np.delete(np.arange(len(slots)), places)
            places = np.concatenate((places, rest[distinct(len(rest), n - len(places), rng)]))
        matched: IntArray = slots[places]
        return matched
