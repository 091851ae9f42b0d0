"""MER against the authors' loops, its closed forms, and what plugins see of it."""

from typing import Any

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin
from reference import mer as reference
from scipy import stats
from small_streams import (
    CLASSES,
    DIM,
    Labelled,
    Silent,
    Told,
    as_classification_dataset,
    benchmark_from_datasets,
    classic,
    minibatches,
    mlp,
    no_warnings,
    parameters,
    rows,
    template,
    unlabelled,
)
from torch import nn

from replaykit import Buffer, policies
from replaykit.augment import Views
from replaykit.retrieval import MIR, Uniform
from replaykit.strategies import MER
from replaykit.testing import reloaded, same


class FixedBatchNorm(nn.BatchNorm1d):
    """BatchNorm that stays in evaluation mode."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)


def with_batchnorm(norm: type = nn.BatchNorm1d, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    body = [nn.Unflatten(1, (1, DIM)), nn.Conv1d(1, 4, 3), norm(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(16, CLASSES))


NETWORKS = {
    "mlp": mlp,
    "batchnorm": with_batchnorm,
    "batchnorm in evaluation": lambda: with_batchnorm(FixedBatchNorm),
}
SETTINGS: dict[int, dict[str, Any]] = {
    1: {"steps": 3, "beta": 0.3, "gamma": 0.6},
    6: {"steps": 2, "gamma": 0.4},
    7: {"gamma": 0.4, "cur_scale": 3.0},
}


def memory(capacity: int = 7, **options: Any) -> Buffer:
    return Buffer(capacity, policies.Reservoir(**options), seed=3)


def state(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


def stream(x: torch.Tensor, y: torch.Tensor) -> Any:
    return benchmark_from_datasets(train=[as_classification_dataset(Labelled(x, y))]).train_stream


def trained(algorithm: int, model: nn.Module | None = None, n: int = 24, k: int = 4, **options: Any) -> MER:
    """A strategy after n rows in their order."""
    keys = ("train_mb_size", "criterion", "train_epochs", "evaluator")
    arguments = template(
        model, options.pop("lr", 0.1), **{key: options.pop(key) for key in keys if key in options}
    )
    options = {"buffer": memory(), "batch_size_mem": k, **SETTINGS[algorithm], **options}
    strategy = MER(algorithm=algorithm, **options, **arguments)
    strategy.train(unlabelled(n).train_stream, eval_streams=[], shuffle=False)
    return strategy


class Seen:
    """Every input that the model was shown, in order."""

    def __init__(self, model: nn.Module) -> None:
        self.rows: list[torch.Tensor] = []
        self.handle = model.register_forward_pre_hook(lambda _, args: self.rows.append(args[0].clone()))


# -- against the loops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("compat", [None, "mer"])
@pytest.mark.parametrize("algorithm", SETTINGS)
def test_the_literal_loops(algorithm: int, compat: Any, network: str) -> None:
    settings, k = SETTINGS[algorithm], 4
    strategy = trained(algorithm, NETWORKS[network](), k=k, buffer=memory(compat=compat))

    model, twin = NETWORKS[network](), memory(compat=compat)
    model.train()
    sgd, criterion = torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()

    def draw() -> list[reference.Row]:
        if not len(twin):
            return []
        batch = twin.sample(min(k, len(twin)), Uniform(replace=True))
        return list(zip(batch["x"].split(1), batch["y"].split(1), strict=True))

    loop = getattr(reference, f"algorithm_{algorithm}")
    extra = {"permutation": lambda n: twin.draws.permutation(n)} if algorithm == 7 else {}
    for number, (x, y) in enumerate(minibatches(unlabelled(24), 1)):
        if not (algorithm == 7 and number == 0):
            loop(model, sgd, criterion, (x, y), draw, **settings, **extra)
        twin.add({"x": x, "y": y})
    torch.testing.assert_close(state(strategy.model), state(model), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(state(model), state(NETWORKS[network]()), atol=1e-2)
    for name in ("x", "y"):
        assert torch.equal(strategy.replay.buffer[name], twin[name])
    assert strategy.replay.buffer.seen == strategy.examples == 24


# -- closed forms -----------------------------------------------------------------------------------------


def one_number(**options: Any) -> tuple[nn.Module, MER]:
    """ℓ = ½ (θ − 1)², θ = 0, α = 0.1."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    arguments = template(model, 0.1, criterion=lambda out, y: 0.5 * (out - 1).square().sum())
    return model, MER(buffer=memory(), **options, **arguments)


