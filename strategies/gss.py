"""The training of GSS: separate steps on the stream and on the memory, several of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from replaykit.augment import Views
from replaykit.avalanche import Replay, Template
from replaykit.buffer import Buffer
from replaykit.draws import distinct
from replaykit.losses.base import NoTerm
from replaykit.probe import Probe
from replaykit.store import IntArray, Store


class GSS(Template):
    """For each mini-batch of the stream, several times: a step on it, then a step on a block of the memory.

    The blocks are cut from one random permutation of the stored rows, drawn when the mini-batch comes; after the
    last one the first follows. Then the rows of the stream are offered to the buffer, once. Any policy will do:
    the method's own are `GSSGreedy`, `GSSIQP` and `GSSClust`.

    One training iteration is one mini-batch of the stream. The events from `before_forward` to `after_update`
    are fired for each step, those of the iteration once: before the first step, and after the last one with
    mini-batch, outputs and loss of the last step on the stream, so that metrics of an iteration are about rows
    of the stream. `from_memory` says of each step which rows it trains on.

    Source: Aljundi, Lin, Goujaud and Bengio, Gradient based sample selection for online continual learning,
    NeurIPS 2019, as in the authors' code.
    Departures: views, which the authors do not have. The view of the stream's rows is made once for all steps on
    them, that of memory rows for each step.

    Args:
        model, optimizer: what is trained.
        buffer: the memory. Its retrieval is not used: the permutation comes from its generator of draws.
        repeats: steps on the stream for each mini-batch, and as many on the memory unless it is empty.
        batch_size_mem: rows of a block of the memory; the last block may have fewer.
        among: (store) -> the slots that blocks are cut from; default: all that are filled. With
            `replaykit.policies.selected` the rows that `GSSIQP` or `GSSClust` have not selected yet are not
            replayed, as in the authors' code.
        views, probe, fast_loader: see `replaykit.avalanche.Replay`.
        plugins: further plugins, called after the replay.
        template: arguments of Avalanche's `SupervisedTemplate`.

    Published (SGD, no momentum, one pass, batch 10 + 10, inputs in [0, 1]): disjoint and permuted MNIST with 1,000
    rows a task, lr 0.05, 3 repeats, 300 slots (disjoint also 400 and 500); disjoint CIFAR-10, lr 0.01, 1,000
    slots, 10 repeats with `GSSGreedy` and 3 with the others.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        buffer: Buffer,
        repeats: int = 3,
        batch_size_mem: int = 10,
        among: Callable[[Store], IntArray] | None = None,
        views: Views | Callable[[Tensor], Tensor] | None = None,
        probe: Callable[[Any], Probe] | None = None,
        fast_loader: bool = True,
        plugins: Sequence[Any] | None = None,
        **template: Any,
    ) -> None:
        if repeats < 1:
            raise ValueError(f"repeats is a number of steps >= 1, got {repeats}")
        self.repeats, self.among = repeats, among
        self.replay = _Blocks(
            buffer, batch_size_mem, loss=NoTerm(), views=views, probe=probe, fast_loader=fast_loader
        )
        super().__init__(model=model, optimizer=optimizer, plugins=[self.replay, *(plugins or ())], **template)

    def train_minibatch(self, **kwargs: Any) -> None:
        stream, mark = self.mbatch, self.replay.mark
        blocks = self._blocks()
        for repeat in range(self.repeats):
            self.mbatch = list(stream)
            mark(self, stream=len(stream[0]))
            self.train_step(**kwargs)
            seen = self.mbatch, self.mb_output, self.loss
            if blocks:
                self.mbatch = self.replay.block(self, blocks[repeat % len(blocks)])
                mark(self, memory=len(self.mbatch[0]))
                self.train_step(**kwargs)
        self.mbatch, self.mb_output, self.loss = seen
        mark(self, stream=len(self.mbatch[0]))

    def _blocks(self) -> list[IntArray]:
        """The slots of each block, as many blocks as are needed at most."""
        buffer, size = self.replay.buffer, self.replay.batch_size_mem
        assert size is not None
        if len(buffer) == 0:
            return []
        slots = buffer.store.filled if self.among is None else self.among(buffer.store)
        slots = slots[distinct(len(slots), min(len(slots), self.repeats * size), buffer.draws)]
        return [slots[start : start + size] for start in range(0, len(slots), size)]


class _Blocks(Replay):
    """Leaves steps on the stream without memory rows, and makes mini-batches of those.

    Logits that a policy wants are those of the last step on the stream.
    """

    _of_memory = False

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if not self._of_memory:
            super().after_forward(strategy)
        elif self._feedback is not None:
            self._feedback.saw(self._drawn, strategy.mb_output, strategy.mb_y)

    def mark(self, strategy: Any, stream: int = 0, memory: int = 0) -> None:
        """Say where the rows of the present mini-batch come from."""
        self._of_memory = memory > 0
        self.from_memory = strategy.from_memory = self._marked(stream, memory, strategy.device)

    def block(self, strategy: Any, slots: IntArray) -> list[Tensor]:
        """The rows of some slots as a mini-batch."""
        self._drawn = slots
        rows = self.buffer.read(slots, self._names)
        mbatch = [rows[name].to(strategy.device, non_blocking=True) for name in self._names]
        if self.views is not None:
            mbatch[0] = self.views.train(mbatch[0])
        return mbatch
