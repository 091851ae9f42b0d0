"""GSS-Greedy: rows whose gradients point elsewhere take the place of rows whose gradients are like others'.

Source: Aljundi, Lin, Goujaud and Bengio, Gradient based sample selection for online continual learning, NeurIPS
2019: Algorithm 2 (``gate="sample"``), and the form of the authors' code (``gate="batch"``, the default), which
gives the published numbers.
Keeps: three counts. Columns written: ``score``, float64: 1 + the largest cosine between the gradient of the row
and the reference gradients, in [0, 2], at the weights at which the row came; it is never refreshed.
Probe: gradients of the arrivals and of the drawn rows of the memory.
Cost per add of B rows: one pass over B + 10 · references rows (``gate="sample"``: B · (1 + references)) and their
inner products; O(capacity) for each row that competes (``gate="batch"``: for each batch).
Law: a row that finds no free slot and passes the gate with score c meets one stored row, drawn with probability
in proportion to the scores C, and replaces it with probability C_i / (C_i + c). With ``gate="batch"`` the
weights of the draw are (C - min C) / (max C - min C + 0.01), and the rows of a batch meet distinct stored rows.
Departures:
- All rows of an `add` are scored against the memory as it was before.
- Of a batch that fills the memory the first rows take the free slots, the others compete for all slots.
- Rows offered to an empty memory get 1.1, like the authors' first batch; where they are more than the slots, the
  others find the gate closed.
- ``gate="batch"``: where fewer stored rows than needed have a weight above 0, those of weight 0 come last, in
  random order; the authors' code stops with an error. More competing rows than slots compete in rounds of
  `capacity` rows, each with the scores that the last one left.
- Gradients shorter than 1e-8, of rows or of means, have cosine 0 with all others; the authors' code divides by
  their length. A row of score 0 replaces another one of score 0 with probability 1/2.
- Shrinking drops rows drawn by the weights of the candidates, one after the other. Growing is exact while
  nothing was dropped; ``grow="naive"`` gives the new slots to the next rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch

from replaykit.draws import distinct
from replaykit.gradients.cosines import Numbers, inverse_lengths
from replaykit.plan import NOTHING, Plan, Policy, check_growth, row_count
from replaykit.policies.joined import joined
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe

Gate: TypeAlias = Literal["batch", "sample"]

SCORE = "score"
_FIRST = 0.1  # cosine of rows that come to an empty memory
_MINI_BATCH = 10  # stored rows behind one reference gradient of gate="batch"


class GSSGreedy(Policy):
    """Stores rows whose gradients differ from those of the memory, in place of rows that are like others.

    Args:
        references: gradients of the memory that new ones are compared to, at most.
        gate: ``"batch"``, the authors' code: a reference is the mean gradient of 10 stored rows, and the rows of
            a batch compete if the largest cosine of their mean gradient with the references is below the
            threshold. ``"sample"``, the paper: references are gradients of single stored rows, drawn for each
            new row, and a row competes if its own largest cosine is below the threshold.
        threshold: a cosine.

    Attributes:
        offered: rows that found no free slot so far.
        admitted: how many of them replaced another row: admitted / offered is the rate of admission.
        degenerate: arrivals that were compared and whose gradient was shorter than 1e-8.

    Published: 10 references, threshold 0, batches of 10 rows; 300 slots for MNIST, 1,000 for CIFAR-10.
    """

    needs = ("gradients",)
    writes = (SCORE,)

    def __init__(self, references: int = 10, *, gate: Gate = "batch", threshold: float = 0.0) -> None:
        if references < 1:
            raise ValueError(f"references is a number of gradients >= 1, got {references}")
        if gate not in ("batch", "sample"):
            raise ValueError(f"gate is 'batch' or 'sample', got {gate!r}")
        if not -1 <= threshold <= 1:
            raise ValueError(f"threshold is a cosine in [-1, 1], got {threshold}")
        self.references, self.gate, self.threshold = references, gate, threshold
        self.reset()

    def reset(self) -> None:
        self.offered = self.admitted = self.degenerate = 0

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        if SCORE in arrivals:
            raise ValueError(f"column {SCORE!r} is written by this policy; rename the one of the batch")
        n, degenerate = row_count(arrivals), 0
        largest = deciding = np.full(n, _FIRST)
        if len(store):
            assert probe is not None
            compare = self._with_mini_batches if self.gate == "batch" else self._with_rows
            largest, deciding, degenerate = compare(arrivals, store, rng, probe)
        scores, free = 1 + largest, store.free(n)
        writers = dict(zip(free.tolist(), range(len(free)), strict=True))
        competing = len(free) + np.flatnonzero(deciding[len(free) :] < self.threshold)
        won = 0
        if len(competing):
            slots = np.concatenate((store.filled, free))
            held = np.concatenate((_stored(store), scores[: len(free)]))
            places = self._compete(held, scores[competing], rng)
            won = int((places >= 0).sum())
            rows = zip(places.tolist(), competing.tolist(), strict=True)
            writers.update({int(slots[place]): row for place, row in rows if place >= 0})
        self.offered, self.admitted = self.offered + n - len(free), self.admitted + won
        self.degenerate += degenerate
        plan = Plan.of(writers)
        if plan is not NOTHING:
            plan.columns = {SCORE: torch.from_numpy(scores[plan.source])}
        return plan

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        check_growth(store, capacity, grow)
        leaving = np.empty(0, np.int64)
        if len(store) > capacity:
            leaving = successive(self._weights(_stored(store)), len(store) - capacity, rng)
        return np.sort(np.delete(store.filled, leaving))

    def state_dict(self) -> dict[str, Any]:
        return {"offered": self.offered, "admitted": self.admitted, "degenerate": self.degenerate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        counts = {name: state.get(name) for name in ("offered", "admitted", "degenerate")}
        if state.keys() != counts.keys() or not all(isinstance(n, int) and n >= 0 for n in counts.values()):
            raise ValueError(f"not the state of GSSGreedy: {dict(state)!r}")
        self.offered, self.admitted, self.degenerate = (int(state[name]) for name in counts)

    # -- inside -----------------------------------------------------------------------------------

    @property
    def _weights(self) -> Callable[[Numbers], Numbers]:
        return stretched if self.gate == "batch" else np.asarray

    @property
    def _compete(self) -> Callable[[Numbers, Numbers, np.random.Generator], IntArray]:
        return in_pairs if self.gate == "batch" else one_by_one

    def _with_mini_batches(
        self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe
    ) -> tuple[Numbers, Numbers, int]:
        """Largest cosine of each row [n] and of their mean [n] with the references, and degenerate rows."""
        drawn = distinct(len(store), min(len(store), self.references * _MINI_BATCH), rng)
        gradients = probe.gradients(joined(store, store.filled[drawn], arrivals))
        return mini_batch_cosines(gradients.gram().double().cpu().numpy(), len(drawn))

    def _with_rows(
        self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe
    ) -> tuple[Numbers, Numbers, int]:
        """Largest cosine of each row with references of its own [n], twice, and degenerate rows."""
        n, k = row_count(arrivals), min(len(store), self.references)
        drawn = np.stack([distinct(len(store), k, rng) for _ in range(n)])
        union, place = np.unique(drawn, return_inverse=True)
        gradients = probe.gradients(arrivals)
        table = gradients.cosine(probe.gradients(store.read(store.filled[union])))
        own = table.double().cpu().numpy()[np.arange(n)[:, None], place.reshape(n, k)]
        largest: Numbers = own.max(1)
        return largest, largest, gradients.degenerate


def mini_batch_cosines(gram: Numbers, stored: int) -> tuple[Numbers, Numbers, int]:
    """Cosines of n arrivals with the mean gradients of mini-batches of 10 stored rows.

    Args:
        gram: inner products of the gradients of the stored rows and, after them, of the arrivals; the last
            mini-batch may have fewer rows.

    Returns:
        The largest cosine of each arrival [n], that of their mean (the same number n times), and how many
        arrivals have gradients shorter than 1e-8.
    """
    n, starts = len(gram) - stored, np.arange(0, stored, _MINI_BATCH)
    sizes = np.diff(np.append(starts, stored))
    sums = np.add.reduceat(gram[:, :stored], starts, axis=1)
    products = sums[stored:] / sizes
    squares = np.add.reduceat(sums[:stored], starts, axis=0).diagonal() / sizes**2
    references, rows = inverse_lengths(squares), inverse_lengths(gram.diagonal()[stored:])
    mean = inverse_lengths(gram[stored:, stored:].mean())
    largest = (products * references * rows[:, None]).max(1).clip(-1, 1)
    of_mean = float((products.mean(0) * references * mean).max())
    return largest, np.full(n, of_mean), int((rows == 0).sum())


def in_pairs(held: Numbers, new: Numbers, rng: np.random.Generator) -> IntArray:
    """Places [b] that new rows take, -1 for none: each meets another one of the rows held, whose scores follow."""
    places = np.full(len(new), -1)
    for start in range(0, len(new), len(held)):
        round_ = new[start : start + len(held)]
        met = successive(stretched(held), len(round_), rng)
        wins = rng.random(len(round_)) < chance(held[met], round_)
        places[start : start + len(held)][wins] = met[wins]
        held[met[wins]] = round_[wins]
    return places


def one_by_one(held: Numbers, new: Numbers, rng: np.random.Generator) -> IntArray:
    """Places [b] that new rows take, -1 for none: one row after the other; the scores held follow."""
    places = np.full(len(new), -1)
    for row, score in enumerate(new):
        met = successive(held, 1, rng)[0]
        if rng.random() < chance(held[met], score):
            places[row], held[met] = met, score
    return places


def chance(old: Any, new: Any) -> Any:
    """Probability that a row of score `new` replaces one of score `old`."""
    both = old + new
    return np.where(both > 0, old / np.where(both > 0, both, 1), 0.5)


def stretched(scores: Numbers) -> Numbers:
    """Scores as weights from 0 to almost 1."""
    low, high = scores.min(), scores.max()
    weights: Numbers = (scores - low) / (high - low + 0.01)
    return weights


def successive(weights: Numbers, k: int, rng: np.random.Generator) -> IntArray:
    """`k` places drawn one after the other in proportion to their weights; those of weight 0 come last."""
    # Exponential clocks: the one of place i rings after Exp(1) / w_i (Efraimidis and Spirakis 2006).
    clocks = rng.standard_exponential(len(weights)) / np.maximum(weights, 1e-300)
    return np.argsort(clocks, kind="stable")[:k]


def _stored(store: Store) -> Numbers:
    """Scores of the filled slots, in the order of `store.filled`."""
    if len(store) == 0:
        return np.empty(0)
    scores: Numbers = store.host(SCORE)[store.filled]
    return scores