def test_the_scalar_path() -> None:
    model, strategy = one_number(algorithm=1, steps=2, beta=0.5, gamma=0.5)
    path: list[float] = []
    inner = strategy._move

    def move(start: Any, rate: float) -> None:
        path.append(model.weight.item())
        inner(start, rate)
        path.append(model.weight.item())

    strategy._move = move
    strategy.train(stream(torch.ones(1, 1), torch.zeros(1, dtype=torch.long)), eval_streams=[])
    assert path == pytest.approx([0.1, 0.05, 0.145, 0.0975, 0.0975, 0.04875], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "factor"),
    [({"algorithm": 1, "steps": 1, "beta": 0.3, "gamma": 0.6}, 0.18), ({"algorithm": 6, "gamma": 0.6}, 0.6)],
)
def test_an_empty_memory(options: dict, factor: float) -> None:
    x, y = rows(1)
    model = mlp()
    gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    expected = parameters(model) - factor * 0.1 * torch.cat([g.flatten() for g in gradients])
    strategy = MER(buffer=memory(), **options, **template(model))
    strategy.train(stream(x, y), eval_streams=[])
    torch.testing.assert_close(parameters(model), expected)


@pytest.mark.parametrize(
    ("algorithm", "rates"),
    [(1, {"beta": 1.0, "gamma": 1.0}), (6, {"gamma": 1.0}), (7, {"gamma": 1.0, "cur_scale": 1.0})],
)
def test_without_interpolation_it_is_sgd_over_the_rows_it_saw(algorithm: int, rates: dict) -> None:
    model, twin = mlp(), mlp()
    seen = Seen(model)
    trained(algorithm, model, **rates)
    label = {float(x[0]): y for x, y in zip(*rows(24), strict=True)}
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1)
    steps = {1: 3, 6: 2, 7: 1}[algorithm] * sum(1 + min(4, i) for i in range(algorithm == 7, 24))
    assert len(seen.rows) == steps or algorithm == 7  # which looks at its first row without a step
    for x in seen.rows[-steps:]:
        reference.step(twin, sgd, nn.CrossEntropyLoss(), (x, label[float(x[0, 0])][None]))
    torch.testing.assert_close(parameters(model), parameters(twin), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("algorithm", "rate"), [(1, "beta"), (1, "gamma"), (6, "gamma"), (7, "gamma")])
def test_a_rate_of_0_never_moves_the_model(algorithm: int, rate: str) -> None:
    strategy = trained(algorithm, with_batchnorm(), **{rate: 0.0})
    untouched, model = with_batchnorm(), strategy.model
    steps = model[2].num_batches_tracked
    assert steps > 24 and len(strategy.replay.buffer) == 7
    model[2].num_batches_tracked.zero_()
    assert torch.equal(state(model), state(untouched))


def test_two_steps_on_quadratics_have_the_second_order_term() -> None:
    """θ₂ − θ₀ = −α (g_i + g_j) + α² H_j g_i: the stored row i, then the current row j."""
    x, y = torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([0, 0])
    model = nn.Linear(2, 1, bias=False)
    arguments = template(model, 0.05, criterion=lambda out, y: 0.5 * (out - 1).square().sum())
    strategy = MER(buffer=memory(), algorithm=6, gamma=1.0, **arguments)
    strategy.train(stream(x[:1], y[:1]), eval_streams=[])
    theta = model.weight.detach()[0].clone()
    g_i, g_j = ((x_ @ theta - 1) * x_ for x_ in x)
    hessian = torch.outer(x[1], x[1])
    strategy.train(stream(x[1:], y[1:]), eval_streams=[])
    expected = theta - 0.05 * (g_i + g_j) + 0.05**2 * hessian @ g_i
    torch.testing.assert_close(model.weight.detach()[0], expected)


