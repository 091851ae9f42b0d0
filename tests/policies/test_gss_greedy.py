import copy
from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from given_gradients import GivenGradients, plane, vectors
from guided_memories import model, stream
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import exact_law, p_value
from reference import gss as reference
from torch import nn

from replaykit import Buffer
from replaykit.gradients import cross_entropy
from replaykit.policies.gss_greedy import GSSGreedy, in_pairs, one_by_one, stretched, successive
from replaykit.probe import Probe
from replaykit.testing import check_policy, same

GATES = pytest.mark.parametrize("gate", ["batch", "sample"])


def part(batch: dict, start: int, stop: int) -> dict:
    return {name: column[start:stop] for name, column in batch.items()}


# -- the contract, the loop of the authors --------------------------------------------------------


@pytest.mark.parametrize("make", [GSSGreedy, partial(GSSGreedy, 2, gate="sample", threshold=0.8)])
def test_contract(make: Callable[[], GSSGreedy]) -> None:
    check_policy(make, rows=60)


@GATES
@pytest.mark.parametrize("capacity", [7, 34])
def test_a_whole_stream_is_kept_as_by_one_backward_pass_a_gradient(gate: str, capacity: int) -> None:
    """Batches that fill the memory in part, one larger than the memory, single rows; weights change on the way."""
    threshold = 0.4 if gate == "batch" else 0.1
    policy, rows = GSSGreedy(3, gate=gate, threshold=threshold), stream(150)
    buffer = Buffer(capacity, policy, seed=5)
    loop = reference.Greedy(capacity, 3, gate == "batch", threshold, copy.deepcopy(buffer.rng))
    at = 0
    for turn, size in enumerate([1, 6, 10, 40, 1, 10, 10, 1, 10, 10, 11, 20, 20]):
        net, batch = model(seed=turn), part(rows, at, at + size)
        at += size
        buffer.add(batch, Probe(net))
        loop.add(net, reference.rows_of(batch))
        assert buffer["id"].tolist() == [number for number, _, _ in loop.memory]
        np.testing.assert_allclose(buffer["score"].numpy(), loop.scores, rtol=0, atol=1e-10)
    assert 5 < policy.admitted < policy.offered == 150 - capacity


# -- decisions ------------------------------------------------------------------------------------


def test_scores_and_gate_by_hand() -> None:
    """Four rows along x; arrivals at 135 and 225 degrees, whose mean points along -x."""
    buffer = Buffer(6, GSSGreedy(), seed=0)
    buffer.add(vectors(plane(0, 0, 0, 0)), GivenGradients())
    buffer.add(vectors(plane(135, 225), 4), GivenGradients())
    wanted = [1.1] * 4 + [1 - 0.5**0.5] * 2
    np.testing.assert_allclose(buffer["score"].numpy(), wanted, atol=1e-12)
    # The mean of 80 and 200 degrees has a positive product with the mean of the memory: nobody competes.
    before = buffer.state_dict()
    buffer.add(vectors(plane(0, 180, 45), 6), GivenGradients())
    assert buffer["id"].tolist() == [0, 1, 2, 3, 4, 5]
    assert same(before["store"]["columns"], buffer.state_dict()["store"]["columns"])


def test_the_gate_of_a_batch_is_that_of_its_mean_and_of_a_sample_its_own() -> None:
    """Rows at 180 and at 10 degrees against a memory at 0: their mean has a small positive cosine."""
    rows = torch.cat([plane(180), 1.5 * plane(10)])
    for gate, admitted in (("batch", set()), ("sample", {1})):
        seen = set()
        for seed in range(30):
            buffer = Buffer(1, GSSGreedy(gate=gate), seed=seed)
            buffer.add(vectors(plane(0)), GivenGradients())
            buffer.add(vectors(rows, 1), GivenGradients())
            seen |= set(buffer["id"].tolist()) - {0}
        assert seen == admitted


CANDIDATES = np.array([1.5, 0.5, 1.0])


