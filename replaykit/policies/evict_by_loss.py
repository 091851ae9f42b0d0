"""The memories that accept like a reservoir and choose whom to evict by the last known losses.

The column ``loss`` comes with the arrivals (the loss of each row in the training step), or from a probe; the
memory keeps it at the loss that a row had when it was last replayed (`Buffer.observe`). One draw a row decides
acceptance and, rescaled, the victim, so that the memory does not depend on how the stream is cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from replaykit.plan import NOTHING, Plan, Policy, check_growth, row_count
from replaykit.store import LOSS, Batch, IntArray, Store

if TYPE_CHECKING:
    from replaykit.probe import Probe

FloatArray: TypeAlias = NDArray[np.float64]
Keep: TypeAlias = Literal["high", "low"]
Compat: TypeAlias = Literal["mammoth"]


class EvictByLoss(Policy):
    """A subclass says with which probabilities an accepted row meets each stored one."""

    columns: tuple[str, ...] = (LOSS,)
    observes = (LOSS,)
    writes = (LOSS,)
    #: Integer columns that `weights` looks at beside the losses.
    groups: tuple[str, ...] = ()

    def __init__(self, compat: Compat | None = None) -> None:
        if compat not in (None, "mammoth"):
            raise ValueError(f"compat is None or 'mammoth', got {compat!r}")
        self.compat = compat
        self.columns = (LOSS, *self.groups)

    def weights(self, losses: FloatArray, groups: list[IntArray], entering: list[int] | None) -> FloatArray:
        """Weights [n] >= 0 of the stored rows for being evicted; all 0 means uniform.

        Args:
            losses: last known losses of the stored rows [n].
            groups: their values of the columns `groups`, each [n].
            entering: those of the row that takes the place; None when the memory shrinks.
        """
        raise NotImplementedError

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Probe | None = None) -> Plan:
        losses, groups = self._looked_at(arrivals, probe)
        return self._with_losses(self.choose(losses, groups, store, rng), arrivals, losses)

    def choose(self, losses: FloatArray, groups: list[IntArray], store: Store, rng: np.random.Generator) -> Plan:
        """Free slots for the first rows; then acceptance, and a victim for each accepted row."""
        n, free = len(losses), store.free(len(losses))
        draws = rng.random(n - len(free)) * self._outcomes(self._seen(store), len(free), n)
        writers = dict(zip(free.tolist(), range(len(free)), strict=True))
        accepted = np.flatnonzero(draws < store.capacity)
        if len(accepted):
            held, held_groups = self._stored(store)
            columns = [(held, losses), *zip(held_groups, groups, strict=True)]
            for stored, given in columns:
                stored[free] = given[: len(free)]
            for place in accepted.tolist():
                row = len(free) + place
                weights = self.weights(held, held_groups, [int(group[row]) for group in groups])
                slot = pick(weights, draws[place] / store.capacity)
                for stored, given in columns:
                    stored[slot] = given[row]
                writers[slot] = row
        return Plan.of(writers)

    def resize(self, store: Store, capacity: int, rng: np.random.Generator, grow: str = "forbid") -> IntArray:
        """Rows leave by the law of eviction, one after the other."""
        check_growth(store, capacity, grow)
        keep = np.sort(store.filled)
        if len(keep) > capacity:
            held, groups = self._stored(store)
            for u in rng.random(len(keep) - capacity).tolist():
                leaving = pick(self.weights(held[keep], [group[keep] for group in groups], None), u)
                keep = np.delete(keep, leaving)
        return keep

    # -- inside -----------------------------------------------------------------------------------

    def _seen(self, store: Store) -> int:
        return store.seen

    def _outcomes(self, seen: int, first: int, n: int) -> NDArray[np.int64]:
        """Number of equally likely outcomes for rows first..n-1, of which `capacity` are acceptance."""
        return np.arange(seen + first + 1, seen + n + 1) - (self.compat == "mammoth")

    def _looked_at(self, arrivals: Batch, probe: Probe | None) -> tuple[FloatArray, list[IntArray]]:
        losses = losses_of(arrivals, probe)
        return losses, [integers(arrivals, name) for name in self.groups]

    def _stored(self, store: Store) -> tuple[FloatArray, list[IntArray]]:
        """Losses and groups by slot [capacity], copies."""
        if len(store) == 0:
            return np.zeros(store.capacity), [np.zeros(store.capacity, np.int64) for _ in self.groups]
        losses = store.host(LOSS).astype(np.float64)
        if not np.isfinite(losses[store.filled]).all():
            raise ValueError("losses in the memory are NaN or infinite: look at the learning rate")
        return losses, [store.host(name).astype(np.int64) for name in self.groups]

    def _with_losses(self, plan: Plan, arrivals: Batch, losses: FloatArray) -> Plan:
        if plan is not NOTHING and LOSS not in arrivals:
            plan.columns = {LOSS: torch.from_numpy(losses[plan.source]).float()}
        return plan


def losses_of(arrivals: Batch, probe: Probe | None) -> FloatArray:
    """Losses [n] of the arrivals, on the host.

    Raises:
        ValueError: neither a column ``loss`` nor a probe, or losses that are not finite numbers, one a row.
    """
    losses = arrivals.get(LOSS)
    if losses is None:
        if probe is None:
            raise ValueError(
                f"needs a column {LOSS!r} with the loss of each row, the batch has {sorted(arrivals)}; add it "
                "(the Replay plugin does), or pass add(batch, probe=Probe(model, ...))"
            )
        losses = probe.losses(arrivals)
    if losses.shape != (row_count(arrivals),) or not losses.dtype.is_floating_point:
        raise ValueError(
            f"losses must be floating numbers of shape [n], got {list(losses.shape)} of {losses.dtype}"
        )
    array: FloatArray = losses.detach().to("cpu", torch.float64).numpy()
    if not np.isfinite(array).all():
        raise ValueError("losses must be finite, got NaN or infinity; look at the learning rate")
    return array


def integers(arrivals: Batch, name: str) -> IntArray:
    """An integer column [n] of a batch, on the host."""
    column = arrivals.get(name)
    if column is None:
        raise ValueError(f"needs an integer column {name!r}, the batch has {sorted(arrivals)}")
    if column.ndim != 1 or column.dtype.is_floating_point or column.dtype.is_complex:
        raise ValueError(
            f"column {name!r} must be integers of shape [n], got {list(column.shape)}, {column.dtype}"
        )
    array: IntArray = column.cpu().numpy().astype(np.int64, copy=False)
    if len(array) and array.min() < 0:
        raise ValueError(f"column {name!r} must not be negative, got {int(array.min())}")
    return array


def above_least(scores: FloatArray) -> FloatArray:
    """How far scores [n] lie above the lowest: in proportion to min-max scaled ones."""
    return scores - scores.min() if len(scores) else scores


def pick(weights: FloatArray, u: float) -> int:
    """The position at fraction `u` of [0, 1) of the total weight; of equal weights 0, uniform."""
    total = np.cumsum(weights)
    if not total[-1] > 0:
        return int(u * len(weights))
    place = int(np.searchsorted(total, u * total[-1], side="right"))
    return min(place, int(np.flatnonzero(weights)[-1]))
