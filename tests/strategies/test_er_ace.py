"""ER-ACE against bare PyTorch."""

import math

import pytest
import torch
from avalanche.models import IncrementalClassifier
from small_streams import CLASSES, DIM, minibatches, mlp, parameters, template, unlabelled
from torch import nn
from torch.nn import functional

from replaykit import Buffer, policies
from replaykit.strategies import ERACE


def memory() -> Buffer:
    return Buffer(12, policies.Reservoir(), seed=3)


@pytest.mark.parametrize("mode", ["strict", "official"])
def test_every_step_is_the_bare_step(mode: str) -> None:
    data = unlabelled(40)
    strategy = ERACE(buffer=memory(), batch_size_mem=7, mode=mode, **template())
    strategy.train(data.train_stream, eval_streams=[], shuffle=False)

    model, twin, seen = mlp(), memory(), set()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in minibatches(data, 5):
        present = set(y.tolist())
        seen |= present
        z = model(x).clone()
        for c in range(CLASSES):
            if c not in present and not (mode == "official" and c >= max(seen)):
                z[:, c] = -math.inf
        loss = functional.cross_entropy(z, y)
        if len(twin):
            m = twin.sample(7)
            replayed = model(m["x"]).clone()
            if mode == "strict":
                for c in range(CLASSES):
                    if c not in seen:
                        replayed[:, c] = -math.inf
            loss = loss + functional.cross_entropy(replayed, m["y"])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        twin.add({"x": x, "y": y})
    torch.testing.assert_close(parameters(strategy.model), parameters(model), atol=1e-6, rtol=0)
    assert torch.equal(strategy.replay.buffer["x"], twin["x"])


def test_new_classes_do_not_push_old_ones_in_the_stream() -> None:
    data = unlabelled()
    strategy = ERACE(buffer=memory(), **template(mlp()))
    strategy.train(data.train_stream[0], eval_streams=[])
    strategy.replay.loss = None  # the stream alone ...
    strategy.replay.buffer.clear()  # ... with nothing to append
    strategy.replay.update = "experience"
    head = strategy.model[-1]
    before = head.weight[:2].clone()
    strategy.train(data.train_stream[1], eval_streams=[])
    assert torch.equal(head.weight[:2], before)


def test_evaluation_uses_the_plain_criterion() -> None:
    data = unlabelled()
    strategy = ERACE(buffer=memory(), **template(eval_mb_size=80))
    strategy.train(data.train_stream, eval_streams=[])
    losses = []

    def keep(self, **kwargs) -> None:
        losses.append((strategy.loss.item(), strategy.mb_output, strategy.mb_y))

    strategy._after_eval_iteration = keep.__get__(strategy)
    strategy.eval(data.test_stream)
    for loss, z, y in losses:
        assert loss == pytest.approx(functional.cross_entropy(z, y).item())
    assert strategy.stream_loss.seen.all()


@pytest.mark.parametrize("mode", ["strict", "official"])
def test_heads_may_grow(mode: str) -> None:
    model = nn.Sequential(nn.Linear(DIM, 8), nn.ReLU(), IncrementalClassifier(8, 2))
    strategy = ERACE(buffer=memory(), mode=mode, **template(model))
    strategy.train(unlabelled().train_stream, eval_streams=[])
    assert strategy.stream_loss.seen.tolist() == [True] * 4
    assert parameters(model).isfinite().all()


@pytest.mark.parametrize("state", [{}, {"seen": 3}, {"seen": torch.zeros(4)}, {"task": 1}])
def test_a_state_of_something_else_is_refused(state) -> None:
    strategy = ERACE(buffer=memory(), **template())
    strategy.train(unlabelled().train_stream[0], eval_streams=[])
    with pytest.raises(ValueError, match="not the state of an asymmetric cross-entropy: it has"):
        strategy.load_state_dict(state)
    assert strategy.state_dict()["seen"].tolist() == [True, True, False, False]
