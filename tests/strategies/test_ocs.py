"""OCS against a bare loop with literal scores, and who sees which rows."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from avalanche.models import MultiHeadClassifier, MultiTaskModule
from reference import ocs as reference
from reference.per_sample_gradients import flat, one_by_one
from small_streams import (
    CLASSES,
    DIM,
    STREAMS,
    Labelled,
    Spy,
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
from replaykit.augment import Views, views
from replaykit.draws import distinct
from replaykit.gradients import cross_entropy
from replaykit.policies.ocs import OCS as Policy
from replaykit.probe import Probe
from replaykit.strategies.ocs import OCS
from replaykit.testing import same


def memory(capacity: int = 12, seed: int = 3, policy=None) -> Buffer:
    return Buffer(capacity, policy or Policy(), seed=seed)


def doubles(n: int = 64):
    x, y = rows(n)
    return unlabelled(n, data=Labelled(x.double(), y))


def literal_picks(model, x, y, memory_x=None, memory_y=None, tau=1000.0) -> list[int]:
    """All rows of a batch, the best first."""
    formed = flat(one_by_one(model, {"x": x, "y": y}, cross_entropy()))
    if memory_x is None:
        return reference.ranking(reference.scores(formed))
    mean = flat(one_by_one(model, {"x": memory_x, "y": memory_y}, cross_entropy())).mean(0)
    return reference.ranking(reference.scores(formed, tau, mean), tau)


# -- the step -------------------------------------------------------------------------------------


@pytest.mark.parametrize("over_count", [False, True])
@pytest.mark.parametrize("kind", ["batch", "all"])
@pytest.mark.parametrize("warmup", [0, 2])
def test_every_step_is_the_bare_step(kind: str, over_count: bool, warmup: int) -> None:
    data, epochs, kappa, lam = doubles(), 2, 3, 0.7
    norm = "mean_over_count" if over_count else "mean"
    strategy = OCS(
        buffer=memory(), kappa=kappa, lam=lam, tau=20.0, replay_norm=norm, reference=kind, batch_size_mem=4, pool=9,
        warmup=warmup, seed=5, **template(mlp().double(), train_mb_size=8, train_epochs=epochs),
    )  # fmt: skip
    strategy.train(data.train_stream, eval_streams=[], shuffle=False)

    model, twin, pool = mlp().double(), memory(), Buffer(9, policies.Reservoir(), seed=5)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, (x, y) in enumerate(minibatches(data, 8, epochs)):
        turn = i % 8  # in this experience
        q = twin.sample(4) if len(twin) else None
        if turn < warmup:
            picked = distinct(8, kappa, pool.draws)
        elif q is None:
            picked = literal_picks(model, x, y)[:kappa]
        else:
            r = q if kind == "batch" else twin.read(twin.store.filled)
            picked = literal_picks(model, x, y, r["x"], r["y"], 20.0)[:kappa]
        x, y = x[picked], y[picked]
        loss = functional.cross_entropy(model(x), y)
        if q is not None:
            loss = loss + lam * functional.cross_entropy(model(q["x"]), q["y"]) / (4 if over_count else 1)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        if turn % 4 == 0:
            pool.clear()
        pool.add({"x": x, "y": y})
        if turn == 7:
            twin.add(pool.read(pool.store.filled), Probe(model))
            pool.clear()
    torch.testing.assert_close(parameters(strategy.model), parameters(model), atol=1e-12, rtol=0)
    for name in ("x", "y", "ocs_rank", "ocs_task"):
        assert torch.equal(strategy.replay.buffer[name], twin[name])


@pytest.mark.parametrize(("norm", "factor"), [("mean", 10.0), ("mean_over_count", 1.0)])
def test_ten_times_the_memory_loss_is_once_over_the_count_of_ten(norm: str, factor: float) -> None:
    buffer, spy = memory(30), Spy()
    x, y = rows(20, seed=1)
    buffer.add({"x": x, "y": y}, Probe(mlp()))
    twin = copy.deepcopy(buffer)
    OCS(buffer=buffer, lam=10.0, replay_norm=norm, plugins=[spy], **template(train_mb_size=20)).train(
        unlabelled(20, 1).train_stream, eval_streams=[]
    )
    q = twin.sample(10)
    picked = functional.cross_entropy(spy.outputs[0], spy.batches[0][1])
    replayed = functional.cross_entropy(mlp()(q["x"]), q["y"])
    torch.testing.assert_close(torch.tensor(spy.losses[0]), picked + factor * replayed)


def test_without_lambda_the_memory_only_chooses() -> None:
    spy = Spy()
    made = OCS(buffer=memory(), kappa=3, lam=0.0, plugins=[spy], **template(train_mb_size=8))
    made.train(unlabelled().train_stream, eval_streams=[])
    for loss, z, (_, y) in zip(spy.losses, spy.outputs, spy.batches, strict=True):
        assert loss == functional.cross_entropy(z, y).item()


# -- which rows -----------------------------------------------------------------------------------


def test_others_see_the_picked_rows_alone() -> None:
    spy, made = Spy(), None
    picked = []

    class Picks(Spy):
        def before_forward(self, strategy, *args, **kwargs) -> None:
            picked.append(made.replay.picked.tolist())

    made = OCS(buffer=memory(), kappa=3, plugins=[spy, Picks()], **template(train_mb_size=8))
    data = unlabelled()
    made.train(data.train_stream, eval_streams=[], shuffle=False)
    for (x, y), rows_of, (whole_x, whole_y), marks in zip(
        spy.batches, picked, minibatches(data, 8), spy.from_memory, strict=True
    ):
        assert len(set(rows_of)) == 3 and marks.tolist() == [False] * 3
        assert torch.equal(x, whole_x[rows_of]) and torch.equal(y, whole_y[rows_of])


@pytest.mark.parametrize("size", [3, 5, 7])
def test_batches_with_no_more_than_kappa_rows_are_taken_whole(size: int) -> None:
    spy = Spy()
    made = OCS(buffer=memory(), kappa=5, plugins=[spy], **template(train_mb_size=size))
    made.train(unlabelled().train_stream, eval_streams=[])
    last = 40 % size or size
    assert [len(x) for x, _ in spy.batches] == [*[min(5, size)] * (-(-40 // size) - 1), min(5, last)] * 2


def test_random_picks_at_the_beginning_of_every_experience() -> None:
    kept = []
    for seed, warmup in ((0, 10), (1, 10), (0, 0), (1, 0)):
        spy = Spy()
        options = template(train_mb_size=8, lr=0.0)
        made = OCS(buffer=memory(), kappa=3, lam=0.0, warmup=warmup, seed=seed, plugins=[spy], **options)
        made.train(unlabelled().train_stream[0], eval_streams=[], shuffle=False)
        kept.append(torch.cat([x for x, _ in spy.batches]))
    assert not torch.equal(kept[0], kept[1]) and torch.equal(kept[2], kept[3])
    assert not torch.equal(kept[0], kept[2])


def test_rows_are_scored_in_their_evaluation_view_and_stored_raw() -> None:
    seen = Views(lambda x: x + torch.randn_like(x), lambda x: x.square())
    data, buffer, spy = doubles(), memory(40), Spy()
    made = OCS(
        buffer=buffer, kappa=3, views=seen, plugins=[spy], **template(mlp().double(), lr=0.0, train_mb_size=8)
    )
    made.train(data.train_stream, eval_streams=[], shuffle=False)
    model = mlp().double()
    known = {tuple(x.tolist()) for x in rows(64)[0].double()}
    assert {tuple(x.tolist()) for x in buffer["x"]} <= known
    batches = list(minibatches(data, 8))[:4]  # while the memory is empty
    expected = {tuple(x[row].tolist()) for x, y in batches for row in literal_picks(model, x.square(), y)[:3]}
    first = buffer["ocs_task"] == 0
    assert {tuple(x.tolist()) for x in buffer["x"][first]} == expected
    assert not {tuple(x.tolist()) for batch in spy.batches for x in batch[0]} & known


def test_small_differences_count_while_there_is_no_affinity() -> None:
    """With tau = 1000 the affinity's rounding error is about the difference of these scores."""
    x = torch.tensor([[1.0, 0.002], [1.0, 0.0], [1.0, 0.05], [1.0, 0.051]], dtype=torch.float64)
    data = unlabelled(4, 1, Labelled(nn.functional.pad(x, (0, DIM - 2)), torch.arange(4)))
    values = reference.scores(next(minibatches(data, 4))[0])
    assert max(values) - min(values) < 4e-3
    model = nn.Linear(DIM, CLASSES, bias=False).double()
    made = OCS(buffer=memory(), kappa=2, probe=lambda s: Probe(s.model, loss=lambda z, _: z[:, 0]),
               **template(model, train_mb_size=4))  # fmt: skip
    made.train(data.train_stream, eval_streams=[], shuffle=False)
    assert made.replay.picked.tolist() == reference.ranking(values)[:2] != [0, 1]


