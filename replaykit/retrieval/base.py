"""What a retrieval is: it answers with slots, the store reads them."""

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
    """Chooses by the model and by the rows of the stream that are about to be trained on."""

    #: Columns that the stored rows and the rows of the stream must have.
    columns: tuple[str, ...] = ("x", "y")

    def rows(self, store: Store, n: int, rng: np.random.Generator, arrivals: Batch, probe: Probe) -> IntArray:
        """Slots [<= n] of a store that holds at least one row.

        Args:
            arrivals: the rows of the stream, raw columns [b, ...], not yet offered to the memory.
            probe: the model, at the weights before the step.
        """
        raise NotImplementedError
