"""The training of GSS against a bare loop, and what plugins see of its steps."""

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin
from reference import gss as reference
from small_streams import (
    CLASSES,
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

from replaykit import Buffer, policies
from replaykit.augment import Views
from replaykit.draws import distinct
from replaykit.policies.gss_clust import GSSClust
from replaykit.policies.gss_greedy import GSSGreedy
from replaykit.policies.gss_iqp import GSSIQP
from replaykit.policies.select_when_full import selected
from replaykit.probe import Probe
from replaykit.strategies.gss import GSS

MAKE = {
    "reservoir": policies.Reservoir,
    "greedy": lambda: GSSGreedy(2),
    "greedy by sample": lambda: GSSGreedy(gate="sample"),
    "iqp": lambda: GSSIQP(5),
    "clust": lambda: GSSClust(5),
}


def memory(policy: str = "reservoir", capacity: int = 17) -> Buffer:
    return Buffer(capacity, MAKE[policy](), seed=3)


@pytest.mark.parametrize("policy", MAKE)
def test_every_step_is_the_bare_step(policy: str) -> None:
    """With blocks that wrap: 17 rows in blocks of 7, four times. The same rows are stored, to the last bit."""
    x, y = rows(60)
    data, epochs = unlabelled(60, data=Labelled(x.double(), y)), 2
    options = template(mlp().double(), train_epochs=epochs)
    strategy = GSS(buffer=memory(policy), repeats=4, batch_size_mem=7, **options)
    strategy.train(data.train_stream, eval_streams=[], shuffle=False)

    model, twin = mlp().double(), memory(policy)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)

    def stored() -> tuple[torch.Tensor, torch.Tensor] | None:
        if not len(twin):
            return None
        batch = twin.read(twin.store.filled[distinct(len(twin), min(len(twin), 28), twin.draws)])
        return batch["x"], batch["y"]

    def offer(x: torch.Tensor, y: torch.Tensor) -> None:
        twin.add({"x": x, "y": y}, Probe(model))

    reference.train(model, sgd, list(minibatches(data, 5, epochs)), stored, offer, 4, 7)
    torch.testing.assert_close(parameters(strategy.model), parameters(model), atol=1e-10, rtol=0)
    for name in ("x", "y"):
        assert torch.equal(strategy.replay.buffer[name], twin[name])


class Watch(SupervisedPlugin):
    """Writes down events, and at each step the rows, where they are from, and the gradient that is applied."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.steps: list[tuple[torch.Tensor, torch.Tensor, bool]] = []
        self.wrong = 0

    def before_training_iteration(self, strategy, **kwargs) -> None:
        self.events.append("iteration")

    def before_forward(self, strategy, **kwargs) -> None:
        self.events.append("forward")
        mark = strategy.from_memory
        assert len(mark) == len(strategy.mbatch[0]) and bool(mark.all()) == bool(mark.any())
        assert torch.equal(mark, strategy.replay.from_memory)
        self.steps.append((strategy.mb_x.clone(), strategy.mb_y.clone(), bool(mark.all())))

    def before_backward(self, strategy, **kwargs) -> None:
        self.events.append("backward")

    def before_update(self, strategy, **kwargs) -> None:
        """The gradient about to be applied must be that of the loss of this step's rows, and nothing else."""
        x, y, _ = self.steps[-1]
        loss = functional.cross_entropy(strategy.model(x), y)
        for parameter, true in zip(
            strategy.model.parameters(), torch.autograd.grad(loss, list(strategy.model.parameters())), strict=True
        ):
            self.wrong += not torch.allclose(parameter.grad, true, rtol=1e-4, atol=1e-5)

    def after_update(self, strategy, **kwargs) -> None:
        self.events.append("update")

    def after_training_iteration(self, strategy, **kwargs) -> None:
        self.events.append("done")
        stream = [step for step in self.steps if not step[2]][-1]
        assert torch.equal(strategy.mb_x, stream[0]) and not strategy.from_memory.any()
        assert len(strategy.mb_output) == len(stream[0])


@pytest.mark.parametrize("policy", ["greedy", "greedy by sample"])
def test_scoring_does_not_leak_into_the_gradients_of_training(policy: str) -> None:
    watch = Watch()
    strategy = GSS(buffer=memory(policy), plugins=[watch], **template())
    strategy.train(unlabelled(80).train_stream, eval_streams=[])
    assert strategy.replay.buffer.policy.offered > 20 and len(watch.steps) > 80
    assert watch.wrong == 0


