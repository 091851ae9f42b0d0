"""Shares as whole numbers that sum to a total."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from replaykit.store import IntArray


def whole_parts(shares: NDArray[np.float64] | IntArray, n: int) -> tuple[IntArray, IntArray]:
    """⌊n · share / Σ shares⌋ [k], and the positions [k] by what that leaves over, most first, equal ones in order.

    Exact: in floating point two equal shares can leave different rests, and a third of 9 can be below 3.

    Args:
        shares: numbers >= 0 [k], finite, at least one above 0.
    """
    ratios = [share.as_integer_ratio() for share in shares.tolist()]
    common = max((below for _, below in ratios), default=1)  # all are powers of two
    weights = [above * (common // below) for above, below in ratios]
    total = sum(weights)
    parts = [divmod(weight * n, total) for weight in weights]
    order = sorted(range(len(parts)), key=lambda i: -parts[i][1])
    return np.array([whole for whole, _ in parts], np.int64), np.array(order, np.int64)


def largest_remainders(shares: NDArray[np.float64] | IntArray, n: int) -> IntArray:
    """`n` in whole parts [k] by shares [k]: ⌊n · share / Σ shares⌋, and one more for the largest remainders."""
    rows, order = whole_parts(shares, n)
    rows[order[: n - rows.sum()]] += 1
    return rows


def systematic(shares: NDArray[np.float64], n: int, u: float) -> IntArray:
    """`n` in whole parts [k] by shares [k], n · share / Σ shares on average over `u`, and within 1 of it always.

    Args:
        u: uniform on [0, 1).
    """
    ends = np.append(0.0, np.cumsum(shares / shares.sum()) * n)
    ends[-1] = n
    whole = np.floor(ends)
    rows: IntArray = np.diff(whole + (ends - whole > u)).astype(np.int64)
    return rows