def frequencies(decide: Callable[[np.random.Generator], object], draws: int = 20_000) -> Counter:
    rng = np.random.default_rng(1)
    return Counter(decide(rng) for _ in range(draws))


def test_candidates_and_replacement_of_the_paper() -> None:
    """C = (1.5, 0.5, 1.0), c = 0.4."""
    law = {0: 0.5, 1: 1 / 6, 2: 1 / 3}
    assert p_value(frequencies(lambda rng: int(successive(CANDIDATES, 1, rng)[0])), law) > 1e-4
    given_candidate = (0.7895, 0.5556, 0.7143)
    wanted = {i: p * given_candidate[i] for i, p in law.items()}
    assert sum(wanted.values()) == pytest.approx(0.7254, abs=5e-5)
    wanted[-1] = 1 - sum(wanted.values())
    found = frequencies(lambda rng: int(one_by_one(CANDIDATES.copy(), np.array([0.4]), rng)[0]))
    assert p_value(found, wanted) > 1e-4


def test_candidates_and_replacement_of_the_release() -> None:
    np.testing.assert_allclose(stretched(CANDIDATES), [0.990, 0, 0.495], atol=5e-4)
    wanted = {0: 2 / 3 * 0.7895, 2: 1 / 3 * 0.7143}
    wanted[-1] = 1 - sum(wanted.values())
    found = frequencies(lambda rng: int(in_pairs(CANDIDATES.copy(), np.array([0.4]), rng)[0]))
    assert p_value(found, wanted) > 1e-4


@pytest.mark.parametrize("held", [(1.5, 0.5, 1.0), (1.0, 1.0, 1.0), (0.0, 0.0), (0.0, 2.0), (1.2,)])
@pytest.mark.parametrize("ours", [in_pairs, one_by_one])
def test_several_rows_compete_by_the_law_of_the_loop(held: tuple[float, ...], ours: Callable) -> None:
    """Three rows against one to three: in pairs, more rows than slots go in rounds."""
    theirs, new = reference.released_places if ours is in_pairs else reference.paper_places, (0.4, 0.0, 0.9)
    law = exact_law(lambda chance: tuple(theirs(list(held), new, reference.Enumerated(chance))))
    found = frequencies(lambda rng: tuple(ours(np.array(held), np.array(new), rng).tolist()), 5_000)
    assert p_value(found, law) > 1e-4


@settings(max_examples=60, deadline=None)
@given(
    held=st.lists(st.floats(0, 2), min_size=1, max_size=8),
    new=st.lists(st.floats(0, 2), max_size=20),
    seed=st.integers(0, 99),
)
def test_scores_held_are_those_of_the_last_rows_that_came(held: list[float], new: list[float], seed: int) -> None:
    for decide in (in_pairs, one_by_one):
        scores = np.array(held)
        places = decide(scores, np.array(new), np.random.default_rng(seed))
        wanted = dict(enumerate(held))
        wanted.update({place: c for place, c in zip(places.tolist(), new, strict=True) if place >= 0})
        assert scores.tolist() == list(wanted.values())
        for start in range(0, len(new), len(held)):
            taken = [place for place in places[start : start + len(held)].tolist() if place >= 0]
            assert decide is one_by_one or len(set(taken)) == len(taken)


# -- promises of the method -----------------------------------------------------------------------


