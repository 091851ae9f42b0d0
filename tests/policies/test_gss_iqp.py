from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from given_gradients import GivenGradients, plane, vectors
from guided_memories import model, stream
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import gss as reference

from replaykit import Buffer
from replaykit.gradients.cosines import cosines
from replaykit.policies.gss_iqp import GSSIQP
from replaykit.policies.least_similar import best_of_all, dropped, exchanged, least_similar, total
from replaykit.policies.select_when_full import selected
from replaykit.probe import Probe
from replaykit.testing import check_policy, same


def heuristic(table: np.ndarray, k: int) -> np.ndarray:
    return exchanged(table, dropped(table, k))


def units(n: int, p: int, seed: int, mean: float = 0.5) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(mean, 1, (n, p))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("make", [partial(GSSIQP, 4), partial(GSSIQP, 0, solver=heuristic)])
def test_contract(make: Callable[[], GSSIQP]) -> None:
    check_policy(make, rows=60)


# -- the sum of cosines ---------------------------------------------------------------------------


def test_the_sum_of_cosines_is_the_squared_length_of_the_sum() -> None:
    g = np.random.default_rng(0).normal(size=(40, 17))
    table, degenerate = cosines(g @ g.T)
    rows = g / np.linalg.norm(g, axis=1, keepdims=True)
    assert abs(total(table, np.arange(40)) - np.square(rows.sum(0)).sum()) < 1e-10
    assert degenerate == 0


def test_gradients_of_length_zero_are_orthogonal_to_all() -> None:
    g = np.array([[0.0, 0], [3, 4], [0, 1e-9], [0, 2]])
    table, degenerate = cosines(g @ g.T)
    assert degenerate == 2
    np.testing.assert_allclose(table, [[1, 0, 0, 0], [0, 1, 0, 0.8], [0, 0, 1, 0], [0, 0.8, 0, 1]], atol=1e-15)


# -- the solver -----------------------------------------------------------------------------------


def test_angles_by_hand() -> None:
    """0, 10, 120, 240 degrees: the three that are spread evenly have sum 0."""
    u = plane(0, 10, 120, 240).numpy()
    table = u @ u.T
    sums = {rest: total(table, np.array(rest)) for rest in ((0, 2, 3), (1, 2, 3), (0, 1, 2), (0, 1, 3))}
    assert list(sums.values()) == pytest.approx([0, 0.0304, 3.2856, 2.684], abs=5e-4)
    for solve in (best_of_all, heuristic, least_similar):
        assert solve(table, 3).tolist() == [0, 2, 3]


@pytest.mark.parametrize("p", [10, 50])
def test_dropping_and_exchanging_is_near_the_optimum(p: int) -> None:
    ratios = []
    for seed in range(100):
        u = units(12, p, seed)
        table = u @ u.T
        best, ours = best_of_all(table, 5), heuristic(table, 5)
        assert tuple(best) == reference.optimum(u, 5) or seed >= 5
        ratios.append(total(table, ours) / total(table, best))
    assert min(ratios) >= 1 - 1e-9 and np.mean(ratios) <= 1.03


def test_in_three_dimensions_the_gap_is_small() -> None:
    gaps = []
    for seed in range(100):
        u = units(12, 3, seed)
        table = u @ u.T
        gaps.append(total(table, heuristic(table, 5)) - total(table, best_of_all(table, 5)))
    assert min(gaps) > -1e-9 and np.mean(gaps) < 0.1


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 14), p=st.integers(1, 6), seed=st.integers(0, 999), share=st.floats(0, 1))
def test_no_exchange_lowers_the_sum(n: int, p: int, seed: int, share: float) -> None:
    u, k = units(n, p, seed), 1 + int(share * (n - 1))
    table = u @ u.T
    kept = heuristic(table, k).tolist()
    assert len(set(kept)) == k
    ours = reference.objective(u, kept)
    for i in kept:
        for j in set(range(n)) - set(kept):
            assert reference.objective(u, [*(a for a in kept if a != i), j]) >= ours - 1e-8


@pytest.mark.parametrize("seed", range(5))
def test_drop_and_swap_is_the_loop_on_vectors(seed: int) -> None:
    u = units(25, 8, seed)
    assert heuristic(u @ u.T, 9).tolist() == reference.drop_and_swap(u, 9)


def test_equal_vectors_leave_by_their_place() -> None:
    table = np.ones((6, 6))
    assert dropped(table, 2).tolist() == [4, 5] and heuristic(table, 2).tolist() == [4, 5]
    assert best_of_all(table, 2).tolist() == [0, 1]
    assert least_similar(table, 6).tolist() == list(range(6))


# -- the memory -----------------------------------------------------------------------------------


def test_rows_are_collected_until_a_batch_does_not_fit() -> None:
    """Capacity 3 + 2: nothing is asked of a model before the sixth row."""
    buffer = Buffer(5, GSSIQP(2))
    buffer.add(vectors(plane(0, 10, 120)), probe=object())  # type: ignore[arg-type]
    buffer.add(vectors(plane(240, 5), 3), probe=object())  # type: ignore[arg-type]
    assert buffer["recent"].all() and len(buffer) == 5
    assert buffer.add(vectors(plane(2, 11), 5), GivenGradients()) == 0
    assert buffer["id"].tolist() == [0, 2, 3] and not buffer["recent"].any()
    buffer.add(vectors(plane(1, 2), 7), GivenGradients())
    assert buffer["recent"].tolist() == [False] * 3 + [True] * 2
    assert buffer["id"][buffer["recent"]].tolist() == [7, 8]


