from functools import partial

import numpy as np
import pytest
import torch
from reference.laws import RARE, assert_probabilities, feed, joint_p_value, stored, subset_p_value
from reference.reservoir import largest_keys, proportional_inclusion, successive_inclusion

from replaykit import Buffer, Policy
from replaykit.policies import Chao, EfraimidisSpirakis
from replaykit.testing import same

RUNS = 700
BOTH = pytest.mark.parametrize("make", [Chao, EfraimidisSpirakis])


# -- Efraimidis and Spirakis ----------------------------------------------------------------------


def test_hand_case_of_successive_sampling() -> None:
    wanted = successive_inclusion([1, 2, 3], 2)
    assert wanted == pytest.approx([5 / 12, 11 / 15, 17 / 20])
    assert_probabilities(stored(EfraimidisSpirakis, 2, (1, 1, 1), RUNS, weights=[1, 2, 3]), wanted)


def test_successive_sampling_of_a_longer_stream() -> None:
    weights = [4.0, 0.5, 1.0, 8.0, 2.0, 0.25]
    wanted = successive_inclusion(weights, 3)
    assert_probabilities(stored(EfraimidisSpirakis, 3, (4, 2), RUNS, weights=weights), wanted)


@BOTH
def test_one_slot_draws_in_proportion_to_weight(make: type[Policy]) -> None:
    weights = [3.0, 1.0, 4.0, 2.0]
    wanted = [w / 10 for w in weights]
    assert_probabilities(stored(make, 1, (2, 2), RUNS, weights=weights), wanted)


def test_large_and_small_weights_do_not_collapse() -> None:
    """U^(1/w) would be 1 for each of the large ones."""
    for scale in (1e18, 1e-18):
        weights = [1 * scale, 2 * scale, 3 * scale]
        inside = stored(EfraimidisSpirakis, 2, (3,), RUNS, weights=weights)
        assert_probabilities(inside, [5 / 12, 11 / 15, 17 / 20])


def test_the_literal_loop_with_the_same_draws() -> None:
    weights = (np.random.default_rng(1).random(400) * 5 + 0.1).tolist()
    keys = np.log(1 - np.random.default_rng(7).random(400)) / weights
    buffer = feed(Buffer(90, EfraimidisSpirakis(), seed=np.random.default_rng(7)), [150, 1, 249], weights=weights)
    assert buffer.store.host("id").tolist() == largest_keys(keys.tolist(), 90)


def test_shrinking_keeps_successive_sampling() -> None:
    weights = [4.0, 0.5, 1.0, 8.0, 2.0, 0.25]

    def shrink(buffer: Buffer) -> None:
        buffer.resize(2)
        feed(buffer, (2,), start=4, weights=weights)

    inside = stored(EfraimidisSpirakis, 3, (4,), RUNS, weights=weights, then=shrink)
    assert_probabilities(inside, successive_inclusion(weights, 2))


# -- Chao -----------------------------------------------------------------------------------------


def test_inclusion_in_proportion_to_weight() -> None:
    weights = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    wanted = proportional_inclusion(weights, 3)
    assert wanted == pytest.approx([w / 7 for w in weights])
    assert_probabilities(stored(Chao, 3, (2, 3, 1), RUNS, weights=weights), wanted)


def test_the_two_laws_differ() -> None:
    weights = [1.0, 2.0, 3.0]
    assert_probabilities(stored(Chao, 2, (1, 1, 1), RUNS, weights=weights), [1 / 3, 2 / 3, 1])
    with pytest.raises(AssertionError, match="row 0"):
        inside = stored(EfraimidisSpirakis, 2, (1, 1, 1), RUNS, weights=weights)
        assert_probabilities(inside, [1 / 3, 2 / 3, 1])


@pytest.mark.parametrize("place", [0, 3, 6])
def test_an_overweight_row_is_certain_wherever_it_comes(place: int) -> None:
    weights = [1.0] * 6
    weights.insert(place, 10.0)
    inside = stored(Chao, 3, (3, 2, 2), RUNS, weights=weights)
    assert inside[:, place].all()
    assert_probabilities(inside, [1.0 if row == place else 2 / 6 for row in range(7)])


@pytest.mark.parametrize("n", [4, 5, 6, 7, 8, 9])
def test_overweight_rows_become_ordinary_as_the_total_grows(n: int) -> None:
    """The law holds after every row: heavy ones first, in the middle, and several at once."""
    weights = [5.0, 1.0, 12.0, 2.0, 6.0, 1.0, 3.0, 7.0, 4.0][:n]
    wanted = proportional_inclusion(weights, 3)
    assert_probabilities(stored(Chao, 3, (3, n - 3), RUNS, weights=weights), wanted)


