"""Every exported policy keeps the contract, and the contract notices who does not."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from replaykit import Batch, Buffer, Plan, Policy, Store, policies, testing
from replaykit.policies import (
    BalancedReservoir,
    ClassBalancedReservoir,
    PartitioningReservoir,
    Reservoir,
    RingBuffer,
)
from replaykit.testing import check_policy, example_stream, same

EXPORTED = {
    name: policy
    for name, policy in vars(policies).items()
    if name in policies.__all__ and isinstance(policy, type) and issubclass(policy, Policy)
}

# What `check_policy` is given. A policy that is not named here is built with no argument and is promised to be
# invariant to cuts; a named one is checked with each row of its list.
ARGUMENTS: dict[str, list[dict[str, object]]] = {
    "BalancedReservoir": [
        {},
        {"make_policy": partial(BalancedReservoir, forced=True)},
        {"make_policy": partial(BalancedReservoir, compat="mammoth")},
    ],
    "ClassBalancedReservoir": [
        {},
        {"make_policy": partial(ClassBalancedReservoir, full_from="first_item")},
        {"make_policy": partial(ClassBalancedReservoir, readmit_extinct=True)},
    ],
    "PartitioningReservoir": [{}, {"make_policy": partial(PartitioningReservoir, compat="official")}],
    "Reservoir": [
        {},
        {"make_policy": partial(Reservoir, compat="mer")},
        {"make_policy": partial(Reservoir, compat="agem")},
        {"make_policy": partial(Reservoir, compat="frozen_count"), "cut_invariant": False},
    ],
    "RingBuffer": [
        {},
        {"make_policy": partial(RingBuffer, lazy=True)},
        {"make_policy": partial(RingBuffer, 4)},
        {"make_policy": partial(RingBuffer, group="t")},
        {"make_policy": partial(RingBuffer, 3, group="t", compat="gem"), "cut_invariant": False},
    ],
}
# Policies that look at a model are slower to check: their own files do it, on shorter streams.
ELSEWHERE = {
    "Coreset": "test_coreset.py",
    "GSSClust": "test_gss_clust.py",
    "GSSGreedy": "test_gss_greedy.py",
    "GSSIQP": "test_gss_iqp.py",
    "KMeans": "test_k_means.py",
    "MeanOfFeatures": "test_k_means.py",
    "GreedyCoreset": "test_greedy_coreset.py",
    "BADGE": "test_named_coresets.py",
    "BCSR": "test_named_coresets.py",
    "CRAIG": "test_named_coresets.py",
    "EL2N": "test_named_coresets.py",
    "Entropy": "test_named_coresets.py",
    "FacilityLocation": "test_named_coresets.py",
    "Forgetting": "test_named_coresets.py",
    "GCR": "test_named_coresets.py",
    "GraNd": "test_named_coresets.py",
    "GradMatch": "test_named_coresets.py",
    "GraphCut": "test_named_coresets.py",
    "Herding": "test_named_coresets.py",
    "ICaRLHerding": "test_named_coresets.py",
    "Importance": "test_named_coresets.py",
    "KCenter": "test_named_coresets.py",
    "LeastConfidence": "test_named_coresets.py",
    "LogDeterminant": "test_named_coresets.py",
    "Margin": "test_named_coresets.py",
    "Moderate": "test_named_coresets.py",
    "RainbowMemory": "test_named_coresets.py",
    "ABS": "test_loss_aware.py",
    "LABRS": "test_loss_aware.py",
    "LARS": "test_loss_aware.py",
    "OCS": "test_ocs.py",
    "ShapleyReservoir": "test_shapley_reservoir.py",
    "XDERMemory": "test_xder_memory.py",
}
CASES = [
    pytest.param({"make_policy": policy, "cut_invariant": True, **row}, id=f"{name}-{number}")
    for name, policy in EXPORTED.items()
    if name not in ELSEWHERE
    for number, row in enumerate(ARGUMENTS.get(name, [{}]))
]


@pytest.mark.parametrize("arguments", CASES)
@pytest.mark.filterwarnings("ignore:CBRS has")
def test_contract(arguments: dict) -> None:
    check_policy(**arguments)


def test_no_exported_policy_is_skipped() -> None:
    """Every export of the package is a policy that is checked, or a function that says what it does."""
    others = {name: vars(policies)[name] for name in policies.__all__ if name not in EXPORTED}
    assert all(callable(other) and not isinstance(other, type) and other.__doc__ for other in others.values())
    checked = {case.id.split("-")[0] for case in CASES}
    assert checked | ELSEWHERE.keys() == set(EXPORTED) and ARGUMENTS.keys() <= EXPORTED.keys()
    for name, file in ELSEWHERE.items():
        text = (Path(__file__).parent / "policies" / file).read_text()
        assert "check_policy(" in text and name in text, file


INVARIANT = [case for case in CASES if case.values[0]["cut_invariant"]]


@pytest.mark.parametrize("arguments", INVARIANT)
@pytest.mark.filterwarnings("ignore:CBRS has")
@settings(max_examples=8, deadline=None)
@given(cuts=st.sets(st.integers(1, 79), max_size=20), capacity=st.integers(4, 30), seed=st.integers(0, 9))
def test_the_memory_does_not_depend_on_the_cuts(arguments: dict, cuts: set[int], capacity: int, seed: int) -> None:
    stream = example_stream(80)
    memories = [Buffer(capacity, arguments["make_policy"](), seed=seed) for _ in range(2)]
    memories[0].add(stream)
    for low, high in zip([0, *sorted(cuts)], [*sorted(cuts), 80], strict=True):
        memories[1].add({name: column[low:high] for name, column in stream.items()})
    assert same(memories[0].state_dict(), memories[1].state_dict())


# -- policies that break a promise ----------------------------------------------------------------


class Keep(Policy):
    """A right policy to spoil: takes the first rows, then replaces random slots."""

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: object = None) -> Plan:
        free = store.free(len(arrivals["id"]))
        writers = dict(zip(free.tolist(), range(len(free)), strict=True))
        for row in range(len(free), len(arrivals["id"])):
            writers[int(rng.integers(store.capacity))] = row
        return Plan.of(writers)

    def resize(self, store, capacity, rng, grow="forbid"):  # type: ignore[no-untyped-def]
        return store.filled[:capacity]


class WritesBeyondTheBatch(Keep):
    def plan(self, arrivals, store, rng, probe=None):
        plan = super().plan(arrivals, store, rng)
        return Plan(plan.source + 1, plan.slot)


class WritesBeyondTheMemory(Keep):
    def plan(self, arrivals, store, rng, probe=None):
        plan = super().plan(arrivals, store, rng)
        return Plan(plan.source, plan.slot + 1, distinct=True)


class WritesASlotTwice(Keep):
    def plan(self, arrivals, store, rng, probe=None):
        n = len(arrivals["id"])
        return Plan(np.arange(n), rng.integers(0, store.capacity, n), distinct=True)


class ChangesItsInput(Keep):
    def plan(self, arrivals, store, rng, probe=None):
        arrivals["weight"] *= 2
        return super().plan(arrivals, store, rng)


class AddsToItsInput(Keep):
    def plan(self, arrivals, store, rng, probe=None):
        arrivals["score"] = torch.zeros(len(arrivals["id"]))
        return super().plan(arrivals, store, rng)


class MixesRows(Keep):
    def plan(self, arrivals, store, rng, probe=None):
        plan = super().plan(arrivals, store, rng)
        plan.columns = {"y": arrivals["y"][torch.from_numpy(plan.source)] * 0 + 7}
        return plan


class TouchesTorch(Keep):
    def plan(self, arrivals, store, rng, probe=None):
        torch.rand(1)
        return super().plan(arrivals, store, rng)


class TouchesNumpy(Keep):
    def plan(self, arrivals, store, rng, probe=None):
        np.random.rand()  # noqa: NPY002
        return super().plan(arrivals, store, rng)


class TouchesRandom(Keep):
    def plan(self, arrivals, store, rng, probe=None):
        random.random()
        return super().plan(arrivals, store, rng)


class HasItsOwnDice(Keep):
    def plan(self, arrivals, store, rng, probe=None):
        return super().plan(arrivals, store, np.random.default_rng())


class ForgetsItsState(Keep):
    """Counts rows, and does not save the count."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.turn = 0

    def plan(self, arrivals, store, rng, probe=None):
        plan = super().plan(arrivals, store, rng)
        self.turn += len(arrivals["id"])
        return plan if self.turn % 3 else Plan.of({0: 0})


