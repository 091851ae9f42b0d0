"""Rows by rank of a score: the highest, the lowest, or the middle."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from replaykit.selectors.pool import Selection, finite, take_count

Order: TypeAlias = Callable[[Tensor, int, int], Tensor]


def highest(scores: Tensor, k: int, skip: int = 0) -> Tensor:
    """The rows of the min(k, n) highest scores [n] after the first `skip`, highest first.

    Equal scores: the smallest index first. If fewer than k rows follow, fewer are skipped.
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    return _window(order, k, skip)


def lowest(scores: Tensor, k: int, skip: int = 0) -> Tensor:
    """As `highest`, from below."""
    return _window(torch.sort(scores, stable=True).indices, k, skip)


def middle(scores: Tensor, k: int, skip: int = 0) -> Tensor:
    """The window of min(k, n) ranks that starts at round(n/2 - k/2) + skip, its centre first."""
    k = take_count(k, len(scores), "middle")
    window = _window(torch.sort(scores, stable=True).indices, k, round((len(scores) - k) / 2) + skip)
    distance = (torch.arange(k, dtype=torch.float64) - (k - 1) / 2).abs()
    return window[torch.sort(distance, stable=True).indices.to(window.device)]


def _window(order: Tensor, k: int, start: int) -> Tensor:
    k = take_count(k, len(order), "ranking")
    start = min(max(start, 0), len(order) - k)
    return order[start : start + k]


def ranked(scores: Tensor, k: int, order: Order, skip: int, selector: str, quantity: str) -> Selection:
    """Rows by rank, with weight 1.

    Raises:
        ValueError: scores that are not one finite number a row; a negative k.
    """
    if scores.ndim != 1:
        raise ValueError(f"{selector}: {quantity} must be one number a row [n], got {list(scores.shape)}")
    finite(scores, selector, quantity)
    rows = order(scores, take_count(k, len(scores), selector), skip)
    return rows, torch.ones(len(rows), dtype=torch.float64, device=rows.device)