def test_equal_weights_are_a_plain_reservoir() -> None:
    assert subset_p_value(stored(Chao, 3, (5, 3), RUNS, weights=[2.0] * 8)) > RARE
    assert joint_p_value(stored(Chao, 2, (5,), RUNS, weights=[0.3] * 5)) > RARE


@pytest.mark.parametrize("sizes", [(4,), (7,), (3, 1)])
def test_shrinking_keeps_proportional_inclusion(sizes: tuple[int, ...]) -> None:
    """From overweight rows alone, from both kinds, and from a memory with rows to come."""
    weights = [5.0, 1.0, 12.0, 2.0, 6.0, 1.0, 3.0, 7.0]

    def shrink(buffer: Buffer) -> None:
        buffer.resize(2)
        feed(buffer, (1,), start=sum(sizes), weights=weights)

    inside = stored(Chao, 4, sizes, RUNS, weights=weights, then=shrink)
    assert_probabilities(inside, proportional_inclusion(weights[: sum(sizes) + 1], 2))


def test_a_shrunken_memory_has_its_slots_in_order() -> None:
    weights = np.random.default_rng(0).random(300).tolist()
    buffer = feed(Buffer(40, Chao(), seed=0), [200], weights=weights)
    held = set(buffer["id"].tolist())
    buffer.resize(15)
    assert len(buffer) == 15 and set(buffer["id"].tolist()) <= held
    feed(buffer, [100], start=200, weights=weights)
    assert len(set(buffer["id"].tolist())) == 15


def test_chao_has_no_way_to_grow() -> None:
    buffer = feed(Buffer(3, Chao()), [8], weights=[1.0] * 8)
    for grow in ("forbid", "naive"):
        with pytest.raises(ValueError, match="from 3 to 5 slots has no law"):
            buffer.resize(5, grow=grow)
    assert buffer.capacity == 3


def test_growing_is_exact_as_long_as_nothing_was_dropped() -> None:
    weights = [5.0, 1.0, 2.0, 2.0, 6.0, 1.0]

    def grow(buffer: Buffer) -> None:
        buffer.resize(3)
        feed(buffer, (4,), start=2, weights=weights)

    inside = stored(Chao, 2, (2,), RUNS, weights=weights, then=grow)
    assert_probabilities(inside, proportional_inclusion(weights, 3))


@pytest.mark.parametrize(
    "spoil",
    [
        {"rest": -1.0},
        {"rest": float("nan")},
        {"heavy_slots": torch.tensor([0, 0])},
        {"heavy_weights": torch.tensor([-1.0], dtype=torch.float64), "heavy_slots": torch.tensor([9])},
        {"light_slots": [1, 2]},
        {"more": 1},
    ],
)
def test_corrupt_states_are_refused(spoil: dict[str, object]) -> None:
    buffer = feed(Buffer(3, Chao()), [8], weights=[1.0, 9.0, *[1.0] * 6])
    state = buffer.policy.state_dict()
    with pytest.raises(ValueError, match="state"):
        buffer.policy.load_state_dict({**state, **spoil})
    assert same(buffer.policy.state_dict(), state)


def test_one_policy_cannot_serve_two_memories() -> None:
    policy = Chao()
    feed(Buffer(3, policy), [3], weights=[1.0] * 3)
    with pytest.raises(ValueError, match="policy object of its own"):
        feed(Buffer(3, policy), [1], weights=[1.0])


# -- both -----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0, 0.0])
def test_weights_that_mean_nothing_are_refused(make: type[Policy], bad: float) -> None:
    for check_finite in (None, False):
        buffer = feed(Buffer(3, make(), check_finite=check_finite), [5], weights=[1.0] * 5)
        before = buffer.state_dict()
        with pytest.raises(
            ValueError, match=r"NaN or infinity|finite and above 0, got .* in row 1; leave such rows out"
        ):
            buffer.add({"id": torch.arange(2), "weight": torch.tensor([1.0, bad], dtype=torch.float64)})
        assert same(buffer.state_dict(), before)


@BOTH
def test_weights_must_be_a_vector_of_numbers(make: type[Policy]) -> None:
    with pytest.raises(ValueError, match="needs a weight column 'weight', the batch has \\['x'\\]"):
        Buffer(3, make()).add({"x": torch.zeros(2)})
    for wrong in (torch.ones(2, 1), torch.ones(2, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"real numbers of shape \[n\]"):
            Buffer(3, make()).add({"weight": wrong})


@BOTH
def test_the_weight_may_be_any_column_and_any_kind_of_number(make: type[Policy]) -> None:
    for dtype in (torch.int32, torch.float16, torch.bfloat16, torch.float32):
        buffer = Buffer(4, partial(make, "loss")())
        buffer.add({"loss": torch.arange(1, 20).to(dtype)})
        assert len(buffer) == 4 and buffer["loss"].dtype == dtype
