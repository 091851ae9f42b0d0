"""Contrastive and metric losses as their formulas say, one anchor and one pair at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

Vector = Sequence[float]


def inner(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(a: Vector) -> list[float]:
    length = math.sqrt(inner(a, a))
    return [x / length for x in a]


def supervised_contrastive(z: Sequence[Vector], y: Sequence[int], temperature: float) -> list[float | None]:
    """The loss of each anchor, None for those that are alone with their label."""
    z, losses = [unit(row) for row in z], []
    for a in range(len(z)):
        positives = [p for p in range(len(z)) if p != a and y[p] == y[a]]
        if not positives:
            losses.append(None)
            continue
        total = sum(math.exp(inner(z[a], z[q]) / temperature) for q in range(len(z)) if q != a)
        terms = [inner(z[a], z[p]) / temperature - math.log(total) for p in positives]
        losses.append(-sum(terms) / len(terms))
    return losses


def asymmetric_metric(
    anchors: Sequence[Vector],
    y: Sequence[int],
    partners: Sequence[Vector],
    y_partners: Sequence[int],
    temperature: float,
    base: float,
) -> float:
    """ER-AML's loss of anchors and everybody's partners."""
    total = 0.0
    for a, label in zip(anchors, y, strict=True):
        scores = [inner(unit(a), unit(q)) / temperature for q in partners]
        normaliser = math.log(sum(math.exp(score) for score in scores))
        own = [s for s, other in zip(scores, y_partners, strict=True) if other == label]
        total -= sum(s - normaliser for s in own) / len(own)
    return temperature / base * total / len(anchors)


def possible_partners(y: Sequence[int], pool: Sequence[int], first: int) -> list[tuple[list[int], list[int]]]:
    """Positives and negatives that each row of y may be given; row i is entry ``first + i`` of the pool."""
    found = []
    for i, label in enumerate(y):
        positives = [p for p, other in enumerate(pool) if other == label and p != first + i]
        negatives = [p for p, other in enumerate(pool) if other != label and other in set(y)]
        found.append((positives, negatives))
    return found
