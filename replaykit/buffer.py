"""The buffer: a store, a policy that decides what stays, and a retrieval that decides what is replayed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np
import torch
from torch import Tensor

from replaykit.plan import NOTHING, FunctionPolicy, Plan, Policy
from replaykit.retrieval import GuidedRetrieval, Retrieval, Uniform
from replaykit.store import LOSS, REPLAYED, Batch, IntArray, Store, check_capacity, describe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from replaykit.probe import Probe

AnyRetrieval: TypeAlias = Retrieval | GuidedRetrieval

_CURE = "add batches that have it, or choose another retrieval"
_UNIFORM = Uniform()
_UNCACHED: AbstractContextManager[object] = nullcontext()
_EXACT = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


class Buffer:
    """A replay memory of `capacity` rows.

    A batch is a flat dict of tensors of equal first dimension. The reserved names are ``x y t logits
    features weight id``; any other column travels for free.

    Args:
        capacity: number of rows kept at most.
        policy: what decides which arrivals stay: an object of `replaykit.policies`, or a function
            ``(arrivals, store, rng) -> Plan``.
        retrieval: what `sample` draws by default (uniform, without replacement).
        device: where the columns live.
        seed: of this buffer's two generators, one for decisions and one for draws, so that what is kept does
            not depend on how often the memory is sampled. No global generator is touched.
        folder: keep the columns in memory-mapped files of this folder (CPU only).
        check_finite: refuse NaN and infinity in floating columns other than ``x``. By default on for
            columns that arrive on the CPU; on an accelerator the check would wait for the device.
        count_replays: count how often each stored row is drawn, in the notes ``replayed``, which are read like a
            column and start at 0 when another row takes the slot. On by itself for a policy or retrieval that
            looks at them.

    Example:
        >>> import torch
        >>> from replaykit import Buffer, policies
        >>> memory = Buffer(500, policies.Reservoir(), seed=0)
        >>> memory.add({"x": torch.zeros(10, 3, 32, 32, dtype=torch.uint8), "y": torch.arange(10)})
        10
        >>> memory.sample(4)["x"].shape
        torch.Size([4, 3, 32, 32])
    """

    def __init__(
        self,
        capacity: int,
        policy: Policy | Callable[[Batch, Store, np.random.Generator], Plan],
        retrieval: AnyRetrieval = _UNIFORM,
        *,
        device: torch.device | str = "cpu",
        seed: int | np.random.Generator = 0,
        folder: str | os.PathLike[str] | None = None,
        check_finite: bool | None = None,
        count_replays: bool = False,
    ) -> None:
        for value, what in ((policy, "policy"), (retrieval, "retrieval")):
            if isinstance(value, type):
                raise TypeError(f"{value.__name__} is a class; make a {what} of it: {value.__name__}(...)")
        if not hasattr(retrieval, "rows"):
            raise TypeError(f"a retrieval has a method rows(store, n, rng), {type(retrieval).__name__} has none")
        self.store = Store(capacity, device, folder)
        self.policy = policy if isinstance(policy, Policy) else FunctionPolicy(policy)
        self.retrieval = retrieval
        self.check_finite = check_finite
        if isinstance(seed, np.random.Generator):
            self.rng, self.draws = seed, seed.spawn(1)[0]
        else:
            self.rng, self.draws = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(2))
        self._torn = False  # whether an error left policy and table at odds
        looks = getattr(retrieval, "counts", False) or REPLAYED in getattr(retrieval, "columns", ())
        self.count_replays = count_replays or self.policy.counts or looks
        self._begin_counts()

    # -- what is in it ----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.store)

    @property
    def capacity(self) -> int:
        return self.store.capacity

    @property
    def seen(self) -> int:
        """Number of rows offered so far: presentations, so an epoch over n rows counts n."""
        return self.store.seen

    @property
    def nbytes(self) -> int:
        """Bytes held, whatever the length of the stream."""
        return self.store.nbytes

    @property
    def device(self) -> torch.device:
        return self.store.device

    def __getitem__(self, name: str) -> Tensor:
        """One column, or notes, of all stored rows [len, ...] (a copy), in the order of `store.filled`."""
        return self.store.read(self.store.filled, [name])[name]

    def __repr__(self) -> str:
        return (
            f"Buffer({len(self)} of {self.capacity} rows, {self._policy_name}, seen {self.seen}, "
            f"columns {list(self.store.columns)}, {self.nbytes:,} bytes on {self.device})"
        )

    # -- the two verbs ----------------------------------------------------------------------------

    def add(self, batch: Batch, probe: Probe | None = None) -> int:
        """Offer a batch to the memory; returns how many of its rows stayed.

        Args:
            batch: columns [n, ...]; n may be 0 (nothing happens) or larger than the capacity.
            probe: what the batch looks like under the model, for policies that ask for it.

        Raises:
            ValueError, TypeError: the batch does not fit the memory or the policy. Nothing has changed then.
            MemoryError and its like: there is no room for the columns that the batch brings. Nothing has changed
                then either. After an error in the middle of a write, which leaves policy and table at odds, the
                memory refuses to go on (RuntimeError) until `clear` or `load_state_dict`.
        """
        if self._torn:
            self._refuse()
        n, direct = self.store.admit(batch)
        if n == 0:
            return 0
        if self.check_finite is not False:
            self._check_values(batch)
        if self.policy.needs and probe is None:
            raise ValueError(
                f"{type(self.policy).__name__} needs {', '.join(self.policy.needs)} of a probe; "
                "pass add(batch, probe=Probe(model, ...))"
            )
        if direct or self.store.is_prepared(batch):
            plan = self._plan(batch, probe)
            if plan is not NOTHING:
                try:
                    self._apply(plan, batch, direct)
                except BaseException:
                    self._torn |= bool(self.policy.state_dict())
                    raise
        else:
            plan = self._plan_and_apply(batch, probe)
        self.store.seen += n
        return len(plan.slot)

    def sample(
        self,
        n: int,
        retrieval: AnyRetrieval | None = None,
        *,
        arrivals: Batch | None = None,
        probe: Probe | None = None,
    ) -> Batch:
        """Draw `n` rows, or all of them when fewer are stored: tensors on the buffer's device.

        Columns of the policy's own are among them where they are numbers (weights, ranks, scores), not where
        they are vectors (features, centroids); `read` has all.

        Args:
            arrivals, probe: the rows of the stream that come into the same step, and the model, for
                retrievals that look at them (MIR, ASER).

        Raises:
            ValueError: `n` is below 1, the memory is empty, or the retrieval lacks what it looks at.
        """
        slots = self.draw(n, retrieval, arrivals=arrivals, probe=probe)
        return self.drawn(slots, retrieval)

    def draw(
        self,
        n: int,
        retrieval: AnyRetrieval | None = None,
        *,
        arrivals: Batch | None = None,
        probe: Probe | None = None,
    ) -> IntArray:
        """The slots that `sample` would read."""
        if self._torn:
            self._refuse()
        if n < 1:
            raise ValueError(f"sample at least 1 row, got {n}")
        if len(self.store) == 0:
            raise ValueError("the memory is empty: add a batch before sampling, or ask len(buffer) first")
        retrieval = retrieval or self.retrieval
        counting = self.count_replays or getattr(retrieval, "counts", False)
        if counting and not self.count_replays:
            self.store.note(REPLAYED, 0.0)
        try:
            if isinstance(retrieval, GuidedRetrieval):
                slots = self._guided(retrieval, n, arrivals, probe)
            else:
                slots = retrieval.rows(self.store, n, self.draws)
        except KeyError as error:
            raise KeyError(f"{type(retrieval).__name__}: {error.args[0]}; {_CURE}") from error
        if counting:
            np.add.at(self.store.note(REPLAYED, 0.0), slots, 1.0)
        return slots

    def _guided(self, retrieval: GuidedRetrieval, n: int, arrivals: Batch | None, probe: Probe | None) -> IntArray:
        name = type(retrieval).__name__
        if arrivals is None or (probe is None and retrieval.needs_probe):
            by, given = ("the model and ", ", probe=Probe(model, ...)") if retrieval.needs_probe else ("", "")
            raise ValueError(
                f"{name} chooses by {by}the rows of the stream; pass sample(n, arrivals=batch{given})"
            )
        for where, held in (("the memory", self.store.columns), ("the stream's batch", arrivals)):
            if missing := [column for column in retrieval.columns if column not in held]:
                raise ValueError(
                    f"{name} needs columns {list(retrieval.columns)}; {where} lacks {missing}; {_CURE}"
                )
        with _cached(probe):
            return retrieval.rows(self.store, n, self.draws, arrivals, probe)  # type: ignore[arg-type]

    def drawn(
        self, slots: IntArray, retrieval: AnyRetrieval | None = None, names: Iterable[str] | None = None
    ) -> Batch:
        """The batch of drawn rows: named columns, or what `sample` has, and what the retrieval adds to them."""
        store, beside = self.store, getattr(retrieval or self.retrieval, "beside", None)
        if names is None and store.own:
            names = [
                name for name, column in store.columns.items() if name not in store.own or not len(column.row)
            ]
        if beside is None:
            return store.read(slots, names)
        added: Batch = beside(store, slots)
        batch = store.read(slots, None if names is None else [name for name in names if name not in added])
        for name, rows in added.items():
            batch[name] = rows.to(store.device)
        return batch

    def read(self, slots: IntArray, names: Iterable[str] | None = None) -> Batch:
        """Rows of given filled slots, in that order."""
        return self.store.read(slots, names)

    # -- what became of replayed rows -------------------------------------------------------------

    def observed(self, retrieval: AnyRetrieval | None = None) -> bool:
        """Whether the policy or the retrieval wants to know the losses of replayed rows."""
        return bool(self.policy.observes) or hasattr(retrieval or self.retrieval, "observe")

    def observe(
        self, slots: IntArray, losses: Tensor | NDArray[Any], retrieval: AnyRetrieval | None = None
    ) -> None:
        """Tell policy and retrieval the losses that replayed rows just had.

        Call it after the training step and before the next `add`, which may write other rows there. Of a slot
        that comes several times the last loss counts. Nothing happens when nobody wants to know.

        Args:
            slots: as `draw` gave them [k].
            losses: one number for each of them [k].

        Raises:
            ValueError: another number of losses than slots, or losses that are not finite (on an accelerator
                the policy finds out when it plans).
            IndexError: a slot that is empty.
        """
        retrieval = retrieval or self.retrieval
        if not len(slots) or not self.observed(retrieval):
            return
        slots, values = np.asarray(slots), torch.as_tensor(losses).detach()
        if values.shape != (len(slots),):
            raise ValueError(f"{len(slots)} replayed rows need one loss each, got losses {list(values.shape)}")
        _, last = np.unique(slots[::-1], return_index=True)
        if len(last) < len(slots):
            chosen = len(slots) - 1 - last
            slots, values = slots[chosen], values[torch.from_numpy(chosen).to(values.device)]
        if not self.store.holds(slots):
            raise IndexError(f"some of the slots {slots.tolist()} are empty, they were not replayed")
        watching = getattr(retrieval, "observe", None)
        if watching is not None or values.is_cpu:
            values = values.cpu()
            if not bool(values.isfinite().all()):
                raise ValueError("losses of replayed rows are NaN or infinite: look at the learning rate")
        if watching is not None:  # first, for it may refuse
            watching(self.store, slots, values.double().numpy())
        if LOSS in self.policy.observes and LOSS in self.store.columns:
            self.store.revise(slots, {LOSS: values.to(self.store.columns[LOSS].dtype)})

    # -- its life ---------------------------------------------------------------------------------

    def resize(self, capacity: int, grow: str = "forbid") -> None:
        """Change the number of slots.

        Shrinking keeps the law of the policy. Growing cannot give back what was dropped, so it is refused
        unless `grow` names a way that the policy offers. After an error (no room, say) nothing has changed.
        """
        if self._torn:
            self._refuse()
        check_capacity(capacity)
        with self._or_as_before():
            keep = self.policy.resize(self.store, capacity, self.rng, grow)
            self.store.rearrange(keep, capacity)

    def clear(self) -> None:
        """Forget all rows and all state of the policy; the generators go on."""
        self.store.clear()
        self.policy.reset()
        self._torn = False
        self._begin_counts()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on bit for bit; loads with ``torch.load(weights_only=True)``."""
        if self._torn:
            self._refuse()
        return {
            "policy": type(self.policy).__name__,
            "policy_state": self.policy.state_dict(),
            "store": self.store.state_dict(),
            "rng": _generator_state(self.rng),
            "draws": _generator_state(self.draws),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the saved memory.

        Raises:
            ValueError: a state of another policy or capacity, or a corrupt one. Nothing has changed then.
        """
        if not isinstance(state, dict):
            raise ValueError(f"not the state of a buffer: a {type(state).__name__}")
        missing = {"policy", "policy_state", "store", "rng", "draws"} - state.keys()
        if missing:
            raise ValueError(f"not the state of a buffer: it lacks {sorted(missing)}")
        if state["policy"] != type(self.policy).__name__:
            raise ValueError(
                f"the saved memory was kept by {state['policy']}, this one by {type(self.policy).__name__}"
            )
        rng, draws = _generator(state["rng"]), _generator(state["draws"])
        with self._or_as_before():
            self.policy.load_state_dict(state["policy_state"])
            self.store.load_state_dict(state["store"])
        self.rng, self.draws, self._torn = rng, draws, False
        self._begin_counts()

    # -- inside -----------------------------------------------------------------------------------

    @property
    def _policy_name(self) -> str:
        """For people: the function's own name where the policy is one."""
        return getattr(self.policy, "__name__", type(self.policy).__name__)

    def _check_values(self, batch: Batch) -> None:
        for name, value in batch.items():
            if name == "x" or value.dtype in _EXACT or not (self.check_finite or value.is_cpu):
                continue
            finite = False
            if value.dtype is torch.float32 and value.is_cpu:
                # A sum of squares is finite unless an entry is not, or it overflows: then look closely.
                # (`vdot`, unlike `dot`, does not warn of that.)
                array = (value.detach() if value.requires_grad else value).numpy()
                finite = math.isfinite(np.vdot(array, array))
            # torch does not compute with every kind of 8-bit floats.
            if not finite and not bool((value.float() if value.dtype.itemsize == 1 else value).isfinite().all()):
                diverged = " (a network that diverges gives them: lower the learning rate)"
                cure = diverged if name in ("logits", LOSS) else ""
                raise ValueError(f"column {name!r} holds NaN or infinity; nothing was stored{cure}")

    def _refuse(self) -> NoReturn:
        raise RuntimeError(
            f"an earlier add was broken off while it wrote, {self._policy_name} and the table are at odds; "
            "clear() the memory or load_state_dict() a saved one"
        )

    def _begin_counts(self) -> None:
        if self.count_replays:
            self.store.note(REPLAYED, 0.0)

    def _plan(self, batch: Batch, probe: Probe | None) -> Plan:
        # What a model answers, unlike a batch, cannot be checked before something is drawn.
        late = self.policy.needs or self.policy.fails_late
        drawn = self.rng.bit_generator.state if late else None
        try:
            with _cached(probe) if self.policy.needs else _UNCACHED:
                return self.policy.plan(batch, self.store, self.rng, probe)
        except BaseException as error:
            if drawn is not None:
                self.rng.bit_generator.state = drawn
            if not isinstance(error, (ValueError, KeyError, TypeError, IndexError)):
                raise
            message = error.args[0] if error.args else error
            raise type(error)(f"{self._policy_name}: {message} [batch {describe(batch)}]") from error

    def _plan_and_apply(self, batch: Batch, probe: Probe | None) -> Plan:
        """For a batch with columns that have to be made first: if there is no room, nothing has changed."""
        with self._or_as_before():
            plan = self._plan(batch, probe)
            self._apply(plan, batch, False)
        return plan

    @contextmanager
    def _or_as_before(self) -> Iterator[None]:
        """After an error within, policy and generator are as they were; the table sees to itself."""
        policy, rng = self.policy.state_dict(), self.rng.bit_generator.state
        try:
            yield
        except BaseException:
            self.policy.load_state_dict(policy)
            self.rng.bit_generator.state = rng
            raise

    def _apply(self, plan: Plan, batch: Batch, direct: bool) -> None:
        store, revision = self.store, plan.revise
        if not plan.distinct:
            store.check_slots(plan.slot)
        if direct and not plan.columns and plan.release is None and revision is None:
            if len(plan):
                store.put(plan.slot, batch, plan.source)
            return
        columns, widths = dict(store.columns), dict(store.widths)
        try:  # All that can fail, before anything is emptied or overwritten.
            if revision is not None:  # either may widen a column of the other
                store.prepare(batch if len(plan) else {}, plan.columns, revision[1])
            revise = None if revision is None else store.revised(*revision)
            write = store.staged(plan.slot, batch, plan.source, plan.columns) if len(plan) else None
        except BaseException:
            store.columns, store.widths = columns, widths
            raise
        self._torn = True
        if plan.release is not None:
            store.release(plan.release)
        if revise is not None and revision is not None:
            store.own.update(revision[1].keys() - batch.keys())
            revise()
        if write is not None:
            write()
            store.start_notes(plan.slot)
        self._torn = False


def _cached(probe: Any) -> AbstractContextManager[object]:
    """Ask the model once for each quantity, unless the user's probe is of another kind."""
    return probe.cached() if hasattr(probe, "cached") else _UNCACHED


def _generator_state(rng: np.random.Generator) -> dict[str, Any]:
    state = rng.bit_generator.state
    if state["bit_generator"] != "PCG64":
        raise ValueError(f"only PCG64 generators can be saved, this buffer was given {state['bit_generator']}")
    # 128-bit integers travel as text, which every safe loader can read.
    return {
        "state": hex(state["state"]["state"]),
        "inc": hex(state["state"]["inc"]),
        "has_uint32": state["has_uint32"],
        "uinteger": state["uinteger"],
    }


def _generator(state: dict[str, Any]) -> np.random.Generator:
    try:
        bits = np.random.PCG64()
        bits.state = {
            "bit_generator": "PCG64",
            "state": {"state": int(state["state"], 16), "inc": int(state["inc"], 16)},
            "has_uint32": state["has_uint32"],
            "uinteger": state["uinteger"],
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"corrupt generator state: {error}") from error
    return np.random.Generator(bits)
