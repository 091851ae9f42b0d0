"""Online Coreset Selection with one gradient, one pair and one row at a time."""

from collections.abc import Sequence

from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> float:
    if a.norm() < 1e-8 or b.norm() < 1e-8:
        return 0.0
    return float(a @ b / (a.norm() * b.norm()))


def scores(
    gradients: Tensor, tau: float = 0.0, reference: Tensor | None = None, with_self: bool = False
) -> list[float]:
    """S + V (+ tau A) of gradients [n, p]."""
    n, mean = len(gradients), gradients.mean(0)
    result = []
    for i in range(n):
        score = cosine(gradients[i], mean)
        others = [j for j in range(n) if with_self or j != i]
        if others:
            score -= sum(cosine(gradients[i], gradients[j]) for j in others) / len(others)
        if reference is not None:
            score += tau * cosine(gradients[i], reference)
        result.append(score)
    return result


def ranking(values: Sequence[float], tau: float = 0.0) -> list[int]:
    """The highest score first; scores that float32 could not tell apart are equal, and then the first row first."""
    step = (2 + tau) * 2**-18
    return sorted(range(len(values)), key=lambda i: (-round(values[i] / step), i))


def quotas(budget: int, held: Sequence[int]) -> list[int]:
    """Units given out one by one, each to the group with the fewest so far that has a row left; first among equals."""
    given = [0] * len(held)
    for _ in range(budget):
        open_ = [g for g in range(len(held)) if given[g] < held[g]]
        if not open_:
            break
        given[min(open_, key=lambda g: (given[g], g))] += 1
    return given


def balanced_prefix(order: Sequence[int], y: Sequence[int], keep: int) -> list[int]:
    """The best rows of each class, `keep` in all, in the order in which slots go round the classes."""
    classes = sorted({y[row] for row in order})
    lists = {c: [row for row in order if y[row] == c] for c in classes}
    counts = dict(zip(classes, quotas(keep, [len(lists[c]) for c in classes]), strict=True))
    longest = max(counts.values(), default=0)
    return [lists[c][turn] for turn in range(longest) for c in classes if turn < counts[c]]


class Memory:
    """The paper's memory: each task an ordered list of rows, the older ones cut to their share."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tasks: list[list[int]] = []

    def end_of_task(self, order: Sequence[int], y: Sequence[int]) -> None:
        """Add a task whose candidates are `order`, the best first; y holds the labels of all rows ever."""
        self.tasks.append(balanced_prefix(order, y, len(order)))
        newest_first = self.tasks[::-1]
        shares = quotas(self.capacity, [len(rows) for rows in newest_first])
        self.tasks = [rows[:share] for rows, share in zip(newest_first, shares, strict=True)][::-1]
