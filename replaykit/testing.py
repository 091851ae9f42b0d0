"""The contract of a policy, as code: `check_policy` for ours, and for the one you write.

A promise is a function named after it. It runs a small stream through memories that the policy keeps, and raises
an `AssertionError` that says what was promised and what happened.

    >>> from replaykit import policies
    >>> from replaykit.testing import check_policy
    >>> check_policy(policies.Reservoir, cut_invariant=True)
"""

from __future__ import annotations

import copy
import io
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from replaykit.buffer import Buffer
from replaykit.plan import FunctionPolicy, Plan, Policy
from replaykit.probe import Probe
from replaykit.store import WIDTH, Batch, IntArray, Store

AnyPolicy: TypeAlias = Policy | Callable[[Batch, Store, np.random.Generator], Plan]

_INPUT_STAYS = "add changes neither the batch nor its tensors"
_SIZES = (10, 1, 7, 40, 3)  # rows of the batches of a stream, over and over


def check_policy(
    make_policy: Callable[[], AnyPolicy],
    *,
    make_stream: Callable[[int], Batch] | None = None,
    capacity: int = 12,
    rows: int = 120,
    cut_invariant: bool = False,
    make_probe: Callable[[nn.Module], Any] | None = None,
    make_model: Callable[[], nn.Module] | None = None,
) -> None:
    """Check that a policy keeps every promise of the contract.

    Args:
        make_policy: gives a new policy: a class, or ``lambda: f`` for a policy that is a function f.
        make_stream: gives a stream of n rows as one batch, with an integer column ``id`` that numbers them from
            0; by default `example_stream`, which has all reserved names but ``features``.
        capacity: slots of the memories, at least 4; they shrink to half of it, so choose at least two for each
            class where the policy gives every class a slot.
        rows: length of the stream; choose it several times the capacity.
        cut_invariant: also promise the same memory however the stream is cut into batches.
        make_probe: gives the probe of a model, by default ``Probe(model, prepare=Tensor.float)`` for policies
            that need one.
        make_model: gives that model, by default `example_model`.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    trial = Trial(
        make_policy,
        (make_stream or example_stream)(rows),
        capacity,
        cut_invariant,
        make_probe,
        make_model or example_model,
    )
    for promise in PROMISES:
        try:
            promise(trial)
        except AssertionError:
            raise
        except Exception as error:
            name = promise.__name__.replace("_", " ")
            raise AssertionError(f"broken promise: {name}; instead {type(error).__name__}: {error}") from error


def example_stream(n: int) -> Batch:
    """n rows of three tasks that come one after the other, with classes 0-1, 0-2 and 0-3."""
    draws = torch.Generator().manual_seed(0)
    task = torch.arange(n) * 3 // n
    return {
        "id": torch.arange(n),
        "x": torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8, generator=draws),
        "y": (torch.rand(n, generator=draws) * (task + 2)).long(),
        "t": task,
        "logits": torch.randn(n, 4, generator=draws),
        "weight": torch.rand(n, generator=draws) * 3 + 0.1,
    }


def example_model() -> nn.Module:
    """A classifier of the images of `example_stream`, with BatchNorm statistics to spoil."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(_Scale(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


class _Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) / 255


# -- the bench ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """What a promise needs: the policy, a stream, and memories to run it through."""

    make_policy: Callable[[], AnyPolicy]
    stream: Batch
    capacity: int
    cut_invariant: bool
    make_probe: Callable[[nn.Module], Any] | None
    make_model: Callable[[], nn.Module]

    def __len__(self) -> int:
        return len(self.stream["id"])

    def buffer(self, policy: AnyPolicy | None = None, device: str = "cpu", seed: int = 0) -> Buffer:
        return Buffer(self.capacity, policy or self.policy(), device=device, seed=seed)

    def policy(self) -> AnyPolicy:
        return self.make_policy()

    def rows(self, start: int, stop: int) -> Batch:
        return {name: column[start:stop].clone() for name, column in self.stream.items()}

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        stop, turn = len(self) if stop is None else stop, 0
        while start < stop:
            end = min(stop, start + _SIZES[turn % len(_SIZES)])
            yield self.rows(start, end)
            start, turn = end, turn + 1

    def add(self, buffer: Buffer, batch: Batch, model: nn.Module | None = None) -> int:
        return buffer.add(batch, self.probe(model))

    def probe(self, model: nn.Module | None = None) -> Any:
        """The probe of a model, or None for policies that need none."""
        if self.make_probe is not None:
            return self.make_probe(model or self.make_model())
        policy = self.policy()
        if isinstance(policy, Policy) and policy.needs:
            return Probe(model or self.make_model(), prepare=Tensor.float)
        return None

    def feed(self, buffer: Buffer, start: int = 0, stop: int | None = None) -> Buffer:
        for batch in self.batches(start, stop):
            self.add(buffer, batch)
        return buffer

    def columns(self) -> tuple[str, ...]:
        policy = self.policy()
        return policy.columns if isinstance(policy, Policy) else ()


