"""Shares of a batch as numbers of rows that sum to its size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from replaykit.store import IntArray


def largest_remainders(shares: NDArray[np.float64], n: int) -> IntArray:
    """Numbers of rows [k] for shares [k] that sum to 1: ⌊n · share⌋, and one more for the largest remainders."""
    wanted = np.round(shares * n, 9)  # a share of a third of 9 rows is 3 rows
    rows: IntArray = np.floor(wanted).astype(np.int64)
    first = np.argsort(-np.round(wanted - rows, 8), kind="stable")[: n - rows.sum()]  # equal ones in their order
    rows[first] += 1
    return rows


def systematic(shares: NDArray[np.float64], n: int, u: float) -> IntArray:
    """Numbers of rows [k] that are n · share on average over `u`, uniform on [0, 1), and within 1 of it always."""
    ends = np.append(0.0, np.cumsum(shares) * n)
    ends[-1] = n
    whole = np.floor(ends)
    rows: IntArray = np.diff(whole + (ends - whole > u)).astype(np.int64)
    return rows
