"""A-Res: a weighted sample without replacement, in one pass; the law is successive sampling.

Source: Efraimidis and Spirakis, Weighted Random Sampling with a Reservoir, IPL 2006, Algorithm A-Res.
Keeps: the smallest keys on the host, recomputed from the column when needed. Columns written: ``key``, float64.
Probe: none. Columns read: ``weight``.
Cost per add of B rows: O(B) draws, O(log capacity) for each row that enters; one pass over the keys in
capacity / 16 entries.
Law: the stored rows are those of `capacity` successive draws without replacement from all rows offered, each with
probability proportional to weight among the rows that are left (Plackett-Luce). Inclusion is therefore *not*
proportional to weight: for that, `Chao`. With one slot both agree: weight / sum of weights.
Departures:
- Keys in log form, ln(U) / weight. The paper's U^(1/weight) rounds to 1 for large weights.
- Shrinking drops the smallest keys, which is exact. Growing is refused unless nothing was dropped yet;
  ``grow="naive"`` stores every row until the new slots are taken.
- Keys are drawn for all rows of a batch (A-Res). The skips of A-ExpJ would save draws, not host time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from replaykit.plan import weights
from replaykit.policies.largest_keys import LargestKeys
from replaykit.store import Batch


class EfraimidisSpirakis(LargestKeys):
    """Weighted reservoir whose stored rows follow successive sampling with probability proportional to weight.

    Args:
        column: column with the weight of a row, finite and above 0.
    """

    def __init__(self, column: str = "weight") -> None:
        super().__init__()
        self.column = column
        self.columns = (column,)

    def draw(self, arrivals: Batch, rng: np.random.Generator) -> NDArray[np.float64]:
        w = weights(arrivals, self.column)
        keys: NDArray[np.float64] = np.log1p(-rng.random(len(w))) / w
        return keys
