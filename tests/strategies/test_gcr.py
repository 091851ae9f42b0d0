"""GCR: its loss by hand, its mixture by the formula, and every step against a bare loop."""

import copy
import inspect
import math
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import IncrementalClassifier
from reference import contrastive
from small_streams import (
    DIM,
    STREAMS,
    Labelled,
    minibatches,
    mlp,
    no_warnings,
    parameters,
    rows,
    template,
    unlabelled,
)
from torch import nn
from torch.nn import functional

from replaykit import Buffer, policies
from replaykit.augment import Views
from replaykit.gradients import cross_entropy, squared_error, weighted
from replaykit.losses import TaskAware
from replaykit.policies.joined import together
from replaykit.probe import Probe
from replaykit.strategies import GCR
from replaykit.strategies.gcr import GCRLoss
from replaykit.testing import same

LN2, LN4 = math.log(2), math.log(4)


def memory(policy: Any = None, capacity: int = 12) -> Buffer:
    return Buffer(capacity, policy or policies.GCR(), seed=3)


def loss_of(
    batch: dict[str, torch.Tensor], alpha: float = 0, beta: float = 0, gamma: float = 0, **options: Any
) -> float:
    loss = GCRLoss(alpha, beta, gamma, options.pop("temperature", 0.07), options.pop("embedding", "logits"))
    return loss(options.pop("model", lambda x: x), lambda: batch).item()


# -- the loss -------------------------------------------------------------------------------------


def hand() -> dict[str, torch.Tensor]:
    """Two rows whose x are their logits: cross-entropies ln 2 and ln 4, squared errors 1 and 4."""
    x = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], dtype=torch.float64)
    logits = x + torch.tensor([[1.0, -1.0], [2.0, 2.0]])
    return {"x": x, "y": torch.tensor([0, 1]), "logits": logits, "weight": torch.tensor([1.0, 3.0])}


def test_the_loss_by_hand() -> None:
    assert loss_of(hand(), beta=0.5) == pytest.approx(0.5 * (LN2 + 3 * LN4) / 4, rel=1e-12)
    # The error is the mean over the logits, and computed in single precision.
    assert loss_of(hand(), alpha=0.2) == pytest.approx(0.2 * (1 + 3 * 4) / 4, rel=1e-6)
    both = 0.2 * 13 / 4 + 0.5 * (LN2 + 3 * LN4) / 4
    assert loss_of(hand(), alpha=0.2, beta=0.5) == pytest.approx(both, rel=1e-6)


def test_units_that_were_switched_off_are_no_targets() -> None:
    """`IncrementalClassifier` answers -1000 for classes to come, whose units are switched on later."""
    batch = hand()
    masked = {**batch, "logits": batch["logits"].index_fill(1, torch.tensor([1]), -1000.0)}
    assert loss_of(masked, alpha=0.2) == pytest.approx(0.2 * (1 + 3 * 4) / 4, rel=1e-6)


@pytest.mark.parametrize("scale", [3.0, 1e-6, 1e6])
def test_only_the_ratios_of_weights_matter(scale: float) -> None:
    terms = {"alpha": 0.2, "beta": 0.5, "gamma": 0.3, "temperature": 0.5}
    batch = {name: torch.cat([column, column + 1 if name == "x" else column]) for name, column in hand().items()}
    batch["x2"] = batch["x"] + 0.3
    scaled = {**batch, "weight": scale * batch["weight"]}
    assert loss_of(scaled, **terms) == pytest.approx(loss_of(batch, **terms), rel=1e-6)


@pytest.mark.parametrize("n", [2, 4, 7])
def test_identical_rows_of_one_class_in_two_views(n: int) -> None:
    batch = {"x": torch.ones(n, 3), "x2": torch.ones(n, 3), "y": torch.ones(n, dtype=torch.int64)}
    batch["weight"] = torch.linspace(0.1, 9, n)
    expected = 2.0 * math.log(2 * n - 1)
    assert loss_of(batch, gamma=2.0) == pytest.approx(expected, rel=1e-5)
    assert loss_of(batch, gamma=2.0, temperature=5.0) == pytest.approx(expected, rel=1e-5)


def test_the_contrast_is_of_two_views_with_the_weights_of_their_rows() -> None:
    g = torch.Generator().manual_seed(0)
    batch = {"x": torch.randn(4, 3, generator=g), "x2": torch.randn(4, 3, generator=g)}
    batch |= {"y": torch.tensor([0, 1, 0, 2]), "weight": torch.tensor([1.0, 2.0, 0.0, 5.0])}
    z = torch.cat([batch["x"], batch["x2"]]).tolist()
    each = contrastive.supervised_contrastive(z, batch["y"].tolist() * 2, 0.3)
    weight = batch["weight"].tolist() * 2
    expected = sum(w * value for w, value in zip(weight, each, strict=True)) / sum(weight)
    assert loss_of(batch, gamma=1.0, temperature=0.3) == pytest.approx(expected, rel=1e-5)


