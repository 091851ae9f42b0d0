"""Forgetting events: how often a learned row was lost again.

An event is a presentation at which the row is wrong after having been right at its previous one. A row that
was never right counts as forgotten at every presentation.

Source: Toneva et al., An Empirical Study of Example Forgetting during Deep Neural Network Learning, ICLR
2019, section 3, and its released ordering for rows never learned.
Keeps: the rows forgotten most often. Weights: ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from replaykit.selectors.pool import Pool, Selection, finite, working_dtype
from replaykit.selectors.ranking import Order, highest, ranked


def forgetting_events(history: Tensor) -> Tensor:
    """Events [n] of a history of right (1) and wrong (0) answers [presentations, n]."""
    right = history.bool()
    events = (right[:-1] & ~right[1:]).sum(0)
    return torch.where(right.any(0), events, len(right))


def checked_counts(counts: Tensor, name: str) -> Tensor:
    """Counts of events [n], if they can be.

    Raises:
        ValueError: a count that is negative, NaN or infinite.
    """
    finite(counts, "Forgetting", name)
    if len(counts) and counts.min() < 0:
        raise ValueError(f"Forgetting: {name} must be counts >= 0, got {counts.min().item():g}")
    return counts


class ForgettingCounts:
    """Counts events while a model trains: 17 bytes a row.

    Args:
        n: number of rows of the data set; rows are known by their number.
    """

    def __init__(self, n: int) -> None:
        self._events = torch.zeros(n, dtype=torch.int64)
        self._shown = torch.zeros(n, dtype=torch.int64)
        # Before the first presentation there is nothing to forget.
        self._right = torch.zeros(n, dtype=torch.bool)
        self._learned = torch.zeros(n, dtype=torch.bool)

    def update(self, rows: Tensor, right: Tensor) -> None:
        """Record one presentation of some rows [b] and whether the answers were right [b].

        Raises:
            ValueError: a row twice, or a row that does not exist. Nothing was recorded then.
        """
        rows, right = rows.cpu(), right.cpu().bool()
        n = len(self._events)
        if rows.shape != right.shape or len(set(rows.tolist())) != len(rows):
            raise ValueError("ForgettingCounts: one answer a row and each row once; split the batch")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < n:
            raise ValueError(f"ForgettingCounts: rows must be in [0, {n}), got {rows.tolist()}")
        self._events[rows] += (self._right[rows] & ~right).long()
        self._shown[rows] += 1
        self._right[rows] = right
        self._learned[rows] |= right

    def scores(self) -> Tensor:
        """Events so far, and for a row never right the number of its presentations, int64 [n]."""
        return torch.where(self._learned, self._events, self._shown)

    def state_dict(self) -> dict[str, Any]:
        return {
            "events": self._events.clone(),
            "shown": self._shown.clone(),
            "right": self._right.clone(),
            "learned": self._learned.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over saved counts, or raise `ValueError` and keep the present ones."""
        mine = self.state_dict()
        if state.keys() != mine.keys() or any(state[name].shape != mine[name].shape for name in mine):
            raise ValueError(f"not the counts of {len(self._events)} rows: {sorted(state)}")
        for name in mine:
            setattr(self, f"_{name}", state[name].clone())


class Forgetting:
    """Rows by a count of forgetting events, the most forgotten first.

    Args:
        quantity: of the pool: counts [n], see `ForgettingCounts`.
        order: `highest`, `lowest` or `middle` of `replaykit.selectors.ranking`.
        skip: number of rows to leave out before the first.
    """

    def __init__(self, quantity: str = "forgetting", order: Order = highest, skip: int = 0) -> None:
        self.needs = (quantity,)
        self.order, self.skip = order, skip

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        scores = checked_counts(pool.tensor(self.needs[0]), self.needs[0]).to(working_dtype(pool.n))
        return ranked(scores, k, self.order, self.skip, "Forgetting", self.needs[0])