# -- which rows, in which order ---------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "steps"), [(1, 3), (6, 2)])
def test_the_place_of_the_current_row(algorithm: int, steps: int) -> None:
    model = mlp()
    seen = Seen(model)
    buffer = memory(100)
    trained(algorithm, model, n=12, k=4, buffer=buffer, steps=steps)
    order = [round(float(x[0, 0]) * 12) for x in seen.rows]
    stream_order = [round(float(x[0, 0]) * 12) for x, _ in minibatches(unlabelled(12), 1)]
    repeats = 0
    for number, current in enumerate(stream_order):
        for _ in range(steps):
            batch = [order.pop(0) for _ in range(1 + min(4, number))]
            drawn = batch[1:] if algorithm == 1 else batch[:-1]
            assert batch[0 if algorithm == 1 else -1] == current
            assert set(drawn) <= set(stream_order[:number])
            repeats += len(drawn) - len(set(drawn))
    assert not order and repeats > 0  # independent draws repeat rows


def test_the_current_row_of_algorithm_7_is_anywhere_alike() -> None:
    places = []
    for seed in range(20):
        model = mlp()
        seen = Seen(model)
        buffer = Buffer(50, policies.Reservoir(), seed=seed)
        trained(7, model, n=12, k=3, buffer=buffer)
        steps = sum(1 + min(3, i) for i in range(1, 12))  # the first row has none, but is looked at
        order = [round(float(x[0, 0]) * 12) for x in seen.rows[-steps:]]
        stream_order = [round(float(x[0, 0]) * 12) for x, _ in minibatches(unlabelled(12), 1)]
        for number, current in enumerate(stream_order[1:], 1):
            batch = [order.pop(0) for _ in range(1 + min(3, number))]
            assert batch.count(current) == 1
            if number >= 3:
                places.append(batch.index(current))
        assert not order
    assert stats.chisquare(np.bincount(places, minlength=4)).pvalue > 1e-3


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_mini_batches_only_say_how_many_rows_come_at_once(algorithm: int) -> None:
    """Each row is offered to the memory before the next one is trained on."""
    ways = [trained(algorithm, train_mb_size=size) for size in (1, 5, 24)]
    for way in ways[1:]:
        torch.testing.assert_close(parameters(way.model), parameters(ways[0].model), rtol=1e-4, atol=1e-5)
        assert torch.equal(way.replay.buffer["x"], ways[0].replay.buffer["x"])


def test_the_first_row_of_algorithm_7_is_only_stored() -> None:
    x, y = rows(1)
    model = with_batchnorm()
    strategy = MER(algorithm=7, buffer=memory(), **template(model))
    strategy.train(stream(x, y), eval_streams=[])
    assert torch.equal(state(model), state(with_batchnorm()))
    assert strategy.replay.buffer.seen == 1 and torch.equal(strategy.replay.buffer["x"], x)
    strategy.train(stream(x, y), eval_streams=[])
    assert not torch.equal(state(model), state(with_batchnorm())) and model[2].num_batches_tracked == 2


def test_a_resumed_run_of_algorithm_7_trains_on_its_first_row() -> None:
    x, y = rows(1)
    strategy = MER(algorithm=7, buffer=memory(), **template())
    strategy.load_state_dict({"examples": 5})
    before = parameters(strategy.model)
    strategy.train(stream(x, y), eval_streams=[])
    assert strategy.state_dict()["examples"] == 6 and not torch.equal(before, parameters(strategy.model))
    for wrong in ({}, {"examples": -1}, {"examples": 2, "other": 1}):
        with pytest.raises(ValueError, match="state"):
            strategy.load_state_dict(wrong)
    assert strategy.examples == 6


@pytest.mark.parametrize("after", [0, 11])
@pytest.mark.parametrize("algorithm", SETTINGS)
def test_a_run_that_is_cut_goes_on_to_the_same_bits(algorithm: int, after: int) -> None:
    x, y = rows(24)

    def strategy() -> MER:
        model = with_batchnorm()
        return MER(algorithm=algorithm, buffer=memory(), **SETTINGS[algorithm], **template(model))

    def go(made: MER, chosen: slice) -> None:
        made.train(stream(x[chosen], y[chosen]), eval_streams=[], shuffle=False)

    whole, second = strategy(), strategy()
    if after:
        go(whole, slice(0, after))
    saved = reloaded(
        {
            "model": dict(whole.model.state_dict()),
            "buffer": whole.replay.buffer.state_dict(),
            "own": whole.state_dict(),
        }
    )
    go(whole, slice(after, 24))
    second.model.load_state_dict(saved["model"])
    second.replay.buffer.load_state_dict(saved["buffer"])
    second.load_state_dict(saved["own"])
    go(second, slice(after, 24))
    assert same(dict(whole.model.state_dict()), dict(second.model.state_dict()))
    assert same(whole.replay.buffer.state_dict(), second.replay.buffer.state_dict())
    assert whole.state_dict() == second.state_dict() == {"examples": 24}


