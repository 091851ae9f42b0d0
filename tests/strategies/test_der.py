"""DER and DER++ against bare PyTorch, and the invariants of their definition."""

import pytest
import torch
from small_streams import CLASSES, Spy, minibatches, mlp, naive, parameters, template, unlabelled
from torch import nn
from torch.nn import functional

from replaykit import Buffer, policies
from replaykit.strategies import DER, ER, DERpp


def memory(capacity: int = 12, seed: int = 3) -> Buffer:
    return Buffer(capacity, policies.Reservoir(), seed=seed)


@pytest.mark.parametrize("labels", [False, True], ids=["DER", "DER++"])
def test_every_step_is_the_bare_step(labels: bool) -> None:
    data, epochs = unlabelled(40), 2
    options = {"buffer": memory(), "batch_size_mem": 7, "alpha": 0.4, **template(train_epochs=epochs)}
    strategy = DERpp(beta=0.6, **options) if labels else DER(**options)
    strategy.train(data.train_stream, eval_streams=[], shuffle=False)

    model, twin = mlp(), memory()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in minibatches(data, 5, epochs):
        z = model(x)
        loss = functional.cross_entropy(z, y)
        if len(twin):
            m = twin.sample(7)
            loss = loss + 0.4 * functional.mse_loss(model(m["x"]), m["logits"])
            if labels:
                m = twin.sample(7)
                loss = loss + 0.6 * functional.cross_entropy(model(m["x"]), m["y"])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        twin.add({"x": x, "y": y, "logits": z.detach()})
    torch.testing.assert_close(parameters(strategy.model), parameters(model), atol=1e-6, rtol=0)
    for name in ("x", "y", "logits"):
        torch.testing.assert_close(strategy.replay.buffer[name], twin[name], atol=1e-6, rtol=0)


def trained(kind, data=None, **options):
    spy, buffer = Spy(), memory(options.pop("capacity", 12))
    lr = options.pop("lr", 0.1)
    model = options.pop("model", None) or mlp()
    strategy = kind(buffer=buffer, plugins=[spy], **options, **template(model, lr=lr))
    torch.manual_seed(0)
    strategy.train((data or unlabelled()).train_stream, eval_streams=[])
    return parameters(strategy.model), buffer, spy


def test_without_alpha_der_is_training_without_replay_that_fills_the_memory() -> None:
    ours, buffer, _ = trained(DER, alpha=0.0)
    plain = naive()
    torch.manual_seed(0)
    plain.train(unlabelled().train_stream, eval_streams=[])
    torch.testing.assert_close(ours, parameters(plain.model))
    assert len(buffer) == 12 and "logits" in buffer.store.columns


def test_without_alpha_derpp_is_er_with_separate_passes() -> None:
    ours, _, _ = trained(DERpp, alpha=0.0, beta=0.6)
    theirs, _, _ = trained(ER, joint=False, weight=0.6)
    assert torch.equal(ours, theirs)


def test_without_beta_derpp_is_der() -> None:
    assert torch.equal(trained(DERpp, alpha=0.4, beta=0.0)[0], trained(DER, alpha=0.4)[0])


@pytest.mark.parametrize("kind", [DER, DERpp])
def test_logits_are_kept_as_they_were_for_ever(kind: type) -> None:
    _, buffer, spy = trained(kind, capacity=80)
    assert torch.equal(buffer["logits"], torch.cat(spy.outputs))


def test_a_frozen_network_is_at_no_distance_from_its_past() -> None:
    _, _, spy = trained(DER, alpha=1.0, lr=0.0)
    stream = [functional.cross_entropy(z, y).item() for z, (_, y) in zip(spy.outputs, spy.batches, strict=True)]
    assert spy.losses == pytest.approx(stream, rel=1e-6)


def test_replay_starts_with_the_second_batch() -> None:
    _, _, spy = trained(DER, alpha=1000.0, lr=1e-3)
    extra = [
        loss - functional.cross_entropy(z, y).item()
        for loss, z, (_, y) in zip(spy.losses, spy.outputs, spy.batches, strict=True)
    ]
    assert extra[0] == 0 and all(e > 0 for e in extra[1:])


def test_the_number_of_passes_is_that_of_the_method() -> None:
    counts = {}
    for name, kind, options in (
        ("der", DER, {}),
        ("derpp", DERpp, {}),
        ("fused", DERpp, {"fuse_replay": True}),
    ):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
        trained(kind, model=model, **options)
        counts[name] = int(model[1].num_batches_tracked)
    assert counts == {"der": 16 + 15, "derpp": 16 + 2 * 15, "fused": 16 + 15}


def test_cross_entropy_is_over_all_outputs() -> None:
    # Classes 2 and 3 have not come yet; their outputs are pushed down from the first batch on.
    data = unlabelled()
    strategy = DERpp(buffer=memory(), **template())
    before = strategy.model[-1].bias.detach().clone()
    strategy.train(data.train_stream[0], eval_streams=[])
    assert (strategy.model[-1].bias[2:] < before[2:]).all()
