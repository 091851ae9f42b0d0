from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.laws import RARE, assert_probabilities, feed, joint_p_value, stored, stream, subset_p_value
from reference.reservoir import largest_keys

from replaykit import Buffer
from replaykit.policies import RandomKeyReservoir, Reservoir, merge
from replaykit.testing import same

RUNS = 1000
SIZES = (5, 1, 2)


def memory(capacity: int, sizes: Sequence[int], seed: int, start: int = 0) -> Buffer:
    return feed(Buffer(capacity, RandomKeyReservoir(), seed=seed), sizes, start)


@settings(max_examples=60, deadline=None)
@given(
    capacity=st.integers(1, 150),
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_the_rows_with_the_largest_keys_stay_in_the_slots_of_single_steps(
    capacity: int, sizes: list[int], seed: int
) -> None:
    """Capacities above 64 keep only part of the keys in the heap, and run it empty."""
    keys = np.random.default_rng(seed).random(sum(sizes))
    buffer = feed(Buffer(capacity, RandomKeyReservoir(), seed=np.random.default_rng(seed)), sizes)
    if sum(sizes):
        slots = np.sort(buffer.store.filled)
        ids = buffer.store.host("id")[slots]
        assert ids.tolist() == largest_keys(keys.tolist(), capacity)
        assert (buffer.store.host("key")[slots] == keys[ids]).all()


def test_all_subsets_are_equally_likely() -> None:
    assert subset_p_value(stored(RandomKeyReservoir, 3, SIZES, RUNS)) > RARE
    assert joint_p_value(stored(RandomKeyReservoir, 2, (3, 2), RUNS)) > RARE


def test_keys_are_double_precision() -> None:
    keys = memory(500, [500], 0)["key"]
    assert keys.dtype == torch.float64
    assert not (keys * 2**24 == (keys * 2**24).round()).any()


def test_shrinking_keeps_the_largest_keys() -> None:
    buffer = memory(100, [300], 0)
    largest = buffer["key"].sort().values[-30:]
    buffer.resize(30)
    assert torch.equal(buffer["key"].sort().values, largest)


def test_shrinking_keeps_the_law() -> None:
    def shrink(buffer: Buffer) -> None:
        buffer.resize(2)
        feed(buffer, (2,), start=6)

    assert subset_p_value(stored(RandomKeyReservoir, 4, (6,), RUNS, then=shrink)) > RARE


def test_growing() -> None:
    buffer = memory(3, [8], 0)
    with pytest.raises(ValueError, match=r"from 3 to 6 slots.*5 rows.*grow='naive'"):
        buffer.resize(6)
    with pytest.raises(ValueError, match="got 'bernoulli'"):
        buffer.resize(6, grow="bernoulli")
    assert buffer.capacity == 3

    def grow(buffer: Buffer) -> None:
        buffer.resize(6, grow="naive")
        feed(buffer, (3,), start=8)

    assert_probabilities(stored(RandomKeyReservoir, 3, (8,), RUNS, then=grow), [3 / 8] * 8 + [1] * 3)


def test_growing_is_exact_as_long_as_nothing_was_dropped() -> None:
    def grow(buffer: Buffer) -> None:
        buffer.resize(3)
        feed(buffer, (6,), start=2)

    assert subset_p_value(stored(RandomKeyReservoir, 2, (2,), RUNS, then=grow)) > RARE


def test_a_batch_must_not_bring_keys() -> None:
    buffer = memory(3, [2], 0)
    before = buffer.state_dict()
    for rows in (stream(2, 2), {}):
        with pytest.raises(ValueError):
            buffer.add({**rows, "key": torch.zeros(2, dtype=torch.float64)})
    assert same(buffer.state_dict(), before)
    with pytest.raises(ValueError, match="column 'key' is written by this policy; rename"):
        Buffer(3, RandomKeyReservoir()).add({"key": torch.zeros(2)})


# -- merging --------------------------------------------------------------------------------------


def test_merged_memories_are_a_uniform_sample_of_both_streams() -> None:
    """Also after more rows came."""
    rng = np.random.default_rng(0)
    inside = np.zeros((RUNS, 9), bool)
    for run in range(RUNS):
        left, right = (Buffer(3, RandomKeyReservoir(), seed=seed) for seed in rng.spawn(2))
        merge(feed(left, [5]), feed(right, [3], start=5))
        feed(left, [1], start=8)
        inside[run, left["id"].numpy()] = True
    assert subset_p_value(inside) > RARE


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    capacities=st.tuples(st.integers(1, 12), st.integers(0, 8)),
)
def test_merging_takes_the_largest_keys_of_both(sizes: tuple[int, int], capacities: tuple[int, int]) -> None:
    left = memory(capacities[0], [sizes[0]], 1)
    right = memory(sum(capacities), [sizes[1]], 2, start=100)
    union = {
        key: row
        for b in (left, right)
        if len(b)
        for key, row in zip(*(b[c].tolist() for c in ("key", "id")), strict=True)
    }
    before = right.state_dict()
    took = merge(left, right)
    assert same(right.state_dict(), before)
    assert left.seen == sum(sizes)
    if union:
        kept = sorted(union)[-capacities[0] :]
        assert sorted(left["key"].tolist()) == kept
        assert dict(zip(left["key"].tolist(), left["id"].tolist(), strict=True)) == {
            key: union[key] for key in kept
        }
        assert took == sum(union[key] >= 100 for key in kept)


def test_merging_moves_every_column() -> None:
    buffers = [Buffer(4, RandomKeyReservoir(), seed=seed) for seed in range(2)]
    for value, buffer in enumerate(buffers):
        buffer.add({"id": torch.arange(9), "x": torch.full((9, 2), value, dtype=torch.uint8)})
    ids = {(int(r), int(x)) for b in buffers for r, x in zip(b["id"], b["x"][:, 0], strict=True)}
    merge(*buffers)
    both = set(zip(buffers[0]["id"].tolist(), buffers[0]["x"][:, 1].tolist(), strict=True))
    assert both <= ids and {x for _, x in both} == {0, 1}


def test_what_cannot_be_merged_changes_nothing() -> None:
    into = memory(6, [20], 0)
    before = into.state_dict()
    other_columns = Buffer(6, RandomKeyReservoir(), seed=9)
    other_columns.add({"id": torch.arange(4), "y": torch.arange(4)})
    ragged = Buffer(6, RandomKeyReservoir(), seed=8)
    for width in (2, 3):
        ragged.add({"id": torch.arange(2), "logits": torch.zeros(2, width)})
    cases = [
        (memory(6, [20], 0), ValueError, "share keys"),
        (memory(5, [20], 1), ValueError, r"sample of 6; resize\(5\)"),
        (other_columns, ValueError, "only equal ones can merge"),
        (ragged, ValueError, "different widths"),
        (feed(Buffer(6, Reservoir()), [20]), TypeError, "merge joins memories of RandomKeyReservoir"),
    ]
    for other, kind, message in cases:
        with pytest.raises(kind, match=message):
            merge(into, other)
    assert same(into.state_dict(), before)


def test_a_smaller_memory_merges_after_the_larger_one_shrank() -> None:
    into, other = memory(6, [20], 0), memory(5, [20], 1, start=20)
    into.resize(5)
    merge(into, other)
    assert len(into) == 5 and into.seen == 40
