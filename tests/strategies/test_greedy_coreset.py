"""The greedy coreset's training: its loss by hand, every step against a bare loop, the whole memory, new optimisers."""

import math
from typing import Any

import pytest
import torch
from small_streams import STREAMS, Labelled, minibatches, mlp, no_warnings, parameters, rows, template, unlabelled
from torch.nn import functional

from replaykit import Buffer, policies
from replaykit.avalanche import FreshOptimizer, Template
from replaykit.losses import TaskAware
from replaykit.strategies import GreedyCoreset
from replaykit.strategies.greedy_coreset import SlotMeans

LN2, LN4 = math.log(2), math.log(4)


def batch(**columns: Any) -> dict[str, torch.Tensor]:
    """Three rows whose x are their logits: cross-entropies ln 2, ln 4 and ln 2."""
    x = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [1.0, 1.0]])
    return {"x": x, "y": torch.tensor([0, 1, 1]), **columns}


def loss_of(given: dict[str, torch.Tensor], *arguments: Any, **options: Any) -> float:
    return SlotMeans(*arguments, **options)(lambda x: x, lambda: given).item()


def test_the_loss_by_hand() -> None:
    weight = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64)
    slots = torch.tensor([4, 4, 7])
    mean = pytest.approx
    assert loss_of(batch(), 10) == mean(10 * (LN2 + LN4 + LN2) / 3)
    assert loss_of(batch(weight=weight), 10) == mean(10 * (LN2 + 3 * LN4 + 5 * LN2) / 3)
    assert loss_of(batch(weight=weight, coreset_slot=slots), 10) == mean(10 * ((LN2 + 3 * LN4) / 2 + 5 * LN2))
    assert loss_of(batch(coreset_slot=slots), 10) == mean(10 * ((LN2 + LN4) / 2 + LN2))
    assert loss_of(batch(weight=weight, coreset_slot=slots), 10, None) == loss_of(batch(weight=weight), 10)
    assert loss_of(batch(other=slots), 1, "other") == mean((LN2 + LN4) / 2 + LN2)
    assert loss_of(batch(gamma=weight), 1, column="gamma") == loss_of(batch(weight=weight), 1)


def test_weights_count_with_their_size() -> None:
    weight = torch.tensor([1.0, 3.0, 5.0])
    assert loss_of(batch(weight=3 * weight), 2) == pytest.approx(3 * loss_of(batch(weight=weight), 2))


def test_without_beta_nothing_is_drawn_and_a_negative_one_is_refused() -> None:
    assert SlotMeans(0.0)(lambda x: x, lambda: pytest.fail("drawn")).item() == 0
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"beta is a coefficient >= 0, got {wrong}"):
            GreedyCoreset(buffer=Buffer(4, policies.Reservoir()), beta=wrong, **template())


def test_models_with_task_labels_are_given_them() -> None:
    model = TaskAware(lambda x, t: x * t[:, None])
    found = SlotMeans(1.0)(model, lambda: batch(t=torch.tensor([0, 0, 0]))).item()
    assert found == pytest.approx(LN2)


# -- every step -----------------------------------------------------------------------------------

MEMORIES = {
    "reservoir": policies.Reservoir,
    "balanced": policies.ClassBalancedReservoir,
    "one slot": policies.GreedyCoreset,
    "two slots": lambda: policies.GreedyCoreset(2),
    "tasks": lambda: policies.GreedyCoreset(layout="tasks"),
}


