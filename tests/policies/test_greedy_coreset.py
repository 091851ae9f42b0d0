"""GreedyCoreset: merge-reduce of a stream and prefixes of tasks, against the literal algorithms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from replaykit import Batch, Buffer, selectors
from replaykit.policies.coreset import SLOT
from replaykit.policies.greedy_coreset import BATCHES, GreedyCoreset
from replaykit.probe import Probe
from replaykit.selectors import Bilevel, Pool
from replaykit.testing import check_policy, example_model, example_stream, same


def unweighted(n: int) -> Batch:
    return {name: column for name, column in example_stream(n).items() if name != "weight"}


def rows(n: int, first: int = 0, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed + first)
    y = torch.randint(3, (n,), generator=g)
    return {"id": torch.arange(first, first + n), "x": torch.randn(n, 2, generator=g) + 2 * y[:, None], "y": y}


def slot_table(buffer: Buffer) -> list[tuple[int, list[int]]]:
    """Batches and ids in greedy order of every slot, the oldest first."""
    order = np.lexsort((buffer["rank"].numpy(), buffer[SLOT].numpy()))
    slot, batches, ids = (buffer[name].numpy()[order] for name in (SLOT, BATCHES, "id"))
    table = []
    for number in np.unique(slot):
        here = slot == number
        assert len(set(batches[here])) == 1
        table.append((int(batches[here][0]), ids[here].tolist()))
    return table


@pytest.mark.parametrize(
    "options",
    [{}, {"slots": 3, "max_outer": 1, "ridge": 1e-3}, {"layout": "tasks", "ridge": 1e-3}],
    ids=["one slot", "three slots", "tasks"],
)
def test_contract(options: dict) -> None:
    check_policy(lambda: GreedyCoreset(**options), make_stream=unweighted, rows=30, capacity=6)


class Literal:
    """Merge-reduce as the paper tells it: lists of (batches, rows in order), rows are numbers of the stream."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, size: int, slots: int, seed: int) -> None:
        self.x, self.y, self.size, self.slots = x, y, size, slots
        self.rng = np.random.default_rng(seed)
        self.table: list[tuple[int, list[int]]] = []

    def build(self, members: list[int], weights: list[float]) -> list[int]:
        index = torch.tensor(members)
        pool = Pool(len(members), self.y[index], torch.tensor(weights).double(), x=self.x[index])
        chosen, _ = Bilevel().select(pool, self.size // self.slots, self.rng)
        return [members[i] for i in chosen.tolist()]

    def add(self, batch: list[int]) -> None:
        self.table.append((1, self.build(batch, [1.0] * len(batch))))
        if len(self.table) <= self.slots:
            return
        counts = [batches for batches, _ in self.table]
        if self.slots == 1 or counts[-2] < counts[-3]:
            i = len(counts) - 2
        else:
            pairs = [i for i in range(len(counts) - 1) if counts[i] == counts[i + 1]]
            i = next(j for j in pairs if counts[j] == min(counts[p] for p in pairs))
        (a, first), (b, second) = self.table[i : i + 2]
        weights = [float(a)] * len(first) + [float(b)] * len(second)
        self.table[i : i + 2] = [(a + b, self.build(first + second, weights))]


@pytest.mark.parametrize(("slots", "size"), [(1, 6), (3, 9), (3, 10)])
def test_a_stream_is_kept_as_the_paper_tells(slots: int, size: int) -> None:
    n = 14
    stream = [rows(n, first) for first in range(0, 7 * n, n)]
    x, y = (torch.cat([batch[name] for batch in stream]) for name in ("x", "y"))
    literal = Literal(x, y, size, slots, 0)
    literal.rng = np.random.default_rng(np.random.SeedSequence(5).spawn(2)[0])
    buffer = Buffer(size, GreedyCoreset(slots), seed=5)
    for batch in stream:
        buffer.add(batch)
        literal.add(batch["id"].tolist())
        assert slot_table(buffer) == literal.table
        assert buffer["weight"].tolist() == buffer[BATCHES].double().tolist()


def test_slots_count_like_the_published_table() -> None:
    """Spec 3.7, T3.6, through the memory: the sum of the slot weights is the number of batches."""
    buffer = Buffer(6, GreedyCoreset(3))
    history = []
    for batch in range(13):
        buffer.add(rows(4, 4 * batch))
        history.append([batches for batches, _ in slot_table(buffer)])
        assert sum(history[-1]) == batch + 1 and len(buffer) <= 6
    assert history[3:6] == [[2, 1, 1], [2, 2, 1], [2, 2, 2]]
    assert history[10:] == [[4, 4, 3], [4, 4, 4], [8, 4, 1]]


def test_the_first_batch_is_reduced_and_small_batches_are_kept_whole() -> None:
    buffer = Buffer(6, GreedyCoreset())
    assert buffer.add(rows(20)) == 6
    assert buffer["weight"].tolist() == [1.0] * 6
    small = Buffer(6, GreedyCoreset())
    small.add(rows(2))
    small.add(rows(3, 2))
    assert slot_table(small)[0][0] == 2 and sorted(small["id"].tolist()) == [0, 1, 2, 3, 4]
    small.add(rows(3, 5))
    assert len(small) == 6 and small["weight"].tolist() == [3.0] * 6


def test_tasks_keep_the_beginning_of_their_greedy_order() -> None:
    tasks = [rows(20, 20 * t) for t in range(4)]
    rng = np.random.default_rng(np.random.SeedSequence(3).spawn(2)[0])
    orders: list[list[int]] = []
    buffer = Buffer(12, GreedyCoreset(layout="tasks"), seed=3)
    for t, task in enumerate(tasks):
        buffer.add(task)
        pool = Pool(20, task["y"], x=task["x"])
        orders.append(task["id"][Bilevel().select(pool, 12 // (t + 1), rng)[0]].tolist())
        assert [ids for _, ids in slot_table(buffer)] == [order[: 12 // (t + 1)] for order in orders]
    assert buffer["weight"].tolist() == [1.0] * 12


def test_more_tasks_than_rows() -> None:
    buffer = Buffer(3, GreedyCoreset(layout="tasks"))
    for t in range(5):
        buffer.add(rows(4, 4 * t))
    assert sorted(buffer[SLOT].tolist()) == [2, 3, 4] and buffer["rank"].tolist() == [0] * 3


@pytest.mark.parametrize("options", [{"slots": 2, "max_outer": 2}, {"layout": "tasks"}])
def test_shrinking_keeps_beginnings(options: dict) -> None:
    buffer = Buffer(10, GreedyCoreset(**options))
    for batch in range(2):
        buffer.add(rows(15, 15 * batch))
    before = slot_table(buffer)
    buffer.resize(6)
    assert slot_table(buffer) == [(batches, ids[:3]) for batches, ids in before]
    with pytest.raises(ValueError, match="cannot bring back"):
        buffer.resize(7)


def test_weights_of_the_selector_count_beside_those_of_the_slot() -> None:
    buffer = Buffer(5, GreedyCoreset(max_outer=5, ridge=0.01))
    for batch in range(3):
        buffer.add(rows(15, 15 * batch))
    weight = buffer["weight"]
    torch.testing.assert_close(weight.mean(), torch.tensor(3.0).double())
    assert weight.std() > 1e-3


def test_inputs_are_compared_as_the_model_takes_them() -> None:
    """Without a probe uint8 is a fraction of 255; with one, its `prepare` decides."""
    batch = {**unweighted(30), "x": torch.randint(256, (30, 3, 4, 4), generator=torch.Generator().manual_seed(1))}
    batch["x"] = batch["x"].to(torch.uint8)
    policy = GreedyCoreset(kernel=selectors.Linear(1.0))
    assert policy.needs == () and policy.prefers == ("x",)

    def kept(x: torch.Tensor, probe: Probe | None = None) -> list[int]:
        buffer = Buffer(6, GreedyCoreset(kernel=selectors.Linear(1.0)))
        buffer.add({**batch, "x": x}, probe)
        return buffer["id"].tolist()

    def prepare(x: torch.Tensor) -> torch.Tensor:
        return (x.float() / 255 - 0.5) / torch.tensor([0.1, 1.0, 5.0])[:, None, None]

    assert kept(batch["x"]) == kept(batch["x"].float() / 255)
    prepared = kept(batch["x"], Probe(example_model(), prepare=prepare))
    assert prepared == kept(prepare(batch["x"])) != kept(batch["x"])


@pytest.mark.parametrize("options", [{}, {"slots": 2}, {"layout": "tasks"}])
def test_a_selector_may_read_a_column_of_the_stream(options: dict) -> None:
    buffer = Buffer(4, GreedyCoreset(selector=selectors.Forgetting("age"), **options))
    assert buffer.policy.columns == ("y", "age")
    for start in (0, 10, 20):
        batch = rows(10, start)
        buffer.add({**batch, "age": 100 - batch["id"] % 10 - start})
    expected = {"layout": [0, 10, 20], "slots": [0, 1, 20, 21]}.get("".join(list(options)), [0, 1, 2, 3])
    assert sorted(buffer["id"].tolist()) == expected
    with pytest.raises(ValueError, match=r"the selector reads columns \['age'\], the batch has"):
        Buffer(4, GreedyCoreset(selector=selectors.Forgetting("age"))).add(rows(3))


def test_other_selectors_and_kernels() -> None:
    buffer = Buffer(6, GreedyCoreset(2, selector=selectors.GradMatch("x")))
    for batch in range(4):
        buffer.add(rows(10, 10 * batch))
    for batches, ids in slot_table(buffer):
        assert batches == 2 and len(ids) == 3
    torch.testing.assert_close(buffer["weight"].mean(), torch.tensor(2.0).double())
    images = {"x": torch.rand(9, 1, 6, 6), "y": torch.arange(9) % 2}
    assert Buffer(3, GreedyCoreset(kernel=selectors.ConvolutionalNTK())).add(images) == 3
    with_gradients = GreedyCoreset(kernel=None, quantity="gradients")
    assert with_gradients.needs == ("gradients",) and with_gradients.prefers == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots is a number >= 1"),
        ({"slots": 2, "layout": "tasks"}, "got 2 for 'tasks'"),
        ({"layout": "classes"}, "layout is 'stream' or 'tasks', got 'classes'"),
        ({"ridge": 1e-3, "selector": selectors.KCenter("x")}, "options of Bilevel"),
        ({"ridge": -1.0}, "Bilevel: ridge must be positive"),
    ],
)
def test_wrong_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GreedyCoreset(**options)


def test_a_batch_that_cannot_be_selected_from_leaves_the_memory_as_it_was() -> None:
    buffer = Buffer(4, GreedyCoreset(2))
    buffer.add(rows(10))
    before = buffer.state_dict()
    wrong = rows(10, 10)
    wrong["x"][3, 1] = torch.nan
    with pytest.raises(ValueError, match="GreedyCoreset: Bilevel: x of row .* holds NaN"):
        buffer.add(wrong)
    for name in ("weight", "rank", SLOT, BATCHES):
        with pytest.raises(ValueError, match=f"columns \\['{name}'\\] are written by this policy"):
            Buffer(4, GreedyCoreset()).add({**rows(10, 10), name: torch.ones(10)})
    assert same(buffer.state_dict(), before)
    with pytest.raises(ValueError, match="got 5 slots for 4 rows"):
        Buffer(4, GreedyCoreset(5)).add(rows(10))
    with pytest.raises(ValueError, match="2 slots need at least as many rows, got a capacity of 1"):
        buffer.resize(1)
