"""Mixing by source: fixed shares of the memory batch for each source of data.

Source: replay in continual pre-training, where a fixed share of every batch comes from each earlier corpus
(Ibrahim et al., Simple and Scalable Strategies to Continually Pre-train Large Language Models, TMLR 2024).
Keeps: nothing. Probe: none.
Cost: O(stored rows).
Law: n rows are shared out among the sources in the given ratios and drawn uniformly without replacement within
each. ``rounding="largest"`` gives every batch the same numbers, by largest remainders; ``"random"`` numbers that
are n · share on average and within one of it always, so that small shares are not lost in small batches.
Where a source has fewer rows than its share, all of them are taken and the others share out the rest in their
ratios. Sources without a ratio are never drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from replaykit.draws import distinct
from replaykit.retrieval.base import groups_of
from replaykit.shares import largest_remainders, systematic
from replaykit.store import IntArray, Store


class MixedSources:
    """Rows of several sources in fixed ratios.

    Args:
        ratios: share of each source, by its number in the column; they need not sum to 1. Default: equal shares
            for all sources that are stored.
        column: integer column that says where a row comes from; task labels by default.
        rounding: how shares become numbers of rows.

    Raises:
        ValueError: ratios that are negative, not finite or all 0; a draw when none of the sources is stored.
    """

    def __init__(
        self,
        ratios: Mapping[int, float] | None = None,
        *,
        column: str = "t",
        rounding: Literal["largest", "random"] = "largest",
    ) -> None:
        if rounding not in ("largest", "random"):
            raise ValueError(f"rounding is 'largest' or 'random', got {rounding!r}")
        values = [] if ratios is None else list(ratios.values())
        if ratios is not None and not (all(math.isfinite(r) and r >= 0 for r in values) and sum(values) > 0):
            raise ValueError(f"ratios are numbers >= 0 by source, at least one above 0, got {dict(ratios)}")
        self.ratios = None if ratios is None else {source: float(r) for source, r in ratios.items() if r > 0}
        self.column, self.rounding = column, rounding
        self.columns = (column,)

    def rows(self, store: Store, n: int, rng: np.random.Generator) -> IntArray:
        slots = store.filled
        of_row = groups_of(store, self.column)
        sources, where, stored = np.unique(of_row, return_inverse=True, return_counts=True)
        ratios = self.ratios or dict.fromkeys(sources.tolist(), 1.0)
        share = np.array([ratios.get(source, 0.0) for source in sources.tolist()])
        if not share.any():
            raise ValueError(
                f"none of the sources {sorted(ratios)} is in the memory, whose column {self.column!r} holds "
                f"{sources.tolist()}; give ratios for those"
            )
        rows = self._numbers(share, stored, n, rng)
        parts = []
        for source in np.flatnonzero(rows).tolist():
            of_source = np.flatnonzero(where == source)
            parts.append(of_source[distinct(len(of_source), int(rows[source]), rng)])
        mixed: IntArray = slots[np.concatenate(parts)]
        return mixed

    def _numbers(
        self,
        share: np.ndarray[tuple[int], np.dtype[np.float64]],
        stored: IntArray,
        n: int,
        rng: np.random.Generator,
    ) -> IntArray:
        """Rows [k] of each source, at most as many as are stored, n in all or everything that has a ratio."""
        u = rng.random() if self.rounding == "random" else 0.0
        rows = np.zeros(len(share), np.int64)
        open_, left = share > 0, n
        while left and open_.any():
            shares = np.where(open_, share, 0.0)
            wanted = (
                largest_remainders(shares, left) if self.rounding == "largest" else systematic(shares, left, u)
            )
            short = open_ & (wanted >= stored)
            if not (open_ & (wanted > stored)).any():
                return rows + wanted
            # Those that run out give all they have; the others share what is then left.
            rows[short] = stored[short]
            left, open_ = n - int(rows.sum()), open_ & ~short
        return rows