def bare_loss(model: Any, memory: dict[str, torch.Tensor], slotted: bool) -> torch.Tensor:
    """Row by row."""
    losses = [
        functional.cross_entropy(model(memory["x"][i : i + 1]), memory["y"][i : i + 1])
        for i in range(len(memory["y"]))
    ]
    if "weight" in memory:
        losses = [float(w) * loss for w, loss in zip(memory["weight"], losses, strict=True)]
    slots: dict[int, list[torch.Tensor]] = {}
    for i, loss in enumerate(losses):
        slots.setdefault(int(memory["coreset_slot"][i]) if slotted else 0, []).append(loss)
    return sum((sum(part) / len(part) for part in slots.values()), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("memory", ["reservoir", "balanced", "one slot", "two slots", "tasks"])
def test_every_step_is_the_bare_step(memory: str, fresh: bool) -> None:
    x, y = rows(64)
    data, epochs, beta, size = unlabelled(64, 4, data=Labelled(x.double(), y)), 3, 1.5, 8
    model = mlp().double()
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    buffer = Buffer(10, MEMORIES[memory](), seed=3)
    options = {**template(model, train_mb_size=size, train_epochs=epochs), "optimizer": adam}
    strategy = GreedyCoreset(buffer=buffer, beta=beta, fresh_optimizer=fresh, **options)
    with no_warnings():
        strategy.train(data.train_stream, eval_streams=[], shuffle=False)

    model, twin = mlp().double(), Buffer(10, MEMORIES[memory](), seed=3)
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    task: list[tuple[torch.Tensor, torch.Tensor]] = []
    for i, (x, y) in enumerate(minibatches(data, size, epochs)):
        first_epoch, last = i % 6 < 2, i % 6 == 5  # sixteen rows a task, two batches an epoch
        if i % 6 == 0 and fresh:
            adam = torch.optim.Adam(model.parameters(), lr=0.01)
        loss = functional.cross_entropy(model(x), y)
        if len(twin):
            held = twin.read(twin.store.filled)
            loss = loss + beta * bare_loss(model, held, "coreset_slot" in held)
        adam.zero_grad()
        loss.backward()
        adam.step()
        task = [*task, (x, y)] if first_epoch else task
        if last:
            twin.add({"x": torch.cat([x for x, _ in task]), "y": torch.cat([y for _, y in task])})
            task = []
    torch.testing.assert_close(parameters(strategy.model), parameters(model), atol=1e-10, rtol=0)
    for name in buffer.store.columns:
        assert torch.equal(buffer[name], twin[name]), name
    assert len(buffer) >= 8


def drawn(strategy: Any) -> list[torch.Tensor]:
    """The rows of each replayed batch from now on."""
    seen: list[torch.Tensor] = []
    loss = strategy.replay.loss

    class Watched:
        columns = loss.columns

        def __call__(self, model: Any, draw: Any) -> torch.Tensor:
            def watched() -> dict[str, torch.Tensor]:
                batch = draw()
                seen.append(batch["x"][:, 0].clone())
                return batch

            return loss(model, watched)

    strategy.replay.loss = Watched()
    return seen


def test_the_whole_memory_is_replayed_in_every_step_also_when_it_was_resized() -> None:
    data = unlabelled(80)
    strategy = GreedyCoreset(buffer=(buffer := Buffer(20, policies.Reservoir())), **template(train_epochs=2))
    strategy.train(data.train_stream[0], eval_streams=[])
    assert len(buffer) == 20
    for rows_held in (20, 13):
        if rows_held < 20:
            buffer.resize(rows_held)
        held, seen = buffer["x"][:, 0].sort().values, drawn(strategy)
        strategy.train(data.train_stream[1], eval_streams=[])
        assert len(seen) == 16 and all(torch.equal(part.sort().values, held) for part in seen)


def test_a_memory_batch_of_given_size() -> None:
    data = unlabelled(80)
    buffer = Buffer(20, policies.Reservoir())
    strategy = GreedyCoreset(buffer=buffer, batch_size_mem=3, **template())
    strategy.train(data.train_stream[0], eval_streams=[])
    seen = drawn(strategy)
    strategy.train(data.train_stream[1], eval_streams=[])
    assert [len(part) for part in seen] == [3] * 8


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_of_every_kind(kind: str) -> None:
    buffer = Buffer(9, policies.ClassBalancedReservoir())
    strategy = GreedyCoreset(buffer=buffer, **template())
    benchmark = STREAMS[kind]()
    strategy.train(benchmark.train_stream, eval_streams=[])
    assert len(buffer) == 9 and buffer.seen == 80


def test_a_fresh_optimiser_counts_its_steps_anew() -> None:
    data, steps = unlabelled(80), []
    for plugins in ([], [FreshOptimizer()]):
        model = mlp()
        adam = torch.optim.Adam(model.parameters(), lr=0.01)
        options = {**template(model, train_epochs=2), "optimizer": adam}
        strategy = Template(criterion=torch.nn.CrossEntropyLoss(), plugins=plugins, **options)
        for experience in data.train_stream:
            strategy.train(experience, eval_streams=[])
            steps.append({int(state["step"]) for state in adam.state.values()})
        assert adam.param_groups[0]["lr"] == 0.01 and len(adam.state) == 4
    assert steps == [{16}, {32}, {16}, {16}]
