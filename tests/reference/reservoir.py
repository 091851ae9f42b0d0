"""Reservoirs one row at a time, as in the papers, and the exact probabilities of tiny cases."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence


def algorithm_r(n: int, capacity: int, uniform: Callable[[], float]) -> list[int]:
    """Vitter 1985: rows 0..n-1 through `capacity` slots."""
    memory: list[int] = []
    for row in range(n):
        if row < capacity:
            memory.append(row)
        else:
            slot = math.floor(uniform() * (row + 1))
            if slot < capacity:
                memory[slot] = row
    return memory


def frozen_count(sizes: Iterable[int], capacity: int, uniform: Callable[[], float]) -> list[int]:
    """Every row of a batch that comes after the fill draws from the count before these rows."""
    memory: list[int] = []
    row = 0
    for size in sizes:
        rows = list(range(row, row + size))
        row += size
        while rows and len(memory) < capacity:
            memory.append(rows.pop(0))
        if rows:
            count = rows[0]
            for item in rows:
                slot = math.floor(uniform() * count)
                if slot < capacity:
                    memory[slot] = item
    return memory


def largest_keys(keys: Sequence[float], capacity: int) -> list[int]:
    """Slots of the sampler by keys: a row with a larger key replaces the smallest one."""
    memory: list[int] = []
    for row, key in enumerate(keys):
        if len(memory) < capacity:
            memory.append(row)
        else:
            smallest = min(range(capacity), key=lambda slot: keys[memory[slot]])
            if key > keys[memory[smallest]]:
                memory[smallest] = row
    return memory


def successive_inclusion(weights: Sequence[float], k: int) -> list[float]:
    """P(row is among k draws without replacement, each proportional to weight), by enumeration."""
    inclusion = [0.0] * len(weights)
    for drawn in itertools.permutations(range(len(weights)), k):
        probability, left = 1.0, sum(weights)
        for row in drawn:
            probability *= weights[row] / left
            left -= weights[row]
        for row in drawn:
            inclusion[row] += probability
    return inclusion


def proportional_inclusion(weights: Sequence[float], k: int) -> list[float]:
    """min(1, r · weight) with the r that makes these add up to k, by taking the overweight rows out in turn."""
    certain: set[int] = set()
    while True:
        rest = sum(w for row, w in enumerate(weights) if row not in certain)
        room = k - len(certain)
        over = {row for row, w in enumerate(weights) if row not in certain and w * room > rest}
        if not over:
            return [1.0 if row in certain else room * w / rest for row, w in enumerate(weights)]
        certain |= over


def truncated_binomial_mean(n: int, q: float, limit: int) -> float:
    """E[min(K, limit)] for K ~ Binomial(n, q)."""
    return sum(min(k, limit) * math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(n + 1))