def test_the_pool_is_offered_once_and_then_empty() -> None:
    buffer, adds = memory(), []
    add = buffer.add
    buffer.add = lambda batch, probe=None: adds.append(batch) or add(batch, probe)  # type: ignore[method-assign]
    made = OCS(buffer=buffer, kappa=3, pool=7, **template(train_mb_size=8, train_epochs=3))
    pool = made.replay.pool
    made.train(unlabelled().train_stream, eval_streams=[])
    assert [len(batch["y"]) for batch in adds] == [7, 7] and len(pool) == 0 and pool.capacity == 7
    assert all(set(batch) == {"x", "y"} for batch in adds)
    assert set(buffer["ocs_task"].tolist()) == {0, 1}


def test_with_several_epochs_the_pool_holds_rows_of_the_last() -> None:
    spy, buffer = Spy(), memory(100)
    made = OCS(buffer=buffer, kappa=3, plugins=[spy], **template(train_mb_size=8, train_epochs=3))
    made.train(unlabelled(80, 1).train_stream, eval_streams=[])
    last = torch.cat([x for x, _ in spy.batches[-10:]])
    assert len(buffer) == 30 == buffer.seen
    assert {tuple(x.tolist()) for x in buffer["x"]} == {tuple(x.tolist()) for x in last}


