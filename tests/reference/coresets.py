"""Loops of the papers, one candidate at a time, and optima by enumeration. Slow on purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Floats = NDArray[np.float64]


def best_subset(n: int, k: int, value: Callable[[Sequence[int]], float]) -> float:
    """Largest value over all subsets of size k."""
    return max(value(subset) for subset in combinations(range(n), k))


def facility_location_value(s: Floats, chosen: Sequence[int]) -> float:
    return sum(max((s[j, i] for j in chosen), default=0.0) for i in range(len(s)))


def graph_cut_value(s: Floats, chosen: Sequence[int], lam: float) -> float:
    cover = sum(s[i, j] for i in range(len(s)) for j in chosen)
    return lam * cover - sum(s[a, b] for a in chosen for b in chosen)


def log_determinant_value(kernel: Floats, chosen: Sequence[int], eps: float) -> float:
    block = kernel[np.ix_(list(chosen), list(chosen))] + eps * np.eye(len(chosen))
    return float(np.linalg.slogdet(block)[1]) if len(chosen) else 0.0


def greedy(n: int, k: int, value: Callable[[Sequence[int]], float]) -> list[int]:
    """Add the candidate with the largest value of the whole set; the first among equals."""
    chosen: list[int] = []
    for _ in range(k):
        rest = [j for j in range(n) if j not in chosen]
        values = [value([*chosen, j]) for j in rest]
        top = max(values)
        chosen.append(next(j for j, v in zip(rest, values, strict=True) if v >= top - 1e-12 * abs(top)))
    return chosen


def radius(distances: Floats, chosen: Sequence[int]) -> float:
    return max(min(distances[i, j] for j in chosen) for i in range(len(distances)))


def k_center(distances: Floats, k: int, first: int) -> list[int]:
    chosen = [first]
    while len(chosen) < k:
        nearest = [min(distances[i, j] for j in chosen) for i in range(len(distances))]
        chosen.append(max((i for i in range(len(distances)) if i not in chosen), key=lambda i: nearest[i]))
    return chosen


def herding(features: Floats, k: int) -> list[int]:
    """Algorithm 4 of iCaRL without repeats."""
    mean, chosen = features.mean(0), []
    for j in range(1, k + 1):
        total = features[chosen].sum(0)
        distance = {
            i: np.linalg.norm(mean - (features[i] + total) / j) for i in range(len(features)) if i not in chosen
        }
        chosen.append(min(distance, key=lambda i: distance[i]))
    return chosen


def matching_pursuit(atoms: Floats, target: Floats, k: int, lam: float) -> tuple[list[int], Floats, list[float]]:
    """On explicit atoms [p, n]: rows, weights, and the objective after each step."""
    chosen: list[int] = []
    weights, residual, objectives = np.zeros(0), target, []
    while len(chosen) < k:
        scores = atoms.T @ residual
        scores[chosen] = -np.inf
        j = int(scores.argmax())
        if scores[j] <= 1e-10:
            break
        chosen.append(j)
        stacked = np.vstack([atoms[:, chosen], np.sqrt(lam) * np.eye(len(chosen))])
        weights, _ = nnls(stacked, np.concatenate([target, np.zeros(len(chosen))]))
        residual = target - atoms[:, chosen] @ weights
        objectives.append(0.5 * residual @ residual + 0.5 * lam * weights @ weights)
    return chosen, weights, objectives


def forgetting_events(history: Sequence[Sequence[int]]) -> list[int]:
    """Of a history [presentations][n] of right answers."""
    counts = []
    for answers in zip(*history, strict=True):
        events = sum(before and not after for before, after in pairwise(answers))
        counts.append(events if any(answers) else len(answers))
    return counts
