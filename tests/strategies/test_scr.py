"""SCR against bare PyTorch, and its nearest-mean classifier."""

import pytest
import torch
from avalanche.models import MultiHeadClassifier
from small_streams import CLASSES, DIM, minibatches, mlp, parameters, rows, template, unlabelled
from torch import nn
from torch.nn import functional

from replaykit import Buffer, metrics, policies, retrieval
from replaykit.augment import Views
from replaykit.contrastive import supervised_contrastive
from replaykit.strategies import SCR


def memory() -> Buffer:
    return Buffer(12, policies.Reservoir(), seed=3)


PLAIN, OTHER = (lambda x: x - 0.5), (lambda x: 2 * x)


@pytest.mark.parametrize("projected", [False, True])
def test_every_step_is_the_bare_step(projected: bool) -> None:
    data = unlabelled(40)
    projection = nn.Linear(8, 3) if projected else None
    twin_projection = nn.Linear(8, 3)
    if projected:
        twin_projection.load_state_dict(projection.state_dict())
    options = {"batch_size_mem": 7, "temperature": 0.3, "projection": projection, "views": Views(OTHER, PLAIN)}
    strategy = SCR(buffer=memory(), **options, **template())
    strategy.train(data.train_stream, eval_streams=[], shuffle=False)

    model, twin = mlp(), memory()
    trained = [*model.parameters(), *(twin_projection.parameters() if projected else ())]
    sgd = torch.optim.SGD(trained, lr=0.1)
    for x, y in minibatches(data, 5):
        both_x, both_y = x, y
        if len(twin):
            m = twin.sample(7)
            both_x, both_y = torch.cat([x, m["x"]]), torch.cat([y, m["y"]])
        z = torch.cat([model[:2](PLAIN(both_x)), model[:2](OTHER(both_x))])
        z = twin_projection(z) if projected else z
        loss = supervised_contrastive(z, both_y.repeat(2), 0.3)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        twin.add({"x": x, "y": y})
    torch.testing.assert_close(parameters(strategy.model), parameters(model), atol=1e-6, rtol=0)
    assert torch.equal(strategy.replay.buffer["x"], twin["x"]), "raw rows are stored"
    if projected:
        torch.testing.assert_close(parameters(projection), parameters(twin_projection), atol=1e-6, rtol=0)


def trained(**options):
    data = unlabelled(200)
    buffer = Buffer(40, policies.ClassBalancedReservoir(), seed=1)
    strategy = SCR(buffer=buffer, batch_size_mem=20, temperature=0.2, **options, **template())
    torch.manual_seed(0)
    strategy.train(data.train_stream, eval_streams=[])
    return strategy


def test_the_classifier_is_the_nearest_of_the_memorys_means() -> None:
    strategy = trained(views=Views(PLAIN, PLAIN))
    x, y = rows(200)
    buffer, body = strategy.replay.buffer, strategy.model[:2]
    held = functional.normalize(body(PLAIN(buffer["x"])), dim=1)
    means = torch.stack([functional.normalize(held[buffer["y"] == c].mean(0), dim=0) for c in range(4)])
    nearest = torch.cdist(functional.normalize(body(PLAIN(x)), dim=1), means).argmin(1)
    classifier = strategy.classifier()
    assert torch.equal(classifier(PLAIN(x)).argmax(1), nearest)
    right = int((nearest == y).sum()) / 200
    assert metrics.accuracy(classifier, x, y, PLAIN, 50, "cpu") == right > 0.6
    assert strategy.model.training == classifier.training


def test_the_classifier_leaves_the_model_as_it_was_and_follows_it() -> None:
    strategy = trained()
    strategy.model.train()
    before, state = parameters(strategy.model).clone(), torch.get_rng_state()
    first = strategy.classifier()(rows(20)[0])
    assert strategy.model.training and torch.equal(parameters(strategy.model), before)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        strategy.model[0].weight.mul_(-1)
    assert not torch.equal(strategy.classifier()(rows(20)[0]), first)


def test_the_last_layer_is_not_trained_and_nothing_stored_means_the_model() -> None:
    strategy = SCR(buffer=memory(), **template())
    assert strategy.classifier() is strategy.model
    head = strategy.model[-1].weight.clone()
    strategy.train(unlabelled().train_stream, eval_streams=[])
    assert torch.equal(strategy.model[-1].weight, head)


