"""How the losses of replayed rows in a training step come back to the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.losses import Draw
from replaykit.store import Batch, IntArray

#: Outputs [n, c] and labels [n] to one loss a row [n].
RowLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def cross_entropy_of_rows(z: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy [n] of outputs z [n, c] over all outputs.

    Raises:
        ValueError: outputs that are not one vector a row.
    """
    if z.ndim != 2 or len(z) != len(y):
        raise ValueError(
            f"the policy or the retrieval looks at a loss for each row, outputs {list(z.shape)} for {len(y)} rows "
            "have no cross-entropy; pass Replay(row_loss=...)"
        )
    return functional.cross_entropy(z.float(), y, reduction="none")


class Feedback:
    """Collects the losses of replayed rows during a step; `deliver` gives them to the memory after it.

    A replay loss makes forward passes of its own: what it draws is remembered, and the outputs of the model are
    those of a draw when its input is that draw's x (the same tensor), or all x that were drawn and not yet seen,
    one after the other. Other passes are ignored.
    """

    def __init__(self, buffer: Buffer, retrieval: AnyRetrieval | None, row_loss: RowLoss) -> None:
        self.buffer, self.retrieval, self.row_loss = buffer, retrieval, row_loss
        self._waiting: list[tuple[Tensor, IntArray, Tensor]] = []
        self._losses: list[tuple[IntArray, Tensor]] = []

    def saw(self, slots: IntArray, z: Tensor, y: Tensor) -> None:
        """Outputs z [n, c] of replayed rows with labels y [n]."""
        self._losses.append((slots, self.row_loss(z.detach(), y).detach()))

    def deliver(self) -> None:
        """Tell the memory, before other rows are written."""
        self._waiting = []
        losses, self._losses = self._losses, []
        for slots, values in losses:
            self.buffer.observe(slots, values, self.retrieval)

    @contextmanager
    def watching(self, model: nn.Module, draw: Callable[[], tuple[Batch, IntArray, Tensor]]) -> Iterator[Draw]:
        """Within the body: the `draw` to give to a replay loss, while the outputs of the model are looked at."""
        handle: Any = None

        def watched() -> Batch:
            nonlocal handle
            if handle is not None:
                handle.remove()  # a retrieval may look at the model, and not every model with hooks is looked at
            batch, slots, y = draw()
            if len(slots) == len(batch["x"]):  # else not all of it comes from the memory
                self._waiting.append((batch["x"], slots, y))
            handle = model.register_forward_hook(self._passed)
            return batch

        try:
            yield watched
        finally:
            if handle is not None:
                handle.remove()
            self._waiting = []

    def _passed(self, model: nn.Module, args: tuple[Any, ...], z: Any) -> None:
        if not args or not isinstance(z, Tensor):
            return
        x = args[0]
        for place, (drawn, slots, y) in enumerate(self._waiting):
            if drawn is x:
                del self._waiting[place]
                self.saw(slots, z, y)
                return
        xs = [drawn for drawn, _, _ in self._waiting]
        if len(xs) > 1 and len(x) == sum(map(len, xs)) and torch.equal(x, torch.cat(xs)):
            ends = torch.tensor([len(part) for part in xs]).cumsum(0)[:-1].tolist()
            for (_, slots, y), part in zip(self._waiting, z.tensor_split(ends), strict=True):
                self.saw(slots, part, y)
            self._waiting = []
