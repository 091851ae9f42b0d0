"""A-GEM: the projection against a solver, and whole steps against a bare loop."""

from typing import Any

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from scipy.optimize import minimize
from small_streams import CLASSES, DIM, Told, classic, minibatches, mlp, parameters, rows, template, unlabelled
from torch import Tensor, nn
from torch.nn import functional

from replaykit import Buffer, policies
from replaykit.augment import Views
from replaykit.retrieval import MIR, ClassBalanced
from replaykit.strategies import AGEM
from replaykit.strategies.agem import away_from


def memory() -> Buffer:
    return Buffer(17, policies.RingBuffer(), seed=3)


def test_the_projection_by_hand() -> None:
    # <g, r> = -3, <r, r> = 2: g + 1.5 r
    change = away_from(torch.tensor([2.0, -1.0]), torch.tensor([-1.0, 1.0]))
    assert change is not None and change.tolist() == [-1.5, 1.5]
    assert away_from(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) is None
    assert away_from(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])) is None
    assert away_from(torch.tensor([1.0, 0.0]), torch.zeros(2)) is None
    opposite = away_from(torch.tensor([3.0, 4.0]), torch.tensor([-3.0, -4.0]))
    assert opposite is not None and opposite.tolist() == [-3.0, -4.0]


@pytest.mark.parametrize("size", [1e-44, 1e-26, 1e26, 1e37])
def test_only_the_direction_of_the_reference_counts(size: float) -> None:
    change = away_from(torch.tensor([0.5, -0.25]), torch.tensor([-1.0, 1.0]) * size)
    torch.testing.assert_close(change, torch.tensor([-0.375, 0.375]))


@pytest.mark.parametrize("seed", range(8))
def test_the_projection_is_the_nearest_vector_that_is_allowed(seed: int) -> None:
    """min |v - g|² with <v, r> >= 0, by a general solver."""
    rng = np.random.default_rng(seed)
    g, r = rng.normal(size=(2, 6))
    solved = minimize(
        lambda v: ((v - g) ** 2).sum(),
        np.zeros(6),
        jac=lambda v: 2 * (v - g),
        constraints={"type": "ineq", "fun": lambda v: v @ r, "jac": lambda v: r},
        method="SLSQP",
        options={"ftol": 1e-12},
    )
    change = away_from(torch.from_numpy(g), torch.from_numpy(r))
    ours = g if change is None else g + change.numpy()
    assert (change is None) == (g @ r >= 0)
    np.testing.assert_allclose(ours, solved.x, atol=1e-5)
    assert ours @ r >= -1e-12


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = functional.cross_entropy(model(x), y)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_every_step_is_the_bare_step() -> None:
    strategy = AGEM(buffer=memory(), batch_size_mem=7, **template(lr=0.3))
    strategy.train(unlabelled(60).train_stream, eval_streams=[], shuffle=False)
    model, twin, projected = mlp(), memory(), 0
    for x, y in minibatches(unlabelled(60), 5):
        g = gradient(model, x, y)
        if len(twin):
            batch = twin.sample(7)
            r = gradient(model, batch["x"], batch["y"])
            if g @ r < 0:
                g, projected = g - (g @ r) / (r @ r) * r, projected + 1
        nn.utils.vector_to_parameters(parameters(model) - 0.3 * g, model.parameters())
        twin.add({"x": x, "y": y})
    torch.testing.assert_close(parameters(strategy.model), parameters(model), rtol=1e-4, atol=1e-5)
    assert 0 < strategy.replay.projected == projected < 11
    assert torch.equal(strategy.replay.buffer["x"], twin["x"])


class Watch(SupervisedPlugin):
    """Compares what is applied with what the stream's loss asked for, and with the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[float] = []
        self.changed: list[bool] = []

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        self.reference = strategy.replay._reference
        assert all(p.grad is None for p in strategy.model.parameters())

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        if self.reference is None:
            return
        applied = torch.cat([p.grad.flatten() for p in strategy.model.parameters()])
        wanted = gradient(strategy.model, strategy.mb_x, strategy.mb_y)
        size = applied.norm() * self.reference.norm()
        self.products.append(float(applied @ self.reference / size))
        product = wanted @ self.reference / (self.reference @ self.reference)
        wanted -= product.clamp_max(0) * self.reference
        torch.testing.assert_close(applied, wanted, rtol=1e-4, atol=1e-5)
        self.changed.append(bool(product < 0))


@pytest.mark.parametrize(
    "retrieval", [None, ClassBalanced(), MIR(0.1, candidates=8)], ids=["uniform", "balanced", "mir"]
)
def test_no_step_points_against_the_memory_and_none_changes_without_need(retrieval: Any) -> None:
    watch = Watch()
    strategy = AGEM(buffer=memory(), retrieval=retrieval, plugins=[watch], **template(lr=0.3))
    strategy.train(unlabelled(80).train_stream, eval_streams=[])
    assert len(watch.products) == 15 and min(watch.products) > -1e-5
    assert 0 < sum(watch.changed) == strategy.replay.projected < 15


def test_a_head_that_the_stream_does_not_use_is_projected_too() -> None:
    """A parameter without a gradient of the stream has the reference's part."""

    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body, self.first, self.second = nn.Linear(DIM, 4), nn.Linear(4, CLASSES), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return (self.first if len(x) == 5 else self.second)(self.body(x))

    model = TwoHeads()
    strategy = AGEM(buffer=memory(), batch_size_mem=3, **template(model, lr=0.3))
    strategy.train(unlabelled(80).train_stream, eval_streams=[])
    assert strategy.replay.projected and not torch.equal(model.second.weight, TwoHeads().second.weight)


def test_batchnorm_sees_the_memory_batch_by_itself() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(DIM, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
    AGEM(buffer=memory(), **template(model)).train(unlabelled().train_stream, eval_streams=[])
    assert int(model[1].num_batches_tracked) == 16 + 15


def test_losses_of_the_memory_batch_come_back() -> None:
    """The model never moves, and no row leaves."""
    retrieval, buffer = Told(), Buffer(60, policies.Reservoir(), seed=3)
    strategy = AGEM(buffer=buffer, retrieval=retrieval, batch_size_mem=8, **template(lr=0.0))
    strategy.train(unlabelled(60).train_stream, eval_streams=[])
    with torch.no_grad():
        losses = functional.cross_entropy(strategy.model(buffer["x"]), buffer["y"], reduction="none")
    assert len(retrieval.told) == 5 + 10 * 8 and retrieval.is_told(buffer.store.filled, losses)


def test_past_experiences_alone_task_labels_and_views() -> None:
    seen: list[Tensor] = []
    model = mlp()
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    views = Views(lambda x: x.float() * 2 + 1, lambda x: x.float() * 2)
    buffer = Buffer(17, policies.Reservoir(), seed=0)
    strategy = AGEM(buffer=buffer, views=views, update="experience", **template(model))
    strategy.train(classic(80, task_labels=True).train_stream, eval_streams=[])
    raw = rows(80)[0]
    assert len(seen) == 8 + 16 and buffer.seen == 80
    for x in seen:
        assert (((x - 1) / 2)[:, None] - raw).abs().amax(2).amin(1).max() < 1e-5
    assert torch.isin(buffer["x"][:, 1], raw[:, 1]).all()