@pytest.mark.parametrize("recent", [0, 5])
def test_a_whole_stream_is_kept_as_by_one_backward_pass_a_gradient(recent: int) -> None:
    """Batches larger than the memory too; the candidates are the selected, the recent and the new rows."""
    buffer, rows = Buffer(16, GSSIQP(recent, solver=heuristic)), stream(110)
    memory: list[reference.Row] = []
    at, selections = 0, 0
    for turn, size in enumerate([1, 9, 4, 10, 10, 3, 30, 1, 10, 10, 10, 12]):
        net, batch = model(seed=turn), {name: column[at : at + size] for name, column in rows.items()}
        at += size
        stayed = buffer.add(batch, Probe(net))
        memory += reference.rows_of(batch)
        if len(memory) > 16:
            selections += 1
            u = np.stack([reference.gradient(net, [row]) for row in memory])
            kept = reference.drop_and_swap(u / np.linalg.norm(u, axis=1, keepdims=True), 16 - recent)
            memory = [memory[i] for i in kept]
        assert sorted(buffer["id"].tolist()) == sorted(number for number, _, _ in memory)
        assert stayed == int(torch.isin(batch["id"], buffer["id"]).sum())
        # The loop's order is that of the policy: selected rows as they are stored, then recent ones.
        order = {number: place for place, number in enumerate(buffer["id"].tolist())}
        fresh = dict(zip(buffer["id"].tolist(), buffer["recent"].tolist(), strict=True))
        memory.sort(key=lambda row: (fresh[row[0]], order[row[0]]))
    assert selections > 3


def test_selected_rows_by_slot() -> None:
    buffer = Buffer(5, GSSIQP(2))
    buffer.add(vectors(plane(0, 10, 120, 240)), GivenGradients())
    assert selected(buffer.store).tolist() == [0, 1, 2, 3]  # no selection yet: all
    buffer.add(vectors(plane(1, 2), 4), GivenGradients())
    assert buffer.store.filled.tolist() == selected(buffer.store).tolist() == [0, 2, 3]
    buffer.add(vectors(plane(3), 6), GivenGradients())
    assert buffer.store.filled.tolist() == [0, 2, 3, 1] and selected(buffer.store).tolist() == [0, 2, 3]


def test_degenerate_candidates_are_counted_and_saved() -> None:
    buffer = Buffer(4, GSSIQP(0))
    buffer.add(vectors(torch.cat([plane(0, 1, 2), torch.zeros(2, 2)])), GivenGradients())
    assert buffer.policy.degenerate == 2 and buffer["id"].tolist() == [0, 2, 3, 4]
    again = Buffer(4, GSSIQP(0))
    again.load_state_dict(buffer.state_dict())
    assert again.policy.degenerate == 2
    again.clear()
    assert again.policy.degenerate == 0


# -- errors ---------------------------------------------------------------------------------------


def test_the_memory_must_have_more_slots_than_are_left_free() -> None:
    buffer = Buffer(4, GSSIQP(4))
    with pytest.raises(ValueError, match=r"recent=4 slots for new rows leave none .* memory of 4"):
        buffer.add(vectors(plane(0)), GivenGradients())
    assert len(buffer) == 0
    with pytest.raises(ValueError, match="slots >= 0, got -1"):
        GSSIQP(-1)


def test_a_batch_may_not_bring_the_column_of_the_policy() -> None:
    with pytest.raises(ValueError, match="'recent' is written by this policy"):
        Buffer(4, GSSIQP(0)).add({**vectors(plane(0)), "recent": torch.zeros(1)}, GivenGradients())


@pytest.mark.parametrize("answer", [[0, 1], [0, 0, 1], [0, 1, 9], [-1, 0, 1]])
def test_a_solver_that_does_not_solve_changes_nothing(answer: list[int]) -> None:
    """The memory never has more rows than slots: an answer of another size is refused."""
    buffer = Buffer(4, GSSIQP(1, solver=lambda table, k: np.array(answer)))
    buffer.add(vectors(plane(0, 10, 20, 30)), GivenGradients())
    before = buffer.state_dict()
    with pytest.raises(ValueError, match="3 distinct rows of 5"):
        buffer.add(vectors(torch.zeros(1, 2), 4), GivenGradients())
    assert same(buffer.state_dict(), before)


def test_another_size_is_refused() -> None:
    buffer = Buffer(4, GSSIQP(1))
    buffer.add(vectors(plane(0, 10)), GivenGradients())
    with pytest.raises(ValueError, match="cannot change its capacity"):
        buffer.resize(3)


@pytest.mark.parametrize("state", [{}, {"degenerate": -1}, {"degenerate": 1.5}, {"degenerate": 1, "delta": 0.0}])
def test_states_that_are_not_ours_are_refused(state: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not the state of GSSIQP"):
        GSSIQP().load_state_dict(state)


def test_devices_decide_alike(device: str) -> None:
    held = []
    for where in ("cpu", device):
        buffer = Buffer(20, GSSIQP(5), device=where)
        for at in range(0, 100, 10):
            batch = {name: column[at : at + 10].to(where) for name, column in stream(100).items()}
            buffer.add(batch, Probe(model().to(where)))
        held.append(buffer)
    assert torch.equal(held[0]["id"], held[1]["id"].cpu())
