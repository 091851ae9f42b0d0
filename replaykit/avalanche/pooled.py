"""Candidates in a pool: what came by in an experience, offered to the memory at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from replaykit.avalanche.fit import check_loss
from replaykit.avalanche.replay import Replay
from replaykit.buffer import Buffer
from replaykit.losses import ReplayLoss, columns_of
from replaykit.store import LOSS


class PooledReplay(Replay):
    """Replay whose memory is offered the rows of a pool after every experience, all at once, and no others.

    The pool takes the rows of every mini-batch after the step, as they were trained on, with the logits of that
    step if they are asked for; then it is emptied.

    Args:
        buffer: the memory.
        pool: a buffer for the candidates, with bytes of its own and any policy that takes rows batch by batch.
            What the policy writes beside them (keys, scores) stays in the pool.
        last_epoch: whether the pool begins anew with every epoch, so that it holds rows of the last one.
        loss, store_logits: see `Replay`.
        replay: the other arguments of `Replay`; there is no `update` and no `chunk` to choose.

    Attributes:
        batches: of the stream in this experience so far; 0 when a new one begins.

    Raises:
        ValueError: a pool whose policy takes every add as a task.
    """

    def __init__(
        self,
        buffer: Buffer,
        pool: Buffer,
        *,
        last_epoch: bool = False,
        loss: ReplayLoss | None = None,
        store_logits: bool = False,
        **replay: Any,
    ) -> None:
        if pool.policy.per_task:
            raise ValueError(
                f"a pool takes the rows of a task batch by batch, {type(pool.policy).__name__} every add as a "
                "whole task; use another policy for the candidates"
            )
        super().__init__(buffer, update="experience", **replay)
        self.pool, self.last_epoch, self.batches = pool, last_epoch, 0
        check_loss(buffer, loss, self.retrieval or buffer.retrieval)
        # Set here, since whole data sets, which `update="experience"` stands for, have no logits.
        self.loss, self.columns = loss, None if loss is None else columns_of(loss)
        self.store_logits = store_logits or "logits" in (self.columns or ())
        self.store_loss = LOSS in pool.policy.columns
        self._needs_probe |= bool(pool.policy.needs)

    def state_dict(self) -> dict[str, Any]:
        return {"pool": self.pool.state_dict(), "batches": self.batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._check(state, "batches")
        self.pool.load_state_dict(state["pool"])
        self.batches = int(state["batches"])

    def _check(self, state: Mapping[str, Any], *counts: str) -> None:
        """Refuse a state without a pool, or with something else than counts under these names."""
        if "pool" not in state or not all(type(state.get(name)) is int and state[name] >= 0 for name in counts):
            raise ValueError(f"not the state of {type(self).__name__}: it has {sorted(map(str, state))}")

    def _add_loss(self, strategy: Any) -> None:
        """Add the replay loss, whatever is stored."""
        if self.loss is not None:
            strategy.loss += self._replay_loss(strategy)

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        # The epoch is told by the count: a resumed run begins within one.
        if self.last_epoch and self.batches % len(strategy.dataloader) == 0:
            self.pool.clear()
        self.pool.add(self._arrivals, self._probe(strategy) if self.pool.policy.needs else None)
        self.batches += 1
        self._arrivals = {}

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Offer the pool to the memory, in the order of its slots."""
        if len(self.pool):
            store = self.pool.store
            offered = self.pool.read(store.filled, [name for name in store.columns if name not in store.own])
            self.buffer.add(offered, self._probe(strategy))
        self.pool.clear()
        self._probed, self.batches = None, 0
