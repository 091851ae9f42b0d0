"""Cosines from the inner products of gradients, and the rule for gradients that are too short to have one."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from replaykit.gradients.result import DEGENERATE

Numbers: TypeAlias = NDArray[np.float64]


def inverse_lengths(squares: Any) -> Numbers:
    """1 / length of vectors of these squared lengths; 0 for lengths below 1e-8."""
    lengths = np.sqrt(np.maximum(squares, 0.0))
    inverse: Numbers = np.where(lengths < DEGENERATE, 0.0, 1 / np.maximum(lengths, DEGENERATE))
    return inverse


def cosines(gram: Numbers) -> tuple[Numbers, int]:
    """Cosines [n, n] of vectors with these inner products, and how many vectors are shorter than 1e-8.

    Such a vector has cosine 0 with all others. The diagonal is 1: in sums over pairs every vector counts once.
    """
    inverse = inverse_lengths(np.diagonal(gram))
    table: Numbers = np.clip(gram * (inverse[:, None] * inverse), -1, 1)
    np.fill_diagonal(table, 1.0)
    return table, int((inverse == 0).sum())
