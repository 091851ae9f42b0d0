"""Many runs of a memory over a short stream, and the statistics that judge them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from replaykit import Batch, Buffer, Policy

RARE = 1e-5  # a right policy fails such a test once in this many seeds


def stream(n: int, start: int = 0, weights: Sequence[float] | None = None) -> Batch:
    rows: Batch = {"id": torch.arange(start, start + n)}
    if weights is not None:
        rows["weight"] = torch.tensor(weights, dtype=torch.float64)[start : start + n]
    return rows


def feed(buffer: Buffer, sizes: Sequence[int], start: int = 0, weights: Sequence[float] | None = None) -> Buffer:
    for size in sizes:
        buffer.add(stream(size, start, weights))
        start += size
    return buffer


def stored(
    make: Callable[[], Policy],
    capacity: int,
    sizes: Sequence[int],
    runs: int,
    weights: Sequence[float] | None = None,
    then: Callable[[Buffer], object] | None = None,
) -> NDArray[np.bool_]:
    """Which rows of the stream [n] are in memory at the end of each run: [runs, n]."""
    rng = np.random.default_rng(0)
    inside = []
    n = sum(sizes)
    starts = np.cumsum([0, *sizes])
    batches = [stream(size, int(start), weights) for size, start in zip(sizes, starts, strict=False)]
    buffer = Buffer(capacity, make(), seed=rng)
    for _ in range(runs):
        if then is None:
            buffer.clear()
        else:
            buffer = Buffer(capacity, make(), seed=rng)
        for batch in batches:
            buffer.add(batch)
        if then is not None:
            then(buffer)
            n = buffer.seen
        inside.append(buffer["id"].numpy())
    table = np.zeros((runs, n), bool)
    for run, ids in enumerate(inside):
        table[run, ids] = True
    return table


def subset_p_value(inside: NDArray[np.bool_]) -> float:
    """Of the hypothesis that every subset of the same size is equally likely, from single inclusions.

    The covariance of the inclusion indicators of a uniform M-subset of n is s² (I - 11ᵀ / n) with
    s² = M (n - M) / (n (n - 1)).
    """
    runs, n = inside.shape
    m = int(inside[0].sum())
    assert (inside.sum(axis=1) == m).all()
    statistic = ((inside.sum(axis=0) - runs * m / n) ** 2).sum() / (runs * m * (n - m) / (n * (n - 1)))
    return float(stats.chi2.sf(statistic, n - 1))


def joint_p_value(inside: NDArray[np.bool_]) -> float:
    """Of the hypothesis that every subset of the same size is equally likely, from the subsets themselves."""
    n, m = inside.shape[1], int(inside[0].sum())
    _, counts = np.unique(inside, axis=0, return_counts=True)
    cells = int(stats.binom.pmf(m, n, 0.5) * 2**n + 0.5)
    counts = np.append(counts, np.zeros(cells - len(counts)))
    return float(stats.chisquare(counts).pvalue)


def assert_probabilities(inside: NDArray[np.bool_], wanted: Sequence[float] | NDArray[np.float64]) -> None:
    """Each row's share of the runs agrees with its probability (exact binomial bounds, all rows together)."""
    runs, n = inside.shape
    hits = inside.sum(axis=0)
    for row, p in enumerate(wanted):
        low, high = stats.binom.ppf([RARE / n, 1 - RARE / n], runs, p)
        assert low <= hits[row] <= high, f"row {row}: stored in {hits[row]} of {runs} runs, wanted {p:.4f}"
    assert len(wanted) == n
