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
from replaykit.policies.gss_clust import GSSClust, grouping_distance, scanned, spread, squared_distances
from replaykit.probe import Probe
from replaykit.testing import check_policy


class FirstRow(np.random.Generator):
    """With it, every scan begins with the first row."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def integers(self, *limits: int) -> int:
        return 0


def distances(n: int, seed: int, p: int = 3) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(0.3, 1, (n, p))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    made = 1 - rows @ rows.T
    np.fill_diagonal(made, 0)
    return made


@pytest.mark.parametrize("make", [partial(GSSClust, 4), partial(GSSClust, 0, growth=1.0, distance="outputs")])
def test_contract(make: Callable[[], GSSClust]) -> None:
    check_policy(make, rows=60)


# -- the rule -------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(2, 25),
    selected=st.integers(0, 10),
    room=st.integers(1, 25),
    delta=st.sampled_from([0.0, 0.01, 0.3, 3.0]),
    growth=st.sampled_from([0.01, 0.1, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_rule_is_that_of_the_loop(
    n: int, selected: int, room: int, delta: float, growth: float, seed: int
) -> None:
    d, selected = distances(n, seed), min(n - 1, selected)
    ours = spread(d, selected, room, delta, growth, FirstRow())
    rows = list(range(n))
    kept, wanted = reference.clust(d, rows[:selected], rows[selected:], room, delta, growth, lambda n: 0)
    assert ours[0].tolist() == kept and ours[1] == pytest.approx(wanted, rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(4, 30), room=st.integers(1, 8), growth=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_rows_that_stay_are_farther_apart_than_the_distance(n: int, room: int, growth: float, seed: int) -> None:
    d = distances(n, seed)
    kept, delta = spread(d, 2, room, 0.0, growth, np.random.default_rng(seed))
    assert 1 <= len(kept) <= room and len(set(kept.tolist())) == len(kept)
    if delta > d[0, 1]:  # it grew: there was a scan
        apart = d[np.ix_(kept, kept)] + 9 * np.eye(len(kept))
        assert (apart > delta).all()


@settings(max_examples=100, deadline=None)
@given(n=st.integers(2, 25), k=st.integers(1, 24), seed=st.integers(0, 99))
def test_below_the_grouping_distance_no_scan_ends(n: int, k: int, seed: int) -> None:
    d, k = distances(n, seed), min(k, n - 1)
    needed = grouping_distance(d, k)
    assert needed in d
    below = d[d < needed].max()
    assert all(len(scanned(d <= below, first)) > k for first in range(n))


def test_angles_by_hand() -> None:
    """Rows at 0, 90, 10, 180 degrees and room for two: 0 and 180 stay."""
    u = plane(0, 90, 10, 180).numpy()
    d = 1 - u @ u.T
    kept, delta = spread(d, 1, 2, 0.0, 1.0, FirstRow())
    # The smallest distance, 1 - cos 10° = 0.0152, is doubled until two rows are left: at 0.97 the one at 90 stays.
    assert delta == pytest.approx((1 - np.cos(np.pi / 18)) * 2**7)
    assert kept.tolist() == [0, 3]
    assert reference.clust(d, [0], [1, 2, 3], 2, 0.0, 1.0, lambda n: 0) == (kept.tolist(), pytest.approx(delta))


def test_equal_rows_do_not_keep_it_from_ending() -> None:
    """At distance 0 a distance cannot grow; it goes on with the smallest one above."""
    u = plane(0, 0, 0, 90, 90, 180, 180).numpy()
    d = np.clip(1 - u @ u.T, 0, None).round(12)
    d[:3, :3] = d[3:5, 3:5] = d[5:, 5:] = 0
    kept, delta = spread(d, 2, 6, 0.0, 0.01, FirstRow())  # new rows at distance 0 do not enter the pool
    assert (kept.tolist(), delta) == ([0, 1, 3, 4, 5, 6], 0)
    kept, delta = spread(d, 4, 3, 0.0, 0.01, FirstRow())
    assert (kept.tolist(), delta) == ([0, 3, 5], 0)
    kept, delta = spread(d, 4, 2, 0.0, 0.01, FirstRow())
    assert len(kept) == 2 and delta >= 1
    kept, delta = spread(np.zeros((5, 5)), 5, 3, 0.0, 0.01, FirstRow())
    assert (kept.tolist(), delta) == ([0], 0)


def test_squared_distances_of_outputs() -> None:
    rows = np.random.default_rng(0).normal(size=(7, 4))
    wanted = np.square(rows[:, None] - rows[None]).sum(2)
    np.testing.assert_allclose(squared_distances(rows), wanted, atol=1e-12)


# -- the memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["gradients", "outputs"])
def test_a_whole_stream_is_kept_as_by_the_loop(distance: str) -> None:
    policy = GSSClust(5, growth=0.05, distance=distance)
    buffer, rows = Buffer(20, policy), stream(120)
    buffer.rng = FirstRow()  # type: ignore[assignment]
    memory: list[reference.Row] = []
    recent: list[reference.Row] = []
    delta, at = 0.0, 0
    for turn, size in enumerate([1, 9, 10, 10, 3, 30, 1, 10, 10, 10, 12]):
        net, batch = model(seed=turn), {name: column[at : at + size] for name, column in rows.items()}
        at += size
        buffer.add(batch, Probe(net))
        recent += reference.rows_of(batch)
        if len(memory) + len(recent) > 20:
            pool = memory + recent
            if distance == "gradients":
                g = [reference.gradient(net, [row]) for row in pool]
                d = np.array([[1 - reference.cosine(a, b) for b in g] for a in g])
                np.fill_diagonal(d, 0)
            else:
                z = net.eval()(torch.cat([x for _, x, _ in pool])).detach().numpy()
                d = np.square(z[:, None] - z[None]).sum(2)
            old = list(range(len(memory)))
            new = list(range(len(memory), len(pool)))
            kept, delta = reference.clust(d, old, new, 15, delta, 0.05, lambda n: 0)
            memory, recent = [pool[i] for i in kept], []
        held = dict(zip(buffer["id"].tolist(), buffer["recent"].tolist(), strict=True))
        assert held == {r[0]: False for r in memory} | {r[0]: True for r in recent}
        assert policy.delta == pytest.approx(delta, rel=1e-9)
        place = {number: k for k, number in enumerate(held)}
        memory.sort(key=lambda row: place[row[0]])
    assert delta > 0


def test_the_memory_may_end_below_its_room_and_fills_up_with_what_comes() -> None:
    """Two directions only: at a distance that separates them one row of each is left."""
    buffer = Buffer(10, GSSClust(2), seed=0)
    angles = torch.linspace(0, 1, 11)
    buffer.add(vectors(plane(*angles.tolist())), GivenGradients())
    assert 1 <= len(buffer) <= 8 and not buffer["recent"].any()
    left = len(buffer)
    assert buffer.add(vectors(plane(*[0.5] * (10 - left)), 11), GivenGradients()) == 10 - left
    assert len(buffer) == 10 and int(buffer["recent"].sum()) == 10 - left


def test_degenerate_candidates_are_counted() -> None:
    buffer = Buffer(4, GSSClust(0), seed=0)
    buffer.add(vectors(torch.cat([plane(0, 1, 2), torch.zeros(2, 2)])), GivenGradients())
    assert buffer.policy.degenerate == 2 and buffer.policy.delta > 0
    assert {3, 4} <= set(buffer["id"].tolist())  # each at distance 1 from all others
    again = Buffer(4, GSSClust(0))
    again.load_state_dict(buffer.state_dict())
    assert again.policy.state_dict() == buffer.policy.state_dict()


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GSSClust(-1), "slots >= 0, got -1"),
        (lambda: GSSClust(growth=0), "finite number above 0, got 0"),
        (lambda: GSSClust(growth=float("inf")), "finite number above 0, got inf"),
        (lambda: GSSClust(distance="features"), "'gradients' or 'outputs', got 'features'"),
    ],
)
def test_arguments_that_make_no_sense(make: Callable[[], GSSClust], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_memory_must_have_more_slots_than_are_left_free() -> None:
    with pytest.raises(ValueError, match="recent=100 slots for new rows leave none"):
        Buffer(100, GSSClust()).add(vectors(plane(0)), GivenGradients())


def test_it_says_what_it_needs() -> None:
    assert GSSClust().needs == ("gradients",) and GSSClust(distance="outputs").needs == ("logits",)
    with pytest.raises(ValueError, match="GSSClust needs logits of a probe"):
        Buffer(4, GSSClust(0, distance="outputs")).add(vectors(plane(0)))


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"delta": 0.1},
        {"delta": -1.0, "degenerate": 0},
        {"delta": 1, "degenerate": 0},
        {"delta": 0.0, "degenerate": -1},
    ],
)
def test_states_that_are_not_ours_are_refused(state: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not the state of GSSClust"):
        GSSClust().load_state_dict(state)


@pytest.mark.parametrize("distance", ["gradients", "outputs"])
def test_devices_decide_alike(distance: str, device: str) -> None:
    held = []
    for where in ("cpu", device):
        buffer = Buffer(20, GSSClust(5, distance=distance), device=where, seed=0)
        for at in range(0, 100, 10):
            batch = {name: column[at : at + 10].to(where) for name, column in stream(100).items()}
            buffer.add(batch, Probe(model().to(where)))
        held.append(buffer)
    assert torch.equal(held[0]["id"], held[1]["id"].cpu())