def promised(kept: bool, promise: str) -> None:
    if not kept:
        raise AssertionError(f"broken promise: {promise}")


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal to the last bit: numbers, texts, tensors, and lists and dicts of those."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and _same_bits(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape or a.numel() == 0:
        return a.dtype == b.dtype and a.shape == b.shape
    flat_a, flat_b = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(flat_a, flat_b)


def _memory(buffer: Buffer) -> dict[str, Any]:
    """The state of a buffer without its generators."""
    state = buffer.state_dict()
    return {"store": state["store"], "policy_state": state["policy_state"]}


def _check_rows(trial: Trial, batch: Batch, where: str) -> None:
    """Rows that were read must be rows of the stream in all its columns."""
    for name, column in trial.stream.items():
        wanted = column[batch["id"].cpu()]
        got = batch[name]
        widths = batch.get(name + WIDTH)
        promised(
            widths is not None or same(got.cpu(), wanted),
            f"a stored row equals the row of the stream with its id; column {name!r} differs {where}",
        )


class _Watched(Policy):
    """A policy whose plans are looked at before they are carried out."""

    def __init__(self, inner: Policy, look: Callable[[Plan, Batch, Store], None]) -> None:
        self.inner, self.look = inner, look
        self.needs, self.columns = inner.needs, inner.columns
        self.__name__ = getattr(inner, "__name__", type(inner).__name__)

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: Any = None) -> Plan:
        plan = self.inner.plan(arrivals, store, rng, probe)
        self.look(plan, arrivals, store)
        return plan


# -- promises about what is stored ----------------------------------------------------------------


def plans_are_valid(trial: Trial) -> None:
    """At most one write for a slot, slots and source rows that exist, columns of the right length."""

    def look(plan: Plan, arrivals: Batch, store: Store) -> None:
        n = len(arrivals["id"])
        promised(arrivals.keys() == trial.stream.keys(), _INPUT_STAYS)
        _check_index(plan.source, n, "a plan names rows of the batch")
        _check_index(plan.slot, store.capacity, "a plan names slots of the memory")
        promised(len(plan.source) == len(plan.slot), "a plan has one slot for each row")
        promised(len(set(plan.slot.tolist())) == len(plan.slot), "a plan writes a slot at most once")
        for name, column in plan.columns.items():
            promised(column.shape[0] == len(plan.slot), f"column {name!r} of a plan has a row for each write")
        filled = set(store.filled.tolist())
        released = set() if plan.release is None else set(plan.release.tolist())
        promised(released <= filled, "a plan releases filled slots only")
        if plan.revise is not None:
            promised(set(plan.revise[0].tolist()) <= filled - released, "a plan revises filled slots that stay")

    policy = trial.policy()
    watched = _Watched(policy if isinstance(policy, Policy) else FunctionPolicy(policy), look)
    trial.feed(trial.buffer(watched))


def _check_index(index: IntArray, below: int, promise: str) -> None:
    promised(isinstance(index, np.ndarray) and index.ndim == 1 and index.dtype == np.int64, f"{promise} by int64")
    promised(not len(index) or 0 <= index.min() <= index.max() < below, f"{promise}, not {index.tolist()}")


