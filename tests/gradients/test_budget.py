"""The budget: chunked equals whole, peaks stay within it, too little is refused with what is needed."""

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import small_networks as nets
from torch import Tensor, nn
from torch.profiler import profile

from replaykit.gradients import PerSampleGradients, last_layer_gradients, per_sample_gradients
from replaykit.gradients.budget import Budget


def smallest(ask: Callable[[int], Tensor]) -> Tensor:
    """The answer within the budget that the errors say is needed."""
    budget = 10
    for _ in range(9):
        try:
            return ask(budget)
        except ValueError as error:
            found = re.search(r"a budget of .* is too small: .* at least ([\d,]+) bytes", str(error))
            assert found, error
            assert int(found[1].replace(",", "")) > budget
            budget = int(found[1].replace(",", ""))
    raise AssertionError("the budget that is asked for does not suffice")


@pytest.mark.parametrize("route", ["auto", "func", "loop"])
@pytest.mark.parametrize("build", [nets.mlp, nets.convnet, nets.Transformer])
def test_chunked_equals_whole(build: Callable[[], nn.Module], route: str) -> None:
    torch.manual_seed(0)
    model = build().double()
    batch = {nets.mlp: nets.rows(9, 12), nets.convnet: nets.rows(9, 3, 8, 8)}.get(build) or nets.tokens(9)
    whole = per_sample_gradients(model, batch, route=route)
    direction = torch.randn(whole.p, dtype=torch.float64)
    weights = torch.randn(9, dtype=torch.float64)
    cuts = set()
    for question in (
        lambda g: g.norms(), lambda g: g.gram(), lambda g: g.inner(whole), lambda g: whole.inner(g).T,
        lambda g: g.inner(direction), lambda g: g.inner([direction, direction]), lambda g: g.mean(),
        lambda g: g.weighted_sum(weights), lambda g: g.explicit(), lambda g: g.project(4, 1),
        lambda g: g.project(4, 1, "count"), lambda g: g.rows([5, 8, 1]).gram(),
    ):  # fmt: skip

        def ask(budget: int, question: Callable[[PerSampleGradients], Tensor] = question) -> Tensor:
            found = per_sample_gradients(model, batch, route=route, budget=budget)
            answer = question(found)
            cuts.add(len(found._chunks()))
            return answer

        torch.testing.assert_close(smallest(ask), question(whole), rtol=1e-9, atol=1e-10)
    assert max(cuts) == 9 and len(whole._chunks()) == 1


def test_rows_of_different_groups_never_meet() -> None:
    torch.manual_seed(0)
    model, batch = nets.mlp().double(), nets.rows(9, 12)
    groups = torch.tensor([2, 0, 2, 1, 1, 0, 2, 2, 0])
    seen = []

    def inputs(rows: dict[str, Tensor]) -> Tensor:
        seen.append(rows["group"].unique().numel())
        return rows["x"]

    marked = {**batch, "group": groups}
    for make in (per_sample_gradients, last_layer_gradients):
        found, whole = make(model, marked, inputs=inputs, groups=groups), make(model, batch)
        torch.testing.assert_close(found.gram(), whole.gram())
        torch.testing.assert_close(found.explicit(), whole.explicit())
        torch.testing.assert_close(found.rows([8, 0, 3]).explicit(), whole.explicit()[[8, 0, 3]])
        torch.testing.assert_close(found.weighted_sum(groups.double()), whole.weighted_sum(groups.double()))
    assert set(seen) == {1}
    with pytest.raises(ValueError, match=r"one number a row, shape \[9\], got \[3\]"):
        per_sample_gradients(model, batch, groups=groups[:3]).norms()


def peak(run: Callable[[], Tensor]) -> int:
    """Most bytes that tensors made by `run` occupied at one time."""
    with profile(profile_memory=True) as recorded:
        answer = run()
    held = most = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert most >= answer.nbytes  # the recording works
    return most


QUESTIONS = {
    "norms": lambda g: g.norms(), "gram": lambda g: g.gram(), "mean": lambda g: g.mean(),
    "project": lambda g: g.project(8, 0, "count"), "directions": lambda g: g.inner(torch.ones(2, g.p)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "question"),
    [
        *(("mlp", "norms"), ("mlp", "gram"), ("convnet", "gram"), ("convnet", "mean")),
        *(("convnet", "directions"), ("formed", "gram"), ("formed", "project")),
    ],
)
def test_peak_memory_stays_within_the_budget(kind: str, question: str) -> None:
    torch.manual_seed(0)
    if kind == "mlp":
        model: nn.Module = nn.Sequential(nn.Linear(100, 60), nn.ReLU(), nn.Linear(60, 10))
        n, budget, batch = 300, 300_000, {"x": torch.randn(300, 100)}
    elif kind == "convnet":
        model = nets.slim_resnet18(4)
        n, budget, batch = 20, 3_000_000, {"x": torch.randn(20, 3, 16, 16)}
    else:
        model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10))
        n, budget, batch = 60, 300_000, {"x": torch.randn(60, 40)}
    batch["y"] = torch.randint(5, (n,))
    route, p, chunks = ("func" if kind == "formed" else "auto"), sum(v.numel() for v in model.parameters()), []

    def ask() -> Tensor:
        found = per_sample_gradients(model, batch, route=route, budget=budget)
        answer = QUESTIONS[question](found)
        chunks.append(len(found._chunks()))
        return answer

    ask()  # the check of a new model keeps its graph, once
    results, vectors = 4 * n * n, 4 * 6 * p
    assert peak(ask) <= budget + results + vectors
    assert chunks[0] > 1


def test_the_last_layer_keeps_to_a_budget_too() -> None:
    torch.manual_seed(0)
    model, batch = nets.convnet().double(), nets.rows(5, 3, 8, 8)
    expected = last_layer_gradients(model, batch).gram()
    torch.testing.assert_close(smallest(lambda b: last_layer_gradients(model, batch, budget=b).gram()), expected)
    with pytest.raises(ValueError, match="number of bytes"):
        last_layer_gradients(model, batch, budget=0)


@given(*[st.integers(1, 40)] * 2, *[st.integers(0, 50)] * 2, st.integers(1, 30), st.integers(1, 20_000))
@settings(derandomize=True)
def test_tiles_cover_the_product_and_fit(n: int, m: int, left: int, right: int, pair: int, room: int) -> None:
    budget = Budget(4 * room)
    try:
        rows, columns = budget.tiles(n, m, left, right, pair)
    except ValueError:
        assert max(4 * left, 4 * right, 2 * pair) > budget.product
        return
    assert [i for s in rows for i in range(s.start, s.stop)] == list(range(n))
    assert [i for s in columns for i in range(s.start, s.stop)] == list(range(m))
    r, s = rows[0].stop, columns[0].stop
    assert r * left + s * right + r * s * pair <= budget.product