def test_what_is_contrasted_are_the_outputs_or_the_features() -> None:
    model, g = mlp(), torch.Generator().manual_seed(0)
    batch = {"x": torch.randn(4, DIM, generator=g), "x2": torch.randn(4, DIM, generator=g)}
    batch |= {"y": torch.tensor([0, 1, 0, 1]), "weight": torch.ones(4)}
    for embedding, network in (("logits", model), ("features", model[:2])):
        z = network(torch.cat([batch["x"], batch["x2"]])).tolist()
        each = contrastive.supervised_contrastive(z, batch["y"].tolist() * 2, 0.07)
        found = loss_of(batch, gamma=1.0, embedding=embedding, model=model)
        assert found == pytest.approx(sum(each) / 8, rel=1e-4)


def test_units_that_were_switched_off_are_not_contrasted() -> None:
    x, x2 = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    batch = {"y": torch.tensor([0, 1, 0, 1]), "weight": torch.ones(4)}
    found = []
    for off in (0.0, -1000.0):  # the model of `loss_of` answers with its inputs
        seen, again = (functional.pad(view, (0, 2), value=off) for view in (x, x2))
        found.append(loss_of({**batch, "x": seen, "x2": again}, gamma=1.0))
    assert found[1] == found[0]


def test_a_term_without_coefficient_draws_nothing() -> None:
    drawn: list[int] = []

    def draw() -> dict[str, torch.Tensor]:
        drawn.append(1)
        return {**hand(), "x2": hand()["x"]}

    for terms, draws in (((0, 0, 0), 0), ((1, 0, 0), 1), ((0, 1, 0), 1), ((0, 0, 1), 1), ((1, 1, 1), 3)):
        drawn.clear()
        GCRLoss(*terms, 0.07, "logits")(lambda x: x, draw)
        assert len(drawn) == draws


def test_models_with_task_labels_are_given_those_of_both_views() -> None:
    asked: list[int] = []
    model = TaskAware(lambda x, t: asked.extend(t.tolist()) or x)
    batch = {**hand(), "t": torch.tensor([5, 6])}
    GCRLoss(1, 1, 1, 0.07, "logits")(model, lambda: {**batch, "x2": batch["x"]})
    assert asked == [5, 6] * 4


def test_rows_are_selected_by_the_loss_that_is_replayed() -> None:
    z, batch = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]), hand()
    loss = GCRLoss(0.2, 0.5, 0.0, 0.07, "logits")
    torch.testing.assert_close(loss.of_rows(z, batch), torch.tensor([0.2 + 0.5 * LN2, 0.2 * 4 + 0.5 * LN4]))
    without = {name: column for name, column in batch.items() if name != "logits"}
    torch.testing.assert_close(loss.of_rows(z, without), torch.tensor([LN2, LN4]))


# -- the mixture ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "pool", "experiences", "past", "now", "expected"),
    [
        (9, 6, 0, 0, 50, 6),  # the first experience: all that is there
        (9, 30, 0, 0, 50, 9),
        (9, 30, 1, 100, 50, 3),  # 9 · 50 / 150
        (9, 2, 1, 100, 50, 2),  # so many are held
        (9, 30, 1, 10, 90, 5),  # 10 / 2 of the capacity
        (9, 30, 2, 10, 90, 4),  # ⌈10 / 3⌉
        (9, 30, 20, 10, 90, 1),
        (9, 30, 1, 100, 0, 0),  # nothing has come yet
    ],
)
def test_how_many_rows_come_from_the_reservoir(
    n: int, pool: int, experiences: int, past: int, now: int, expected: int
) -> None:
    buffer = memory(policies.Reservoir(), 10)
    buffer.add({"x": torch.zeros(10, DIM), "y": torch.zeros(10, dtype=torch.int64)})
    replay = GCR(buffer=buffer, reservoir_size=40, **template()).replay
    replay.pool.add({"x": torch.zeros(pool, DIM), "y": torch.zeros(pool, dtype=torch.int64)})
    replay.experiences, replay.past, replay.now = experiences, past, now
    assert replay.share(n) == expected


