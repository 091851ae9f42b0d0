"""Replay in proportion to the last known losses."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import Chance, exact_law, p_value
from reference.laws import RARE
from scipy import stats

from replaykit import Buffer
from replaykit.policies import LARS, Reservoir
from replaykit.retrieval import Prioritised
from replaykit.retrieval import prioritised as module
from replaykit.retrieval.segment_tree import SegmentTree
from replaykit.testing import reloaded, same

LOSSES = [0.5, 2.0, 0.0, 1.0, 4.0]


def rows(n: int, first: int = 0) -> dict[str, torch.Tensor]:
    return {"id": torch.arange(first, first + n)}


def memory(losses: list[float], retrieval: Prioritised, capacity: int = 0, seed: int = 0) -> Buffer:
    """Rows 0..n-1 in the slots of their numbers, replayed once with these losses."""
    buffer = Buffer(capacity or len(losses), Reservoir(), retrieval, seed=seed)
    buffer.add(rows(len(losses)))
    buffer.observe(np.arange(len(losses)), np.array(losses))
    return buffer


def shares(losses: list[float], alpha: float, epsilon: float = 1e-6) -> np.ndarray:
    weights = (np.array(losses) + epsilon) ** alpha
    return weights / weights.sum()


def outcomes(buffer: Buffer, n: int, runs: int = 2000) -> dict[tuple[int, ...], int]:
    found: dict[tuple[int, ...], int] = {}
    for _ in range(runs):
        drawn = tuple(buffer.draw(n).tolist())
        found[drawn] = found.get(drawn, 0) + 1
    return found


# -- the law ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("replace", [False, True])
def test_single_draws_are_in_proportion_to_powers_of_the_losses(alpha: float, replace: bool) -> None:
    buffer = memory(LOSSES, Prioritised(alpha, epsilon=0.1, replace=replace))
    drawn = buffer.draw(5000) if replace else np.array([buffer.draw(1)[0] for _ in range(5000)])
    wanted = 5000 * shares(LOSSES, alpha, 0.1)
    assert stats.chisquare(np.bincount(drawn, minlength=5), wanted).pvalue > RARE


@pytest.mark.parametrize("losses", [[0.5, 2.0, 1.0, 4.0], [1e-3, 1e3, 1e-3, 1e-3]])
@pytest.mark.parametrize("n", [2, 3])
def test_several_rows_are_successive_sampling(losses: list[float], n: int) -> None:
    """Every ordered draw against its probability; in the second case one row outdoes all others."""

    def successive(chance: Chance) -> tuple[int, ...]:
        left, drawn = list(range(len(losses))), []
        for _ in range(n):
            drawn.append(left.pop(chance.weighted([losses[row] + 1e-6 for row in left])))
        return tuple(drawn)

    found = outcomes(memory(losses, Prioritised(1.0)), n)
    assert p_value(found, exact_law(successive)) > RARE


def test_a_draw_leaves_the_tree_as_it_was() -> None:
    buffer = memory([1e-9, 1e9, 1e-9, 1e-9, 1.0], retrieval := Prioritised(1.0))
    buffer.draw(1)
    before = retrieval._weights.nodes.copy()
    for n in (2, 4):
        assert len(set(buffer.draw(n).tolist())) == n
        assert retrieval._weights.nodes.tolist() == before.tolist()


def test_all_rows_once_when_as_many_are_asked_for() -> None:
    buffer = memory(LOSSES, Prioritised(), capacity=9)
    for n in (5, 6, 100):
        assert sorted(buffer.draw(n).tolist()) == [0, 1, 2, 3, 4]


def test_empty_slots_are_never_drawn() -> None:
    buffer = memory(LOSSES * 4, Prioritised(), capacity=50)
    buffer.draw(3)
    gone = {0, 4, 9, 19}
    buffer.store.release(np.array(sorted(gone)))
    for _ in range(50):
        assert not gone & set(buffer.draw(8).tolist())
    assert not gone & set(buffer.draw(2000, Prioritised(replace=True)).tolist())


# -- importance weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_importance_weights_have_their_closed_form(beta: float) -> None:
    buffer = memory(LOSSES, Prioritised(0.6, beta=beta, epsilon=0.01))
    batch = buffer.sample(4)
    p = shares(LOSSES, 0.6, 0.01)[batch["id"].numpy()]
    weights = (5 * p) ** -beta
    assert batch["importance"].dtype == torch.float32
    torch.testing.assert_close(batch["importance"], torch.from_numpy(weights / weights.max()).float())
    assert buffer.retrieval.gives == ("importance",)


def test_at_beta_one_the_weighted_draws_have_the_uniform_mean() -> None:
    """Σ P(i) w(i) f(i) / Σ P(i) w(i) is the plain mean, whatever the losses."""
    buffer = memory(LOSSES, Prioritised(1.0, beta=1.0, epsilon=0.5, replace=True))
    p, f = shares(LOSSES, 1.0, 0.5), np.array([3.0, 1, 4, 1, 5])
    w = buffer.retrieval.beside(buffer.store, np.arange(5))["importance"].double().numpy()
    assert (p * w * f).sum() / (p * w).sum() == pytest.approx(f.mean(), rel=1e-6)


def test_no_such_column_unless_asked_for() -> None:
    retrieval = Prioritised()
    assert retrieval.gives == () and sorted(memory(LOSSES, retrieval).sample(2)) == ["id"]


def test_named_columns_get_the_weights_beside_them() -> None:
    buffer = memory(LOSSES, Prioritised(beta=1.0))
    slots = buffer.draw(3)
    assert sorted(buffer.drawn(slots, None, ["importance"])) == ["importance"]
    assert sorted(buffer.drawn(slots, None, ["id"])) == ["id", "importance"]


# -- priorities ---------------------------------------------------------------------------------------


def test_without_losses_replay_is_uniform() -> None:
    buffer = Buffer(6, Reservoir(), Prioritised(1.0))
    buffer.add(rows(6))
    drawn = [buffer.draw(1)[0] for _ in range(3000)]
    assert stats.chisquare(np.bincount(drawn, minlength=6)).pvalue > RARE


def test_rows_that_were_never_replayed_have_the_largest_known_priority() -> None:
    buffer = memory([0.5, 3.0, 1.0], Prioritised(1.0, epsilon=1e-9), capacity=5)
    buffer.draw(1)
    buffer.add(rows(2, first=3))
    buffer.draw(1)
    assert buffer["priority"].tolist() == [0.5, 3.0, 1.0, 3.0, 3.0]
    buffer.observe([1, 3], torch.tensor([0.25, 0.75]))  # a list will do
    assert buffer["priority"].tolist() == [0.5, 0.25, 1.0, 0.75, 3.0]
    buffer.observe(np.array([4, 4]), torch.tensor([9.0, 0.125]))  # of a slot that comes twice the last loss
    assert buffer["priority"][4] == 0.125


def test_another_row_in_the_slot_does_not_inherit() -> None:
    buffer = memory([0.5, 8.0], Prioritised(1.0))
    buffer.draw(1)
    while buffer.add(rows(1, first=9)) == 0:
        pass
    where = int((buffer["id"] == 9).nonzero()[0, 0])
    assert buffer["priority"][where] == math.inf
    buffer.draw(1)
    assert buffer["priority"][where] == buffer["priority"][1 - where]


def test_two_readers_of_one_memory_agree() -> None:
    buffer = memory(LOSSES, first := Prioritised(1.0), capacity=8)
    second = Prioritised(0.3)
    for turn in range(12):
        buffer.add(rows(2, first=10 + turn))
        for retrieval in (first, second):
            buffer.draw(2, retrieval)
        buffer.observe(buffer.draw(2), np.array([0.1 * turn, 1.0]), (first, second)[turn % 2])
        for retrieval in (first, second):
            fresh = copy.deepcopy(retrieval)
            for reader in (retrieval, fresh):
                buffer.draw(1, reader)
            assert retrieval._weights.nodes.tolist() == fresh._weights.nodes.tolist()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), capacity=st.integers(1, 20), forget=st.sampled_from([2, 256]))
def test_the_tree_follows_whatever_happens_to_the_memory(seed: int, capacity: int, forget: int) -> None:
    """Writes, losses, releases, resizing, more writes than are remembered: as if it were built anew."""
    rng, first = np.random.default_rng(seed), 0
    buffer = Buffer(capacity, Reservoir(), retrieval := Prioritised(0.7, beta=0.5), seed=seed)
    buffer.add(rows(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("replaykit.store._REMEMBERED", forget)
        for _ in range(15):
            what = rng.integers(6)
            if what < 3:
                buffer.add(rows(int(rng.integers(1, 8)), first))
                first += 8
            elif what == 3 and len(buffer) > 1:
                buffer.store.release(rng.choice(buffer.store.filled, 1))
            elif what == 4:
                buffer.resize(max(1, buffer.capacity - 1))
            if rng.random() < 0.6:
                slots = buffer.draw(int(rng.integers(1, 5)))
                buffer.observe(slots, rng.exponential(size=len(slots)))
                assert buffer.store.is_filled(slots).all()
        buffer.draw(1)
    now, notes = retrieval._weights, buffer.store.note("priority", math.inf)
    wanted = np.zeros(buffer.capacity)
    wanted[buffer.store.filled] = (notes[buffer.store.filled] + 1e-6) ** 0.7
    assert now.nodes.tolist() == SegmentTree(wanted).nodes.tolist()


@pytest.mark.parametrize("capacity", [1_000, 100_000])
def test_a_step_touches_a_logarithm_of_the_memory(capacity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass over the memory, at the first draw; then nodes on the paths of the rows that changed or came."""
    touched = []

    class Counted(SegmentTree):
        def __init__(self, values, *args):
            super().__init__(values, *args)
            touched.append(len(values))

        def update(self, places, values):
            touched.append(len(places) * self.size.bit_length())
            super().update(places, values)

        def find(self, u):
            touched.append(len(u) * self.size.bit_length())
            return super().find(u)

    monkeypatch.setattr(module, "SegmentTree", Counted)
    buffer = Buffer(capacity, Reservoir(), Prioritised())
    buffer.add(rows(capacity))
    buffer.draw(10)
    assert sum(touched) >= capacity
    for _ in range(50):
        touched.clear()
        slots = buffer.draw(10)
        buffer.observe(slots, np.ones(10))
        buffer.add(rows(10))
        # Of two trees: 10 rows observed and up to 10 written, twice each, and 10 draws with few repeats.
        assert sum(touched) <= 120 * capacity.bit_length()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("losses", [[1e300, 1e-300, 1.0], [0.0, 0.0, 0.0], [1e300, 1e300, 1e300]])
