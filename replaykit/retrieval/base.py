"""What a retrieval is: it answers with slots, the store reads them.

A retrieval of either kind may have more, which `Buffer` and `replaykit.avalanche.Replay` look for:

- ``columns``: names of the columns that it looks at, so that what is missing is found before training.
- ``counts = True``: it looks at the notes ``replayed``, which then count how often each row was drawn.
- ``observe(store, slots, losses)``: it is told the losses [k] (float64) that the replayed rows of these slots
  [k], all different, had in the training step, before other rows are written.
- ``beside(store, slots) -> Batch``: columns that it adds to the batch of drawn rows, such as importance weights.
  Called right after `rows`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe


class Retrieval(Protocol):
    """Chooses by what is stored alone."""

    def rows(self, store: Store, n: int, rng: np.random.Generator) -> IntArray:
        """Slots [<= n] of a store that holds at least one row."""
        ...


class GuidedRetrieval:
    """Chooses by the rows of the stream that are about to be trained on, and by the model."""

    #: Columns that the stored rows and the rows of the stream must have.
    columns: tuple[str, ...] = ("x", "y")
    #: Whether it looks at the model.
    needs_probe: bool = True

    def rows(self, store: Store, n: int, rng: np.random.Generator, arrivals: Batch, probe: Probe) -> IntArray:
        """Slots [<= n] of a store that holds at least one row.

        Args:
            arrivals: the rows of the stream, raw columns [b, ...], not yet offered to the memory.
            probe: the model, at the weights before the step.
        """
        raise NotImplementedError


def groups_of(store: Store, column: str) -> IntArray:
    """The class, task or source of every stored row [len(store)], in the order of `store.filled`.

    Raises:
        ValueError: a column with several numbers a row, such as a matrix of labels, or one that came late, when
            there are still rows without it.
    """
    groups: IntArray = store.host(column)[store.filled]
    if groups.ndim != 1:
        raise ValueError(
            f"column {column!r} holds rows of shape {list(groups.shape[1:])}, this retrieval needs one integer a "
            "row; name a column that has it, or choose another retrieval"
        )
    without = int((store.widths[column][store.filled] == 0).sum()) if column in store.widths else 0
    if without:
        raise ValueError(
            f"column {column!r} came late: {without} of {len(store)} stored rows have none; add batches that have "
            "it from the beginning, or choose another retrieval"
        )
    return groups