def test_training_that_is_stopped_early_stores_what_it_has_picked() -> None:
    class Stop(Spy):
        def after_training_epoch(self, strategy, *args, **kwargs) -> None:
            strategy.stop_training()

    buffer = memory(100)
    made = OCS(buffer=buffer, kappa=3, plugins=[Stop()], **template(train_mb_size=8, train_epochs=3))
    made.train(unlabelled(80, 1).train_stream, eval_streams=[])
    assert len(buffer) == 30


# -- whatever it is built on ----------------------------------------------------------------------


@pytest.mark.parametrize("policy", [policies.Reservoir, policies.RingBuffer, policies.ClassBalancedReservoir])
def test_any_policy_serves(policy: type) -> None:
    buffer = memory(policy=policy())
    made = OCS(buffer=buffer, kappa=3, pool=11, **template(train_mb_size=8))
    made.train(unlabelled().train_stream, eval_streams=[])
    assert len(buffer) >= 10 and buffer.seen == 22


@pytest.mark.parametrize("name", STREAMS)
def test_every_benchmark_trains_without_a_warning(name: str) -> None:
    buffer = memory()
    with no_warnings():
        made = OCS(buffer=buffer, kappa=3, **template(train_mb_size=8))
        made.train(STREAMS[name]().train_stream, eval_streams=[])
    assert made.replay.loading == "sliced" and len(buffer) == 12
    assert ("t" in buffer.store.columns) == (name in ("classic", "task labels", "renumbered", "numbers"))


class TwoHeads(MultiTaskModule):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(DIM, 8), MultiHeadClassifier(8, CLASSES, masking=False)

    def forward(self, x, task_labels):
        return self.head(torch.relu(self.body(x)), task_labels)


@pytest.mark.parametrize("kind", ["batch", "all"])
def test_a_model_with_a_head_for_each_task_scores_each_row_under_its_own(kind: str) -> None:
    torch.manual_seed(0)
    buffer = memory(policy=Policy(group="t"))
    made = OCS(buffer=buffer, kappa=3, reference=kind, **template(TwoHeads(), train_mb_size=8))
    made.train(classic(task_labels=True).train_stream, eval_streams=[])
    assert buffer["t"].bincount().tolist() == [6, 6]


def test_scoring_leaves_batchnorm_and_dropout_to_the_training() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(DIM, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES))
    made = OCS(buffer=memory(), kappa=3, **template(model, train_mb_size=8))
    made.train(unlabelled().train_stream, eval_streams=[])
    assert int(model[1].num_batches_tracked) == 10 + 5  # five batches an experience; Q in the second