def rows_come_from_the_stream(trial: Trial) -> None:
    """Stored rows are rows that were offered, whole; `add` says how many stayed."""
    buffer, offered = trial.buffer(), 0
    for batch in trial.batches():
        stayed = trial.add(buffer, batch)
        held = buffer.read(buffer.store.filled)
        offered += len(batch["id"])
        promised(bool((held["id"] < offered).all()), "no row is stored before it was offered")
        _check_rows(trial, held, f"after {offered} rows")
        kept = int(torch.isin(batch["id"], held["id"]).sum())
        promised(stayed == kept, f"add returns how many rows stayed: it said {stayed}, {kept} did")
    if buffer.policy.writes is not None:
        more = sorted(buffer.store.columns.keys() - trial.stream.keys() - set(buffer.policy.writes))
        promised(not more, f"`writes` names every column that the policy writes, {more} too")


def capacity_is_never_exceeded(trial: Trial) -> None:
    buffer = trial.buffer()
    for batch in trial.batches():
        trial.add(buffer, batch)
        promised(len(buffer) <= trial.capacity, f"{trial.capacity} slots hold at most as many rows")
    promised(len(buffer) > 0, f"something is stored of {len(trial)} rows")


def samples_are_stored_rows(trial: Trial) -> None:
    """`sample` returns rows that are in the memory, each once, and all when more are asked for."""
    buffer = trial.buffer()
    for batch in trial.batches():
        trial.add(buffer, batch)
        if not len(buffer):
            continue
        held = set(buffer["id"].tolist())
        for n in (1, 5, 2 * trial.capacity):
            drawn = buffer.sample(n)
            ids = drawn["id"].tolist()
            promised(len(ids) == len(set(ids)) == min(n, len(held)), f"sample({n}) draws distinct rows, or all")
            promised(set(ids) <= held, "sample draws stored rows only")
            _check_rows(trial, drawn, "in a sample")


def bytes_stay_bounded(trial: Trial) -> None:
    """Neither the memory nor the policy grows with the stream."""
    buffer = trial.feed(trial.buffer())
    held, own = buffer.nbytes, _footprint(buffer.policy)
    for _ in range(4):
        trial.feed(buffer)
    promised(buffer.nbytes == held, f"the memory holds {held} bytes however long the stream, not {buffer.nbytes}")
    later = _footprint(buffer.policy)
    promised(later <= 1.5 * own + 2048, f"a policy does not grow with the stream: {own} bytes became {later}")


def _footprint(thing: Any, met: set[int] | None = None) -> int:
    met = set() if met is None else met
    if id(thing) in met or isinstance(thing, type) or callable(thing):
        return 0
    met.add(id(thing))
    if isinstance(thing, Tensor):
        return thing.numel() * thing.element_size()
    size = sys.getsizeof(thing)
    if isinstance(thing, Mapping):
        parts = [*thing.keys(), *thing.values()]
    elif isinstance(thing, (str, bytes, int, float, np.ndarray)) or not hasattr(thing, "__iter__"):
        parts = []
    else:
        parts = list(thing)
    parts.extend(vars(thing).values() if hasattr(thing, "__dict__") else [])
    return size + sum(_footprint(part, met) for part in parts)


# -- promises about what is left alone ------------------------------------------------------------


def inputs_are_left_alone(trial: Trial) -> None:
    buffer = trial.buffer()
    for batch in trial.batches():
        before = {name: column.clone() for name, column in batch.items()}
        tensors = dict(batch)
        trial.add(buffer, batch)
        intact = batch.keys() == tensors.keys() and all(batch[name] is tensors[name] for name in batch)
        promised(intact and same(batch, before), _INPUT_STAYS)
        for column in batch.values():
            column.zero_()
    _check_rows(trial, buffer.read(buffer.store.filled), "once the batch is overwritten")


def models_are_left_alone(trial: Trial) -> None:
    """Parameters, `.grad`, BatchNorm statistics and train or eval mode of every module stay."""
    for with_gradients in (False, True):
        model, buffer = trial.make_model().train(), trial.buffer()
        list(model.modules())[-1].eval()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) if with_gradients else None
        modes = [module.training for module in model.modules()]
        state = copy.deepcopy(model.state_dict())
        gradients = [p.grad for p in model.parameters()]
        for batch in trial.batches():
            trial.add(buffer, batch, model)
        now = [p.grad for p in model.parameters()]
        untouched = all(
            a is b and (a is None or bool((a == 1).all())) for a, b in zip(now, gradients, strict=True)
        )
        promised(untouched, "add leaves .grad as it was")
        promised(modes == [module.training for module in model.modules()], "add leaves train and eval modes")
        promised(same(dict(model.state_dict()), dict(state)), "add leaves parameters and BatchNorm statistics")