class SavesWhatItHolds(Keep):
    """Its state is not a copy."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.seen = torch.zeros(1)

    def plan(self, arrivals, store, rng, probe=None):
        self.seen += 1
        return super().plan(arrivals, store, rng)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"].clone()


class SavesCode(Keep):
    def state_dict(self):
        return {"rule": Keep}

    def load_state_dict(self, state):
        pass


class DoesNotReset(SavesWhatItHolds):
    def __init__(self) -> None:
        self.seen = torch.zeros(1)

    def reset(self) -> None:
        pass

    def state_dict(self):
        return {"seen": self.seen.clone()}


class CountsBeforeItLooks(SavesWhatItHolds):
    columns = ("y",)

    def plan(self, arrivals, store, rng, probe=None):
        self.seen += 1
        if arrivals["y"].min() < 0:
            raise ValueError("negative")
        return Keep.plan(self, arrivals, store, rng)

    def state_dict(self):
        return {"seen": self.seen.clone()}


class TakesNegativeLabels(Keep):
    columns = ("y",)


class Grows(Keep):
    def __init__(self) -> None:
        self.log: list[tuple[int, ...]] = []

    def reset(self) -> None:
        self.log = []

    def plan(self, arrivals, store, rng, probe=None):
        self.log.append(tuple(arrivals["id"].tolist()))
        return super().plan(arrivals, store, rng)


class ForgetsHowToShrink(Keep):
    def resize(self, store, capacity, rng, grow="forbid"):
        raise NotImplementedError


class DependsOnTheCuts(Keep):
    def plan(self, arrivals, store, rng, probe=None):
        return Plan.of({int(rng.integers(store.capacity)): len(arrivals["id"]) - 1})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (WritesBeyondTheBatch, "a plan names rows of the batch"),
        (WritesBeyondTheMemory, "a plan names slots of the memory"),
        (WritesASlotTwice, "a plan writes a slot at most once"),
        (ChangesItsInput, "stored row equals the row of the stream|changes neither the batch"),
        (AddsToItsInput, "changes neither the batch"),
        (MixesRows, "column 'y' differs"),
        (TouchesTorch, "global generators"),
        (TouchesNumpy, "global generators"),
        (TouchesRandom, "global generators"),
        (HasItsOwnDice, "the same seed gives the same memory"),
        (ForgetsItsState, r"resumed after \d+ rows ends like"),
        (SavesWhatItHolds, "an empty batch|a state that was saved does not change"),
        (SavesCode, "checkpoints resume; instead UnpicklingError"),
        (DoesNotReset, "a cleared memory has the state of a new one"),
        (CountsBeforeItLooks, "leaves the memory as it was"),
        (TakesNegativeLabels, "a batch with column 'y' missing is refused|-1 in column 'y' is refused"),
        (Grows, "does not grow with the stream"),
        (ForgetsHowToShrink, "memories shrink or refuse; instead NotImplementedError"),
        (DependsOnTheCuts, "the memory is the same when the stream comes"),
    ],
)
def test_broken_promises_are_noticed(make: Callable[[], Policy], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_policy(make, cut_invariant=make is DependsOnTheCuts)


def test_the_policy_that_the_broken_ones_spoil_is_right() -> None:
    check_policy(Keep)


# -- probes, functions, streams of one's own ------------------------------------------------------


class Scoring(Keep):
    """Uses a 'probe' that is a function of the batch."""

    needs = ("losses",)

    def plan(self, arrivals, store, rng, probe=None):
        plan = super().plan(arrivals, store, rng)
        plan.columns = {"score": probe(arrivals)[torch.from_numpy(plan.source)]}
        return plan


def careful(model: nn.Module) -> Callable[[Batch], torch.Tensor]:
    modes = {module: module.training for module in model.modules()}

    def losses(rows: Batch) -> torch.Tensor:
        model.eval()
        with torch.no_grad():
            out = model(rows["x"]).logsumexp(1)
        for module, mode in modes.items():
            module.training = mode
        return out

    return losses


def leaves_eval_mode(model: nn.Module) -> Callable[[Batch], torch.Tensor]:
    return lambda rows: model.eval()(rows["x"]).logsumexp(1).detach()


def updates_statistics(model: nn.Module) -> Callable[[Batch], torch.Tensor]:
    def losses(rows: Batch) -> torch.Tensor:
        modes = [module.training for module in model.modules()]
        out = model.train()(rows["x"].repeat(2, 1, 1, 1)).logsumexp(1).detach()[: len(rows["id"])]
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
        return out

    return losses


def leaves_gradients(model: nn.Module) -> Callable[[Batch], torch.Tensor]:
    def losses(rows: Batch) -> torch.Tensor:
        careful(model)(rows)
        next(model.parameters()).grad = torch.zeros_like(next(model.parameters()))
        return careful(model)(rows)

    return losses


class ByLoss(Keep):
    """Asks the probe of the library."""

    needs = ("losses",)

    def plan(self, arrivals, store, rng, probe=None):
        plan = super().plan(arrivals, store, rng)
        plan.columns = {"score": probe.losses(arrivals)[torch.from_numpy(plan.source)]}
        return plan


def test_policies_with_a_probe() -> None:
    check_policy(Scoring, make_probe=careful)
    check_policy(ByLoss)


@pytest.mark.parametrize(
    ("make_probe", "message"),
    [
        (leaves_eval_mode, "train and eval modes"),
        (updates_statistics, "BatchNorm statistics"),
        (leaves_gradients, r"leaves \.grad"),
    ],
)
def test_probes_that_leave_a_trace_are_noticed(make_probe: Callable, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_policy(Scoring, make_probe=make_probe)


def test_a_function_is_a_policy() -> None:
    def newest(arrivals: Batch, store: Store, rng: np.random.Generator) -> Plan:
        rows = range(store.seen, store.seen + len(arrivals["id"]))
        return Plan.of({row % store.capacity: row - store.seen for row in rows})

    check_policy(lambda: newest, cut_invariant=True)


def test_a_stream_of_ones_own() -> None:
    def vectors(n: int) -> Batch:
        return {"id": torch.arange(n), "vector": torch.arange(2.0 * n).reshape(n, 2).bfloat16()}

    check_policy(Reservoir, make_stream=vectors, capacity=5, rows=60, cut_invariant=True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16], ids=str)
def test_labels_may_be_of_a_kind_that_has_no_negative_numbers(dtype: torch.dtype) -> None:
    def small_labels(n: int) -> Batch:
        stream = example_stream(n)
        return {**stream, "y": stream["y"].to(dtype)}

    check_policy(ClassBalancedReservoir, make_stream=small_labels, cut_invariant=True)


def test_the_example_has_what_it_says() -> None:
    stream = example_stream(90)
    assert stream["t"].unique_consecutive().tolist() == [0, 1, 2]
    assert [int(stream["y"][stream["t"] == task].max()) for task in range(3)] == [1, 2, 3]
    assert same(stream, example_stream(90))
    assert all(promise.__name__ in vars(testing) for promise in testing.PROMISES)