# -- around it --------------------------------------------------------------------------------------------


def test_frozen_parameters_stay_and_gradients_are_left_alone() -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)
    trained(6, model)
    assert torch.equal(model[0].weight, mlp()[0].weight) and not torch.equal(model[0].bias, mlp()[0].bias)
    assert all(p.grad is None for p in model.parameters())


def test_a_parameter_that_is_replaced_is_trained_on() -> None:
    class Replace(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs) -> None:
            if strategy.clock.train_iterations == 2:
                strategy.model[2].bias.data = torch.full((CLASSES,), 2.0)

    strategy, plain = trained(6, plugins=[Replace()]), trained(6)
    bias = strategy.model[2].bias.detach()
    assert not torch.equal(bias, torch.full((CLASSES,), 2.0)) and bias.mean() > 1.9 > plain.model[2].bias.mean()


def test_the_rate_of_the_optimiser_is_read_anew() -> None:
    class Stop(SupervisedPlugin):
        held = torch.zeros(0)

        def after_training_iteration(self, strategy, **kwargs) -> None:
            if strategy.clock.train_iterations == 2:
                Stop.held = parameters(strategy.model)
                strategy.optimizer.param_groups[0]["lr"] = 0.0

    strategy = trained(6, plugins=[Stop()])
    assert torch.equal(parameters(strategy.model), Stop.held) and strategy.examples == 24


EVENTS = ("before_training_iteration", "before_forward", "after_forward", "before_backward", "after_backward")
EVENTS += ("before_update", "after_update", "after_training_iteration")


def test_events_are_fired_once_a_mini_batch() -> None:
    fired: list[str] = []

    def note(name: str) -> Any:
        def event(self: Any, strategy: Any, **kwargs: Any) -> None:
            fired.append(name)
            if name == "after_training_iteration":
                assert len(strategy.mb_x) == len(strategy.mb_output) == len(strategy.from_memory) == 3
                assert not strategy.from_memory.any() and strategy.loss.ndim == 0

        return event

    watch = type("Watch", (SupervisedPlugin,), {name: note(name) for name in EVENTS})
    trained(1, n=12, train_mb_size=3, plugins=[watch()])
    assert fired == 4 * list(EVENTS)


def test_outputs_and_losses_are_those_of_the_first_step_on_a_row() -> None:
    """Algorithm 1 takes it with the parameters before the row, so a model that never moves says what they are."""

    class Check(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs) -> None:
            with torch.no_grad():
                output = strategy.model(strategy.mb_x)
            torch.testing.assert_close(strategy.mb_output, output)
            torch.testing.assert_close(strategy.loss, nn.functional.cross_entropy(output, strategy.mb_y))

    trained(1, gamma=0.0, plugins=[Check()])
    trained(6, lr=0.0, plugins=[Check()])
    trained(7, lr=0.0, plugins=[Check()])


def test_metrics_count_mini_batches() -> None:
    evaluator = EvaluationPlugin(accuracy_metrics(epoch=True), loss_metrics(minibatch=True), loggers=[Silent()])
    with no_warnings():
        strategy = trained(6, n=80, evaluator=evaluator)
        strategy.eval(unlabelled(80).test_stream)
    logged = strategy.evaluator.get_all_metrics()
    name = next(name for name in logged if name.startswith("Loss_MB"))
    assert len(logged[name][1]) == strategy.clock.train_iterations == 16


def test_a_plugin_that_adds_to_the_loss_is_refused() -> None:
    class Penalty(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs) -> None:
            strategy.loss += sum(p.square().sum() for p in strategy.model.parameters())

    with pytest.raises(ValueError, match="adds to the loss.*MERBatched"):
        trained(6, plugins=[Penalty()])


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_task_labels_and_views(algorithm: int) -> None:
    model = mlp()
    seen = Seen(model)
    views = Views(lambda x: x.float() * 2 + 1, lambda x: x.float() * 2)
    arguments = template(model)
    strategy = MER(algorithm=algorithm, buffer=memory(), views=views, **SETTINGS[algorithm], **arguments)
    strategy.train(classic(40, task_labels=True).train_stream, eval_streams=[])
    raw = rows(40)[0]
    for x in seen.rows:
        assert (((x - 1) / 2)[:, None] - raw).abs().amax(2).amin(1).max() < 1e-5
    assert torch.isin(strategy.replay.buffer["x"][:, 1], raw[:, 1]).all()  # stored raw
    assert set(strategy.replay.buffer["t"].tolist()) <= {0, 1}