def global_generators_are_left_alone(trial: Trial) -> None:
    def states() -> list[Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        numpy = np.random.get_state(legacy=False)  # noqa: NPY002
        assert isinstance(numpy, dict)
        return [torch.get_rng_state(), random.getstate(), numpy["state"]["pos"], list(numpy["state"]["key"]), cuda]

    buffer = trial.buffer()
    for batch in trial.batches():
        probe = trial.probe()
        before = states()
        buffer.add(batch, probe)
        if len(buffer):
            buffer.sample(3)
        promised(same(states(), before), "the global generators of torch, numpy and random are not touched")


# -- promises about repetition --------------------------------------------------------------------


def same_seed_same_memory(trial: Trial) -> None:
    states = [trial.feed(trial.buffer(seed=3)).state_dict() for _ in range(2)]
    promised(same(*states), "the same seed gives the same memory")


def cuts_do_not_matter(trial: Trial) -> None:
    """The same memory however the stream is cut into batches."""
    if not trial.cut_invariant:
        return
    whole, single, mixed = trial.buffer(), trial.buffer(), trial.feed(trial.buffer())
    trial.add(whole, trial.rows(0, len(trial)))
    for row in range(len(trial)):
        trial.add(single, trial.rows(row, row + 1))
    for name, other in {"in one batch": whole, "row by row": single}.items():
        promised(same(_memory(mixed), _memory(other)), f"the memory is the same when the stream comes {name}")


def empty_batches_change_nothing(trial: Trial) -> None:
    buffer = trial.buffer()
    for stop in (0, len(trial) // 2):
        trial.feed(buffer, 0, stop)
        before = buffer.state_dict()
        promised(buffer.add(trial.rows(0, 0), probe=object()) == 0, "an empty batch stores nothing")  # type: ignore[arg-type]
        promised(same(buffer.state_dict(), before), "an empty batch changes nothing")


def checkpoints_resume(trial: Trial) -> None:
    """A memory saved anywhere, and loaded with ``weights_only=True``, goes on bit for bit."""
    for stop in (0, trial.capacity // 2, trial.capacity + 1, len(trial) // 2 - 1):
        buffer = trial.feed(trial.buffer(), 0, stop)
        state = buffer.state_dict()
        saved = reloaded(state)
        promised(same(saved, state), "a state survives torch.save and torch.load(weights_only=True)")
        resumed = trial.buffer(seed=1)
        resumed.load_state_dict(saved)
        promised(
            same(resumed.state_dict(), saved), f"a memory loaded after {stop} rows has the state it was given"
        )
        for memory in (buffer, resumed):
            trial.feed(memory, stop)
            memory.sample(3)
        promised(same(state, saved), "a state that was saved does not change when the memory goes on")
        promised(
            same(buffer.state_dict(), resumed.state_dict()),
            f"a memory resumed after {stop} rows ends like the one that was not interrupted",
        )


def reloaded(state: dict[str, Any]) -> dict[str, Any]:
    """A state as it comes back from a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def a_cleared_memory_is_like_new(trial: Trial) -> None:
    used, new = trial.feed(trial.buffer()), trial.buffer()
    used.clear()
    promised(same(_memory(used), _memory(new)), "a cleared memory has the state of a new one")
    used.rng, used.draws = copy.deepcopy(new.rng), copy.deepcopy(new.draws)
    trial.feed(used)
    trial.feed(new)
    promised(same(used.state_dict(), new.state_dict()), "a cleared memory goes on like a new one")


def devices_agree(trial: Trial) -> None:
    """An accelerator holds the same rows in the same slots as the CPU, wherever the batches are."""
    if not torch.cuda.is_available():
        return
    host = trial.feed(trial.buffer())
    # Models round differently there: what a policy computes with one need agree in its choices only.
    rounds = trial.probe() is not None
    for batches_on in ("cpu", "cuda"):
        buffer = trial.buffer(device="cuda")
        model = trial.make_model().to(batches_on)
        for batch in trial.batches():
            trial.add(buffer, {name: column.to(batches_on) for name, column in batch.items()}, model)
        held = [(m.store.filled.tolist(), m["id"].tolist()) for m in (host, buffer)]
        agree = held[0] == held[1] if rounds else same(_memory(host), _memory(buffer))
        promised(agree, f"CPU and CUDA keep the same rows (batches on {batches_on})")


# -- promises about errors and changes ------------------------------------------------------------


def bad_batches_change_nothing(trial: Trial) -> None:
    """A batch that does not fit raises, and the memory goes on as if it had not come."""
    for stop in (0, len(trial) // 2):
        plain, offended = (trial.feed(trial.buffer(), 0, stop) for _ in range(2))
        for what, bad in _bad_batches(trial, stop):
            before = offended.state_dict()
            try:
                offended.add(bad, trial.probe())
            except (ValueError, TypeError, KeyError):
                kept = same(offended.state_dict(), before)
                promised(kept, f"a batch with {what} leaves the memory as it was")
            else:
                promised(False, f"a batch with {what} is refused")
        trial.feed(plain, stop)
        trial.feed(offended, stop)
        promised(same(plain.state_dict(), offended.state_dict()), "a refused batch leaves no trace")


def _bad_batches(trial: Trial, stored: int) -> Iterator[tuple[str, Batch]]:
    good = trial.rows(0, 4)
    for name, column in good.items():
        if stored:
            other = torch.float64 if column.dtype != torch.float64 else torch.float32
            yield f"column {name!r} as {other}", {**good, name: column.to(other)}
            yield f"rows of another shape in column {name!r}", {**good, name: torch.stack([column] * 2, dim=-1)}
            yield f"column {name!r} missing", {key: good[key] for key in good if key != name}
        yield f"fewer rows in column {name!r}", {**good, name: column[:3]}
    for name in trial.columns():
        yield f"column {name!r} missing", {key: good[key] for key in good if key != name}
        if not good[name].dtype.is_signed:
            continue  # holds nothing that could be wrong by itself
        spoilt = good[name].clone()
        spoilt.reshape(-1)[-1] = float("nan") if spoilt.is_floating_point() else -1
        yield f"{spoilt.reshape(-1)[-1].item()} in column {name!r}", {**good, name: spoilt}


def memories_shrink_or_refuse(trial: Trial) -> None:
    """`resize` to fewer slots keeps whole rows and a memory that goes on; or it raises and changes nothing."""
    buffer, half = trial.feed(trial.buffer(), 0, len(trial) // 2), trial.capacity // 2
    before, held = buffer.state_dict(), set(buffer["id"].tolist())
    try:
        buffer.resize(half)
    except ValueError:
        promised(same(buffer.state_dict(), before), "a refused resize leaves the memory as it was")
        return
    promised(buffer.capacity == half >= len(buffer) > 0, f"a memory resized to {half} holds at most {half} rows")
    promised(set(buffer["id"].tolist()) <= held, "shrinking keeps rows that were stored")
    resumed = Buffer(half, trial.policy(), seed=1)
    resumed.load_state_dict(reloaded(buffer.state_dict()))
    for memory in (buffer, resumed):
        trial.feed(memory, len(trial) // 2)
    promised(same(buffer.state_dict(), resumed.state_dict()), "a shrunken memory can be saved and resumed")
    promised(len(buffer) <= half, f"a memory resized to {half} goes on with {half} slots")
    _check_rows(trial, buffer.read(buffer.store.filled), "after a resize")


PROMISES: tuple[Callable[[Trial], None], ...] = (
    plans_are_valid,
    rows_come_from_the_stream,
    capacity_is_never_exceeded,
    samples_are_stored_rows,
    bytes_stay_bounded,
    inputs_are_left_alone,
    models_are_left_alone,
    global_generators_are_left_alone,
    same_seed_same_memory,
    cuts_do_not_matter,
    empty_batches_change_nothing,
    checkpoints_resume,
    a_cleared_memory_is_like_new,
    devices_agree,
    bad_batches_change_nothing,
    memories_shrink_or_refuse,
)
