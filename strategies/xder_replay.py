"""The replay of X-DER: its terms of the loss, and the logits that it implants on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from replaykit.buffer import Buffer
from replaykit.store import IntArray
from replaykit.strategies.xder_memory import VISITS, LogitKeeper
from replaykit.xder import (
    Stage,
    distance_preservation,
    first_of_each,
    full,
    future_constraint,
    future_preparation,
    past_constraint,
    restricted_cross_entropy,
    strong_view,
    untracked,
    visit,
)


class XDERReplay(LogitKeeper):
    """The terms of X-DER beside the stream's.

    Attributes:
        terms: those of the last step, by name, detached; a term that was left out is missing.
    """

    def __init__(
        self,
        buffer: Buffer,
        batch_size_mem: int | None,
        *,
        future_view: Callable[[Tensor], Tensor] | None = None,
        **keeper: Any,
    ) -> None:
        super().__init__(buffer, batch_size_mem, **keeper)
        self.future_view = future_view
        self.terms: dict[str, Tensor] = {}
        self._strong: tuple[torch.Size, Callable[[Tensor], Tensor]] | None = None

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add all terms but the stream's; implant."""
        z, y, how = strategy.mb_output, strategy.mb_y, self.settings
        stage, terms = self.stage(z), {}
        rows, own = [z], [stage.own(y)]
        if self.replays:
            drawn = self._replayed(strategy, stage, terms)
            rows, own = [z, drawn.z], [own[0], stage.own(drawn.y)]
            if how.memory_update:
                self._implant_visited(drawn)
        if stage.coming:
            if how.future_preparation and how.lam + how.dp_weight > 0:
                self._prepare_future(strategy, stage, terms)
            if how.future_constraint:
                gap = future_constraint(torch.cat(rows), torch.cat(own), stage.future, how.margin)
                terms["future_constraint"] = how.eta * gap
        if self.task and how.past_constraint:
            terms["past_constraint"] = how.eta * past_constraint(z, stage.past, stage.present, how.margin)
        for term in terms.values():
            strategy.loss = strategy.loss + term
        self.terms = {name: term.detach() for name, term in terms.items()}

    def tracks(self, forward: str) -> bool:
        """Whether BatchNorm's statistics see a forward pass: of the "stream", the "first" or the "second" draw."""
        how = self.settings.batch_norm
        if how == "aligned" and self.replays:
            return forward == "first"
        return how != "stream" or forward == "stream"

    # -- inside ---------------------------------------------------------------------------------------

    def _replayed(self, strategy: Any, stage: Stage, terms: dict[str, Tensor]) -> _Drawn:
        """Two draws and their terms; returns the distinct rows, those of the first draw where both have one."""
        size, model, how = self.batch_size_mem or strategy.train_mb_size, strategy.model, self.settings
        slots = [self._slots(strategy, size), self._slots(strategy, size)]
        first, second = (self._rows(strategy.device, part) for part in slots)
        with untracked(model, when=not self.tracks("first")):
            x, n = self._seen(first["x"]), len(first["y"])
            if how.batch_norm == "aligned":
                # At least one row, where the authors' code has none once tasks outnumber the draw.
                x = torch.cat((x, strategy.mb_x[: max(1, size // self.task)]))
            z_first = model(x)[:n]
        with untracked(model, when=not self.tracks("second")):
            z_second = model(self._seen(second["x"]))
        if self._feedback is not None:
            self._feedback.saw(slots[0], z_first, first["y"])
            self._feedback.saw(slots[1], z_second, second["y"])
        distance = functional.mse_loss(full(z_first), first["logits"])
        terms["logits"] = how.alpha * distance
        terms["labels"] = how.beta * restricted_cross_entropy(z_second, second["y"], stage.past)
        together = np.concatenate(slots)
        position = first_of_each(together)
        index = torch.from_numpy(position).to(strategy.device)
        z, y = torch.cat((z_first, z_second)), torch.cat((first["y"], second["y"]))
        return _Drawn(together[position], z[index], y[index])

    def _prepare_future(self, strategy: Any, stage: Stage, terms: dict[str, Tensor]) -> None:
        """Strong views of rows of the stream, and of the memory before them, through the future heads."""
        how, stream = self.settings, slice(self.settings.stream_rows or None)
        x, y, held = self._arrivals["x"][stream], strategy.mb_y[stream], 0
        if self.replays and how.third_draw:
            memory = self._rows(strategy.device, self._slots(strategy, how.third_draw))
            x, y, held = torch.cat((memory["x"], x)), torch.cat((memory["y"], y)), len(memory["y"])
        view, a = self._strong_view(x), how.augmentations
        with untracked(strategy.model):
            z = strategy.model(view(x.repeat_interleave(a, 0)))
        prepared = future_preparation(z, y.repeat_interleave(a), stage.coming, how.tau)
        terms["future_preparation"] = how.lam * prepared
        if how.dp_weight and held:
            views = z[: held * a].unflatten(0, (held, a)).unbind(1)
            distance = [distance_preservation(part, memory["logits"], stage.coming) for part in views]
            terms["distance_preservation"] = how.dp_weight * torch.stack(distance).mean()

    def _strong_view(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        if self.future_view is not None:
            return self.future_view
        shape = x.shape[1:]
        if self._strong is None or self._strong[0] != shape:
            if len(shape) != 3 or shape[0] not in (1, 3):
                raise ValueError(
                    f"X-DER prepares future heads with strong views of images; rows of shape {list(shape)} need "
                    "future_view=, a random view of raw rows [n, ...], or future_preparation=False (X-DER-CE)"
                )
            self._strong = shape, strong_view(*shape, finish=None if self.views is None else self.views.eval)
        return self._strong[1]

    def _implant_visited(self, drawn: _Drawn) -> None:
        """Implant into rows that were replayed: at the v-th visit of a task with probability 1/v."""
        chosen = visit(self.buffer.store.note(VISITS, 0.0), drawn.slots, self.buffer.draws)
        if chosen.any():
            self._implant(drawn.slots[chosen], drawn.z.detach()[torch.from_numpy(chosen).to(drawn.z.device)])

    def _slots(self, strategy: Any, n: int) -> IntArray:
        return self.buffer.draw(n, self.retrieval, arrivals=self._arrivals, probe=self._probe(strategy))


@dataclass
class _Drawn:
    """Distinct replayed rows: their slots [n], outputs [n, c] and labels [n]."""

    slots: IntArray
    z: Tensor
    y: Tensor
