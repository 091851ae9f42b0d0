"""Coreset: any selector as a memory."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from replaykit import Buffer, Policy, policies, selectors
from replaykit.policies.coreset import Coreset, pool_of
from replaykit.probe import Probe
from replaykit.selectors import Pool
from replaykit.selectors.pool import Selection
from replaykit.testing import check_policy, example_model, example_stream, same


def unweighted(n: int) -> dict[str, torch.Tensor]:
    return {name: column for name, column in example_stream(n).items() if name != "weight"}


def points(values: list[float], y: list[int] | None = None, start: int = 0) -> dict[str, torch.Tensor]:
    n = len(values)
    return {
        "id": torch.arange(start, start + n),
        "x": torch.tensor(values)[:, None],
        "y": torch.tensor(y or [0] * n),
    }


class Heaviest:
    """Rows of the largest weight, then of the largest x; gives them the weights 10, 11, ..."""

    needs = ("x", "stored")

    def __init__(self) -> None:
        self.pools: list[Pool] = []

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        self.pools.append(pool)
        order = np.lexsort((-pool.tensor("x")[:, 0].numpy(), -pool.weight.numpy()))[:k]
        return torch.from_numpy(order), 10.0 + torch.arange(len(order), dtype=torch.float64)


@pytest.mark.parametrize(
    ("selector", "options"),
    [
        (selectors.KCenter("x"), {"recent": 3}),
        (selectors.GCR(), {"candidates": 20}),
        (selectors.Rainbow(), {"budget": "global"}),
        (selectors.Bilevel(quantity="x", ridge=0.01), {"budget": "global", "candidates": 6}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_contract(selector: selectors.Selector, options: dict) -> None:
    def probe(model: torch.nn.Module) -> Probe:
        return Probe(model, prepare=torch.Tensor.float, views=lambda x: x.roll(1, -1))

    check_policy(
        lambda: Coreset(selector, **options), make_stream=unweighted, make_probe=probe, rows=30, capacity=8
    )


def test_rows_are_appended_until_one_finds_no_room() -> None:
    selector = Heaviest()
    buffer = Buffer(4, Coreset(selector, "global"))
    buffer.add(points([1.0, 2.0, 3.0]))
    assert not selector.pools
    assert buffer["weight"].tolist() == [1.0] * 3 and buffer["rank"].tolist() == [-1] * 3
    assert buffer.add(points([5.0, 4.0], start=3)) == 2
    assert sorted(buffer["id"].tolist()) == [1, 2, 3, 4]
    held = dict(zip(buffer["id"].tolist(), buffer["weight"].tolist(), strict=True))
    assert held == {3: 10.0, 4: 11.0, 2: 12.0, 1: 13.0}
    assert dict(zip(buffer["id"].tolist(), buffer["rank"].tolist(), strict=True)) == {3: 0, 4: 1, 2: 2, 1: 3}


def test_stored_rows_count_with_the_weight_they_were_given() -> None:
    selector = Heaviest()
    buffer = Buffer(2, Coreset(selector, "global"))
    buffer.add(points([1.0, 2.0, 3.0]))
    buffer.add(points([9.0], start=3))
    assert selector.pools[1].weight.tolist() == [10.0, 11.0, 1.0]
    assert selector.pools[1].tensor("stored").tolist() == [True, True, False]


def test_candidates_beyond_the_bound_are_stood_for_by_the_others() -> None:
    selector = Heaviest()
    Buffer(2, Coreset(selector, "global", candidates=4)).add(points([float(i) for i in range(10)]))
    (pool,) = selector.pools
    assert pool.n == 4 and pool.weight.tolist() == [2.5] * 4


def test_recent_rows_wait_in_the_memory_and_each_selection_makes_room() -> None:
    selector = Heaviest()
    buffer = Buffer(6, Coreset(selector, "global", recent=4))
    for i in range(15):
        buffer.add(points([float(i)], start=i))
        assert len(buffer) <= 6
    assert len(selector.pools) == 2  # at the 7th row, which found no room, and at the 12th
    assert (buffer["rank"] >= 0).sum() == 2


def test_every_class_has_the_same_share() -> None:
    buffer = Buffer(9, Coreset(selectors.KCenter("x")))
    y = [0] * 50 + [1] * 20 + [2] * 2
    buffer.add(points(torch.randn(72, generator=torch.Generator().manual_seed(0)).tolist(), y))
    assert np.bincount(buffer["y"].numpy()).tolist() == [4, 3, 2]


def test_shrinking_keeps_the_prefix_of_the_selection() -> None:
    buffer = Buffer(5, Coreset(Heaviest(), "global"))
    buffer.add(points([float(i) for i in range(9)]))
    buffer.resize(3)
    assert sorted(buffer["id"].tolist()) == [6, 7, 8]
    with pytest.raises(ValueError, match="cannot bring back"):
        buffer.resize(7)


def test_weighted_replay_uses_the_weights() -> None:
    from replaykit.losses import WeightedCrossEntropy

    model = example_model().eval()
    buffer = Buffer(6, Coreset(selectors.GCR()))
    buffer.add(unweighted(40), Probe(model, prepare=torch.Tensor.float))
    losses = []
    for factor in (1.0, 3.0):
        batch = buffer.read(buffer.store.filled)
        batch = {**batch, "x": batch["x"].float(), "weight": factor * batch["weight"]}
        losses.append(WeightedCrossEntropy()(model, lambda batch=batch: batch))
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "half"}, "budget is 'per_class' or 'global', got 'half'"),
        ({"candidates": 0}, "candidates is a number of rows >= 1, got 0"),
        ({"recent": -1}, "recent is a number of slots >= 0, got -1"),
    ],
)
def test_wrong_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Coreset(Heaviest(), **options)


def test_a_batch_that_does_not_fit_is_told_why() -> None:
    with pytest.raises(ValueError, match="recent=4 slots for new rows leave none for a coreset"):
        Buffer(4, Coreset(Heaviest(), recent=4)).add(points([1.0]))
    for name in ("weight", "rank"):
        with pytest.raises(ValueError, match=f"columns \\['{name}'\\] are written by this policy"):
            Buffer(4, Coreset(Heaviest())).add({**points([1.0]), name: torch.ones(1)})
    with pytest.raises(ValueError, match=r"Coreset needs features of a probe; pass add\(batch, probe="):
        Buffer(4, Coreset(selectors.Herding())).add(points([1.0]))


class Opposite:
    """No kernel: all its eigenvalues are negative."""

    def fit(self, x: torch.Tensor) -> "Opposite":
        return self

    def __call__(self, a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        return -(a @ (a if b is None else b).T)


def negative(vectors: selectors.Vectors) -> object:
    return lambda index: -vectors.gram_rows(index)


@pytest.mark.parametrize(
    ("selector", "spoil", "message"),
    [
        (selectors.KCenter("x"), torch.nan, r"KCenter: x of row \d holds NaN.*drop them \(class 1\)"),
        (
            selectors.GradMatch("x", lam=-1.0),
            None,
            r"GradMatch: .*lam and eps must be >= 0.*got lam=-1.0.*[^)] \(class 0\) \[",
        ),
        (selectors.LogDeterminant("x", negative), None, r"LogDeterminant: .*use another kernel \(class 0\)"),
        (selectors.Bilevel(Opposite()), None, r"Bilevel: .*add a multiple of the identity \(class 0\)"),
        (selectors.BCSR(needs=("x",)), None, r"BCSR: .*features.*give it when building the pool.*\(class 0\)"),
        (selectors.Rainbow(quantity="age"), torch.nan, r"the selector reads columns \['age'\]"),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "select") else "",
)
def test_an_error_names_selector_class_and_cure_and_leaves_the_memory(
    selector: selectors.Selector, spoil: float | None, message: str
) -> None:
    buffer = Buffer(4, Coreset(selectors.KCenter("x")))
    buffer.add(points([1.0, 2.0, 3.0, 4.0, 5.0], [0, 0, 1, 1, 1]))
    state = buffer.state_dict()
    offended = Buffer(4, Coreset(selector))
    offended.load_state_dict(state)
    bad = points([9.0, 8.0, 7.0], [0, 1, 1], start=5)
    if spoil is not None:
        bad["x"][2] = spoil
    with pytest.raises((ValueError, KeyError), match=message):
        offended.add(bad)
    assert same(offended.state_dict(), state)


def test_a_row_that_no_selection_could_look_at_is_not_stored() -> None:
    buffer = Buffer(4, policies.KCenter("x"))
    buffer.add(points([1.0]))
    state = buffer.state_dict()
    with pytest.raises(ValueError, match=r"KCenter: x of row 1 holds NaN or infinity \(1 of 2 rows\).*drop them"):
        buffer.add(points([2.0, torch.nan]))
    assert same(buffer.state_dict(), state)
    assert buffer.add(points([2.0, 3.0, 4.0, 5.0])) == 3


class Heads(torch.nn.Module):
    """A head of four outputs for task 0, and one of two for task 1."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleList([torch.nn.Linear(1, 4), torch.nn.Linear(1, 2)])

    def forward(self, x: torch.Tensor, task_labels: int) -> torch.Tensor:
        return self.heads[task_labels](x)


