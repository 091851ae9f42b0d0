"""GDumb's sampler, one item after the other."""

from collections.abc import Sequence

from laws import Chance, pick


def greedy_balanced(labels: Sequence[int], capacity: int, chance: Chance) -> list[int]:
    """Positions in the stream of what is stored at the end, by class in order of entry."""
    memory: dict[int, list[int]] = {}
    for item, c in enumerate(labels):
        share = capacity // max(1, len(memory))
        if c in memory and len(memory[c]) >= share:
            continue
        if sum(map(len, memory.values())) == capacity:
            largest = max(memory, key=lambda k: len(memory[k]))  # the first of several
            memory[largest].pop(pick(chance, len(memory[largest])))
            if not memory[largest]:
                del memory[largest]
        memory.setdefault(c, []).append(item)
    return [item for held in memory.values() for item in held]
