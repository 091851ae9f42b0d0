"""iCaRL: its loss by hand and against a bare loop, its classifier against brute force, its state."""

import copy
import inspect
import math
from typing import Any

import pytest
import torch
from avalanche.benchmarks import split_online_stream
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.models import IncrementalClassifier, MultiHeadClassifier
from avalanche.training.plugins import EvaluationPlugin
from small_streams import (
    CLASSES,
    DIM,
    STREAMS,
    Labelled,
    Silent,
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
from torch.nn import functional

from replaykit import Buffer, metrics, policies
from replaykit.augment import Views
from replaykit.nearest_mean import NearestMean
from replaykit.probe import Probe
from replaykit.strategies import ER, ICaRL
from replaykit.testing import same


def memory(policy: Any = None, capacity: int = 12) -> Buffer:
    return Buffer(capacity, policy or policies.ICaRLHerding(), seed=3)


def doubles(n: int = 60) -> Any:
    x, y = rows(n)
    return unlabelled(n, data=Labelled(x.double(), y))


# -- the loss -------------------------------------------------------------------------------------


def test_the_loss_by_hand() -> None:
    """Classes 0 (old) and 2 were seen, 1 and 3 never; the teacher says 1 / 4 for class 0 whatever it sees."""
    strategy = ICaRL(buffer=memory(), **template())
    strategy.is_training = True
    strategy.seen, strategy.old = torch.tensor([True, False, True]), torch.tensor([True, False, False])
    strategy.teacher = lambda x: torch.full((len(x), 4), -math.log(3))
    strategy.mbatch = [torch.zeros(2, DIM), torch.tensor([2, 0]), torch.zeros(2, dtype=torch.int64)]
    strategy.mb_output = torch.tensor([[0.0, 9.0, 0.0, 9.0], [math.log(3), 9.0, 0.0, 9.0]])
    # Class 0: targets 1 / 4 for both rows, outputs 1 / 2 and 3 / 4. Class 2: targets 1 and 0, outputs 1 / 2.
    old = math.log(2) - (math.log(3 / 4) + 3 * math.log(1 / 4)) / 4
    assert strategy.criterion().item() == pytest.approx((old + 2 * math.log(2)) / 4, rel=1e-6)
    assert strategy.targets().tolist() == [[0.25, 0.0, 1.0, 0.0], [0.25, 0.0, 0.0, 0.0]]
    strategy.is_training = False
    expected = functional.cross_entropy(strategy.mb_output, strategy.mbatch[1])
    torch.testing.assert_close(strategy.criterion(), expected)


@pytest.mark.parametrize("policy", [policies.Reservoir, policies.ICaRLHerding])
def test_every_step_is_the_bare_step(policy: Any) -> None:
    data, epochs = doubles(), 2
    strategy = ICaRL(buffer=memory(policy()), batch_size_mem=7, **template(mlp().double(), train_epochs=epochs))
    strategy.train(data.train_stream, eval_streams=[], shuffle=False)

    model, twin, teacher, seen, old = mlp().double(), memory(policy()), None, set(), set()
    sgd, task = torch.optim.SGD(model.parameters(), lr=0.1), []
    for i, (x, y) in enumerate(minibatches(data, 5, epochs)):
        if i == 12:  # two tasks of six batches, twice
            teacher, old = copy.deepcopy(model), set(seen)
        fresh = x, y
        if len(twin):
            held = twin.sample(7)
            x, y = torch.cat([x, held["x"]]), torch.cat([y, held["y"]])
        seen |= set(y.tolist())
        z, loss = model(x), torch.zeros((), dtype=torch.float64)
        for c in sorted(seen):
            target = teacher(x)[:, c].sigmoid().detach() if c in old else (y == c).double()
            p = z[:, c].sigmoid()
            loss = loss - (target * p.log() + (1 - target) * (1 - p).log()).mean() / len(seen)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        task.append(fresh)
        if not twin.policy.per_task:
            twin.add({"x": fresh[0], "y": fresh[1]})
        elif i % 12 == 11:
            whole = task[-6:]
            twin.add({"x": torch.cat([x for x, _ in whole]), "y": torch.cat([y for _, y in whole])}, Probe(model))
    torch.testing.assert_close(parameters(strategy.model), parameters(model), atol=1e-10, rtol=0)
    assert torch.equal(strategy.replay.buffer["x"], twin["x"])
    assert old == {0, 1} and seen == {0, 1, 2, 3}


def test_with_cross_entropy_it_is_er() -> None:
    models = []
    for kind, options in ((ICaRL, {"loss": "ce"}), (ER, {})):
        strategy = kind(buffer=memory(policies.Reservoir()), **options, **template())
        torch.manual_seed(0)
        strategy.train(unlabelled().train_stream, eval_streams=[])
        models.append(parameters(strategy.model))
    torch.testing.assert_close(*models)


def test_the_old_network_stands_still_and_is_taken_between_tasks() -> None:
    data, teachers = unlabelled(40), []
    strategy = ICaRL(buffer=memory(policies.Reservoir()), **template())
    for experience in split_online_stream(data.train_stream, experience_size=10, access_task_boundaries=True):
        before = copy.deepcopy(strategy.model.state_dict())
        strategy.train(experience, eval_streams=[])
        teachers.append(strategy.teacher)
        if len(teachers) == 3:
            assert same(dict(strategy.teacher.state_dict()), dict(before))
    assert teachers[0] is teachers[1] is None and teachers[2] is teachers[3] is not None
    assert strategy.old.tolist() == [True, True, False, False] and strategy.seen.all()
    assert not teachers[3].training and not any(p.requires_grad for p in teachers[3].parameters())
    for experience in split_online_stream(data.train_stream, experience_size=10):
        strategy.train(experience, eval_streams=[])
        teachers.append(strategy.teacher)
    assert len(set(teachers[3:])) == 5, "hidden boundaries: every sub-experience is a task"


# -- the classifier -------------------------------------------------------------------------------

PLAIN = lambda x: x - 0.5  # noqa: E731


def trained(**options: Any) -> ICaRL:
    strategy = ICaRL(buffer=memory(capacity=40), batch_size_mem=20, **options, **template(train_epochs=2))
    torch.manual_seed(0)
    strategy.train(unlabelled(200).train_stream, eval_streams=[])
    return strategy


def nearest(strategy: ICaRL, x: torch.Tensor) -> torch.Tensor:
    """By brute force, row by row."""
    buffer, body = strategy.replay.buffer, strategy.model[:2]
    unit = lambda v: v / v.norm()  # noqa: E731
    with torch.no_grad():
        means = {}
        for c in sorted(set(buffer["y"].tolist())):
            of_class = [unit(body(PLAIN(row[None]))[0]) for row in buffer["x"][buffer["y"] == c]]
            means[c] = unit(torch.stack(of_class).mean(0))
        return torch.tensor(
            [min(means, key=lambda c: (unit(body(PLAIN(row[None]))[0]) - means[c]).norm().item()) for row in x]
        )


def test_the_class_of_the_nearest_mean_of_the_memory_predicts() -> None:
    strategy = trained(views=Views(PLAIN, PLAIN))
    x, y = rows(60)
    expected = nearest(strategy, x)
    strategy.model.train()
    before, state = parameters(strategy.model).clone(), torch.get_rng_state()
    classifier = strategy.classifier()
    assert torch.equal(classifier(PLAIN(x)).argmax(1), expected)
    assert metrics.accuracy(classifier, x, y, PLAIN, 50, "cpu") == int((expected == y).sum()) / 60 > 0.6
    assert strategy.model.training and torch.equal(parameters(strategy.model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert classifier(PLAIN(x)).shape == (60, CLASSES)


def test_avalanche_evaluates_the_classifier() -> None:
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loss_metrics(stream=True), loggers=[Silent()])
    data = unlabelled(80)
    strategy = ICaRL(buffer=memory(), **template(evaluator=evaluator))
    strategy.train(data.train_stream, eval_streams=[])
    found = strategy.eval(data.test_stream)
    x, y = rows(80)
    z = strategy.classifier().eval()(x)
    (accuracy,) = [value for name, value in found.items() if "Top1_Acc_Stream" in name]
    (loss,) = [value for name, value in found.items() if "Loss_Stream" in name]
    assert accuracy == pytest.approx((z.argmax(1) == y).float().mean().item())
    assert loss == pytest.approx(functional.cross_entropy(z, y).item(), rel=1e-4)
    own = (strategy.model.eval()(x).argmax(1) == y).float().mean().item()
    assert accuracy != pytest.approx(own), "the network itself would give another accuracy"


def test_who_predicts_without_rows_or_on_request() -> None:
    strategy = ICaRL(buffer=memory(), **template())
    assert strategy.classifier() is strategy.model
    strategy.train(unlabelled().train_stream[0], eval_streams=[])
    assert isinstance(strategy.classifier(), NearestMean)
    # Classes that nothing is stored of have outputs, and are never chosen.
    z = strategy.classifier()(rows(20)[0])
    assert z.shape == (20, CLASSES) and bool((z[:, 2:] == -math.inf).all())
    own = trained(nearest_mean=False)
    assert own.classifier() is own.model


# -- streams and heads ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_of_every_kind(kind: str) -> None:
    benchmark = STREAMS[kind]()
    with no_warnings():
        strategy = ICaRL(buffer=memory(), **template())
        strategy.train(benchmark.train_stream, eval_streams=[])
        strategy.eval(benchmark.test_stream)
    assert len(strategy.replay.buffer) == 12


def test_heads_may_grow() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(DIM, 8), nn.ReLU(), IncrementalClassifier(8, 2))
    strategy = ICaRL(buffer=memory(), **template(model))
    data = unlabelled()
    strategy.train(data.train_stream, eval_streams=[])
    assert model[2].classifier.out_features == CLASSES
    assert strategy.teacher[2].classifier.out_features == 2
    assert strategy.classifier()(rows(8)[0]).shape == (8, CLASSES)


# -- its state ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [policies.Reservoir, policies.ICaRLHerding])
def test_a_run_resumed_within_a_task_is_the_uninterrupted_one(policy: Any) -> None:
    data = classic().train_stream
    parts = list(split_online_stream(data, experience_size=10, access_task_boundaries=True))  # four of each task
    whole, first = (ICaRL(buffer=memory(policy()), **template()) for _ in range(2))
    whole.train(parts, eval_streams=[], shuffle=False)
    first.train(parts[:6], eval_streams=[], shuffle=False)
    second = ICaRL(buffer=memory(policy()), **template(mlp(seed=9)))
    second.model.load_state_dict(first.model.state_dict())
    second.replay.buffer.load_state_dict(first.replay.buffer.state_dict())
    second.load_state_dict(first.state_dict())
    second.train(parts[6:], eval_streams=[], shuffle=False)
    assert torch.equal(parameters(second.model), parameters(whole.model))
    assert same(second.state_dict(), whole.state_dict())


def test_a_state_that_does_not_fit_is_refused() -> None:
    strategy = ICaRL(buffer=memory(), **template())
    strategy.train(unlabelled().train_stream, eval_streams=[])
    kept = strategy.state_dict()
    assert sorted(kept) == ["old", "seen", "task", "teacher"] and kept["task"] == 1
    for bad in ({}, {**kept, "task": 0.5}, {**kept, "more": 1}):
        with pytest.raises(ValueError, match="not the state of iCaRL's training: it has"):
            strategy.load_state_dict(bad)
    with pytest.raises(ValueError, match="network of the last task is not like the model"):
        strategy.load_state_dict({**kept, "teacher": mlp(7).state_dict()})
    assert same(strategy.state_dict(), kept)


# -- bad input ------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="loss is 'bce' or 'ce', got 'mse'"):
        ICaRL(buffer=memory(), loss="mse", **template())
    with pytest.raises(ValueError, match="iCaRL compares all classes.* give a model that takes no task labels"):
        ICaRL(buffer=memory(), **template(MultiHeadClassifier(DIM, CLASSES)))
    with pytest.raises(ValueError, match="ICaRLHerding takes every add as a whole task; use update='experience'"):
        ICaRL(buffer=memory(), update="iteration", **template())


def test_every_argument_is_documented() -> None:
    documented = (inspect.getdoc(ICaRL) or "").split("Args:")[1].split("Published")[0]
    assert all(name in documented for name in inspect.signature(ICaRL.__init__).parameters if name != "self")