def test_a_mixture_has_the_columns_of_both_and_fills_up_narrow_logits() -> None:
    one = {"x": torch.zeros(2, 3), "y": torch.zeros(2), "logits": torch.ones(2, 2), "rank": torch.zeros(2)}
    other = {"x": torch.ones(1, 3), "y": torch.ones(1), "logits": torch.full((1, 4), 2.0)}
    both = together([one, other], {"logits"})
    assert set(both) == {"x", "y", "logits", "logits_width"} and both["x"].shape == (3, 3)
    assert both["logits"].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [2, 2, 2, 2]]
    assert both["logits_width"].tolist() == [2, 2, 4]
    plain = {name: column for name, column in one.items() if name != "logits"}
    assert together([plain, other], {"logits"})["logits_width"].tolist() == [0, 0, 4]
    assert set(together([one, one], {"logits"})) == set(one)


# -- every step -----------------------------------------------------------------------------------


def literal_weights(held: dict[str, torch.Tensor], fresh: int) -> torch.Tensor:
    """Those of the coreset divided by their mean, ones for the reservoir; then all by their sum."""
    old = held.get("weight", torch.ones(len(held["y"]))).double() if held else torch.empty(0)
    together = torch.cat([old / old.mean(), torch.ones(fresh, dtype=torch.float64)])
    return together / together.sum()


@pytest.mark.parametrize("correct_only", [False, True])
@pytest.mark.parametrize("policy", [policies.GCR, policies.Reservoir, lambda: policies.GCR(layout="per_task")])
def test_every_step_is_the_bare_step(policy: Any, correct_only: bool) -> None:
    x, y = rows(60)
    data, epochs, alpha, beta, n = unlabelled(60, data=Labelled(x.double(), y)), 2, 0.3, 0.6, 7
    model = mlp().double()
    options = {"alpha": alpha, "beta": beta, "batch_size_mem": n, "reservoir_size": 9, "seed": 5}
    strategy = GCR(
        buffer=memory(policy()), correct_only=correct_only, **options, **template(model, train_epochs=epochs)
    )
    strategy.train(data.train_stream, eval_streams=[], shuffle=False)

    model, twin, pool = mlp().double(), memory(policy()), Buffer(9, policies.Reservoir(), seed=5)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    selecting = weighted((alpha, squared_error()), (beta, cross_entropy()))

    def draw(finished: int, now: int) -> tuple[Any, ...]:
        fresh = min(n, len(pool))
        if finished:
            fresh = min(fresh, math.ceil(12 / (finished + 1)), int(n * now / (60 * finished + now)))
        held = twin.read(twin.draw(n - fresh)) if finished and fresh < n else {}
        parts = [*([held] if held else []), *([pool.read(pool.draw(fresh))] if fresh else [])]
        columns = (torch.cat([part[name] for part in parts]) for name in ("x", "y", "logits"))
        return *columns, literal_weights(held, fresh)

    for i, (x, y) in enumerate(minibatches(data, 5, epochs)):  # two tasks of six batches, twice
        finished, turn = divmod(i, 12)
        z = model(x)
        loss = functional.cross_entropy(z, y)
        if len(twin) or len(pool):
            mx, _, stored, w = draw(finished, 5 * turn)
            loss = loss + alpha * (w * (model(mx) - stored).square().mean(1)).sum()
            mx, my, _, w = draw(finished, 5 * turn)
            loss = loss + beta * (w * functional.cross_entropy(model(mx), my, reduction="none")).sum()
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        right = z.argmax(1) == y if correct_only else torch.ones(5, dtype=torch.bool)
        pool.add({"x": x[right], "y": y[right], "logits": z.detach()[right]})
        if turn == 11:
            twin.add(pool.read(pool.store.filled), Probe(model, layers="last", loss=selecting))
            pool.clear()
    torch.testing.assert_close(parameters(strategy.model), parameters(model), atol=1e-5, rtol=0)
    for name in ("x", "y"):
        assert torch.equal(strategy.replay.buffer[name], twin[name])
    torch.testing.assert_close(strategy.replay.buffer["logits"], twin["logits"], atol=1e-5, rtol=0)
    assert len(strategy.replay.pool) == 0 and strategy.replay.past == 120 and strategy.replay.now == 0


def test_multiplying_all_stored_weights_by_three_changes_no_loss() -> None:
    data, losses = unlabelled(), []
    strategy = GCR(buffer=memory(), **template())
    strategy.train(data.train_stream[0], eval_streams=[])
    other = copy.deepcopy(strategy)
    store = other.replay.buffer.store
    assert other.replay.buffer["weight"].unique().numel() > 1
    store.revise(store.filled, {"weight": 3 * other.replay.buffer["weight"]})
    for made in (strategy, other):
        torch.manual_seed(0)
        made.train(data.train_stream[1], eval_streams=[])
        losses.append(parameters(made.model))
    torch.testing.assert_close(*losses)


