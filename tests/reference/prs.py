"""Partitioning reservoir sampling, one item after the other, with label matrices (Kim et al. 2020)."""

import numpy as np
from laws import Chance, flip, pick
from numpy.typing import NDArray

Matrix = NDArray[np.int64]
Vector = NDArray[np.float64]


def sample_in(n: Vector, p: Vector, y: Matrix, capacity: int) -> float:
    """Probability that a row with labels y [c] is let in."""
    carried = y > 0
    w = np.exp(-(n[carried] - n[carried].min()))
    w /= w.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = np.where(n > p * capacity, p * capacity / n, 1.0)[carried]
    return float((w * chance).sum())


def softmax(x: Vector) -> Vector:
    e = np.exp(x - x.max())
    return e / e.sum()


def candidates(stored: Matrix, p: Vector, label: int) -> tuple[list[int], list[float]]:
    """Slots with the best score among those that carry a label, and the distance that each would leave."""
    count = stored.sum(0)
    protected = count - p * count.sum() <= 0
    slots = np.flatnonzero(stored[:, label])
    score = ((1 - stored[slots]) * protected).sum(1)
    best = slots[score == score.max()]
    away = []
    for slot in best:
        left = count - stored[slot]
        away.append(float(np.abs(left - p * left.sum()).sum()))
    return best.tolist(), away


def prs(labels: Matrix, capacity: int, rho: float, chance: Chance) -> list[int]:
    """Positions in the stream of what is stored at the end, by slot; labels is a {0, 1} matrix [n, c]."""
    memory: list[int] = []
    n = np.zeros(labels.shape[1])
    for item, y in enumerate(labels):
        n += y
        if not y.any():
            continue
        if len(memory) < capacity:
            memory.append(item)
            continue
        power = np.where(n > 0, np.maximum(n, 1) ** rho, 0.0)
        p = power / power.sum()
        if not flip(chance, sample_in(n, p, y, capacity)):
            continue
        stored = labels[memory]
        count = stored.sum(0)
        present = np.flatnonzero(count)
        label = present[chance.weighted(softmax((count - p * count.sum())[present]).tolist())]
        slots, away = candidates(stored, p, int(label))
        nearest = [slot for slot, far in zip(slots, away, strict=True) if far <= min(away) + 1e-9]
        memory[nearest[pick(chance, len(nearest))]] = item
    return memory


def prs_official(labels: Matrix, capacity: int, rho: float, chance: Chance, patient: bool = False) -> list[int]:
    """The same with the choices of the released code; `patient` looks at distances of `capacity` and more."""
    memory: list[int] = []
    n, p = np.zeros(labels.shape[1]), np.zeros(labels.shape[1])
    for item, y in enumerate(labels):
        if len(memory) < capacity:
            memory.append(item)
        elif y.any() and flip(chance, sample_in(n, p, y, capacity)):
            stored = labels[memory]
            count = stored.sum(0)
            present = np.flatnonzero(count)
            label = present[chance.weighted(softmax((count - p * count.sum())[present]).tolist())]
            slots, _ = candidates(stored[:, present], p[present], int(np.flatnonzero(present == label)[0]))
            victim, nearest = slots[0], np.inf if patient else float(capacity)
            for slot in slots:
                left = count - stored[slot]
                away = np.abs(left - p * left.sum())[left > 0].sum()
                if away < nearest - 1e-9:
                    victim, nearest = slot, away
            memory[victim] = item
        n += y
        here = np.flatnonzero(labels[memory].sum(0))
        p[here] = n[here] ** rho / (n[here] ** rho).sum()
    return memory
