"""Budgets by class: whole numbers that add up, and a selection within each class.

Source: the largest-remainder method (Hamilton's); a class with fewer rows than its quota gives the rest to
the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from replaykit.selectors.pool import Pool, Selection, Selector, take_count
from replaykit.shares import whole_parts
from replaykit.store import IntArray

Shares: TypeAlias = Callable[[IntArray], NDArray[np.float64]]
Select: TypeAlias = Callable[[Pool, int, np.random.Generator], Selection]


def proportional(counts: IntArray) -> NDArray[np.float64]:
    """Shares [c] in proportion to the rows of each class [c]."""
    return counts.astype(np.float64)


def equal(counts: IntArray) -> NDArray[np.float64]:
    """The same share [c] for every class."""
    return np.ones(len(counts))


def largest_remainder(budget: int, shares: NDArray[np.float64], available: IntArray) -> IntArray:
    """Quotas [c]: budget · shares / Σ shares, rounded so that they sum to min(budget, Σ available).

    No quota exceeds what is available; the excess is divided among the other classes by the same rule. Equal
    remainders go to the smallest index.

    Raises:
        ValueError: a negative budget; shares that are negative or not finite.
    """
    shares = np.asarray(shares, np.float64)
    available = np.asarray(available, np.int64)
    if budget < 0 or not np.isfinite(shares).all() or (shares < 0).any():
        raise ValueError(f"a budget and finite shares >= 0 are needed, got {budget} and {shares.tolist()}")
    quotas = np.zeros(len(shares), np.int64)
    open_ = available > 0
    left = min(int(budget), int(available.sum()))
    while left > 0:
        # Classes of no share stand in line behind all others.
        part = np.where(open_, shares, 0.0) if shares[open_].any() else open_.astype(np.float64)
        quota, order = whole_parts(part, left)
        full = open_ & (quota >= available)
        if full.any():
            quotas[full] = available[full]
            left -= int(available[full].sum())
            open_ &= ~full
            continue
        quota[order[: left - int(quota.sum())]] += 1
        quotas[open_] = quota[open_]
        break
    return quotas


def by_class(
    select: Select, pool: Pool, k: int, rng: np.random.Generator, selector: str, shares: Shares = proportional
) -> Selection:
    """Select within each class, min(k, n) rows altogether.

    The rows of the classes are interleaved in proportion to their quotas, so that a prefix of the order is
    a selection with nearly the same shares. A pool without labels is one class.

    Raises:
        ValueError, KeyError, TypeError: what `select` raises, with selector and class added.
    """
    k = take_count(k, pool.n, selector)
    if pool.y is None or pool.n == 0:
        return select(pool, k, rng)
    label, group, count = np.unique(pool.y.cpu().numpy(), return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    members = np.split(order, np.cumsum(count)[:-1])
    quotas = largest_remainder(k, shares(count), count)
    rows, weights, turns = [], [], []
    for c in np.flatnonzero((quotas > 0) | (k == 0) & (np.arange(len(quotas)) == 0)):
        index = torch.from_numpy(members[c])
        try:
            chosen, weight = select(pool.subset(index), int(quotas[c]), rng)
        except (ValueError, KeyError, TypeError) as error:
            message = str(error.args[0] if error.args else error)
            owner = "" if selector in message else f"{selector}: "
            where = f" (class {label[c]})"
            # A selector that goes class by class itself has said it.
            raise type(error)(f"{owner}{message}{'' if message.endswith(where) else where}") from error
        rows.append(index.to(chosen.device)[chosen])
        weights.append(weight)
        turns.append((torch.arange(len(chosen), dtype=torch.float64) + 0.5) / max(len(chosen), 1))
    turn = torch.sort(torch.cat(turns), stable=True).indices.to(rows[0].device)
    return torch.cat(rows)[turn], torch.cat(weights)[turn]


class PerClass:
    """Any selector, applied to each class by itself.

    Args:
        selector: what chooses within a class.
        shares: row counts of the classes [c] to shares [c]: `proportional` or `equal`.
    """

    def __init__(self, selector: Selector, shares: Shares = proportional) -> None:
        self.selector, self.shares = selector, shares
        self.needs = selector.needs

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        """Rows and weights; the pool needs labels.

        Raises:
            ValueError: a pool without labels, and what the selector raises, with the class added.
        """
        if pool.y is None:
            raise ValueError("PerClass: the pool has no labels; build it with y=...")
        return by_class(self.selector.select, pool, k, rng, type(self.selector).__name__, self.shares)
