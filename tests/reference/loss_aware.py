"""The loops of the loss-aware memories, row by row, and their laws of eviction."""

from collections.abc import Callable, Sequence
from typing import Any

from laws import Chance, flip


def scaled(scores: Sequence[float]) -> list[float]:
    """Min-max, then normalised to sum to 1; uniform where all are equal."""
    low, high = min(scores), max(scores)
    if low == high:
        return [1 / len(scores)] * len(scores)
    between = [(s - low) / (high - low) for s in scores]
    return [s / sum(between) for s in between]


def lars_law(losses: Sequence[float], keep: str) -> list[float]:
    return scaled([-loss if keep == "high" else loss for loss in losses])


def labrs_law(losses: Sequence[float], labels: Sequence[int], keep: str, scaling: str) -> list[float]:
    s = [-loss if keep == "high" else loss for loss in losses]
    b = [float(list(labels).count(label)) for label in labels]
    n = len(s)
    if scaling == "product":
        size = sum(map(abs, s)) / n * sum(b) / n
        return scaled([0.5 * si / size + 0.5 * bi for si, bi in zip(s, b, strict=True)])
    ratio = sum(b) / sum(map(abs, s))
    return scaled([si * ratio + bi for si, bi in zip(s, b, strict=True)])


def loss_aware(
    losses: Sequence[float],
    capacity: int,
    law: Callable[[list[float], list[int]], list[float]] | Any,
    chance: Chance,
    compat: str | None = None,
) -> list[int]:
    """Rows left of a stream; `law` takes losses and numbers of the stored rows."""
    held: list[int] = []
    for n, _ in enumerate(losses, 1):
        if len(held) < capacity:
            held.append(n - 1)
        elif flip(chance, capacity / (n - (compat == "mammoth"))):
            held[chance.weighted(law([losses[row] for row in held], held))] = n - 1
    return held


def abs_memory(
    losses: Sequence[float],
    task: Sequence[int],
    batches: Sequence[Sequence[int]],
    capacity: int,
    alpha: float,
    chance: Chance,
    compat: str | None = None,
) -> list[int]:
    """Rows left by asymmetric balanced sampling."""
    held: list[int] = []
    n = 0
    for rows in batches:
        clean = sorted(rows, key=lambda row: losses[row])[: max(1, round((1 - alpha) * len(rows)))]
        for row in sorted(clean):
            n += 1
            if len(held) < capacity:
                held.append(row)
                continue
            if not flip(chance, capacity / (n - (compat == "mammoth"))):
                continue
            past = [place for place, other in enumerate(held) if task[other] < task[row]]
            present = [place for place in range(capacity) if place not in past]
            group = (past, present)[chance.weighted([len(past), len(present)])]
            scores = [losses[held[place]] for place in group]
            law = scaled([-s for s in scores]) if group is past else scaled(scores)
            held[group[chance.weighted(law)]] = row
    return held
