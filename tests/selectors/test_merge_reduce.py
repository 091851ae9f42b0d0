"""Merge-reduce: the published table of slot counts, sizes and where the data weights come from."""

import numpy as np
import pytest
import torch

from replaykit.selectors import Bilevel, Pool, Slot, merge_reduce
from replaykit.selectors.merge_reduce import merge_position

TABLE = "1; 1,1; 1,1,1; 2,1,1; 2,2,1; 2,2,2; 4,2,1; 4,2,2; 4,4,1; 4,4,2; 4,4,3; 4,4,4; 8,4,1"


class Recorder:
    """Takes the first k rows of the pool and remembers what it was shown."""

    needs = ("x",)

    def __init__(self):
        self.seen = []

    def select(self, pool, k, rng):
        self.seen.append((pool.tensor("x").tolist(), pool.weight.tolist(), k))
        rows = torch.arange(min(k, pool.n))
        return rows, torch.ones(len(rows), dtype=torch.float64)


def counts(batches: int, slots: int) -> list[list[int]]:
    held, history = [], []
    for _ in range(batches):
        held.append(1)
        i = merge_position(held, slots)
        if i is not None:
            held[i : i + 2] = [held[i] + held[i + 1]]
        history.append(list(held))
    return history


def test_slot_counts_of_three_slots():
    assert counts(13, 3) == [[int(c) for c in line.split(",")] for line in TABLE.split(";")]


def test_ten_slots_after_eighty_batches():
    assert counts(80, 10)[-1] == [8] * 10


@pytest.mark.parametrize("slots", [1, 2, 3, 7])
def test_every_batch_is_counted_once(slots):
    for t, held in enumerate(counts(60, slots), start=1):
        assert sum(held) == t and len(held) == min(t, slots)
        assert held == sorted(held, reverse=True)


@pytest.mark.parametrize("slots", [1, 3, 5])
def test_a_stream_of_real_selections(slots):
    """Stored rows stay within the size, are distinct, come from the stream, and the counts add up."""
    g = torch.Generator().manual_seed(0)
    n = 8 * 15
    pool = Pool(n, torch.randint(3, (n,), generator=g), x=torch.randn(n, 3, generator=g))
    held: list[Slot] = []
    for batch in range(8):
        arrivals = torch.arange(15 * batch, 15 * (batch + 1))
        held = merge_reduce(held, arrivals, pool, Bilevel(ridge=0.01), 20, slots, np.random.default_rng(batch))
        rows = torch.cat([slot.rows for slot in held]).tolist()
        assert len(set(rows)) == len(rows) <= 20 and max(rows) < 15 * (batch + 1)
        assert all(len(slot.rows) == len(slot.weights) == min(15, 20 // slots) or slots == 1 for slot in held)
        assert [slot.batches for slot in held] == counts(batch + 1, slots)[-1]
    assert sum(len(slot.rows) for slot in held) == 20 // slots * slots


def test_rows_count_as_their_slot_in_a_merge():
    x = torch.arange(100.0)
    pool = Pool(100, x=x, weight=torch.full((100,), 9.0))
    recorder, rng = Recorder(), np.random.default_rng(0)
    held = [Slot(torch.tensor([5, 7]), torch.ones(2).double(), 3)]
    new = merge_reduce(held, torch.tensor([90, 91, 92]), pool, recorder, 2, 1, rng)
    assert recorder.seen == [([90.0, 91.0, 92.0], [1.0] * 3, 2), ([5.0, 7.0, 90.0, 91.0], [3.0, 3.0, 1.0, 1.0], 2)]
    assert len(new) == 1 and new[0].rows.tolist() == [5, 7] and new[0].batches == 4
    assert held[0].batches == 3  # the given slots are not touched


def test_a_small_batch_is_kept_whole():
    pool = Pool(4, x=torch.arange(4.0))
    slots = merge_reduce([], torch.tensor([2, 0]), pool, Recorder(), 6, 2, np.random.default_rng(0))
    assert slots[0].rows.tolist() == [2, 0] and slots[0].batches == 1


def test_bad_numbers_of_slots():
    pool, one = Pool(4, x=torch.arange(4.0)), Slot(torch.tensor([0]), torch.ones(1), 1)
    for slots, size, count, message in (
        ([], 2, 3, "slots <= size"),
        ([], 2, 0, "slots"),
        ([one] * 3, 4, 2, "merge"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_reduce(slots, torch.tensor([1]), pool, Recorder(), size, count, np.random.default_rng(0))