def test_the_memory_is_offered_the_reservoir_after_the_experience() -> None:
    lengths: list[tuple[int, int]] = []

    class Watch(SupervisedPlugin):
        def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
            lengths.append((len(strategy.replay.buffer), len(strategy.replay.pool)))

    strategy = GCR(buffer=memory(), reservoir_size=20, plugins=[Watch()], **template(lr=0.0))
    strategy.train(unlabelled().train_stream, eval_streams=[])
    assert lengths[:8] == [(0, 5), (0, 10), (0, 15), *[(0, 20)] * 5] and lengths[8:] == [
        (12, n) for _, n in lengths[:8]
    ]
    buffer = strategy.replay.buffer
    assert buffer.seen == 40 and sorted(buffer["y"].unique().tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(buffer["logits"], strategy.model(buffer["x"]).detach())


def test_two_views_of_replayed_rows_are_drawn_apart_and_rows_are_stored_raw() -> None:
    given: list[dict[str, torch.Tensor]] = []

    class Watched(GCRLoss):
        def __call__(self, model: Any, draw: Any) -> torch.Tensor:
            return super().__call__(model, lambda: given.append(draw()) or given[-1])

    views = Views(lambda x: x + torch.randn_like(x), lambda x: x)
    strategy = GCR(buffer=memory(), gamma=0.1, views=views, **template())
    strategy.replay.loss = Watched(0.1, 0.5, 0.1, 0.07, "logits")
    strategy.train(unlabelled().train_stream, eval_streams=[])
    assert given and all(not torch.allclose(batch["x"], batch["x2"]) for batch in given)
    assert torch.isin(strategy.replay.buffer["x"][:, 1], rows(80)[0][:, 1]).all()


@pytest.mark.parametrize(
    "policy", [policies.LARS, policies.KMeans, policies.ICaRLHerding, policies.ClassBalancedReservoir]
)
def test_any_memory_will_do(policy: Any) -> None:
    strategy = GCR(buffer=memory(policy()), gamma=0.1, **template())
    strategy.train(unlabelled().train_stream, eval_streams=[])
    assert 8 <= len(strategy.replay.buffer) <= 12 and parameters(strategy.model).isfinite().all()


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_of_every_kind_train_without_a_warning(kind: str) -> None:
    with no_warnings():
        strategy = GCR(buffer=memory(), gamma=0.1, **template())
        strategy.train(STREAMS[kind]().train_stream, eval_streams=[])
    assert len(strategy.replay.buffer) == 12


def test_heads_may_grow() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(DIM, 8), nn.ReLU(), IncrementalClassifier(8, 2))
    strategy = GCR(buffer=memory(policies.Reservoir()), **template(model))
    strategy.train(unlabelled().train_stream, eval_streams=[])
    assert model[2].classifier.out_features == 4 and parameters(model).isfinite().all()


# -- its state ------------------------------------------------------------------------------------


def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    data = unlabelled()
    whole, first = (GCR(buffer=memory(), gamma=0.1, **template()) for _ in range(2))
    whole.train(data.train_stream, eval_streams=[], shuffle=False)
    first.train(data.train_stream[0], eval_streams=[], shuffle=False)
    second = GCR(buffer=memory(), gamma=0.1, **template(mlp(seed=9)))
    second.model.load_state_dict(first.model.state_dict())
    second.replay.buffer.load_state_dict(first.replay.buffer.state_dict())
    second.load_state_dict(first.state_dict())
    second.train(data.train_stream[1], eval_streams=[], shuffle=False)
    assert torch.equal(parameters(second.model), parameters(whole.model))
    assert same(second.state_dict(), whole.state_dict())
    assert same(second.replay.buffer.state_dict(), whole.replay.buffer.state_dict())
    kept = second.state_dict()
    for bad in ({}, {**kept, "now": -1}, {**kept, "past": 0.5}, {"pool": kept["pool"], "batches": 1}):
        with pytest.raises(ValueError, match="not the state of CoresetReplay: it has"):
            second.load_state_dict(bad)
    assert same(second.state_dict(), kept)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha is a coefficient, a finite number >= 0, got -1.0"),
        ({"beta": math.nan}, "beta is a coefficient, a finite number >= 0, got nan"),
        ({"gamma": math.inf}, "gamma is a coefficient, a finite number >= 0, got inf"),
        ({"temperature": 0.0}, "temperature is a positive number, got 0.0"),
        ({"embedding": "outputs"}, "embedding is 'logits' or 'features', got 'outputs'"),
        ({"batch_size_mem": 0}, "batch_size_mem is a number of rows >= 1, got 0"),
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GCR(buffer=memory(), **options, **template())


def test_every_argument_is_documented() -> None:
    documented = (inspect.getdoc(GCR) or "").split("Args:")[1].split("Published")[0]
    assert all(name in documented for name in inspect.signature(GCR.__init__).parameters if name != "self")