def test_images_in_bytes_and_scores_of_the_last_layer() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (80, 1, 4, 4), dtype=torch.uint8, generator=g)
    data = unlabelled(data=Labelled(x, torch.arange(80) % CLASSES))
    model, buffer, seen = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)), memory(), views(0.5, 0.5, crop=1)
    made = OCS(
        buffer=buffer, kappa=3, views=seen, probe=lambda s: Probe(s.model, prepare=seen.eval, layers="last"),
        **template(model, train_mb_size=8),
    )  # fmt: skip
    made.train(data.train_stream, eval_streams=[])
    made.eval(data.test_stream)
    assert buffer["x"].dtype == torch.uint8 and len(buffer) == 12


@pytest.mark.parametrize("kind", ["batch", "all"])
def test_devices_train_alike(device: str, kind: str) -> None:
    trained = []
    for where in ("cpu", device):
        options = template(mlp().double().to(where), train_mb_size=8, device=where)
        made = OCS(buffer=Buffer(12, Policy(), device=where), kappa=3, reference=kind, **options)
        made.train(doubles().train_stream, eval_streams=[], shuffle=False)
        trained.append((parameters(made.model).cpu(), made.replay.buffer["x"].cpu()))
    torch.testing.assert_close(*trained)


def test_it_learns_two_tasks() -> None:
    torch.manual_seed(0)
    made = OCS(buffer=memory(80), batch_size_mem=20, **template(train_mb_size=20, train_epochs=4))
    made.train(unlabelled(400).train_stream, eval_streams=[])
    x, y = rows(400, seed=1)
    right = made.model.eval()(x).argmax(1) == y
    assert right.float().mean() > 0.6 and right[y < 2].float().mean() > 0.4  # without replay 0.5 and 0


def test_gradients_without_a_direction_are_counted_and_nan_stops_the_training() -> None:
    x, y = rows(16)
    model = nn.Linear(DIM, CLASSES)
    data = unlabelled(16, 1, Labelled(x, y))
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    made = OCS(buffer=memory(), kappa=3, probe=lambda s: Probe(s.model, loss=lambda z, _: z[:, 0] * 0),
               **template(model, train_mb_size=8))  # fmt: skip
    made.train(data.train_stream, eval_streams=[])
    assert made.replay.degenerate == 16 and made.replay.picked.tolist() == [0, 1, 2]
    x[9, 2] = float("nan")
    with pytest.raises(ValueError, match="losses are NaN or infinite in rows"):
        OCS(buffer=memory(), kappa=3, **template(train_mb_size=16)).train(data.train_stream, eval_streams=[])


def test_its_state_is_the_pool_and_two_counts() -> None:
    made, other = (OCS(buffer=memory(), kappa=3, seed=seed, **template(train_mb_size=8)) for seed in (0, 1))
    made.replay.pool.add(dict(zip("xy", rows(5), strict=True)))
    made.replay.degenerate = 2
    other.load_state_dict(made.state_dict())
    assert same(other.state_dict(), made.state_dict()) and len(other.replay.pool) == 5
    for bad in ({}, {**made.state_dict(), "batches": -1}, {**made.state_dict(), "degenerate": 0.5}):
        with pytest.raises(ValueError, match="not the state of PickedReplay"):
            other.load_state_dict(bad)


def test_the_plugin_can_be_saved() -> None:
    made = OCS(buffer=memory(), kappa=3, **template(train_mb_size=8))
    made.train(unlabelled().train_stream[0], eval_streams=[])
    saved = pickle.loads(pickle.dumps(made.replay))
    assert torch.equal(saved.buffer["x"], made.replay.buffer["x"]) and saved.pool.capacity == 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": 0}, "kappa is a number of rows >= 1, got 0"),
        ({"tau": -1.0}, "tau is a coefficient"),
        ({"tau": np.inf}, "tau is a coefficient"),
        ({"lam": -1.0}, "weight is a coefficient >= 0, got -1.0"),
        ({"replay_norm": "sum"}, "replay_norm is 'mean' or 'mean_over_count', got 'sum'"),
        ({"reference": "none"}, "reference is 'batch' or 'all', got 'none'"),
        ({"pool": 0}, "capacity must be at least 1 slot, got 0"),
        ({"warmup": -1}, "warmup is a number of batches >= 0, got -1"),
        ({"batch_size_mem": 0}, "batch_size_mem is a number of rows >= 1, got 0"),
    ],
)
def test_arguments_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OCS(buffer=memory(), **options, **template())


def test_every_argument_is_documented() -> None:
    documented = (inspect.getdoc(OCS) or "").split("Args:")[1].split("Published")[0]
    assert all(name in documented for name in inspect.signature(OCS.__init__).parameters if name != "self")