@pytest.mark.parametrize("alpha", [0.6, 50.0])
def test_losses_of_any_size(losses: list[float], alpha: float) -> None:
    buffer = memory(losses, Prioritised(alpha, beta=1.0))
    for n in (1, 2, 3):
        batch = buffer.sample(n)
        assert len(set(batch["id"].tolist())) == n and batch["importance"].isfinite().all()


# -- resuming -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["state", "pickle", "copy"])
@pytest.mark.parametrize("cut", [0, 3, 7])
def test_a_run_cut_anywhere_draws_the_same(how: str, cut: int) -> None:
    ends = []
    for stops in (False, True):
        buffer = Buffer(6, Reservoir(), Prioritised(0.8, beta=0.4), seed=1)
        losses, drawn = np.random.default_rng(2), []
        for turn in range(10):
            if stops and turn == cut:
                if how == "state":
                    state = reloaded(buffer.state_dict())
                    buffer = Buffer(6, Reservoir(), Prioritised(0.8, beta=0.4), seed=5)
                    buffer.load_state_dict(state)
                else:
                    buffer = pickle.loads(pickle.dumps(buffer)) if how == "pickle" else copy.deepcopy(buffer)
            buffer.add(rows(3, 3 * turn))
            batch = buffer.drawn(slots := buffer.draw(4))
            drawn.append(batch)
            buffer.observe(slots, losses.exponential(size=len(slots)))
        ends.append({"drawn": drawn, "state": buffer.state_dict()})
    assert same(ends[0], ends[1])


