"""Gradient-based sample selection (Aljundi et al. 2019) as its authors loop it: one backward pass a gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import torch
from laws import Chance, flip
from torch import Tensor, nn

Row = tuple[int, Tensor, Tensor]  # its number, x [1, ...], y [1]


def rows_of(batch: dict[str, Tensor]) -> list[Row]:
    return [(int(i), batch["x"][k : k + 1], batch["y"][k : k + 1]) for k, i in enumerate(batch["id"])]


def gradient(model: nn.Module, rows: Sequence[Row]) -> np.ndarray:
    """Of the mean loss of some rows, by one backward pass through a copy of the model."""
    model = copy.deepcopy(model).eval()
    model.zero_grad()
    x, y = torch.cat([x for _, x, _ in rows]), torch.cat([y for _, _, y in rows])
    nn.functional.cross_entropy(model(x), y).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]).double().numpy()


def cosine(u: np.ndarray, v: np.ndarray) -> float:
    lengths = np.linalg.norm(u), np.linalg.norm(v)
    return 0.0 if min(lengths) < 1e-8 else float(u @ v / lengths[0] / lengths[1])


# -- GSS-Greedy ---------------------------------------------------------------------------------------


class Greedy:
    """A memory kept by GSS-Greedy; draws are those of the policy, one after the other.

    Args:
        by_batch: the released form; otherwise that of the paper.
    """

    def __init__(
        self, capacity: int, references: int, by_batch: bool, threshold: float, rng: np.random.Generator
    ) -> None:
        self.capacity, self.references, self.by_batch, self.rng = capacity, references, by_batch, rng
        self.threshold = threshold
        self.memory: list[Row] = []
        self.scores: list[float] = []

    def add(self, model: nn.Module, rows: list[Row]) -> None:
        score = self._released if self.by_batch else self._paper
        scores, compete = score(model, rows) if self.memory else ([1.1] * len(rows), [False] * len(rows))
        free = self.capacity - len(self.memory)
        self.memory += rows[:free]
        self.scores += scores[:free]
        rest = [k for k in range(free, len(rows)) if compete[k]]
        places = (released_places if self.by_batch else paper_places)(
            list(self.scores), [scores[k] for k in rest], Drawn(self.rng)
        )
        for k, place in zip(rest, places, strict=True):
            if place >= 0:
                self.memory[place], self.scores[place] = rows[k], scores[k]

    def _released(self, model: nn.Module, rows: list[Row]) -> tuple[list[float], list[bool]]:
        order = self.rng.permutation(len(self.memory))[: 10 * self.references]
        blocks = [[self.memory[i] for i in order[k : k + 10]] for k in range(0, len(order), 10)]
        references = [gradient(model, block) for block in blocks]
        whole = max(cosine(gradient(model, rows), g) for g in references)
        scores = [1 + max(cosine(gradient(model, [row]), g) for g in references) for row in rows]
        return scores, [whole < self.threshold] * len(rows)

    def _paper(self, model: nn.Module, rows: list[Row]) -> tuple[list[float], list[bool]]:
        orders = [self.rng.permutation(len(self.memory))[: self.references] for _ in rows]
        scores = []
        for row, order in zip(rows, orders, strict=True):
            g = gradient(model, [row])
            scores.append(1 + max(cosine(g, gradient(model, [self.memory[i]])) for i in order))
        return scores, [c < 1 + self.threshold for c in scores]


class Drawn(Chance):
    """The draws as the policy makes them: candidates by exponential clocks, decisions by uniform numbers."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def order(self, weights: Sequence[float], k: int) -> list[int]:
        clocks = self.rng.standard_exponential(len(weights)) / np.maximum(weights, 1e-300)
        return np.argsort(clocks)[:k].tolist()

    def flips(self, chances: Sequence[float]) -> list[bool]:
        return [bool(u < p) for u, p in zip(self.rng.random(len(chances)), chances, strict=True)]


