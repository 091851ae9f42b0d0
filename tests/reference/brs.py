"""Balanced reservoir sampling, one item after the other, and what a released code does instead."""

from collections import Counter
from collections.abc import Sequence
from statistics import median

from laws import Chance, flip, pick


def brs(labels: Sequence[int], capacity: int, chance: Chance, forced: bool = False) -> list[int]:
    """Positions in the stream of what is stored at the end, by slot."""
    memory: list[int] = []
    for item, c in enumerate(labels):
        if len(memory) < capacity:
            memory.append(item)
            continue
        stored = Counter(labels[i] for i in memory)
        lags = forced and stored[c] < median(n for n in stored.values() if n)
        if flip(chance, capacity / (item + 1)) or lags:
            largest = [k for k in stored if stored[k] == max(stored.values())]
            k = c if c in largest else largest[pick(chance, len(largest))]
            slots = [slot for slot, i in enumerate(memory) if labels[i] == k]
            memory[slots[pick(chance, len(slots))]] = item
    return memory


def balancoir_with_wrong_book(labels: Sequence[int], capacity: int, chance: Chance) -> list[int]:
    """Every write, also of the fill, is booked as an eviction of the class that the slot shows, 0 at first."""
    memory: list[int] = []
    shown = [0] * capacity
    book = [0] * (max(labels) + 1)
    for item, c in enumerate(labels):
        if item < capacity:
            slot = item
            memory.append(item)
        else:
            positive = [n for n in book if n > 0]
            lags = bool(positive) and book[c] < median(positive)
            if not flip(chance, capacity / (item + 1)) and not lags:
                continue
            k = book.index(max(book))
            slots = [slot for slot, i in enumerate(memory) if labels[i] == k]
            slot = slots[pick(chance, len(slots))]
            memory[slot] = item
        book[c] += 1
        book[shown[slot]] -= 1
        shown[slot] = c
    return memory
