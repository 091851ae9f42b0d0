"""Online k-means and mean-of-features memories with plain lists of fractions, one row at a time.

Exact numbers, so that a tie is a tie.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from reference.ring import shares

Vector = Sequence[Fraction]


@dataclass
class Centroid:
    row: int  # the row of the stream that is stored for it
    feature: list[Fraction]  # of that row
    mean: list[Fraction]
    count: int
    entered: Fraction = Fraction(
        0
    )  # squared distance to its mean when the row was stored: for the wrong variant only
    counted: list[int] = field(default_factory=list)  # rows of the stream


@dataclass
class Class:
    mean: list[Fraction]
    count: int = 0
    rows: list[int] = field(default_factory=list)
    features: list[list[Fraction]] = field(default_factory=list)


def squared(a: Vector, b: Vector) -> Fraction:
    return sum(((p - q) ** 2 for p, q in zip(a, b, strict=True)), Fraction(0))


def first_smallest(values: Vector) -> int:
    return min(range(len(values)), key=lambda i: (values[i], i))


def k_means(
    features: Sequence[Sequence[float]],
    y: Sequence[int],
    capacity: int,
    classes: int | None = None,
    frozen: bool = False,
) -> dict[int, list[Centroid]]:
    """Centroids of each class in the order of seeding. `frozen`: compare with distances of insertion time."""
    memory: dict[int, list[Centroid]] = {}
    for row, (feature, label) in enumerate(zip(features, y, strict=True)):
        f = [Fraction(a) for a in feature]
        if label not in memory:
            memory[label] = []
            if classes is None:
                quota = shares(memory, capacity)
                memory = {c: merged(of, quota[c]) for c, of in memory.items()}
        share = capacity // classes if classes is not None else shares(memory, capacity)[label]
        if len(memory[label]) < share:
            memory[label].append(Centroid(row, list(f), list(f), 1, counted=[row]))
            continue
        nearest = memory[label][first_smallest([squared(f, c.mean) for c in memory[label]])]
        nearest.count += 1
        nearest.counted.append(row)
        nearest.mean = [m + (p - m) / nearest.count for m, p in zip(nearest.mean, f, strict=True)]
        stored = nearest.entered if frozen else squared(nearest.feature, nearest.mean)
        if squared(f, nearest.mean) < stored:
            nearest.row, nearest.feature, nearest.entered = row, list(f), squared(f, nearest.mean)
    return memory


def merged(of: list[Centroid], share: int) -> list[Centroid]:
    """The centroids of largest count, each with those merged into it to which it is the nearest."""
    ranked = sorted(range(len(of)), key=lambda i: (-of[i].count, i))
    kept, dropped = sorted(ranked[:share]), sorted(ranked[share:])
    joining: dict[int, list[int]] = {i: [i] for i in kept}
    for i in dropped:
        joining[kept[first_smallest([squared(of[i].mean, of[k].mean) for k in kept])]].append(i)
    result = []
    for i in kept:
        parts = [of[j] for j in joining[i]]
        count = sum(part.count for part in parts)
        mean = [sum(p.count * p.mean[a] for p in parts) / count for a in range(len(of[i].mean))]
        counted = [row for part in parts for row in part.counted]
        result.append(Centroid(of[i].row, of[i].feature, mean, count, counted=counted))
    return result


def mean_of_features(
    features: Sequence[Sequence[float]],
    y: Sequence[int],
    capacity: int,
    classes: int | None = None,
    momentum: float | None = None,
) -> dict[int, Class]:
    """Rows and mean of each class, rows in the order of their places."""
    memory: dict[int, Class] = {}
    for row, (feature, label) in enumerate(zip(features, y, strict=True)):
        f = [Fraction(a) for a in feature]
        if label not in memory:
            memory[label] = Class(list(f))
            if classes is None:
                for c, share in shares(memory, capacity).items():
                    drop_farthest(memory[c], share)
        of = memory[label]
        of.count += 1
        step = Fraction(1, of.count) if momentum is None else 1 - Fraction(momentum)
        if of.count > 1:
            of.mean = [m + step * (p - m) for m, p in zip(of.mean, f, strict=True)]
        share = capacity // classes if classes is not None else shares(memory, capacity)[label]
        if len(of.rows) < share:
            of.rows.append(row)
            of.features.append(list(f))
            continue
        away = [squared(g, of.mean) for g in of.features]
        farthest = first_smallest([-a for a in away])
        if squared(f, of.mean) < away[farthest]:
            of.rows[farthest], of.features[farthest] = row, list(f)
    return memory


def drop_farthest(of: Class, share: int) -> None:
    while len(of.rows) > share:
        farthest = first_smallest([-squared(g, of.mean) for g in of.features])
        del of.rows[farthest], of.features[farthest]
