"""Meta-Experience Replay (MER)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from replaykit.augment import Views
from replaykit.avalanche import Replay, Template
from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.flat import Flat, checked_rate
from replaykit.losses.base import NoTerm
from replaykit.probe import Probe
from replaykit.retrieval import Uniform

# The settings that each algorithm has, with their defaults: those published for Rotated MNIST and 5,120 slots.
_SETTINGS: dict[int, dict[str, float]] = {
    1: {"steps": 10, "beta": 0.03, "gamma": 1.0},
    6: {"steps": 1, "gamma": 0.1},
    7: {"gamma": 0.03, "cur_scale": 5.0},
}


class MER(Template):
    """SGD steps on one row after the other, new and replayed ones, and Reptile's interpolation of the whole state.

    For every row (x, y) of the stream, whatever the size of the mini-batches, a draw gives min(k, |memory|) stored
    rows, independently and with replacement. Every step is θ ← θ − α ∇ℓ(θ; x', y') on a single row:

    - Algorithm 1: A = θ; `steps` times { W = θ; steps on (x, y), then on a new draw; θ ← W + β (θ − W) };
      θ ← A + γ (θ − A).
    - Algorithm 6 (one big batch): `steps` times { W = θ; steps on a new draw, then on (x, y); θ ← W + γ (θ − W) }.
    - Algorithm 7 (learning rate of the current example): W = θ; steps on the draw and (x, y) in random order, the
      loss of (x, y) times `cur_scale`; θ ← W + γ (θ − W). The very first row of the stream is not trained on.

    Then (x, y) is offered to the buffer, before the next row of the mini-batch is looked at. θ, W and A are all
    trainable parameters and all floating-point buffers (BatchNorm's statistics). With β = γ = 1 this is SGD over
    the same rows in the same order.

    α is the learning rate of the optimiser, read anew for every mini-batch, so schedulers work; its `step` is
    never called. The steps fire no events: those of an iteration are fired once a mini-batch, with the rows of the
    stream as mini-batch, each with the output and the loss that it had when it was first trained on. So a plugin
    that adds to the loss is refused, and one that changes `.grad` does nothing. BatchNorm over vectors cannot
    train on one row: keep such layers in evaluation mode.

    Source: Riemer et al., Learning to Learn without Forgetting by Maximizing Transfer and Minimizing Interference,
    ICLR 2019, and the authors' code.
    Cost for each row: `steps` · (k + 1) forward and backward passes of one row, one after the other.
    Departures:
    - k stored rows and the current one, as in the code; in the paper's text the current one is among the k.
    - Views, which the authors do not have: that of a row of the stream is made once for all its steps.

    Args:
        model, optimizer: what is trained; plain SGD, one learning rate.
        buffer: the memory. The paper's policy is a `Reservoir`, the authors' code ``Reservoir(compat="mer")``.
        algorithm: 1, 6 or 7 of the paper.
        batch_size_mem: k.
        steps: batches for each row (algorithms 1 and 6).
        beta: rate of the interpolation within a batch (algorithm 1).
        gamma: rate across the batches of a row (1), or within the batch (6 and 7).
        cur_scale: factor of the loss of the current row (algorithm 7).
        retrieval: how to draw; default: ``Uniform(replace=True)``, not the buffer's own.
        views, probe, fast_loader: see `replaykit.avalanche.Replay`.
        plugins: further plugins, called after the replay.
        template: arguments of Avalanche's `SupervisedTemplate`.

    Raises:
        ValueError: an optimiser that is not plain SGD, a setting that the algorithm does not have.

    Published, MNIST variants with 1,000 rows a task (Many Permutations 200), MLP with two hidden layers of 100:

    ==============  ======  ==============================  ===================  ==========================
    stream          memory  Algorithm 1: α, β, γ, k, steps  Algorithm 6: α, γ, k  Algorithm 7: α, γ, k, scale
    ==============  ======  ==============================  ===================  ==========================
    Rotations         5120  0.03, 0.03, 1.0, 100, 10        0.03, 0.1, 100       0.03, 0.03, 100, 5
    Rotations          500  0.1, 0.01, 1.0, 10, 10          0.1, 0.03, 10        0.03, 0.03, 50, 5
    Rotations          200  0.1, 0.01, 1.0, 10, 5           0.1, 0.03, 25        0.03, 0.03, 50, 5
    Permutations      5120  0.03, 0.03, 1.0, 100, 10        0.03, 0.1, 50        0.01, 0.1, 100, 10
    Permutations       500  0.03, 0.03, 1.0, 25, 10         0.03, 0.3, 10        0.01, 0.1, 25, 10
    Permutations       200  0.03, 0.03, 1.0, 10, 10         0.1, 0.03, 5         0.03, 0.1, 5, 2
    Many Perm.        5120  0.1, 0.01, 1.0, 5, 10           0.03, 0.1, 25        0.03, 0.03, 100, 10
    Many Perm.         500  0.03, 0.03, 1.0, 5, 10          0.1, 0.03, 5         0.03, 0.03, 5, 10
    ==============  ======  ==============================  ===================  ==========================

    The values that the DER paper gives for MER are of another algorithm: `replaykit.strategies.MERBatched`.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        buffer: Buffer,
        algorithm: Literal[1, 6, 7] = 6,
        batch_size_mem: int = 10,
        steps: int | None = None,
        beta: float | None = None,
        gamma: float | None = None,
        cur_scale: float | None = None,
        views: Views | Callable[[Tensor], Tensor] | None = None,
        retrieval: AnyRetrieval | None = None,
        probe: Callable[[Any], Probe] | None = None,
        fast_loader: bool = True,
        plugins: Sequence[Any] | None = None,
        **template: Any,
    ) -> None:
        plain_rate(optimizer)
        given = {"steps": steps, "beta": beta, "gamma": gamma, "cur_scale": cur_scale}
        settings = _settings(algorithm, given)
        self.algorithm, self.steps = algorithm, int(settings.get("steps", 1))
        self.cur_scale = settings.get("cur_scale", 1.0)
        self.within = settings["beta" if algorithm == 1 else "gamma"]
        self.across = settings["gamma"] if algorithm == 1 else 1.0
        self.examples = 0  # rows of the stream so far
        self.replay = _Examples(
            buffer,
            batch_size_mem,
            loss=NoTerm(),
            views=views,
            retrieval=retrieval or Uniform(replace=True),
            probe=probe,
            fast_loader=fast_loader,
        )
        self._flat: Flat | None = None
        self._starts: dict[str, list[Tensor]] = {}
        super().__init__(model=model, optimizer=optimizer, plugins=[self.replay, *(plugins or ())], **template)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "examples": self.examples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        examples = state.get("examples")
        if type(examples) is not int or examples < 0:
            raise ValueError(f"not the state of MER: it has {sorted(map(str, state))}")
        super().load_state_dict({name: value for name, value in state.items() if name != "examples"})
        self.examples = examples

    def train_minibatch(self, **kwargs: Any) -> None:
        self.loss = self._make_empty_loss()
        self._before_forward(**kwargs)
        loss = self._learn()
        self._after_forward(**kwargs)
        self.loss = loss
        self._before_backward(**kwargs)
        if self.loss is not loss or loss._version:
            raise ValueError(
                "a plugin adds to the loss, which the steps of MER do not see; leave it out, or use MERBatched"
            )
        self._after_backward(**kwargs)
        self._before_update(**kwargs)
        self._after_update(**kwargs)

    # -- inside ---------------------------------------------------------------------------------------

    def _learn(self) -> Tensor:
        """Train on the rows of the mini-batch, in order; leaves their outputs [n, c], returns their mean loss."""
        self._alpha = plain_rate(self.optimizer)
        self._flat = Flat.of(self.model, self._flat)
        groups = self.optimizer.param_groups
        self._trained = [p for group in groups for p in group["params"] if p.requires_grad]
        self._values = [p.detach() for p in self._trained]
        stream, outputs, losses = self.mbatch, [], []
        for row, example in enumerate(_single(stream)):
            self.replay.turn_to(row)
            output, loss = self._example(example)
            outputs.append(output)
            losses.append(loss)
            self.examples += 1
            self.mbatch, self.mb_output = example, output
            self.replay.offer(self)
        self.mbatch, self.mb_output = stream, torch.cat(outputs)
        return torch.stack(losses).mean()

    def _example(self, example: list[Tensor]) -> tuple[Tensor, Tensor]:
        """All batches of one row of the stream; its output [1, c] and loss at its first step."""
        if self.algorithm == 7 and self.examples == 0:
            return self._untrained(example)
        start = self._start("across", self.across)
        first = self._batch(example)
        for _ in range(self.steps - 1):
            self._batch(example)
        self._move(start, self.across)
        return first

    def _batch(self, example: list[Tensor]) -> tuple[Tensor, Tensor]:
        start = self._start("within", self.within)
        drawn = self.replay.drawn(self)
        current = len(drawn)
        order = list(range(current + 1))
        if self.algorithm == 1:
            order = [current, *order[:current]]
        elif self.algorithm == 7:
            order = self.replay.buffer.draws.permutation(current + 1).tolist()
        for place in order:
            if place == current:
                done = self._step(example, self.cur_scale)
            else:
                self.replay.saw(place, self._step(drawn[place])[0], drawn[place][1])
        self._move(start, self.within)
        return done

    def _step(self, row: list[Tensor], scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """θ ← θ − α · scale · ∇ℓ on a mini-batch of one row."""
        self.mbatch = row
        self.mb_output = self.forward()
        loss: Tensor = self.criterion()
        gradients = torch.autograd.grad(loss, self._trained, materialize_grads=True)
        torch._foreach_add_(self._values, gradients, alpha=-self._alpha * scale)
        return self.mb_output.detach(), loss.detach()

    def _untrained(self, example: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Output and loss without a trace in the model."""
        columns = dict(zip(self.replay._names, example, strict=True))
        self.mbatch, self.mb_output = example, Probe(self.model).logits(columns)
        return self.mb_output, self.criterion().detach()

    def _start(self, name: str, rate: float) -> list[Tensor]:
        """A copy of the present state, if an interpolation at this rate needs one."""
        assert self._flat is not None
        if rate != 1:
            self._starts[name] = self._flat.copy(self._starts.get(name))
        return self._starts.get(name, [])

    def _move(self, start: list[Tensor], rate: float) -> None:
        assert self._flat is not None
        self._flat.interpolate(start, rate)


class _Examples(Replay):
    """Takes the rows of a mini-batch one at a time: what is drawn for each, and when it is offered."""

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        super().before_training_iteration(strategy)
        self._rows = self._arrivals

    def turn_to(self, row: int) -> None:
        self._arrivals = {name: column[row : row + 1] for name, column in self._rows.items()}

    def drawn(self, strategy: Any) -> list[list[Tensor]]:
        """Mini-batches of one stored row each, as the model wants them."""
        buffer = self.buffer
        if len(buffer) == 0:
            return []
        assert self.batch_size_mem is not None
        n = min(self.batch_size_mem, len(buffer))
        self._drawn = slots = buffer.draw(n, self.retrieval, arrivals=self._arrivals, probe=self._probe(strategy))
        rows = buffer.read(slots, self._names)
        columns = [rows[name].to(strategy.device, non_blocking=True) for name in self._names]
        if self.views is not None:
            columns[0] = self.views.train(columns[0])
        return _single(columns)

    def saw(self, place: int, output: Tensor, y: Tensor) -> None:
        """The output [1, c] and label [1] of a row of the last draw."""
        if self._feedback is not None:
            self._feedback.saw(self._drawn[place : place + 1], output, y)

    def offer(self, strategy: Any) -> None:
        """The present row, with the strategy's present output."""
        self.after_update(strategy)
        super().after_forward(strategy)
        super().after_training_iteration(strategy)

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._rows = {}


def _single(columns: Sequence[Tensor]) -> list[list[Tensor]]:
    """Mini-batches of one row each."""
    return [list(row) for row in zip(*(column.split(1) for column in columns), strict=True)]


def _settings(algorithm: int, given: Mapping[str, float | None]) -> dict[str, float]:
    if algorithm not in _SETTINGS:
        raise ValueError(f"algorithm is 1, 6 or 7, got {algorithm!r}")
    known = _SETTINGS[algorithm]
    settings = {name: value for name, value in given.items() if value is not None}
    if unknown := sorted(settings.keys() - known):
        raise ValueError(f"MER's algorithm {algorithm} has {', '.join(known)}; got {', '.join(unknown)}")
    settings = known | settings
    if settings.get("steps", 1) < 1:
        raise ValueError(f"steps is a number of batches >= 1, got {settings['steps']}")
    if not 0 <= settings.get("cur_scale", 1.0) < float("inf"):
        raise ValueError(f"cur_scale is a factor, a finite number >= 0, got {settings['cur_scale']}")
    for name in ("beta", "gamma"):
        checked_rate(name, settings.get(name, 1.0))
    return settings


def plain_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of plain SGD.

    Raises:
        ValueError: another optimiser, momentum, weight decay, or several learning rates.
    """
    groups = optimizer.param_groups
    plain = isinstance(optimizer, torch.optim.SGD) and not any(
        group["momentum"] or group["weight_decay"] or group["maximize"] for group in groups
    )
    rates = {float(group["lr"]) for group in groups}
    if not plain or len(rates) != 1:
        raise ValueError(
            "MER makes plain SGD steps with one learning rate and takes it from the optimiser; give "
            f"torch.optim.SGD(model.parameters(), lr=...), got {optimizer}"
        )
    return rates.pop()