def test_the_events_of_steps_and_iterations() -> None:
    watch = Watch()
    strategy = GSS(buffer=memory(), repeats=2, batch_size_mem=3, plugins=[watch], **template())
    strategy.train(unlabelled(8).train_stream[0], eval_streams=[])
    step = ["forward", "backward", "update"]
    assert watch.events == ["iteration", *2 * step, "done"]
    watch.events.clear()
    watch.steps.clear()
    strategy.train(unlabelled(8).train_stream[1], eval_streams=[])
    assert watch.events == ["iteration", *4 * step, "done"]
    assert [mark for _, _, mark in watch.steps] == [False, True, False, True]
    assert [len(x) for x, _, _ in watch.steps] == [4, 3, 4, 1]  # four rows stored: a block of 3, then the last one
    replayed = torch.cat([watch.steps[1][0], watch.steps[3][0]])[:, 0]
    assert replayed.sort().values.tolist() == rows(8)[0][[0, 1, 4, 5], 0].tolist()


def test_metrics_of_an_iteration_are_about_the_stream_and_the_clock_counts_iterations() -> None:
    evaluator = EvaluationPlugin(accuracy_metrics(epoch=True), loss_metrics(minibatch=True), loggers=[Silent()])
    strategy = GSS(buffer=memory(), **template(evaluator=evaluator))
    with no_warnings():
        strategy.train(unlabelled(80).train_stream, eval_streams=[])
        strategy.eval(unlabelled(80).test_stream)
    logged = strategy.evaluator.get_all_metrics()
    name = next(name for name in logged if name.startswith("Loss_MB"))
    assert len(logged[name][1]) == 16
    assert strategy.clock.train_iterations == 16


@pytest.mark.parametrize("policy", ["reservoir", "greedy"])
def test_task_labels_and_views_reach_both_kinds_of_steps(policy: str) -> None:
    watch = Watch()
    views = Views(lambda x: x.float() * 2 + 1, lambda x: x.float() * 2)
    strategy = GSS(buffer=memory(policy), views=views, plugins=[watch], **template())
    strategy.train(classic(task_labels=True).train_stream, eval_streams=[])
    raw = rows(80)[0]
    for x, _, _ in watch.steps:
        assert (((x - 1) / 2)[:, None] - raw).abs().amax(2).amin(1).max() < 1e-5
    assert torch.isin(strategy.replay.buffer["x"][:, 1], raw[:, 1]).all()  # stored raw
    assert {mark for _, _, mark in watch.steps} == {False, True}
    strategy.eval(classic(task_labels=True).test_stream)


def test_rows_that_are_not_selected_yet_can_be_left_out() -> None:
    buffer = memory("iqp")

    class Check(SupervisedPlugin):
        mixed = 0

        def before_forward(self, strategy, **kwargs) -> None:
            fresh = buffer.store.host("recent")[buffer.store.filled] if len(buffer) else np.zeros(0, bool)
            if strategy.from_memory.any() and 0 < fresh.sum() < len(fresh):
                Check.mixed += 1
                settled = buffer.read(selected(buffer.store))["x"]
                assert all(bool((row == settled).all(1).any()) for row in strategy.mb_x)

    GSS(buffer=buffer, among=selected, plugins=[Check()], **template()).train(
        unlabelled(80).train_stream, eval_streams=[]
    )
    assert Check.mixed > 5


class WantsLogits(policies.Reservoir):
    columns = ("logits",)


def test_logits_that_a_policy_wants_are_those_of_the_stream() -> None:
    buffer = Buffer(40, WantsLogits())
    strategy = GSS(buffer=buffer, batch_size_mem=3, **template(lr=0.0))
    strategy.train(unlabelled(40).train_stream, eval_streams=[])
    torch.testing.assert_close(buffer["logits"], strategy.model(buffer["x"]).detach())


def test_it_learns_two_tasks() -> None:
    strategy = GSS(buffer=Buffer(80, GSSGreedy(), seed=0), **template(lr=0.05))
    strategy.train(unlabelled(400).train_stream, eval_streams=[])
    x, y = rows(400, seed=1)
    with torch.no_grad():
        right = strategy.model.eval()(x).argmax(1) == y
    assert right.float().mean() > 0.6 and right[y < 2].float().mean() > 0.4


def test_two_runs_with_one_seed_are_the_same() -> None:
    held = []
    for _ in range(2):
        torch.manual_seed(0)
        made = GSS(buffer=memory("greedy"), **template())
        made.train(unlabelled().train_stream, eval_streams=[])
        held.append(torch.cat([made.replay.buffer["x"].flatten(), parameters(made.model)]))
    assert torch.equal(*held)


def test_training_may_be_stopped() -> None:
    class Stop(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs) -> None:
            strategy.stop_training()

    strategy = GSS(buffer=memory(), plugins=[Stop()], **template())
    strategy.train(unlabelled().train_stream[0], eval_streams=[])
    assert strategy.replay.buffer.seen == 5


def test_every_step_is_a_batch_of_batchnorm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
    GSS(buffer=memory("greedy"), **template(model)).train(unlabelled().train_stream, eval_streams=[])
    assert int(model[1].num_batches_tracked) == 3 * (16 + 15) and parameters(model).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"), [({"repeats": 0}, "steps >= 1, got 0"), ({"batch_size_mem": 0}, "rows >= 1, got 0")]
)
def test_arguments_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GSS(buffer=memory(), **options, **template())
