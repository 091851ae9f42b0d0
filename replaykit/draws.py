"""Random draws on the host, each exact and no more expensive than its result."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from replaykit.store import IntArray


def distinct(n: int, k: int, rng: np.random.Generator) -> IntArray:
    """`k` distinct numbers below `n` in random order, every ordered choice equally likely, in O(k)."""
    if n <= 16 * k:  # shuffling a few more than needed is cheaper than looking for repeats
        return rng.permutation(n)[:k]
    # The first k distinct values of an i.i.d. sequence are a uniform ordered sample without replacement.
    drawn = (rng.random(k) * n).astype(np.int64)
    listed = drawn.tolist()
    if len(set(listed)) == k:
        return drawn
    unique = dict.fromkeys(listed)
    while len(unique) < k:
        more = (rng.random(k - len(unique)) * n).astype(np.int64)
        unique.update(dict.fromkeys(more.tolist()))
        drawn = np.fromiter(unique, np.int64, len(unique))
    return drawn


def weighted(weights: NDArray[np.float64], n: int, rng: np.random.Generator, replace: bool = False) -> IntArray:
    """Positions drawn with probability proportional to `weights` (>= 0), successively if not replaced."""
    if replace:
        return rng.choice(len(weights), n, p=weights / weights.sum())
    positive = np.flatnonzero(weights > 0)
    # log U / w: keys of Efraimidis and Spirakis in log form, which does not collapse for large weights.
    keys = np.log1p(-rng.random(len(positive))) / weights[positive]
    top = np.argpartition(keys, -n)[-n:] if n < len(keys) else np.arange(len(keys))
    return positive[top[np.argsort(-keys[top])]]