# -- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha is an exponent, a finite number >= 0, got -1"),
        ({"alpha": math.nan}, "alpha is an exponent"),
        ({"beta": -0.1}, "beta is an exponent"),
        ({"beta": math.inf}, "beta is an exponent"),
        ({"epsilon": 0.0}, "epsilon is a priority, a finite number > 0, got 0"),
    ],
)
def test_wrong_arguments(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prioritised(**options)


@pytest.mark.parametrize(
    ("slots", "losses", "error", "message"),
    [
        ([0, 1], [1.0, -0.5], ValueError, r"priorities are losses >= 0, got -0\.5; use another loss"),
        ([0, 1], [1.0, math.nan], ValueError, "losses of replayed rows are NaN or infinite: look at the learning"),
        ([0, 1], [1.0, math.inf], ValueError, "NaN or infinite"),
        ([0, 1], [1.0], ValueError, r"2 replayed rows need one loss each, got losses \[1\]"),
        ([0, 7], [1.0, 2.0], IndexError, r"some of the slots \[0, 7\] are empty, they were not replayed"),
        ([0, 99], [1.0, 2.0], IndexError, "empty"),
    ],
)
def test_losses_that_cannot_be_priorities(slots, losses, error, message) -> None:
    buffer = memory(LOSSES, Prioritised(), capacity=9)
    before = buffer.state_dict()
    with pytest.raises(error, match=message):
        buffer.observe(np.array(slots), np.array(losses))
    assert same(buffer.state_dict(), before)


def test_losses_that_are_refused_do_not_reach_the_policy_either() -> None:
    buffer = Buffer(3, LARS(), Prioritised(), seed=0)
    buffer.add({**rows(3), "loss": torch.ones(3)})
    with pytest.raises(ValueError, match="priorities are losses >= 0"):
        buffer.observe(np.arange(3), np.array([2.0, -1.0, 3.0]))
    assert buffer["loss"].tolist() == [1, 1, 1]
    buffer.observe(np.arange(3), np.array([2.0, 1.0, 3.0]))
    assert buffer["loss"].tolist() == buffer["priority"].tolist() == [2, 1, 3]
