"""GDumb: the stream only fills the memory, and the network is that of a literal training on it."""

import inspect

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin
from small_streams import (
    CLASSES,
    DIM,
    STREAMS,
    Labelled,
    Silent,
    Spy,
    minibatches,
    mlp,
    no_warnings,
    parameters,
    template,
    unlabelled,
)
from torch import nn
from torch.nn import functional

from replaykit import Buffer, policies
from replaykit.augment import Views
from replaykit.strategies.gdumb import GDumb
from replaykit.testing import same

RATES = [0.1, 1.0, 1.0, 0.505, 1.0]  # of the first five passes


def memory(capacity: int = 14, policy=None) -> Buffer:
    return Buffer(capacity, policy or policies.GreedyBalanced(), seed=3)


def momentum(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)


def literal(model: nn.Module, buffer: Buffer, size: int, clip: float) -> None:
    """Five passes over a memory, in the released code's order of things."""
    sgd = momentum(model)
    for rate in RATES:
        for group in sgd.param_groups:
            group["lr"] = 0.1 * rate
        order = buffer.store.filled[buffer.draws.permutation(len(buffer))]
        for start in range(0, len(order), size):
            rows = buffer.read(order[start : start + size])
            sgd.zero_grad()
            functional.cross_entropy(model(rows["x"]), rows["y"]).backward()
            norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters()))
            for p in model.parameters():
                p.grad *= min(1.0, clip / float(norm + 1e-6))
            sgd.step()


def test_it_trains_from_scratch_on_the_memory_alone() -> None:
    data, model = unlabelled(), mlp().double()
    data = unlabelled(
        data=Labelled(*(column.double() if i == 0 else column for i, column in enumerate(doubles())))
    )
    made = GDumb(
        buffer=memory(), passes=5, batch_size_mem=4, clip=0.5, **{**template(model), "optimizer": momentum(model)}
    )
    twin = memory()
    for experience, batches in zip(
        data.train_stream, (list(minibatches(data, 5))[:8], list(minibatches(data, 5))[8:]), strict=True
    ):
        made.train(experience, eval_streams=[], shuffle=False)
        for x, y in batches:
            twin.add({"x": x, "y": y})
        expected = mlp().double()
        literal(expected, twin, 4, 0.5)
        torch.testing.assert_close(parameters(model), parameters(expected), atol=1e-12, rtol=0)
        assert torch.equal(made.replay.buffer["x"], twin["x"])
    assert made.optimizer.param_groups[0]["lr"] == 0.1


def doubles() -> tuple[torch.Tensor, torch.Tensor]:
    from small_streams import rows

    return rows(80)


def test_the_network_stays_as_it_is_while_the_stream_passes() -> None:
    model, seen = mlp(), []

    class Watch(Spy):
        def after_training_iteration(self, strategy, *args, **kwargs) -> None:
            seen.append((parameters(model), len(strategy.mbatch[0]), bool(strategy.from_memory.any())))

        def before_forward(self, strategy, *args, **kwargs) -> None:
            raise AssertionError("no step is taken")

    made = GDumb(buffer=memory(), passes=2, plugins=[Watch()], **template(model))
    made.train(unlabelled().train_stream, eval_streams=[])
    assert len(seen) == 16 and {rows for _, rows, _ in seen} == {5} and not any(marked for *_, marked in seen)
    for experience in (seen[:8], seen[8:]):
        assert all(torch.equal(experience[0][0], weights) for weights, *_ in experience)
    assert torch.equal(seen[0][0], parameters(mlp())) and not torch.equal(seen[8][0], seen[0][0])


def test_what_was_learnt_before_and_the_optimisers_moments_leave_no_trace() -> None:
    """The second experience's network is that of a strategy which sees the same memory for the first time."""
    model = mlp()
    made = GDumb(buffer=memory(), passes=3, **{**template(model), "optimizer": momentum(model)})
    first, second = unlabelled().train_stream
    made.train(first, eval_streams=[])
    made.train(second, eval_streams=[])
    other, held = mlp(), memory()
    held.load_state_dict(made.replay.buffer.state_dict())
    with torch.no_grad():
        for p in other.parameters():
            p += 1
    fresh = GDumb(buffer=held, passes=3, **{**template(other), "optimizer": momentum(other)})
    fresh.load_state_dict(made.state_dict())
    made.start_afresh()
    fresh.start_afresh()
    made.train_on_memory()
    fresh.train_on_memory()
    assert torch.equal(parameters(model), parameters(other)) and not torch.equal(
        parameters(model), parameters(mlp())
    )


