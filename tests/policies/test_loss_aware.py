"""LARS, LABRS and ABS: who is accepted, who is evicted."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import Chance, exact_law, p_value
from reference.laws import RARE
from reference.loss_aware import abs_memory, labrs_law, lars_law, loss_aware
from scipy import stats

from replaykit import Batch, Buffer, Policy
from replaykit.policies import ABS, LABRS, LARS
from replaykit.policies.evict_by_loss import EvictByLoss
from replaykit.probe import Probe
from replaykit.testing import check_policy, example_model, example_stream, same

RUNS = 1000


def batch(losses: Sequence[float], y: Sequence[int] | None = None, t: Sequence[int] | None = None, first: int = 0):
    n = len(losses)
    return {
        "id": torch.arange(first, first + n),
        "y": torch.tensor(y if y is not None else [0] * n),
        "t": torch.tensor(t if t is not None else [0] * n),
        "loss": torch.tensor(losses, dtype=torch.float64),
    }


def leaving(make: Callable[[], EvictByLoss], stored: Batch, entering: Batch, runs: int = RUNS) -> np.ndarray:
    """How often each stored row made room for an entering one that is always accepted."""
    times, rng = np.zeros(len(stored["id"]), np.int64), np.random.default_rng(0)
    for _ in range(runs):
        memory = Buffer(len(times), make(), seed=rng)
        memory.add(stored)
        while memory.add(entering) == 0:
            pass
        left = set(range(len(times))) - set(memory["id"].tolist())
        times[list(left)] += 1
    return times


def chi(times: np.ndarray, law: Sequence[float]) -> float:
    law = np.asarray(law) / np.sum(law)
    assert not times[law == 0].any()
    return float(stats.chisquare(times[law > 0], law[law > 0] * times.sum()).pvalue)


# -- hand cases ---------------------------------------------------------------------------------------


def law_of(policy: EvictByLoss, losses: Sequence[float], *groups: Sequence[int], entering=None) -> np.ndarray:
    weights = policy.weights(np.array(losses, float), [np.array(g) for g in groups], entering)
    return weights / weights.sum()


def test_the_hand_case_of_lars() -> None:
    assert law_of(LARS(), [1, 2, 3, 4, 5]) == pytest.approx([0.4, 0.3, 0.2, 0.1, 0])
    assert law_of(LARS("low"), [1, 2, 3, 4, 5]) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert lars_law([1, 2, 3, 4, 5], "high") == pytest.approx([0.4, 0.3, 0.2, 0.1, 0])


@pytest.mark.parametrize("keep", ["high", "low"])
def test_lars_evicts_by_its_law(keep) -> None:
    times = leaving(partial(LARS, keep), batch([1, 2, 3, 4, 5]), batch([9.0], first=9))
    assert chi(times, lars_law([1, 2, 3, 4, 5], keep)) > RARE


LOSSES, LABELS = [0.1, 0.2, 0.3, 2, 0.4, 0.5], [0, 0, 0, 0, 1, 1]
HAND = {
    "product": [0.285, 0.278, 0.272, 0.159, 0.007, 0],
    "ratio": [0.244, 0.231, 0.218, 0, 0.160, 0.147],
}


@pytest.mark.parametrize("scaling", HAND)
def test_the_hand_case_of_labrs(scaling) -> None:
    """Four rows of one class and two of another."""
    assert law_of(LABRS(scaling=scaling), LOSSES, LABELS) == pytest.approx(HAND[scaling], abs=5e-4)
    assert labrs_law(LOSSES, LABELS, "high", scaling) == pytest.approx(HAND[scaling], abs=5e-4)
    times = leaving(partial(LABRS, scaling=scaling), batch(LOSSES, LABELS), batch([1.0], [1], first=9))
    assert chi(times, labrs_law(LOSSES, LABELS, "high", scaling)) > RARE


def test_labrs_keeping_low_losses_turns_the_loss_around() -> None:
    found = law_of(LABRS("low"), LOSSES, LABELS)
    assert found == pytest.approx(labrs_law(LOSSES, LABELS, "low", "product"))
    assert found[3] == found.max()


MAKES: list[Callable[[], EvictByLoss]] = [
    LARS,
    partial(LARS, "low"),
    LABRS,
    partial(LABRS, scaling="ratio"),
    partial(ABS, 0.0),
]


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_equal_losses_of_one_class_are_evicted_uniformly(make, value) -> None:
    times = leaving(make, batch([value] * 5), batch([1.0], first=9), 600)
    assert chi(times, [1] * 5) > RARE


def test_losses_of_zero_leave_labrs_the_class_sizes() -> None:
    assert law_of(LABRS(), [0, 0, 0], [1, 1, 2]) == pytest.approx([0.5, 0.5, 0])


def test_abs_keeps_complex_rows_of_the_past_and_easy_rows_of_the_present() -> None:
    losses, task = [1, 2, 4, 1, 2, 3, 5], [0, 0, 0, 1, 1, 1, 1]
    law = law_of(ABS(), losses, task, entering=[1])
    past, present = np.array([3, 2, 0]) / 5, np.array([0, 1, 2, 4]) / 7
    assert law == pytest.approx(np.concatenate((past * 3 / 7, present * 4 / 7)))
    times = leaving(partial(ABS, 0.0), batch(losses, t=task), batch([1.0], t=[1], first=9))
    assert chi(times, law) > RARE


def test_abs_by_the_number_of_classes_a_task() -> None:
    by_label = ABS(task=2).weights(np.array([1.0, 2, 4, 5]), [np.array([0, 1, 2, 3])], [3])
    by_task = ABS().weights(np.array([1.0, 2, 4, 5]), [np.array([0, 0, 1, 1])], [1])
    assert by_label == pytest.approx(by_task) and by_task.tolist() == [2, 0, 0, 2]


@pytest.mark.parametrize("task", [[0, 0, 0], [2, 2, 2]])
def test_abs_with_one_group_only(task) -> None:
    law = law_of(ABS(), [1, 2, 4], task, entering=[1])
    assert law == pytest.approx(np.array([3, 2, 0]) / 5 if task[0] < 1 else np.array([0, 1, 3]) / 4)


@pytest.mark.parametrize(
    ("n", "alpha", "kept"), [(32, 0.75, 8), (10, 0.75, 2), (10, 0.3, 7), (1, 0.75, 1), (8, 0.0, 8)]
)
def test_abs_offers_the_rows_of_lowest_loss(n, alpha, kept) -> None:
    losses = np.random.default_rng(n).permutation(n).astype(float)
    policy = ABS(alpha)
    memory = Buffer(n, policy)
    assert memory.add(batch(losses.tolist())) == kept == len(memory) == policy.offered
    assert sorted(memory["loss"].tolist()) == list(range(kept)) and memory.seen == n
    assert memory["id"].tolist() == sorted(memory["id"].tolist())


# -- the literal loops --------------------------------------------------------------------------------

STREAM = {"losses": [0.5, 2.0, 1.0, 0.25, 3.0], "y": [0, 1, 0, 0, 1], "t": [0, 0, 0, 1, 1]}


def outcomes(make: Callable[[], Policy], cuts: Sequence[int], runs: int = RUNS) -> dict[tuple[int, ...], int]:
    rng, found = np.random.default_rng(1), {}
    whole = batch(STREAM["losses"], STREAM["y"], STREAM["t"])
    for _ in range(runs):
        memory = Buffer(2, make(), seed=rng)
        for low, high in zip([0, *cuts], [*cuts, 5], strict=True):
            memory.add({name: column[low:high] for name, column in whole.items()})
        kept = tuple(sorted(memory["id"].tolist()))
        found[kept] = found.get(kept, 0) + 1
    return found


@pytest.mark.parametrize("compat", [None, "mammoth"])
@pytest.mark.parametrize("name", ["lars", "lars low", "labrs", "labrs ratio"])
def test_memories_have_the_law_of_the_literal_loop(name, compat) -> None:
    """In one batch; the contract promises the same memory for any other cut of the stream."""
    kind, _, how = name.partition(" ")
    if kind == "lars":
        make, law = partial(LARS, how or "high", compat=compat), partial(lars_law, keep=how or "high")
    else:
        make = partial(LABRS, scaling=how or "product", compat=compat)
        law = None

    def evict(losses: list[float], rows: list[int]) -> list[float]:
        if law is not None:
            return law(losses)
        return labrs_law(losses, [STREAM["y"][row] for row in rows], "high", how or "product")

    def run(chance: Chance) -> tuple[int, ...]:
        return tuple(sorted(loss_aware(STREAM["losses"], 2, evict, chance, compat)))

    assert p_value(outcomes(make, []), exact_law(run)) > RARE


@pytest.mark.parametrize("compat", [None, "mammoth"])
def test_abs_has_the_law_of_the_literal_loop(compat) -> None:
    cuts = [3]

    def run(chance: Chance) -> tuple[int, ...]:
        parts = [range(3), range(3, 5)]
        return tuple(sorted(abs_memory(STREAM["losses"], STREAM["t"], parts, 2, 0.34, chance, compat)))

    assert p_value(outcomes(partial(ABS, 0.34, compat=compat), cuts), exact_law(run)) > RARE


# -- acceptance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [LARS, LABRS, partial(ABS, 0.0)])
def test_acceptance_is_that_of_a_reservoir_and_compat_is_one_row_ahead(make) -> None:
    """Row 4 enters a memory of 3 with probability 3/4; by the frameworks' count always, and row 5 with 3/4."""
    rng, entered = np.random.default_rng(0), np.zeros((2, 2))
    for _ in range(RUNS // 2):
        for which, compat in enumerate((None, "mammoth")):
            memory = Buffer(3, make(compat=compat), seed=rng)
            memory.add(batch([1.0, 2.0, 3.0]))
            entered[which] += [memory.add(batch([1.5], first=row)) for row in (3, 4)]
    assert stats.binomtest(int(entered[0, 0]), RUNS // 2, 3 / 4).pvalue > RARE
    assert stats.binomtest(int(entered[0, 1]), RUNS // 2, 3 / 5).pvalue > RARE
    assert entered[1, 0] == RUNS // 2
    assert stats.binomtest(int(entered[1, 1]), RUNS // 2, 3 / 4).pvalue > RARE


def test_abs_counts_only_rows_that_pass_its_filter() -> None:
    """Of each batch of 4 one row is offered: the second one that finds the memory full has probability 2/4."""
    rng, entered = np.random.default_rng(0), 0
    for _ in range(600):
        memory = Buffer(2, ABS(), seed=rng)
        stayed = [memory.add(batch([1.0, 2, 3, 4], first=4 * turn)) for turn in range(4)]
        assert stayed[:2] == [1, 1]
        entered += stayed[3]
    assert stats.binomtest(entered, 600, 2 / 4).pvalue > RARE


# -- losses of replayed rows --------------------------------------------------------------------------


def test_replayed_losses_decide_who_leaves() -> None:
    for seed in range(30):
        memory = Buffer(4, LARS(), seed=seed)
        memory.add(batch([9.0, 1, 1, 1]))
        where = int((memory["id"] == 0).nonzero()[0, 0])
        slots = memory.store.filled
        memory.observe(slots, torch.where(torch.arange(4) == where, 0.0, 5.0))
        while memory.add(batch([5.0], first=9)) == 0:
            pass
        assert 0 not in memory["id"].tolist()  # its loss was the largest when it came, and is the smallest now


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 99), sizes=st.lists(st.integers(1, 9), min_size=2, max_size=8))
def test_the_loss_column_is_the_last_known_loss_of_the_row(seed: int, sizes: list[int]) -> None:
    memory, rng, book, first = Buffer(7, LABRS(), seed=seed), np.random.default_rng(seed), {}, 0
    for size in sizes:
        losses = rng.random(size)
        memory.add(batch(losses.tolist(), rng.integers(0, 3, size).tolist(), first=first))
        book.update(zip(range(first, first + size), losses.tolist(), strict=True))
        first += size
        slots = memory.draw(3)
        seen = rng.random(len(slots))
        memory.observe(slots, torch.from_numpy(seen))
        book.update(zip(memory.read(slots)["id"].tolist(), seen.tolist(), strict=True))
        assert memory["loss"].tolist() == [book[row] for row in memory["id"].tolist()]


@pytest.mark.parametrize("make", [LARS, LABRS, partial(ABS, 0.0)])
def test_losses_in_half_precision_decide_like_the_same_numbers_in_double(make) -> None:
    kept = []
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        memory = Buffer(5, make(), seed=0)
        for first in (0, 20):
            arriving = batch([(3 * i % 17) / 4 for i in range(20)], [i % 3 for i in range(20)], first=first)
            memory.add({**arriving, "loss": arriving["loss"].to(dtype)})
        memory.observe(np.arange(5), torch.arange(5.0))
        memory.resize(3)
        kept.append(memory["id"].tolist())
    assert kept[0] == kept[1] == kept[2]


# -- the contract -------------------------------------------------------------------------------------


def with_losses(n: int) -> Batch:
    g = torch.Generator().manual_seed(3)
    return {**example_stream(n), "loss": torch.rand(n, generator=g)}


@pytest.mark.parametrize("make", MAKES[:4])
def test_contract_of_lars_and_labrs(make) -> None:
    check_policy(make, make_stream=with_losses, cut_invariant=True, capacity=10, rows=80)


@pytest.mark.parametrize("make", [ABS, partial(ABS, 0.5, task=2, compat="mammoth")])
def test_contract_of_abs(make) -> None:
    check_policy(make, make_stream=with_losses, capacity=10, rows=120)


@pytest.mark.parametrize("make", [LARS, ABS])
def test_contract_with_losses_of_a_probe(make) -> None:
    class Probed(make):  # type: ignore[misc, valid-type]
        """Takes the losses of the probe."""

        columns = ()

        def __init__(self) -> None:
            super().__init__()
            self.columns = self.groups

    check_policy(Probed, make_probe=lambda model: Probe(model, prepare=torch.Tensor.float), capacity=8, rows=60)


def test_a_probe_gives_the_losses_that_the_batch_lacks() -> None:
    stream, model = example_stream(20), example_model()
    probe = Probe(model, prepare=torch.Tensor.float)
    memory = Buffer(20, LARS())
    memory.add(stream, probe)
    assert memory["loss"].dtype == torch.float32
    assert torch.allclose(memory["loss"], probe.losses(stream).float())
    memory.observe(memory.store.filled[:2], torch.tensor([1.5, 2.5]))
    assert memory["loss"][:2].tolist() == [1.5, 2.5]


def test_shrinking_evicts_by_the_law() -> None:
    times, rng = np.zeros(5, np.int64), np.random.default_rng(0)
    for _ in range(1000):
        memory = Buffer(5, LARS(), seed=rng)
        memory.add(batch([1, 2, 3, 4, 5]))
        memory.resize(4)
        times[list(set(range(5)) - set(memory["id"].tolist()))] += 1
    assert chi(times, [4, 3, 2, 1, 0]) > RARE


def test_shrinking_and_growing_of_abs() -> None:
    memory = Buffer(6, ABS(0.0), seed=0)
    memory.add(batch([1, 2, 3, 4, 5, 6, 7], t=[0, 0, 0, 1, 1, 1, 1]))
    memory.resize(3)
    assert len(memory) == 3
    with pytest.raises(ValueError, match="rows that were dropped"):
        memory.resize(6)
    memory.resize(6, grow="naive")
    assert memory.add(batch([1, 2, 3], first=9)) == 3 and len(memory) == 6


# -- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [LARS, LABRS, ABS])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"loss": None}, "needs a column 'loss'.*Replay plugin.*or pass add"),
        (
            {"loss": torch.tensor([1, 2])},
            r"losses must be floating numbers of shape \[n\], got \[2\] of torch.int64",
        ),
        ({"loss": torch.ones(2, 1)}, r"got \[2, 1\]"),
        ({"loss": torch.tensor([1.0, float("nan")])}, "NaN or infinity"),
    ],
)
@pytest.mark.parametrize("stored", [0, 3])
def test_losses_that_are_none(make, spoil, message, stored) -> None:
    memory = Buffer(3, make())
    if stored:
        memory.add(batch([1.0, 2.0, 3.0]))
    before = memory.state_dict()
    bad = {name: column for name, column in {**batch([1.0, 2.0]), **spoil}.items() if column is not None}
    with pytest.raises(ValueError, match=message if not stored else "."):
        memory.add(bad)
    assert same(memory.state_dict(), before)


