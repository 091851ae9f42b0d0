"""Rehearsal: the strategies that it stands for, other losses, and what does not fit."""

import inspect
from typing import Any

import pytest
import torch
from avalanche.models import MTSimpleMLP
from small_streams import STREAMS, minibatches, mlp, no_warnings, parameters, template, unlabelled
from torch.nn import functional

from replaykit import Buffer, policies, retrieval
from replaykit.losses import AML, CrossEntropy, MSELogits, Sum, SupCon, WeightedCrossEntropy
from replaykit.losses import DERpp as DERppLoss
from replaykit.retrieval import Prioritised
from replaykit.strategies import DER, ER, DERpp, Rehearsal
from replaykit.testing import same


def memory(policy: Any = None, **options: Any) -> Buffer:
    return Buffer(12, policy or policies.Reservoir(), seed=3, **options)


def trained(kind: type, **options: Any) -> torch.Tensor:
    strategy = kind(buffer=memory(), batch_size_mem=7, **options, **template())
    torch.manual_seed(0)
    strategy.train(unlabelled().train_stream, eval_streams=[])
    return parameters(strategy.model)


@pytest.mark.parametrize(
    ("loss", "kind", "options"),
    [
        (None, ER, {"joint": False}),
        (lambda: CrossEntropy(0.6), ER, {"joint": False, "weight": 0.6}),
        (lambda: MSELogits(0.4), DER, {"alpha": 0.4}),
        (lambda: DERppLoss(0.4, 0.6), DERpp, {"alpha": 0.4, "beta": 0.6}),
    ],
)
def test_it_is_the_strategy_whose_loss_it_is_given(loss: Any, kind: type, options: dict[str, Any]) -> None:
    ours = trained(Rehearsal, **({} if loss is None else {"loss": loss()}))
    torch.testing.assert_close(ours, trained(kind, **options))
    assert not torch.allclose(ours, trained(Rehearsal, loss=CrossEntropy(0.0)), atol=1e-3)


def test_every_step_is_the_bare_step_with_a_loss_of_ones_own() -> None:
    """A margin loss of two draws, told as a function; logits are asked for."""

    def loss(model: Any, draw: Any) -> torch.Tensor:
        first, second = draw(), draw()
        drift = (model(first["x"]) - first["logits"]).abs().mean()
        return drift + functional.multi_margin_loss(model(second["x"]), second["y"])

    data = unlabelled(40)
    strategy = Rehearsal(buffer=memory(), loss=loss, store_logits=True, batch_size_mem=7, **template())
    strategy.train(data.train_stream, eval_streams=[], shuffle=False)

    model, twin = mlp(), memory()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in minibatches(data, 5):
        z = model(x)
        total = functional.cross_entropy(z, y)
        if len(twin):
            total = total + loss(model, lambda: twin.sample(7))
        sgd.zero_grad()
        total.backward()
        sgd.step()
        twin.add({"x": x, "y": y, "logits": z.detach()})
    torch.testing.assert_close(parameters(strategy.model), parameters(model), rtol=1e-4, atol=1e-5)
    assert torch.equal(strategy.replay.buffer["x"], twin["x"])


def test_weights_of_a_coreset_and_of_a_retrieval_are_used() -> None:
    for buffer, column in (
        (lambda: memory(policies.GCR()), "weight"),
        (lambda: memory(retrieval=Prioritised(beta=0.5)), "importance"),
    ):
        models = []
        for loss in (WeightedCrossEntropy(column=column), CrossEntropy()):
            strategy = Rehearsal(buffer=buffer(), loss=loss, update="experience", **template())
            torch.manual_seed(0)
            strategy.train(unlabelled().train_stream, eval_streams=[])
            models.append(parameters(strategy.model))
        assert not torch.allclose(*models, atol=1e-4), column
        assert models[0].isfinite().all()
    assert strategy.replay.buffer["priority"].isfinite().any(), "losses of replayed rows came back"


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_of_every_kind(kind: str) -> None:
    with no_warnings():
        strategy = Rehearsal(buffer=memory(), loss=Sum(DERppLoss(0.4, 0.6), SupCon(0.1)), **template())
        strategy.train(STREAMS[kind]().train_stream, eval_streams=[])
    assert len(strategy.replay.buffer) == 12 and "logits" in strategy.replay.buffer.store.columns


def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    """Partners of the metric loss are drawn from torch's generator, the rest from the memory's."""
    data = unlabelled()

    def make(seed: int = 0) -> Rehearsal:
        return Rehearsal(buffer=memory(), loss=Sum(DERppLoss(0.4, 0.6), AML(0.1)), **template(mlp(seed=seed)))

    whole, first, second = make(), make(), make(9)
    torch.manual_seed(0)
    whole.train(data.train_stream, eval_streams=[], shuffle=False)
    torch.manual_seed(0)
    first.train(data.train_stream[0], eval_streams=[], shuffle=False)
    generator = torch.get_rng_state()
    second.model.load_state_dict(first.model.state_dict())
    second.replay.buffer.load_state_dict(first.replay.buffer.state_dict())
    second.load_state_dict(first.state_dict())
    torch.set_rng_state(generator)
    second.train(data.train_stream[1], eval_streams=[], shuffle=False)
    assert torch.equal(parameters(second.model), parameters(whole.model))
    assert same(second.replay.buffer.state_dict(), whole.replay.buffer.state_dict())
    assert whole.state_dict() == {}
    with pytest.raises(ValueError, match="Rehearsal keeps no state, got .'task'"):
        second.load_state_dict({"task": 1})