def test_classes_that_a_head_does_not_have_have_no_probability() -> None:
    torch.manual_seed(0)
    model, batch = Heads(), {**points([1.0, 2.0, 3.0, 4.0, 5.0]), "t": torch.tensor([1, 0, 0, 1, 1])}
    expected = [model(batch["x"][i : i + 1], int(batch["t"][i])).softmax(1)[0] for i in range(5)]
    logits = pool_of(batch, torch.ones(5), 0, Probe(model)).tensor("logits")
    for row, p in zip(logits.softmax(1), expected, strict=True):
        torch.testing.assert_close(row[: len(p)], p.detach())
        assert not row[len(p) :].any()
    for policy in (policies.Entropy, policies.Margin, policies.EL2N, policies.BADGE):
        assert Buffer(3, policy()).add(batch, Probe(model)) == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: Coreset(selectors.KCenter("x"), candidates=3),
        lambda: Coreset(selectors.Importance("x", rho=2.0), recent=1),
        lambda: policies.GreedyCoreset(slots=2),
        lambda: policies.GreedyCoreset(layout="tasks", kernel=selectors.Linear()),
        lambda: policies.GCR(candidates=3),
        lambda: policies.KCenter(candidates=3),
        policies.GSSGreedy,
        lambda: policies.GSSGreedy(gate="sample"),
    ],
)
def test_an_error_after_a_draw_leaves_the_generators(make: Callable[[], Policy]) -> None:
    """What a model answers cannot be looked at before something is drawn; a run that catches the error goes on."""

    def broken(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("diverged")

    model = torch.nn.Linear(1, 2)
    buffer = Buffer(4, make(), seed=0)
    buffer.add(points([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1]), Probe(model))
    state = buffer.state_dict()
    bad = points([9.0, 8.0, 7.0, torch.nan], [0, 1, 1, 1], start=5)
    with pytest.raises(ValueError, match="NaN|diverged|rho"):
        buffer.add(bad, Probe(model, prepare=broken if "x" not in getattr(buffer.policy, "prefers", ()) else None))
    assert same(buffer.state_dict(), state)