def test_infinite_losses_that_were_not_looked_at_when_they_came() -> None:
    memory = Buffer(2, LARS(), check_finite=False)
    memory.add(batch([1.0, 2.0]))
    memory.store.revise(np.array([0]), {"loss": torch.tensor([float("nan")], dtype=torch.float64)})
    with pytest.raises(ValueError, match=r"LARS: losses in the memory are NaN or infinite: look at the learning"):
        memory.add(batch([1.0] * 40))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(LARS, "hard"), "keep is 'high'.*or 'low'.*got 'hard'"),
        (partial(LABRS, "hard"), "keep is 'high'"),
        (partial(LABRS, scaling="sum"), "scaling is 'product' or 'ratio', got 'sum'"),
        (partial(LARS, compat="agem"), "compat is None or 'mammoth', got 'agem'"),
        (partial(ABS, 1.0), "alpha is the share"),
        (partial(ABS, task=0), "number of classes a task >= 1, got 0"),
    ],
)
def test_wrong_arguments(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_groups_that_are_none() -> None:
    for make, column in ((LABRS, "y"), (ABS, "t"), (partial(ABS, task=2), "y")):
        bad = batch([1.0, 2.0])
        del bad[column]
        with pytest.raises(ValueError, match=f"needs an integer column '{column}'"):
            Buffer(3, make()).add(bad)
        for wrong in (torch.tensor([0.5, 1]), torch.tensor([0, -1])):
            with pytest.raises(ValueError, match=f"column '{column}' must (be integers|not be negative)"):
                Buffer(3, make()).add({**batch([1.0, 2.0]), column: wrong})


@pytest.mark.parametrize("state", [{}, {"offered": -1}, {"offered": 1.5}, {"offered": 1, "more": 2}])
def test_states_that_are_not_of_abs(state) -> None:
    policy = ABS()
    policy.load_state_dict({"offered": 7})
    with pytest.raises(ValueError, match="not the state of ABS"):
        policy.load_state_dict(state)
    assert policy.offered == 7
