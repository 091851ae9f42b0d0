"""ER with distillation against bare PyTorch."""

import copy

import pytest
import torch
from avalanche.benchmarks import split_online_stream
from avalanche.models import IncrementalClassifier
from small_streams import DIM, classic, minibatches, mlp, parameters, template, unlabelled
from torch import nn
from torch.nn import functional

from replaykit import Buffer, policies
from replaykit.strategies import ER, ERLwF


def memory() -> Buffer:
    return Buffer(12, policies.Reservoir(), seed=3)


def test_every_step_is_the_bare_step() -> None:
    data = unlabelled(40)
    strategy = ERLwF(buffer=memory(), batch_size_mem=7, weight=1.5, temperature=3.0, **template())
    strategy.train(data.train_stream, eval_streams=[], shuffle=False)

    model, twin, old, seen = mlp(), memory(), None, []
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for step, (x, y) in enumerate(minibatches(data, 5)):
        if step == 4:  # two tasks of four batches
            old, seen = copy.deepcopy(model), [0, 1]
        fresh = x, y
        if len(twin):
            m = twin.sample(7)
            x, y = torch.cat([x, m["x"]]), torch.cat([y, m["y"]])
        z = model(x)
        loss = functional.cross_entropy(z, y)
        if old is not None:
            target = functional.log_softmax(old(x).detach()[:, seen] / 3, 1)
            given = functional.log_softmax(z[:, seen] / 3, 1)
            loss = loss + 1.5 * 9 * (target.exp() * (target - given)).sum(1).mean()
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        twin.add({"x": fresh[0], "y": fresh[1]})
    torch.testing.assert_close(parameters(strategy.model), parameters(model), atol=1e-6, rtol=0)
    assert strategy.seen.all() and strategy.distillation.classes.tolist() == [True, True, False, False]


def test_without_weight_it_is_er() -> None:
    models = []
    for kind, options in ((ERLwF, {"weight": 0.0}), (ER, {})):
        strategy = kind(buffer=memory(), **options, **template())
        torch.manual_seed(0)
        strategy.train(unlabelled().train_stream, eval_streams=[])
        models.append(parameters(strategy.model))
    assert torch.equal(*models)


def test_a_heavy_weight_keeps_the_old_outputs() -> None:
    drift = {}
    for weight in (0.0, 20.0):
        data = unlabelled()
        strategy = ERLwF(buffer=memory(), weight=weight, **template(lr=0.01, train_epochs=5))
        strategy.train(data.train_stream[0], eval_streams=[])
        x = strategy.replay.buffer["x"]
        before = strategy.model(x)[:, :2].log_softmax(1).detach()
        strategy.train(data.train_stream[1], eval_streams=[])
        drift[weight] = (strategy.model(x)[:, :2].log_softmax(1) - before).abs().mean().item()
    assert drift[20.0] < 0.5 * drift[0.0]


@pytest.mark.parametrize("cut", [4, 6])
def test_a_run_resumed_between_and_within_tasks_is_the_uninterrupted_one(cut: int) -> None:
    data = classic().train_stream
    parts = list(split_online_stream(data, experience_size=10, access_task_boundaries=True))  # four of each task
    whole = ERLwF(buffer=memory(), **template())
    whole.train(parts, eval_streams=[], shuffle=False)
    first = ERLwF(buffer=memory(), **template())
    first.train(parts[:cut], eval_streams=[], shuffle=False)
    second = ERLwF(buffer=memory(), **template(mlp(seed=9)))
    second.model.load_state_dict(first.model.state_dict())
    second.replay.buffer.load_state_dict(first.replay.buffer.state_dict())
    second.load_state_dict(first.state_dict())
    second.train(parts[cut:], eval_streams=[], shuffle=False)
    assert torch.equal(parameters(second.model), parameters(whole.model))
    assert torch.equal(second.seen, whole.seen)
    with pytest.raises(ValueError, match="not the state of ERLwF: it has .'seen'"):
        second.load_state_dict({"seen": torch.zeros(2)})
    with pytest.raises(ValueError, match="not the state of ERLwF"):
        second.load_state_dict({"task": 1, "seen": 3, "distillation": {}})
    assert second.distillation.old is not None, "nothing has changed"


def test_a_model_with_task_labels_is_refused() -> None:
    from avalanche.models import MultiHeadClassifier

    with pytest.raises(ValueError, match="ERLwF distils one head .* give a model that takes no task labels"):
        ERLwF(buffer=memory(), **template(MultiHeadClassifier(6, 4)))


def test_sub_experiences_belong_to_their_experience() -> None:
    data = unlabelled(40)
    strategy = ERLwF(buffer=memory(), **template())
    olds = []
    for experience in split_online_stream(data.train_stream, experience_size=10, access_task_boundaries=True):
        strategy.train(experience, eval_streams=[])
        olds.append(strategy.distillation.old)
    assert olds[0] is olds[1] is None and olds[2] is olds[3] is not None


def test_a_run_whose_head_has_grown_is_resumed() -> None:
    def growing() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(DIM, 8), nn.ReLU(), IncrementalClassifier(8, 2))

    data = unlabelled().train_stream
    parts = list(split_online_stream(data, experience_size=10, access_task_boundaries=True))
    whole = ERLwF(buffer=memory(), **template(growing()))
    torch.manual_seed(1)
    whole.train(parts, eval_streams=[], shuffle=False)
    first = ERLwF(buffer=memory(), **template(growing()))
    torch.manual_seed(1)
    first.train(parts[:6], eval_streams=[], shuffle=False)
    second = ERLwF(buffer=memory(), **template(copy.deepcopy(first.model)))
    second.replay.buffer.load_state_dict(first.replay.buffer.state_dict())
    second.load_state_dict(first.state_dict())
    second.train(parts[6:], eval_streams=[], shuffle=False)
    assert torch.equal(parameters(second.model), parameters(whole.model))