def test_batchnorm_starts_afresh_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(DIM, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
    made = GDumb(buffer=memory(13), passes=3, batch_size_mem=4, **template(model))
    made.train(unlabelled().train_stream, eval_streams=[])
    assert len(made.replay.buffer) == 12 or len(made.replay.buffer) == 13
    assert int(model[1].num_batches_tracked) == 9  # 13 rows are blocks of 4, 4 and 5


def test_heads_that_grow_start_from_the_weights_they_came_with() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Linear(DIM, 2)

        def forward(self, x):
            return self.head(x)

    model = Growing()
    made = GDumb(buffer=memory(), passes=2, **template(model))
    first, second = unlabelled().train_stream
    made.train(first, eval_streams=[])
    wider = nn.Linear(DIM, 4)
    with torch.no_grad():
        wider.weight[:2], wider.bias[:2] = model.head.weight, model.head.bias
    came = wider.weight.detach().clone()
    model.head = wider
    made.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made.train(second, eval_streams=[])
    assert torch.equal(made.initial["head.weight"][:2], Growing().head.weight)
    assert torch.equal(made.initial["head.weight"][2:], came[2:])


def test_views_and_task_labels_reach_the_passes_over_the_memory() -> None:
    seen: list[torch.Tensor] = []
    views = Views(lambda x: seen.append(x) or x * 2, lambda x: x * 2)
    for name, stream in STREAMS.items():
        made = GDumb(buffer=memory(), passes=1, batch_size_mem=4, views=views, **template())
        with no_warnings():
            made.train(stream().train_stream, eval_streams=[])
            made.eval(stream().test_stream)
        assert ("t" in made.replay.buffer.store.columns) == (
            name in ("classic", "task labels", "renumbered", "numbers")
        )
    assert all(len(x) <= 5 for x in seen)  # never a row of the stream that is not in the memory


@pytest.mark.parametrize("epochs", [1, 2])
def test_metrics_see_the_stream_through_the_network_as_it_is(epochs: int) -> None:
    metrics = accuracy_metrics(minibatch=True), loss_metrics(minibatch=True)
    model = nn.Sequential(mlp(), nn.Dropout(0.5))
    evaluator = EvaluationPlugin(*metrics, loggers=[Silent()])
    made = GDumb(buffer=memory(), passes=1, **template(model, evaluator=evaluator, train_epochs=epochs))
    made.train(unlabelled().train_stream, eval_streams=[])
    values = {name: points[1] for name, points in evaluator.get_all_metrics().items()}
    losses = next(points for name, points in values.items() if name.startswith("Loss_MB"))
    assert len(losses) == 16 * epochs and made.replay.buffer.seen == 80 * epochs
    x, y = next(minibatches(unlabelled(), 40))
    expected = functional.cross_entropy(mlp()(x), y).item()
    assert sum(losses[: 8 * epochs]) / (8 * epochs) == pytest.approx(expected, rel=1e-5)
    assert model.training


def test_cutmix_mixes_the_memorys_images() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(40, 1, 6, 6, generator=g)
    data = unlabelled(data=Labelled(x, torch.arange(40) % CLASSES))
    trained = []
    for probability in (0.0, 1.0, 1.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES))
        torch.manual_seed(1)
        made = GDumb(buffer=memory(), passes=3, cutmix=probability, **template(model))
        made.train(data.train_stream, eval_streams=[], shuffle=False)
        trained.append(parameters(model))
        assert made.mixed is None
    assert torch.equal(trained[1], trained[2]) and not torch.allclose(trained[0], trained[1])


def test_any_policy_serves_and_those_that_want_logits_are_refused() -> None:
    for policy in (policies.Reservoir(), policies.OCS(), policies.KMeans()):
        made = GDumb(buffer=memory(policy=policy), passes=1, **template())
        made.train(unlabelled().train_stream, eval_streams=[])
        assert len(made.replay.buffer) > 10

    class Wanting(policies.Reservoir):
        columns = ("logits",)

    with pytest.raises(ValueError, match="no logits to store; use another policy than Wanting"):
        GDumb(buffer=memory(policy=Wanting()), **template())
    with pytest.raises(
        ValueError, match="no losses to store; use update='experience' or another policy than LARS"
    ):
        GDumb(buffer=memory(policy=policies.LARS()), **template())
    made = GDumb(buffer=memory(policy=policies.LARS()), passes=1, update="experience", **template())
    made.train(unlabelled().train_stream, eval_streams=[])
    assert len(made.replay.buffer) == 14 and made.replay.buffer["loss"].gt(0).all()


def test_its_state_is_the_first_weights() -> None:
    one, other = GDumb(buffer=memory(), **template(mlp(seed=0))), GDumb(buffer=memory(), **template(mlp(seed=1)))
    assert not same(one.state_dict(), other.state_dict())
    other.load_state_dict(one.state_dict())
    assert same(one.state_dict(), other.state_dict())
    for bad in ({}, {"initial": {"0.weight": 3}}, {"initial": {}, "more": 1}):
        with pytest.raises(ValueError, match="not the initial weights"):
            other.load_state_dict(bad)
    assert same(one.state_dict(), other.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": -1}, "passes over the memory >= 0, got -1"),
        ({"batch_size_mem": 0}, "rows >= 1, got 0"),
        ({"clip": 0.0}, "positive number or None, got 0.0"),
        ({"cutmix": 1.5}, r"in \[0, 1\], got 1.5"),
    ],
)
def test_arguments_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GDumb(buffer=memory(), **options, **template())


def test_every_argument_is_documented() -> None:
    documented = (inspect.getdoc(GDumb) or "").split("Args:")[1].split("Published")[0]
    assert all(name in documented for name in inspect.signature(GDumb.__init__).parameters if name != "self")
