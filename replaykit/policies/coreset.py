"""A weighted coreset of all that a memory holds and all that arrives, by any selector.

Source: the selector's; the frame is that of GCR (Tiwari et al., CVPR 2022, algorithm 1), where the old coreset
and the candidates form one pool, and a stored row counts with the weight that it was given.
Keeps: nothing. Columns written: ``weight``, float64, what the row stands for (1 until a selection has seen it);
``rank``, int64, its place in the order of selection (-1 until then).
Probe: what the selector needs, of all stored rows and the candidates together.
Cost per add of B rows: none beyond the writing while there is room; then one selection among the stored rows and
min(B, candidates) others.
Law: the selector's. Exactly min(capacity - recent, rows of the pool) rows are kept, the weights are the
selector's, and with ``budget="per_class"`` the rows of the classes differ by one at most, as far as every class
has enough.
Departures:
- Candidates beyond `candidates` are dropped at random before the selection (GCR holds them in a reservoir), and
  each of the others then stands for as many more rows.
- `recent` slots of the memory hold the rows that came since the last selection, so that they are replayed and
  count in its bytes. With ``recent=0`` every `add` that finds no room is a selection: offer whole experiences.
- Shrinking keeps the rows of lowest rank, and those without a rank if there is room; weights stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from replaykit.draws import distinct
from replaykit.gradients.rows import take
from replaykit.plan import Plan, Policy, check_growth, labels, row_count
from replaykit.policies.joined import joined
from replaykit.policies.keeping import keeping
from replaykit.selectors.pool import Pool, Quantity, Selection, Selector, finite
from replaykit.selectors.quotas import PerClass, equal
from replaykit.store import Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe

View: TypeAlias = Callable[[Tensor], Tensor]
Budget: TypeAlias = Literal["per_class", "global"]

WEIGHT, RANK = "weight", "rank"
#: Which part of a memory that is divided into slots or tasks a row belongs to.
SLOT = "coreset_slot"
_PROBED = ("features", "gradients", "logits", "losses", "uncertainty")


class Coreset(Policy):
    """Keeps what a selector chooses among the memory and the arrivals, with the weights that it gives.

    Args:
        selector: of `replaykit.selectors`, or any object with ``needs`` and ``select(pool, k, rng)``.
        budget: ``"per_class"`` gives every class in the pool the same number of slots and selects within each;
            ``"global"`` selects among all rows at once, classes as the selector likes.
        candidates: arrivals that take part in a selection at most, drawn at random; None for all.
        recent: slots for rows that came since the last selection. 0: every `add` is a task's offering.

    The pool has the quantities ``x`` (as the model takes it, if there is a probe), ``stored`` (bool, whether the
    row is in the memory already), and what a probe answers: features, gradients, logits, losses, uncertainty. Any
    other name that the selector needs is a column of the rows, which the stream must bring.

    Example:
        >>> import torch
        >>> from replaykit import Buffer, policies, selectors
        >>> memory = Buffer(4, policies.Coreset(selectors.KCenter("x")))
        >>> memory.add({"x": torch.arange(10.0)[:, None], "y": torch.arange(10) % 2})
        4
        >>> sorted(memory["y"].tolist())
        [0, 0, 1, 1]
    """

    fails_late = True
    writes: tuple[str, ...] = (WEIGHT, RANK)

    def __init__(
        self,
        selector: Selector,
        budget: Budget = "per_class",
        candidates: int | None = None,
        recent: int = 0,
    ) -> None:
        if budget not in ("per_class", "global"):
            raise ValueError(f"budget is 'per_class' or 'global', got {budget!r}")
        if candidates is not None and candidates < 1:
            raise ValueError(f"candidates is a number of rows >= 1, got {candidates}")
        if recent < 0:
            raise ValueError(f"recent is a number of slots >= 0, got {recent}")
        self.selector = PerClass(selector, equal) if budget == "per_class" else selector
        self.candidates, self.recent = candidates, recent
        self.needs, self.prefers = probed(selector), preferred(selector)
        self.columns = ("y", *columns_read(selector))
        self.per_task = recent == 0

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        labels(arrivals)
        check_own_columns(arrivals, {WEIGHT, RANK})
        check_held(arrivals, self.columns)
        room = store.capacity - self.recent
        if room < 1:
            raise ValueError(
                f"recent={self.recent} slots for new rows leave none for a coreset in a memory of "
                f"{store.capacity}; make it larger, or use a smaller recent"
            )
        n = row_count(arrivals)
        free = store.free(n)
        if len(free) == n:
            if self.prefers and arrivals["x"].is_cpu:
                # Once stored, such a row would make every later selection fail.
                finite(arrivals["x"], type(self).__name__, "x")
            columns = {WEIGHT: torch.ones(n, dtype=torch.float64), RANK: torch.full((n,), -1)}
            return Plan(np.arange(n), free, columns, distinct=True)
        taking_part = self._taking_part(n, rng)
        slots = np.sort(store.filled)
        candidates = take(arrivals, torch.from_numpy(taking_part))
        weight = torch.full((len(slots) + len(taking_part),), n / len(taking_part), dtype=torch.float64)
        if len(slots):
            weight[: len(slots)] = torch.from_numpy(store.host(WEIGHT)[slots])
        chosen, given = self.select(joined(store, slots, candidates), weight, len(slots), room, rng, probe)
        columns = {WEIGHT: given.cpu().double(), RANK: torch.arange(len(chosen))}
        return keeping(store, slots, chosen.cpu().numpy(), columns, taking_part)

    def select(
        self,
        rows: Batch,
        weight: Tensor,
        stored: int,
        k: int,
        rng: np.random.Generator,
        probe: Probe | None,
    ) -> Selection:
        """Numbers of k of the rows in the order of selection, and their weights.

        Args:
            rows: the stored rows in the order of their slots, then the candidates [n, ...].
            weight: what each stands for [n].
            stored: how many of the rows are stored.
        """
        return self.selector.select(pool_of(rows, weight, stored, probe, self.columns[1:]), k, rng)

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        check_growth(store, capacity, grow)
        slots = np.sort(store.filled)
        if len(slots) <= capacity:
            return slots
        rank = store.host(RANK)[slots]
        last = np.where(rank < 0, len(slots), rank)
        return np.sort(slots[np.argsort(last, kind="stable")[:capacity]])

    def _taking_part(self, n: int, rng: np.random.Generator) -> IntArray:
        if self.candidates is None or n <= self.candidates:
            return np.arange(n)
        return np.sort(distinct(n, self.candidates, rng))


def probed(selector: Selector) -> tuple[str, ...]:
    """What a selector needs that only a probe can answer."""
    return tuple(name for name in selector.needs if name in _PROBED)


def columns_read(selector: Selector) -> tuple[str, ...]:
    """What a selector needs that must be columns of the rows."""
    return tuple(name for name in selector.needs if name not in (*_PROBED, "x", "stored"))


def preferred(selector: Selector) -> tuple[str, ...]:
    """What a selector needs that a probe, if there is one, answers better: ``x`` as the model takes it."""
    return ("x",) if "x" in selector.needs else ()


def check_own_columns(arrivals: Batch, names: set[str]) -> None:
    """Refuse a batch with columns that the policy writes itself."""
    if taken := sorted(names & arrivals.keys()):
        raise ValueError(f"columns {taken} are written by this policy; rename those of the batch")


def check_held(arrivals: Batch, names: tuple[str, ...]) -> None:
    """Refuse a batch without the columns that the selector reads."""
    if missing := [name for name in names if name not in arrivals]:
        raise ValueError(f"the selector reads columns {missing}, the batch has {sorted(arrivals)}")


def pool_of(
    rows: Batch,
    weight: Tensor,
    stored: int,
    probe: Probe | None,
    columns: tuple[str, ...] = (),
    views: Sequence[View] | View | None = None,
) -> Pool:
    """The pool of some rows, of which the first ones are stored; quantities are computed when asked for.

    Args:
        columns: columns of the rows that are quantities of the pool, too.
        views: perturbed copies for the uncertainty; those of the probe by default.
    """
    n = row_count(rows)
    quantities: dict[str, Quantity] = {
        "x": lambda: _inputs(rows["x"], probe),
        "stored": torch.arange(n) < stored,
        **{name: rows[name] for name in columns},
    }
    if probe is not None:
        quantities["features"] = lambda: probe.features(rows)
        quantities["gradients"] = lambda: probe.gradients(rows)
        quantities["logits"] = lambda: _logits(probe, rows)
        quantities["losses"] = lambda: probe.losses(rows)
        quantities["uncertainty"] = lambda: _uncertainty(probe, rows, views)
    return Pool(n, torch.from_numpy(labels(rows)), weight, **quantities)


def _logits(probe: Probe, rows: Batch) -> Tensor:
    """Logits [n, c]; -inf, a probability of 0, for the classes that the head of a row's task does not have."""
    logits = probe.logits(rows)
    # Only models that take a task have several heads; a probe of the user's own kind need not know of tasks.
    for task in torch.unique(rows["t"]) if getattr(probe, "takes_task", False) else ():
        members = (rows["t"] == task).nonzero()[:, 0]
        own = probe.logits(take(rows, members[:1])).shape[1]
        if own < logits.shape[1]:
            logits = logits.clone()
            logits[members.to(logits.device), own:] = -torch.inf
    return logits


def _uncertainty(probe: Probe, rows: Batch, views: Sequence[View] | View | None) -> Tensor:
    """Uncertainty and, to decide ties, the mean probability of the winning class [n, 2]."""
    votes, probability = probe.votes(rows, views)
    winner = votes.argmax(1, keepdim=True)
    share = votes.gather(1, winner) / votes.sum(1, keepdim=True).clamp(min=1)
    return torch.cat([1 - share.double(), probability.double().gather(1, winner)], 1)


def _inputs(x: Tensor, probe: Probe | None) -> Tensor:
    if probe is not None and probe.prepare is not None:
        return probe.prepare(x)
    return x.float() / 255 if x.dtype == torch.uint8 else x
