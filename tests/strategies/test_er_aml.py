"""ER-AML against bare PyTorch."""

import numpy as np
import pytest
import torch
from small_streams import CLASSES, DIM, Spy, minibatches, mlp, parameters, several, template, unlabelled
from torch import nn
from torch.nn import functional

from replaykit import Buffer, policies
from replaykit.augment import Views
from replaykit.losses import asymmetric_metric, draw_partners
from replaykit.strategies import ER, ERAML


def memory(capacity: int = 12) -> Buffer:
    return Buffer(capacity, policies.Reservoir(), seed=3)


@pytest.mark.parametrize("task_free", [False, True])
@pytest.mark.parametrize("policy", [policies.Reservoir, policies.ClassBalancedReservoir])
def test_every_step_is_the_bare_step(task_free: bool, policy: type) -> None:
    data = several(60)
    strategy = ERAML(buffer=Buffer(12, policy(), seed=3), batch_size_mem=7, task_free=task_free, **template())
    strategy.train(data.train_stream, eval_streams=[], shuffle=False)

    model, twin = mlp(), Buffer(12, policy(), seed=3)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    metric_steps = 0
    for step, (x, y) in enumerate(minibatches(data, 5)):
        if task_free or step >= 6:  # two tasks of six batches
            stored = twin["x"] if len(twin) else torch.empty(0, DIM)
            pool_x = torch.cat([stored, x])
            pool_y = torch.cat([twin["y"], y]) if len(twin) else y
            rows, positive, negative = draw_partners(y.numpy(), pool_y.numpy(), len(stored), twin.draws)
            chosen = np.concatenate([positive, negative])
            embed = model[:2]
            loss = asymmetric_metric(embed(x)[rows], y[rows], embed(pool_x[chosen]), pool_y[chosen])
            metric_steps += len(rows) > 0
        else:
            loss = functional.cross_entropy(model(x), y)
        if len(twin):
            m = twin.sample(7)
            loss = loss + functional.cross_entropy(model(m["x"]), m["y"])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        twin.add({"x": x, "y": y})
    assert metric_steps >= 6
    torch.testing.assert_close(parameters(strategy.model), parameters(model), atol=1e-6, rtol=0)
    assert torch.equal(strategy.replay.buffer["x"], twin["x"])


def test_the_first_task_is_er_with_separate_passes() -> None:
    models = []
    for kind, options in ((ERAML, {}), (ER, {"joint": False})):
        strategy = kind(buffer=memory(), **options, **template())
        torch.manual_seed(0)
        strategy.train(unlabelled().train_stream[0], eval_streams=[])
        models.append(parameters(strategy.model))
    assert torch.equal(*models)


def test_the_stream_does_not_move_the_last_layer() -> None:
    data = unlabelled()
    strategy = ERAML(buffer=memory(), **template())
    strategy.train(data.train_stream[0], eval_streams=[])
    strategy.replay.loss = lambda model, draw: torch.zeros(())
    head, body = strategy.model[-1], strategy.model[0]
    before = head.weight.clone(), body.weight.clone()
    strategy.train(data.train_stream[1], eval_streams=[])
    assert torch.equal(head.weight, before[0]) and not torch.equal(body.weight, before[1])


def test_batches_of_one_class_train_on_the_memory_alone() -> None:
    data = unlabelled(tasks=4)  # one class a task
    spy = Spy()
    strategy = ERAML(buffer=memory(), plugins=[spy], task_free=True, **template())
    strategy.train(data.train_stream, eval_streams=[])
    assert spy.losses[0] == 0 and all(loss > 0 for loss in spy.losses[1:])
    assert parameters(strategy.model).isfinite().all()


def test_partners_get_views_of_their_own() -> None:
    seen: list[int] = []

    def noisy(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return x + torch.randn_like(x)

    strategy = ERAML(buffer=memory(), views=Views(noisy, lambda x: x), task_free=True, **template())
    strategy.train(unlabelled(40).train_stream[0], eval_streams=[])
    assert seen[0] == 5 and any(n > 5 for n in seen), "the view of 2v partners"
    assert torch.equal(strategy.replay.buffer["x"][:, 0], (strategy.replay.buffer["x"][:, 0] * 40).round() / 40)


def test_evaluation_uses_the_plain_model() -> None:
    data = unlabelled()
    strategy = ERAML(buffer=memory(), task_free=True, **template())
    strategy.train(data.train_stream, eval_streams=[])
    strategy.eval(data.test_stream)
    assert strategy.state_dict() == {}


def test_features_may_be_named_and_heads_may_grow() -> None:
    from avalanche.models import IncrementalClassifier

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(DIM, 8), nn.ReLU(), IncrementalClassifier(8, 2))
    strategy = ERAML(buffer=memory(), **template(model))
    strategy.train(unlabelled().train_stream, eval_streams=[])
    assert model[2].classifier.out_features == CLASSES and parameters(model).isfinite().all()
    one, two = (ERAML(buffer=memory(), features=name, **template(mlp())) for name in ("0", None))
    for strategy in (one, two):
        torch.manual_seed(0)
        strategy.train(unlabelled().train_stream, eval_streams=[])
    assert not torch.equal(parameters(one.model), parameters(two.model))
    with pytest.raises(ValueError, match="temperature is a positive number, got -1"):
        ERAML(buffer=memory(), temperature=-1, **template())


def test_a_model_with_task_labels_is_refused() -> None:
    from avalanche.models import MultiHeadClassifier

    with pytest.raises(
        ValueError, match="ER-AML compares all classes in one space; give a model that takes no task"
    ):
        ERAML(buffer=memory(), **template(MultiHeadClassifier(DIM, CLASSES)))
