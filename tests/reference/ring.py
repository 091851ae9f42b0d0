"""Ring buffers with plain lists of rows, one row at a time."""

from collections.abc import Iterable, Sequence


def declared(groups: Sequence[int], capacity: int, classes: int) -> dict[int, int]:
    """Slot -> row: class c owns the slots from c q on and goes round in them."""
    quota, seen = capacity // classes, [0] * classes
    memory: dict[int, int] = {}
    for row, group in enumerate(groups):
        memory[group * quota + seen[group] % quota] = row
        seen[group] += 1
    return memory


def shares(classes: Iterable[int], capacity: int) -> dict[int, int]:
    ordered = sorted(classes)
    return {c: capacity // len(ordered) + (rank < capacity % len(ordered)) for rank, c in enumerate(ordered)}


def growing(groups: Sequence[int], capacity: int) -> dict[int, list[int]]:
    """Class -> rows, oldest first, when every new class makes the others shrink."""
    kept: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        if group not in kept:
            kept[group] = []
            quota = shares(kept, capacity)
            kept = {c: rows[max(0, len(rows) - quota[c]) :] for c, rows in kept.items()}
        kept[group].append(row)
        quota = shares(kept, capacity)
        kept[group] = kept[group][-quota[group] :]
    return kept


def lazy(groups: Sequence[int], capacity: int) -> dict[int, list[int]]:
    """Class -> rows, when classes shrink only as others need the room."""
    kept: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        kept.setdefault(group, [])
        quota = shares(kept, capacity)
        if sum(map(len, kept.values())) == capacity:
            loser = group
            if len(kept[group]) < quota[group]:
                loser = sorted(kept, key=lambda c: (-len(kept[c]), quota[c], c))[0]
            kept[loser].pop(0)
        kept[group].append(row)
    return kept


def gem(batches: Iterable[tuple[int, int]], capacity: int, tasks: int) -> dict[int, int]:
    """Slot -> row, for batches given as (task, rows): the official code's write position."""
    quota = capacity // tasks
    memory: dict[int, int] = {}
    position = row = 0
    for task, rows in batches:
        end = min(position + rows, quota)
        for place in range(position, end):
            memory[task * quota + place] = row + place - position
        position = 0 if end == quota else end
        row += rows
    return memory