@GATES
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 15), min_size=1, max_size=6), capacity=st.integers(1, 20), seed=st.integers(0, 9)
)
def test_redundant_rows_never_change_a_full_memory(gate: str, sizes: list[int], capacity: int, seed: int) -> None:
    """All gradients in one quarter of the plane: every row is stored before the memory is full, none after."""
    g = torch.rand(sum(sizes), 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    policy, rows, at = GSSGreedy(gate=gate), vectors(g), 0
    buffer = Buffer(capacity, policy, seed=seed)
    for size in sizes:
        stored = buffer.add(part(rows, at, at + size), GivenGradients())
        at += size
        assert len(buffer) == min(at, capacity)
        assert stored == min(size, max(0, capacity - at + size))
    assert buffer["id"].tolist() == list(range(min(at, capacity)))
    assert policy.admitted == 0 and policy.offered == max(0, at - capacity)


@GATES
def test_opposite_rows_enter_and_are_counted(gate: str) -> None:
    policy = GSSGreedy(gate=gate)
    buffer = Buffer(20, policy, seed=0)
    buffer.add(vectors(plane(*[0] * 20)), GivenGradients())
    stayed = buffer.add(vectors(plane(*[180] * 10), 20), GivenGradients())
    assert policy.offered == 10 and policy.admitted == stayed == 10  # a score of 0 wins against any other
    assert sorted(buffer["score"].tolist()) == [0] * 10 + [1.1] * 10
    again = Buffer(20, GSSGreedy(gate=gate))
    again.load_state_dict(buffer.state_dict())
    assert (again.policy.offered, again.policy.admitted, again.policy.degenerate) == (10, 10, 0)


def test_the_loss_of_a_row_may_have_any_scale() -> None:
    """Sample gate: seven times the loss of some rows changes no decision."""
    rows = {**stream(120), "w": torch.where(torch.arange(120) % 3 == 0, 7.0, 1.0).double()}
    held = []
    plain = cross_entropy()
    for loss in (plain, lambda outputs, batch: plain(outputs, batch) * batch["w"]):
        buffer = Buffer(30, GSSGreedy(3, gate="sample", threshold=0.2), seed=0)
        for at in range(0, 120, 8):
            buffer.add(part(rows, at, at + 8), Probe(model(), loss=loss))
        held.append(buffer)
    assert held[0].policy.admitted > 5
    assert torch.equal(held[0]["id"], held[1]["id"])
    torch.testing.assert_close(held[0]["score"], held[1]["score"], rtol=0, atol=1e-10)


@GATES
def test_gradients_of_length_zero_are_counted_and_do_no_harm(gate: str) -> None:
    policy = GSSGreedy(gate=gate)
    buffer = Buffer(5, policy, seed=0)
    buffer.add(vectors(torch.zeros(4, 2)), GivenGradients())
    buffer.add(vectors(torch.cat([plane(0), torch.zeros(2, 2)]), 4), GivenGradients())
    assert buffer["score"].tolist() == [1.1] * 4 + [1.0]
    assert (policy.degenerate, policy.offered, policy.admitted) == (2, 2, 0)


def test_rows_that_the_model_has_learnt_for_good() -> None:
    """The loss of the released code's crash: the softmax is saturated, the gradient exactly zero."""
    net = nn.Linear(2, 2).double()
    with torch.no_grad():
        net.weight.copy_(1000 * torch.eye(2))
        net.bias.zero_()
    x = torch.eye(2, dtype=torch.float64).repeat(10, 1)
    batch = {"id": torch.arange(20), "x": x, "y": torch.arange(20) % 2}
    buffer = Buffer(8, GSSGreedy(), seed=0)
    for at in range(0, 20, 5):
        buffer.add(part(batch, at, at + 5), Probe(net))
    assert buffer["score"].isfinite().all() and buffer.policy.degenerate == 15


def test_an_empty_memory_takes_the_first_rows_and_the_others_find_the_gate_closed() -> None:
    policy = GSSGreedy()
    buffer = Buffer(12, policy)
    assert buffer.add(vectors(plane(*range(20))), GivenGradients()) == 12
    assert buffer["id"].tolist() == list(range(12)) and buffer["score"].tolist() == [1.1] * 12
    assert (policy.offered, policy.admitted) == (8, 0)
    open_ = Buffer(12, GSSGreedy(threshold=0.5))
    open_.add(vectors(plane(*range(20))), GivenGradients())
    assert open_.policy.admitted > 0 and len(open_) == 12


def test_columns_that_come_late_or_grow() -> None:
    net, rows = model(), stream(60)
    buffer = Buffer(20, GSSGreedy(), seed=0)
    for at, width in ((0, 2), (15, 2), (30, 3), (45, 4)):
        batch = part(rows, at, at + 15)
        batch["logits"] = torch.zeros(15, width)
        if at:
            batch["late"] = torch.ones(15, 3)
        buffer.add(batch, Probe(net))
    assert len(buffer) == 20


# -- its life -------------------------------------------------------------------------------------


def test_shrinking_drops_rows_like_candidates() -> None:
    def shrunk(gate: str, seed: int) -> tuple[int, ...]:
        buffer = Buffer(3, GSSGreedy(gate=gate), seed=seed)
        buffer.add(vectors(plane(0, 90, 180)), GivenGradients())
        buffer.store.revise(np.arange(3), {"score": torch.tensor(CANDIDATES)})
        buffer.resize(2)
        return tuple(buffer["id"].tolist())

    for gate, law in (
        ("sample", {(1, 2): 0.5, (0, 2): 1 / 6, (0, 1): 1 / 3}),
        ("batch", {(1, 2): 2 / 3, (0, 1): 1 / 3}),
    ):
        assert p_value(Counter(shrunk(gate, seed) for seed in range(600)), law) > 1e-4


def test_growing_is_exact_until_a_row_was_dropped() -> None:
    buffer = Buffer(4, GSSGreedy(), seed=0)
    buffer.add(vectors(plane(0, 10, 20)), GivenGradients())
    buffer.resize(6)
    buffer.add(vectors(plane(*range(5)), 3), GivenGradients())
    with pytest.raises(ValueError, match="grow='naive'"):
        buffer.resize(9)
    buffer.resize(9, grow="naive")
    assert buffer.add(vectors(plane(0, 0), 8), GivenGradients()) == 2


def test_a_refused_batch_changes_no_count() -> None:
    net, rows = model(), stream(40)
    buffer = Buffer(10, GSSGreedy(), seed=0)
    buffer.add(part(rows, 0, 15), Probe(net))
    before = copy.deepcopy(buffer.state_dict())
    bad = part(rows, 15, 25)
    with pytest.raises(ValueError, match="NaN"):
        buffer.add({**bad, "x": torch.full_like(bad["x"], float("nan"))}, Probe(net))
    with pytest.raises(ValueError, match="needs gradients of a probe"):
        buffer.add(bad)
    now = buffer.state_dict()
    assert same(now["store"], before["store"]) and same(now["policy_state"], before["policy_state"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GSSGreedy(0), "number of gradients >= 1, got 0"),
        (lambda: GSSGreedy(gate="row"), "'batch' or 'sample', got 'row'"),
        (lambda: GSSGreedy(threshold=1.5), r"cosine in \[-1, 1\], got 1.5"),
    ],
)
def test_arguments_that_make_no_sense(make: Callable[[], GSSGreedy], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_batch_may_not_bring_the_column_of_the_policy() -> None:
    with pytest.raises(ValueError, match="'score' is written by this policy"):
        Buffer(4, GSSGreedy()).add({**vectors(plane(0)), "score": torch.zeros(1)}, GivenGradients())


@pytest.mark.parametrize(
    "state", [{}, {"offered": 1, "admitted": 0}, {"offered": -1, "admitted": 0, "degenerate": 0}, {"delta": 0.0}]
)
def test_states_that_are_not_ours_are_refused(state: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not the state of GSSGreedy"):
        GSSGreedy().load_state_dict(state)


@GATES
def test_devices_decide_alike(gate: str, device: str) -> None:
    held = []
    for where in ("cpu", device):
        buffer = Buffer(20, GSSGreedy(gate=gate), device=where, seed=0)
        for at in range(0, 100, 10):
            batch = {name: column.to(where) for name, column in part(stream(100), at, at + 10).items()}
            buffer.add(batch, Probe(model().to(where)))
        held.append(buffer)
    assert torch.equal(held[0]["id"], held[1]["id"].cpu())
    torch.testing.assert_close(held[0]["score"], held[1]["score"].cpu())