class Enumerated:
    """The same draws from a `Chance`, one at a time."""

    def __init__(self, chance: Chance) -> None:
        self.chance = chance

    def order(self, weights: Sequence[float], k: int) -> list[int]:
        left, order = dict(enumerate(weights)), list[int]()
        for _ in range(k):
            places = list(left)
            # Weights of 0 come last, in random order.
            w = [left[i] for i in places] if max(left.values()) > 0 else [1.0] * len(left)
            order.append(places[self.chance.weighted(w)])
            del left[order[-1]]
        return order

    def flips(self, chances: Sequence[float]) -> list[bool]:
        return [flip(self.chance, p) for p in chances]


def replacement(old: float, new: float) -> float:
    return old / (old + new) if old + new > 0 else 0.5


def released_places(held: list[float], new: Sequence[float], draws: Drawn | Enumerated) -> list[int]:
    places = []
    for start in range(0, len(new), len(held)):
        rows = new[start : start + len(held)]
        low, high = min(held), max(held)
        met = draws.order([(c - low) / (high - low + 0.01) for c in held], len(rows))
        wins = draws.flips([replacement(held[i], c) for i, c in zip(met, rows, strict=True)])
        for i, c, won in zip(met, rows, wins, strict=True):
            places.append(i if won else -1)
            held[i] = c if won else held[i]
    return places


def paper_places(held: list[float], new: Sequence[float], draws: Drawn | Enumerated) -> list[int]:
    places = []
    for c in new:
        (i,) = draws.order(held, 1)
        (won,) = draws.flips([replacement(held[i], c)])
        places.append(i if won else -1)
        held[i] = c if won else held[i]
    return places


# -- GSS-IQP ------------------------------------------------------------------------------------------


def objective(units: np.ndarray, chosen: Sequence[int]) -> float:
    """Sum of all pairwise cosines of unit vectors [n, p]: the squared length of their sum."""
    return float(np.square(units[list(chosen)].sum(0)).sum())


def optimum(units: np.ndarray, k: int) -> tuple[int, ...]:
    return min(combinations(range(len(units)), k), key=lambda chosen: objective(units, chosen))


def drop_and_swap(units: np.ndarray, k: int) -> list[int]:
    kept = list(range(len(units)))
    while len(kept) > k:
        s = units[kept].sum(0)
        kept.remove(max(kept, key=lambda i: (units[i] @ s, -i)))
    while True:
        others = [j for j in range(len(units)) if j not in kept]
        swaps = [sorted([*(a for a in kept if a != i), j]) for i in kept for j in others]
        best = min(swaps, key=lambda chosen: objective(units, chosen), default=kept)
        if objective(units, best) >= objective(units, kept) - 1e-9:
            return kept
        kept = best


# -- GSS-Clust ----------------------------------------------------------------------------------------


def clust(
    distance: np.ndarray,
    memory: list[int],
    new: list[int],
    room: int,
    delta: float,
    growth: float,
    start: Callable[[int], int],
) -> tuple[list[int], float]:
    """Which rows stay, and the distance after it."""

    def smallest(rows: list[int]) -> float:
        return min((distance[i, j] for i in rows for j in rows if i != j), default=0.0)

    if not memory:
        memory, new = new[:1], new[1:]
    if delta == 0:
        delta = smallest(memory)
    pool = memory + [i for i in new if min(distance[i, j] for j in memory) > delta]
    if len(pool) <= room:
        return pool, delta
    delta = smallest(pool)
    while True:
        delta *= 1 + growth
        kept = [pool[start(len(pool))]]
        for i in pool:
            if min(distance[i, j] for j in kept) > delta:
                kept.append(i)
        if len(kept) <= room:
            return kept, delta


# -- training -----------------------------------------------------------------------------------------


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[tuple[Tensor, Tensor]],
    memory: Callable[[], tuple[Tensor, Tensor] | None],
    offer: Callable[[Tensor, Tensor], object],
    repeats: int,
    block: int,
) -> None:
    """The two-step training; `memory` gives all stored rows in a new random order."""

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    for x, y in batches:
        stored, at = memory(), 0
        for _ in range(repeats):
            step(x, y)
            if stored is not None:
                step(stored[0][at : at + block], stored[1][at : at + block])
                at += block
                if at >= len(stored[1]):
                    at = 0
        offer(x, y)