class WantsLogits(policies.Reservoir):
    columns = ("logits",)


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_logits_that_a_policy_wants(algorithm: int) -> None:
    strategy = trained(algorithm, lr=0.0, buffer=Buffer(40, WantsLogits()))
    stored = strategy.replay.buffer
    torch.testing.assert_close(stored["logits"], strategy.model(stored["x"]).detach())


def test_other_memories_and_retrievals() -> None:
    buffer = Buffer(8, policies.GSSGreedy(2), seed=0)
    strategy = trained(6, buffer=buffer, retrieval=MIR(0.1, candidates=6))
    assert len(buffer) == 8 and parameters(strategy.model).isfinite().all()
    per_task = Buffer(8, policies.OCS(), seed=0)
    strategy = trained(6, buffer=per_task)
    assert strategy.replay.update == "experience" and per_task.seen == 24 and len(per_task) == 8


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_losses_come_back_to_policies_and_retrievals(algorithm: int) -> None:
    """Of every replayed row, and of every row of the stream; the model never moves, so each row has one loss."""
    retrieval, buffer = Told(replace=True), Buffer(40, policies.LARS(), seed=3)
    strategy = trained(algorithm, lr=0.0, buffer=buffer, retrieval=retrieval)
    with torch.no_grad():
        losses = nn.functional.cross_entropy(strategy.model(buffer["x"]), buffer["y"], reduction="none")
    batches = SETTINGS[algorithm].get("steps", 1)
    assert len(retrieval.told) == batches * sum(min(4, number) for number in range(24))
    assert retrieval.is_told(buffer.store.filled, losses)
    torch.testing.assert_close(buffer["loss"], losses, rtol=1e-4, atol=1e-5, check_dtype=False)


def test_it_learns_two_tasks() -> None:
    strategy = trained(6, n=240, k=10, lr=0.05, buffer=memory(40), gamma=0.3)
    x, y = rows(400, seed=1)
    with torch.no_grad():
        right = strategy.model.eval()(x).argmax(1) == y
    assert right.float().mean() > 0.6 and right[y < 2].float().mean() > 0.4


def test_training_may_be_stopped() -> None:
    class Stop(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs) -> None:
            strategy.stop_training()

    strategy = MER(buffer=memory(), plugins=[Stop()], **template())
    strategy.train(unlabelled().train_stream[0], eval_streams=[])
    assert strategy.replay.buffer.seen == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": 2}, "algorithm is 1, 6 or 7, got 2"),
        ({"algorithm": 6, "beta": 0.5}, "algorithm 6 has steps, gamma; got beta"),
        ({"algorithm": 1, "cur_scale": 2.0}, "algorithm 1 has steps, beta, gamma; got cur_scale"),
        ({"algorithm": 7, "steps": 2}, "algorithm 7 has gamma, cur_scale; got steps"),
        ({"algorithm": 1, "steps": 0}, "batches >= 1, got 0"),
        ({"gamma": 1.5}, r"gamma is a rate in \[0, 1\]"),
        ({"algorithm": 7, "cur_scale": -1.0}, "factor, a finite number >= 0"),
        ({"batch_size_mem": 0}, "rows >= 1, got 0"),
    ],
)
def test_arguments_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MER(buffer=memory(), **options, **template())


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"weight_decay": 0.1}, {"maximize": True}])
def test_only_plain_sgd(options: dict) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **options)
    with pytest.raises(ValueError, match="plain SGD"):
        MER(buffer=memory(), **template(model, optimizer=optimizer))
    adam = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match=r"plain SGD.*got Adam"):
        MER(buffer=memory(), **template(model, optimizer=adam))
    two = torch.optim.SGD([{"params": [p], "lr": 0.1 * i} for i, p in enumerate(model.parameters())])
    with pytest.raises(ValueError, match="one learning rate"):
        MER(buffer=memory(), **template(model, optimizer=two))
