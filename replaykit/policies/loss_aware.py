"""LARS: a reservoir that evicts the rows it knows best, or worst.

Source: Buzzega, Boschini, Porrello, Calderara, Rethinking Experience Replay: a Bag of Tricks for Continual
Learning, ICPR 2020, loss-aware reservoir sampling.
Keeps: the count `store.seen`. Columns written: ``loss`` (float32) when a probe makes it; otherwise it comes with
the arrivals. Probe: none, or the losses of arrivals that have no such column.
Cost per add of B rows: O(B), and O(capacity) for each row that is accepted into a full memory.
Law: a row is accepted with probability capacity / seen. With the last known losses L of the stored rows it then
replaces row i with probability (max L - L_i) / Σ_j (max L - L_j) for ``keep="high"``, (L_i - min L) / Σ_j (L_j -
min L) for ``keep="low"``; uniformly when all are equal. So the row of highest (lowest) loss is never evicted.
Departures:
- One draw a row decides acceptance and, rescaled, the victim.
- Losses are those of the training step: of the training view, from the weights before the update.
- `resize`: shrinking evicts rows by the same law, one after the other; growing (``grow="naive"``) appends until
  the new slots are taken.
- ``compat="mammoth"`` accepts with probability capacity / (seen - 1), as that framework does: the first row
  after the fill always enters.
"""

from __future__ import annotations

from replaykit.policies.evict_by_loss import Compat, EvictByLoss, FloatArray, Keep, above_least
from replaykit.store import IntArray


class LARS(EvictByLoss):
    """Loss-aware reservoir sampling.

    Args:
        keep: which losses stay: ``"high"``, hard rows, as published; ``"low"``, easy ones.
        compat: ``"mammoth"`` for the acceptance of that framework.
    """

    def __init__(self, keep: Keep = "high", *, compat: Compat | None = None) -> None:
        super().__init__(compat)
        self.keep = checked_keep(keep)

    def weights(self, losses: FloatArray, groups: list[IntArray], entering: list[int] | None) -> FloatArray:
        return above_least(evictable(losses, self.keep))


def evictable(losses: FloatArray, keep: Keep) -> FloatArray:
    """Scores of which the largest leave first."""
    return -losses if keep == "high" else losses


def checked_keep(keep: Keep) -> Keep:
    if keep not in ("high", "low"):
        raise ValueError(f"keep is 'high' (rows of high loss stay) or 'low', got {keep!r}")
    return keep
