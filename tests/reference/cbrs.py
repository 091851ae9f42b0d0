"""Class-balancing reservoir sampling, one item after the other (Chrysakis and Moens 2020, Algorithm 1)."""

from collections import Counter
from collections.abc import Sequence

from laws import Chance, flip, pick


def cbrs(
    labels: Sequence[int], capacity: int, chance: Chance, full_from: str = "filled", readmit_extinct: bool = False
) -> list[int]:
    """Positions in the stream of what is stored at the end, by slot."""
    memory: list[int] = []
    offered: Counter[int] = Counter()
    full: set[int] = set()
    for item, c in enumerate(labels):
        offered[c] += 1
        stored = Counter(labels[i] for i in memory)
        if len(memory) < capacity:
            memory.append(item)
        elif c not in full:
            level = max(stored.values())
            tied = [k for k in stored if stored[k] == level]
            k = tied[pick(chance, len(tied))]
            slots = [slot for slot, i in enumerate(memory) if labels[i] == k]
            memory[slots[pick(chance, len(slots))]] = item
        elif flip(chance, stored[c] / offered[c]):
            slots = [slot for slot, i in enumerate(memory) if labels[i] == c]
            memory[slots[pick(chance, len(slots))]] = item
        stored = Counter(labels[i] for i in memory)
        if len(memory) == capacity or full_from == "first_item":
            full |= {k for k in stored if stored[k] == max(stored.values())}
        if readmit_extinct:
            full &= stored.keys()
    return memory


def fair_counts(offered: Sequence[int], capacity: int) -> tuple[list[int], int]:
    """Max-min fair allocation: what every class gets for sure, and how many classes get one row more."""
    level = 0
    while level < max(offered) and sum(min(n, level + 1) for n in offered) <= capacity:
        level += 1
    sure = [min(n, level) for n in offered]
    return sure, min(capacity, sum(offered)) - sum(sure)
