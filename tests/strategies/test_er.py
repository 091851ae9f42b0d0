"""ER against bare PyTorch, and what all strategies share."""

import inspect

import pytest
import torch
from avalanche.training.plugins import EWCPlugin
from small_streams import CLASSES, Spy, minibatches, mlp, no_warnings, parameters, rows, template, unlabelled
from torch import nn
from torch.nn import functional

from replaykit import Buffer, policies
from replaykit.losses import CrossEntropy
from replaykit.strategies import DER, ER, ERACE, DERpp

STRATEGIES = [ER, ERACE, DER, DERpp]


def memory(capacity: int = 12, seed: int = 3) -> Buffer:
    return Buffer(capacity, policies.Reservoir(), seed=seed)


@pytest.mark.parametrize("joint", [True, False])
def test_every_step_is_the_bare_step(joint: bool) -> None:
    data, epochs, weight = unlabelled(40), 2, 1.0 if joint else 0.7
    strategy = ER(buffer=memory(), batch_size_mem=7, joint=joint, weight=weight, **template(train_epochs=epochs))
    strategy.train(data.train_stream, eval_streams=[], shuffle=False)

    model, twin = mlp(), memory()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in minibatches(data, 5, epochs):
        if len(twin) == 0:
            loss = functional.cross_entropy(model(x), y)
        else:
            m = twin.sample(7)
            if joint:
                z = model(torch.cat([x, m["x"]]))
                loss = functional.cross_entropy(z, torch.cat([y, m["y"]]))
            else:
                loss = functional.cross_entropy(model(x), y)
                loss = loss + 0.7 * functional.cross_entropy(model(m["x"]), m["y"])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        twin.add({"x": x, "y": y})
    torch.testing.assert_close(parameters(strategy.model), parameters(model), atol=1e-6, rtol=0)
    assert torch.equal(strategy.replay.buffer["x"], twin["x"])


def test_one_joint_pass_and_two_separate_ones_differ_under_batchnorm() -> None:
    def run(joint: bool) -> tuple[int, torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
        ER(buffer=memory(), joint=joint, **template(model)).train(unlabelled().train_stream, eval_streams=[])
        return int(model[1].num_batches_tracked), parameters(model)

    (one, together), (two, apart) = run(True), run(False)
    assert one == 16 and two == 31 and not torch.equal(together, apart)


def test_a_weight_for_the_joint_mean_is_refused() -> None:
    with pytest.raises(ValueError, match="joint=False"):
        ER(buffer=memory(), weight=0.5, **template())


# -- shared by all ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_learns_two_tasks_and_evaluates(strategy: type) -> None:
    data = unlabelled(400)
    with no_warnings():
        made = strategy(buffer=memory(80), batch_size_mem=20, **template(lr=0.1))
        made.train(data.train_stream, eval_streams=[])
        made.eval(data.test_stream)
    x, y = rows(400, seed=1)
    with torch.no_grad():
        accuracy = (made.model.eval()(x).argmax(1) == y).float().mean()
    assert accuracy > 0.5  # 0.25 is chance; without replay the first two classes are gone


def test_without_replay_the_first_task_is_forgotten() -> None:
    from small_streams import naive

    made = naive(lr=0.1)
    made.train(unlabelled(400).train_stream, eval_streams=[])
    x, y = rows(400, seed=1)
    with torch.no_grad():
        right = made.model.eval()(x).argmax(1) == y
    assert right[y < 2].float().mean() < 0.1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_callers_plugins_are_used_and_their_list_is_not_changed(strategy: type) -> None:
    spy = Spy()
    plugins = [spy, EWCPlugin(0.1)]
    made = strategy(buffer=memory(), plugins=plugins, **template())
    assert len(plugins) == 2 and made.plugins[:3] == [made.replay, *plugins]
    made.train(unlabelled(20).train_stream, eval_streams=[])
    assert len(spy.outputs) == 4


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_misspelt_argument_is_refused(strategy: type) -> None:
    with pytest.raises(TypeError, match="batch_size_memory"):
        strategy(buffer=memory(), batch_size_memory=3, **template())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_argument_is_documented(strategy: type) -> None:
    documented = inspect.getdoc(strategy) or ""
    arguments = documented.split("Args:")[1].split("Published")[0]
    for name in inspect.signature(strategy.__init__).parameters:
        assert name == "self" or name in arguments, name


def test_the_memory_of_two_runs_with_one_seed_is_the_same() -> None:
    held = []
    for _ in range(2):
        torch.manual_seed(0)
        made = ER(buffer=memory(), **template())
        made.train(unlabelled().train_stream, eval_streams=[])
        held.append(made.replay.buffer["x"])
    assert torch.equal(*held)


def test_separate_er_is_the_plugin_with_its_loss() -> None:
    assert isinstance(ER(buffer=memory(), joint=False, **template()).replay.loss, CrossEntropy)
    assert ER(buffer=memory(), **template()).replay.loss is None