def test_avalanche_evaluates_the_classifier() -> None:
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin
    from small_streams import Silent

    data = unlabelled(80, tasks=1)
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[Silent()])
    strategy = SCR(buffer=memory(), temperature=0.2, **template(evaluator=evaluator))
    strategy.train(data.train_stream, eval_streams=[])
    (value,) = [v for k, v in strategy.eval(data.test_stream).items() if "Top1_Acc_Stream" in k]
    x, y = rows(80)
    assert value == pytest.approx((strategy.classifier()(x).argmax(1) == y).float().mean().item())


def test_a_number_makes_an_mlp_that_is_trained_and_saved() -> None:
    strategy = SCR(buffer=memory(), projection=3, seed=5, **template())
    again = SCR(buffer=memory(), projection=3, seed=5, **template())
    assert [layer.weight.shape for layer in strategy.projection if hasattr(layer, "weight")] == [(8, 8), (3, 8)]
    assert torch.equal(parameters(strategy.projection), parameters(again.projection))
    strategy.train(unlabelled().train_stream, eval_streams=[])
    assert not torch.equal(parameters(strategy.projection), parameters(again.projection))
    again.load_state_dict(strategy.state_dict())
    assert torch.equal(parameters(strategy.projection), parameters(again.projection))
    plain = SCR(buffer=memory(), **template())
    assert plain.state_dict() == {}
    with pytest.raises(ValueError, match="'projection'.* does not fit SCR without a projection"):
        plain.load_state_dict(strategy.state_dict())
    with pytest.raises(ValueError, match="nothing does not fit SCR with a projection"):
        again.load_state_dict({})
    with pytest.raises(ValueError, match="the saved projection does not fit"):
        SCR(buffer=memory(), projection=4, **template()).load_state_dict(strategy.state_dict())
    with pytest.raises(ValueError, match="the saved projection does not fit"):
        again.load_state_dict({"projection": 3})


def test_a_projection_joins_the_optimiser_once_with_its_settings() -> None:
    model, projection = mlp(), nn.Linear(8, 2)
    optimizer = torch.optim.SGD([*model.parameters(), *projection.parameters()], lr=0.2, momentum=0.5)
    SCR(buffer=memory(), projection=projection, **{**template(model), "optimizer": optimizer})
    assert len(optimizer.param_groups) == 1
    SCR(buffer=memory(), projection=2, **{**template(model), "optimizer": optimizer})
    assert len(optimizer.param_groups) == 1 and len(optimizer.param_groups[0]["params"]) == 10


def test_a_scheduler_moves_the_projection_like_the_model() -> None:
    from avalanche.training.plugins import LRSchedulerPlugin

    options = template(train_epochs=2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(options["optimizer"], lambda epoch: 0.5**epoch)
    plugin = LRSchedulerPlugin(scheduler, reset_lr=False, reset_scheduler=False)
    strategy = SCR(buffer=memory(), projection=2, plugins=[plugin], **options)
    strategy.train(unlabelled(tasks=1).train_stream, eval_streams=[])
    held = {id(p): group["lr"] for group in options["optimizer"].param_groups for p in group["params"]}
    assert {held[id(p)] for p in strategy.projection.parameters()} == {0.025}


def test_bad_settings_are_told() -> None:
    with pytest.raises(ValueError, match="projection is a module or a number of outputs >= 1, got 0"):
        SCR(buffer=memory(), projection=0, **template())
    with pytest.raises(ValueError, match="width of the features; pass the projection as a module"):
        SCR(buffer=memory(), projection=3, **template(nn.Conv2d(1, 2, 3)))
    with pytest.raises(ValueError, match="temperature is a positive number, got 0"):
        SCR(buffer=memory(), temperature=0, **template())
    with pytest.raises(ValueError, match="SCR compares all classes in one space; give a model that takes no task"):
        SCR(buffer=memory(), **template(MultiHeadClassifier(DIM, CLASSES)))


def test_what_looks_at_the_model_is_shown_evaluation_views_in_every_task() -> None:
    shown = []

    class Watching(retrieval.MIR):
        def rows(self, store, n, rng, arrivals, probe):
            shown.append(probe.prepare)
            return super().rows(store, n, rng, arrivals, probe)

    views = Views(OTHER, PLAIN)
    strategy = SCR(buffer=memory(), retrieval=Watching(lr=0.1), views=views, **template())
    strategy.train(unlabelled(tasks=2).train_stream, eval_streams=[])
    assert shown and set(shown) == {views.eval}


def test_the_mlp_has_the_dtype_of_the_model() -> None:
    strategy = SCR(buffer=memory(), projection=3, **template(mlp().double()))
    assert {p.dtype for p in strategy.projection.parameters()} == {torch.float64}
