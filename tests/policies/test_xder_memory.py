"""The memory of X-DER: counts after every task, uniform rows, prefixes that survive."""

import numpy as np
import pytest
import torch
from scipy import stats

from replaykit import Buffer
from replaykit.policies import XDERMemory
from replaykit.policies.xder_memory import rank_in_group
from replaykit.testing import check_policy, same


def add(memory: Buffer, *labels: int) -> None:
    y = torch.tensor(labels)
    memory.add({"y": y, "id": memory.seen + torch.arange(len(y))})


def task(memory: Buffer, number: int, classes: int = 10, rows: int = 250) -> None:
    add(memory, *(torch.arange(classes * rows) % classes + classes * number).tolist())


def test_contract() -> None:
    check_policy(XDERMemory)


@pytest.mark.parametrize(
    ("capacity", "counts"),
    [
        (500, "-/50 25/25 16/18 12/14 10/10 8/10 7/8 6/8 5/10 5/5"),
        (2000, "-/200 100/100 66/68 50/50 40/40 33/35 28/32 25/25 22/24 20/20"),
    ],
)
def test_rows_of_a_class_after_every_task(capacity: int, counts: str) -> None:
    memory = Buffer(capacity, XDERMemory())
    for number, pair in enumerate(counts.split()):
        old, new = pair.split("/")
        task(memory, number)
        held = torch.bincount(memory["y"])
        assert set(held[-10:].tolist()) == {int(new)}
        assert set(held[:-10].tolist()) == ({int(old)} if number else set())
        assert len(memory) == capacity


def test_what_is_left_over_goes_to_classes_drawn_at_random() -> None:
    larger = np.zeros(4)
    for seed in range(400):
        memory = Buffer(10, XDERMemory(), seed=seed)
        task(memory, 0, classes=4, rows=5)
        held = torch.bincount(memory["y"]).numpy()
        assert sorted(held) == [2, 2, 3, 3]
        larger += held == 3
    assert stats.chisquare(larger).pvalue > 1e-3


def test_survivors_are_the_first_by_slot_and_uniform_among_all_offered() -> None:
    runs, rows = 600, 12
    kept = np.zeros(rows)
    for seed in range(runs):
        memory = Buffer(12, XDERMemory(), seed=seed)
        add(memory, *[0] * rows)
        before = memory.store.host("id")[np.sort(memory.store.filled)]
        add(memory, *[1, 2] * rows)
        slots = np.sort(memory.store.filled)
        mine = memory.store.host("id")[slots[memory.store.host("y")[slots] == 0]]
        assert mine.tolist() == before[:4].tolist()
        kept[mine] += 1
    # T of a uniform 4-subset of 12.
    share = 4 / rows
    variance = share * (1 - share) * rows / (rows - 1)
    statistic = ((kept - runs * share) ** 2).sum() / (runs * variance)
    assert stats.chi2.sf(statistic, rows - 1) > 1e-3


def test_the_order_of_the_arrivals_does_not_matter_to_the_law() -> None:
    """The first rows of a data set are no likelier than its last ones."""
    kept = np.zeros(6)
    for seed in range(600):
        memory = Buffer(2, XDERMemory(), seed=seed)
        add(memory, *[0] * 6)
        kept[memory["id"].numpy()] += 1
    assert stats.chisquare(kept).pvalue > 1e-3


def test_slots_that_a_class_cannot_fill_wait_for_the_next_task() -> None:
    memory = Buffer(12, XDERMemory())
    add(memory, *[0] * 20, 1, 1)
    assert torch.bincount(memory["y"]).tolist() == [6, 2]
    add(memory, *[2] * 20)
    assert torch.bincount(memory["y"]).tolist() == [4, 2, 6]


def test_unequal_tasks_divide_by_classes() -> None:
    memory = Buffer(30, XDERMemory())
    add(memory, *[5] * 40)
    add(memory, *[0, 1, 7] * 40)
    held = torch.bincount(memory["y"], minlength=8)
    assert held[5] == 7 and sorted(held[[0, 1, 7]].tolist()) == [7, 8, 8]


def test_a_class_that_comes_again_keeps_its_rows() -> None:
    memory = Buffer(12, XDERMemory())
    add(memory, *[0] * 3, *[1] * 20)
    first = set(memory["id"][memory["y"] == 0].tolist())
    add(memory, *[0] * 20, *[2] * 20)
    y = memory["y"]
    assert torch.bincount(y).tolist() == [4, 4, 4]
    assert first <= set(memory["id"][y == 0].tolist())


def test_more_classes_than_slots() -> None:
    memory = Buffer(3, XDERMemory())
    add(memory, 0, 1, 0, 1)
    before = memory.state_dict()
    with pytest.raises(ValueError, match="4 classes share 3 slots; make a memory of at least 4 slots"):
        add(memory, 2, 3)
    assert same(memory.state_dict(), before)
    with pytest.raises(ValueError, match="2 classes share 1 slots"):
        memory.resize(1)
    assert same(memory.state_dict(), before)


def test_shrinking_keeps_prefixes() -> None:
    memory = Buffer(12, XDERMemory())
    add(memory, *[0, 1] * 20)
    add(memory, *[2] * 20)
    slots = np.sort(memory.store.filled)
    y, held = (memory.store.host(name)[slots] for name in ("y", "id"))
    memory.resize(7)
    assert sorted(memory["id"].tolist()) == sorted(
        [*held[y == 0][:3].tolist(), *held[y == 1][:2].tolist(), *held[y == 2][:2].tolist()]
    )
    with pytest.raises(ValueError, match="cannot bring back"):
        memory.resize(20)
    memory.resize(20, grow="naive")
    add(memory, *[3] * 20)
    assert torch.bincount(memory["y"]).tolist() == [3, 2, 2, 13]


def test_rank_in_group() -> None:
    assert rank_in_group(np.array([7, 1, 7, 7, 1])).tolist() == [0, 0, 1, 2, 1]
    assert rank_in_group(np.array([], np.int64)).tolist() == []