def test_candidates_wait_for_the_end_of_the_task_with_the_logits_of_their_step() -> None:
    """A memory of whole tasks against a bare loop: nothing is replayed in the first task, and then their logits."""
    data = unlabelled(40)

    def whole_tasks() -> Buffer:
        return memory(policies.XDERMemory())

    def pool(capacity: int = 20) -> Buffer:
        return Buffer(capacity, policies.Reservoir(), seed=1)

    options = {"loss": DERppLoss(0.4, 0.6), "batch_size_mem": 7}
    strategy = Rehearsal(buffer=whole_tasks(), candidates=pool(), **options, **template())
    strategy.train(data.train_stream, eval_streams=[], shuffle=False)

    model, twin = mlp(), whole_tasks()
    sgd, replay = torch.optim.SGD(model.parameters(), lr=0.1), options["loss"]
    for experience in data.train_stream:
        seen = []
        for start in range(0, 20, 5):
            x, y = (
                torch.stack(column)
                for column in zip(*(experience.dataset[start + i][:2] for i in range(5)), strict=True)
            )
            z = model(x)
            total = functional.cross_entropy(z, y)
            if len(twin):
                total = total + replay(model, lambda: twin.sample(7))
            sgd.zero_grad()
            total.backward()
            sgd.step()
            seen.append({"x": x, "y": y, "logits": z.detach()})
        twin.add({name: torch.cat([batch[name] for batch in seen]) for name in seen[0]})
    torch.testing.assert_close(parameters(strategy.model), parameters(model), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(strategy.replay.buffer["logits"], twin["logits"], rtol=1e-4, atol=1e-5)
    assert torch.equal(strategy.replay.buffer["x"], twin["x"])


def test_candidates_are_part_of_the_state() -> None:
    def make() -> Rehearsal:
        pool = Buffer(6, policies.Reservoir(), seed=1)
        return Rehearsal(buffer=memory(policies.XDERMemory()), candidates=pool, **template())

    first, second = make(), make()
    first.replay.pool.add({"x": torch.ones(9, 6), "y": torch.zeros(9, dtype=torch.int64)})
    second.load_state_dict(first.state_dict())
    assert same(second.state_dict(), first.state_dict()) and len(second.replay.pool) == 6
    with pytest.raises(ValueError, match="not the state of PooledReplay"):
        second.load_state_dict({})


@pytest.mark.parametrize("kind", [policies.RandomKeyReservoir, policies.LARS, policies.KMeans, policies.GSSGreedy])
def test_candidates_are_kept_by_any_policy_and_come_without_what_it_wrote(kind: type) -> None:
    pool = Buffer(8, kind(), seed=1)
    buffer = memory(policies.RandomKeyReservoir())
    strategy = Rehearsal(buffer=buffer, candidates=pool, loss=DERppLoss(0.4, 0.6), **template())
    strategy.train(unlabelled(40).train_stream, eval_streams=[])
    assert buffer.seen == 16
    assert set(buffer.store.columns) - {"loss"} == {"x", "y", "logits", "key"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"candidates": memory(policies.XDERMemory())},
            "a pool takes .* batch by batch, XDERMemory every add as a",
        ),
        (
            {"buffer": memory(policies.OCS()), "loss": MSELogits(1.0)},
            "logits belong to a training step.* use update='iteration', and another policy than OCS",
        ),
        (
            {"loss": WeightedCrossEntropy()},
            "WeightedCrossEntropy looks at a column 'weight' .* Reservoir does not write it. Use another loss",
        ),
        (
            {"retrieval": retrieval.Weighted()},
            "Weighted looks at a column 'weight' .* Reservoir does not write it. Use another retrieval",
        ),
        ({"buffer": memory(policies.OCS()), "update": "iteration"}, "OCS takes every add as a whole task; use"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rehearsal(**{"buffer": memory(), **options}, **template())


@pytest.mark.parametrize("loss", [SupCon(), AML(), Sum(CrossEntropy(), SupCon())])
def test_features_of_models_with_task_labels_are_refused_before_training(loss: Any) -> None:
    model = MTSimpleMLP(input_size=6, hidden_size=4)
    with pytest.raises(
        ValueError, match=r"compares features .*, and MTSimpleMLP takes task labels.* a function of x"
    ):
        Rehearsal(buffer=memory(), loss=loss, **template(model))
    Rehearsal(buffer=memory(), loss=SupCon(features=model.features), **template(model))


def test_every_argument_is_documented() -> None:
    documented = (inspect.getdoc(Rehearsal) or "").split("Args:")[1]
    assert all(name in documented for name in inspect.signature(Rehearsal.__init__).parameters if name != "self")
