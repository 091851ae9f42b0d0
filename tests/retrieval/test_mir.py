"""MIR against a copy of the model that takes the step, and what it leaves alone."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from avalanche.models import IncrementalClassifier, MTSimpleMLP
from guided_memories import memory, model, stream, trace
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import uniform_subset_p_value
from reference import small_networks as nets
from reference.laws import RARE
from reference.mir import losses_around_a_step
from small_streams import CLASSES, DIM, minibatches, mlp, parameters, template, unlabelled
from torch import Tensor, nn
from torch.nn.functional import cross_entropy as mean_cross_entropy

from replaykit import Batch, Buffer
from replaykit.augment import Views
from replaykit.gradients import cross_entropy
from replaykit.policies import Reservoir
from replaykit.probe import Probe
from replaykit.retrieval.mir import MIR
from replaykit.strategies import ER, DERpp
from replaykit.testing import reloaded, same


def half_square(outputs: Tensor, batch: Batch) -> Tensor:
    return 0.5 * (outputs[:, 0] - batch["y"]).square()


def line(theta: float = 0.0) -> nn.Module:
    """f(x) = θ x"""
    made = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(made.weight, theta)
    return made


def points(*pairs: tuple[float, float]) -> Batch:
    x, y = torch.tensor(pairs, dtype=torch.float64).T
    return {"x": x[:, None], "y": y}


def table(rows: Batch, device: str = "cpu") -> Buffer:
    """A memory of these rows."""
    buffer = Buffer(len(rows["x"]), Reservoir(), device=device)
    buffer.add(rows)
    return buffer


class Watched(Probe):
    """A probe that remembers the batches it was asked about."""

    def __init__(self, net: nn.Module, **options: object) -> None:
        super().__init__(net, **options)  # type: ignore[arg-type]
        self.asked: list[Batch] = []

    def losses_around(self, batch: Batch, step: dict[str, Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        self.asked.append(batch)
        return super().losses_around(batch, step)


# -- by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", ["all", "last"])
def test_hand_case(layers: str) -> None:
    """θ = 0, stream (1, 1), η = ½, so θ_v = ½: (1, -1), (0, 5), (1, 1) score 0.625, 0, -0.375."""
    probe = Probe(line(), loss=half_square, layers=layers)
    candidates, arrivals = points((1, -1), (0, 5), (1, 1)), points((1, 1))
    gradients = probe.gradients(arrivals)
    before, after = probe.losses_around(candidates, gradients.layout.split(-0.5 * gradients.mean()))
    assert (after - before).tolist() == [0.625, 0.0, -0.375]
    buffer = table(candidates)
    for n in (1, 2, 3):
        drawn = buffer.sample(n, MIR(lr=0.5), arrivals=arrivals, probe=probe)
        assert drawn["y"].tolist() == [-1, 5, 1][:n]
    drawn = buffer.sample(1, MIR(lr=0.5), arrivals=points((1, -1), (1, -1)), probe=probe)  # θ_v = -½
    assert drawn["y"].tolist() == [1]


def test_the_step_is_that_of_the_mean_gradient() -> None:
    """Stream (1, 3), (1, -1) ten times: mean gradient -1, θ_v = ½; the sum would lead to 10."""
    probe, buffer = Probe(line(), loss=half_square), table(points((1, 0.75), (0, 0)))
    arrivals = points(*[(1, 3), (1, -1)] * 10)
    # (1, 0.75) has loss 0.28 at 0, 0.03 at ½, 42.8 at 10.
    assert buffer.sample(1, MIR(lr=0.5), arrivals=arrivals, probe=probe)["x"].item() == 0


def test_best_losses_by_hand() -> None:
    """MI-2: rows (1, 0) and (1, 2) as θ goes 0, 1, 2; the step of the stream (0, 0) is none."""
    net, buffer, arrivals = line(), table(points((1, 0), (1, 2))), points((0, 0))
    retrieval = MIR(lr=0.5, best=True)

    def scores(theta: float) -> list[float]:
        nn.init.constant_(net.weight, theta)
        probe = Probe(net, loss=half_square)
        drawn = buffer.draw(2, retrieval, arrivals=arrivals, probe=probe)
        best = buffer.store.note("mir_best_loss", math.inf)
        loss = 0.5 * (theta - buffer["y"].numpy()) ** 2
        score = loss - best[buffer.store.filled]
        assert score[drawn[0]] >= score[drawn[1]]
        return [*score.tolist(), int(drawn[0])]

    assert scores(0)[:2] == [0, 0]  # the first time MI-2 is MI-1
    assert scores(1) == [0.5, 0, 0]  # (1, 0) had loss 0 before
    assert scores(2) == [2, 0, 0]
    assert scores(0.5) == [0.125, 1.125, 1]
    assert buffer.store.note("mir_best_loss", math.inf).tolist() == [0, 0]


# -- against the copy -----------------------------------------------------------------------------


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "mlp": (nets.mlp, (12,), "6"),
    "convnet": (nets.convnet, (3, 8, 8), "9"),
    "slim_resnet18": (nets.slim_resnet18, (3, 8, 8), "13"),
    "shared": (nets.Shared, (12,), "head"),
}


@pytest.mark.parametrize("layers", ["all", "last"])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_takes_the_rows_that_a_copy_of_the_model_would_hurt_most(name: str, layers: str) -> None:
    build, shape, head = NETWORKS[name]
    torch.manual_seed(0)
    net, held, arrivals = build().double().train(), nets.rows(30, *shape), nets.rows(7, *shape)
    reference = losses_around_a_step(net, arrivals, held, 0.3, cross_entropy(), head if layers == "last" else None)
    probe, buffer = Probe(net, layers=layers), table(held)
    gradients = probe.gradients(arrivals)
    found = probe.losses_around(held, gradients.layout.split(-0.3 * gradients.mean()))
    for one, other in zip(found, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    expected = (reference[1] - reference[0]).argsort(descending=True)
    for n in (1, 10, 30):
        drawn = buffer.draw(n, MIR(0.3), arrivals=arrivals, probe=probe)
        assert drawn.tolist() == expected[:n].tolist()


def test_heads_of_several_tasks() -> None:
    torch.manual_seed(0)
    net = MTSimpleMLP(input_size=12, hidden_size=7)
    for task in range(3):
        net.classifier.classifiers[str(task)] = IncrementalClassifier(7, 2, masking=False, auto_adapt=False)
        net.classifier.register_buffer(f"active_units_T{task}", torch.ones(2, dtype=torch.int8))
    net = net.double()
    held = {**nets.rows(24, 12), "t": torch.arange(24) % 3}
    arrivals = {**nets.rows(6, 12), "t": torch.tensor([2, 0, 2, 2, 0, 2])}
    held["y"], arrivals["y"] = held["y"] % 2, arrivals["y"] % 2

    def call(net: nn.Module, batch: Batch) -> Tensor:
        return torch.cat([net(x[None], int(t)) for x, t in zip(batch["x"], batch["t"], strict=True)])

    before, after = losses_around_a_step(net, arrivals, held, 0.5, cross_entropy(), call=call)
    expected = (after - before).argsort(descending=True)[:9].tolist()
    assert table(held).draw(9, MIR(0.5), arrivals=arrivals, probe=Probe(net)).tolist() == expected
    last = losses_around_a_step(net, arrivals, held, 0.5, cross_entropy(), "classifier", call)
    expected = (last[1] - last[0]).argsort(descending=True)[:9].tolist()
    drawn = table(held).draw(9, MIR(0.5), arrivals=arrivals, probe=Probe(net, layers="last"))
    assert set(drawn.tolist()) == set(expected) and (held["t"][drawn] != 1).all()


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000), n=st.integers(1, 12), candidates=st.integers(1, 40), lr=st.sampled_from([0.01, 1.0])
)
def test_best_losses_of_a_training_run_against_a_literal_book(
    seed: int, n: int, candidates: int, lr: float
) -> None:
    """Rows are replaced, the model moves, and every row has the lowest loss of the calls that looked at it."""
    net, buffer, book = model(seed), memory(24, capacity=16, seed=seed), {}
    for turn in range(4):
        arrivals, probe = stream(5, seed=seed + turn + 1, first=24 + 5 * turn), Watched(net)
        drawn = buffer.sample(n, MIR(lr, candidates, best=True), arrivals=arrivals, probe=probe)["id"].tolist()
        before, after = losses_around_a_step(net, arrivals, probe.asked[0], lr, cross_entropy())
        ids = probe.asked[0]["id"].tolist()
        book |= {i: min(loss, book.get(i, math.inf)) for i, loss in zip(ids, before.tolist(), strict=True)}
        score = {i: loss - book[i] for i, loss in zip(ids, after.tolist(), strict=True)}
        best = sorted(score.values(), reverse=True)[:n]
        assert [score[i] for i in drawn] == pytest.approx(best, rel=1e-9, abs=1e-9)
        with torch.no_grad():
            for p in net.parameters():
                p += 0.3 * torch.randn_like(p)
        buffer.add(arrivals)


# -- the candidates -------------------------------------------------------------------------------


@pytest.mark.parametrize(("candidates", "n", "expected"), [(50, 10, 50), (8, 10, 10), (500, 10, 90), (5, 200, 90)])
def test_as_many_distinct_candidates_as_asked_for(candidates: int, n: int, expected: int) -> None:
    buffer, probe = memory(90, capacity=120), Watched(model())
    drawn = buffer.sample(n, MIR(candidates=candidates), arrivals=stream(10, 1), probe=probe)["id"].tolist()
    asked = probe.asked[0]["id"].tolist()
    assert len(asked) == len(set(asked)) == expected
    assert set(drawn) <= set(asked) and len(drawn) == len(set(drawn)) == min(n, 90)


@pytest.mark.parametrize("retrieval", [MIR(lr=0), MIR(candidates=4), MIR(lr=0, candidates=1)])
def test_without_a_step_or_a_choice_replay_is_uniform(retrieval: MIR) -> None:
    runs, kept = 500, np.zeros(9, np.int64)
    buffer, net, arrivals = memory(9), model(), stream(2, 1)
    probe = Probe(net)
    for _ in range(runs):
        kept[buffer.draw(4, retrieval, arrivals=arrivals, probe=probe)] += 1
    assert uniform_subset_p_value(kept, runs, 4) > RARE


def test_with_as_many_candidates_as_rows_asked_for_the_model_has_no_say() -> None:
    draws = [
        memory(40, seed=7).draw(10, MIR(candidates=10), arrivals=stream(5, 1), probe=Probe(model(seed)))
        for seed in (0, 1)
    ]
    assert set(draws[0].tolist()) == set(draws[1].tolist()) and draws[0].tolist() != draws[1].tolist()


def test_with_less_than_everything_candidates_are_uniform() -> None:
    runs, seen = 400, np.zeros(12, np.int64)
    buffer, probe, arrivals = memory(12), Watched(model()), stream(2, 1)
    for _ in range(runs):
        buffer.draw(2, MIR(candidates=5), arrivals=arrivals, probe=probe)
    for batch in probe.asked:
        seen[batch["id"].numpy()] += 1
    assert uniform_subset_p_value(seen, runs, 5) > RARE


@pytest.mark.parametrize("b", [0, 1, 7, 10, 33])
def test_any_number_of_arrivals_gives_all_the_rows_asked_for(b: int) -> None:
    """Avalanche replays min(r, n - r) rows when the loader's last batch has r < n rows."""
    drawn = memory(60).draw(10, MIR(), arrivals=stream(b, 1), probe=Probe(model()))
    assert len(set(drawn.tolist())) == 10


def test_empty_slots_are_never_read() -> None:
    buffer = memory(20, capacity=30)
    buffer.store.release(np.array([0, 3, 7, 19]))
    for n in (3, 16, 50):
        drawn = buffer.draw(n, MIR(candidates=6), arrivals=stream(3, 1), probe=Probe(model())).tolist()
        assert len(set(drawn)) == len(drawn) == min(n, 16) and not {0, 3, 7, 19} & set(drawn)


def test_the_seed_of_the_memory_decides() -> None:
    def draws(seed: int) -> list[list[int]]:
        buffer, probe = memory(80, seed=seed), Probe(model())
        return [buffer.draw(9, MIR(candidates=20), arrivals=stream(4, i), probe=probe).tolist() for i in range(5)]

    assert draws(3) == draws(3) != draws(4)


# -- what stays as it was -------------------------------------------------------------------------


@pytest.mark.parametrize("layers", ["all", "last"])
@pytest.mark.parametrize("best", [False, True])
def test_looking_leaves_no_trace(layers: str, best: bool) -> None:
    """BatchNorm statistics above all, which the released codes track on the candidates."""
    net, buffer, arrivals = model(), memory(30), stream(7, 1)
    net.body[1].eval()
    held = buffer.read(buffer.store.filled)
    decisions = buffer.rng.bit_generator.state
    before = trace(net, arrivals, held)
    buffer.sample(5, MIR(candidates=20, best=best), arrivals=arrivals, probe=Probe(net, layers=layers))
    assert trace(net, arrivals, held) == before
    assert same(buffer.read(buffer.store.filled), held) and buffer.rng.bit_generator.state == decisions
    assert list(buffer.store.notes) == (["mir_best_loss"] if best else [])


@pytest.mark.parametrize("layers", ["all", "last"])
def test_in_chunks_as_in_one(layers: str) -> None:
    torch.manual_seed(0)
    net, held, arrivals = nets.convnet().double(), nets.rows(40, 3, 8, 8), nets.rows(9, 3, 8, 8)
    whole, cut = Probe(net, layers=layers), Probe(net, layers=layers, budget=150_000)
    passes: list[int] = []
    net.register_forward_hook(lambda _, args, out: passes.append(len(out)))
    draws = [table(held).draw(12, MIR(), arrivals=arrivals, probe=probe).tolist() for probe in (whole, cut)]
    assert draws[0] == draws[1] and len(passes) > 10 and max(passes[-5:]) < 40


def test_the_same_rows_on_every_device(device: str) -> None:
    """Wherever the memory, the model and the stream are."""
    expected = table(stream(50)).draw(10, MIR(best=True), arrivals=stream(6, 1), probe=Probe(model())).tolist()
    net = model().to(device)
    for store, rows in ((device, device), (device, "cpu"), ("cpu", device)):
        arrivals = {name: column.to(rows) for name, column in stream(6, 1).items()}
        buffer = table(stream(50), store)
        assert buffer.draw(10, MIR(best=True), arrivals=arrivals, probe=Probe(net)).tolist() == expected


def test_a_saved_memory_goes_on_with_its_best_losses() -> None:
    retrieval, net = MIR(0.5, 20, best=True), model()
    buffer, resumed = memory(60, capacity=40), Buffer(40, Reservoir(), seed=9)
    for i in range(3):
        buffer.draw(5, retrieval, arrivals=stream(4, i), probe=Probe(net))
    resumed.load_state_dict(reloaded(buffer.state_dict()))
    net = model(1)
    for i in range(3):
        draws = [b.draw(5, retrieval, arrivals=stream(4, i), probe=Probe(net)).tolist() for b in (buffer, resumed)]
        assert draws[0] == draws[1]
    assert same(buffer.state_dict(), resumed.state_dict())


# -- errors ---------------------------------------------------------------------------------------


def test_arguments_that_make_no_sense() -> None:
    for lr in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"finite number >= 0, got {lr}"):
            MIR(lr)
    with pytest.raises(ValueError, match="candidates is a number of rows >= 1, got 0"):
        MIR(candidates=0)


def test_what_a_draw_lacks_is_named() -> None:
    buffer, arrivals, probe = memory(5), stream(3, 1), Probe(model())
    for part in ({}, {"arrivals": arrivals}, {"probe": probe}):
        with pytest.raises(ValueError, match=r"MIR chooses by the model.*sample\(n, arrivals=batch, probe=Probe"):
            buffer.sample(2, MIR(), **part)
    with pytest.raises(ValueError, match=r"MIR needs columns \['x', 'y'\]; the stream's batch lacks \['y'\]"):
        buffer.sample(2, MIR(), arrivals={"x": arrivals["x"]}, probe=probe)
    bare = Buffer(5, Reservoir())
    bare.add({"x": arrivals["x"]})
    with pytest.raises(ValueError, match=r"the memory lacks \['y'\]"):
        bare.sample(2, MIR(), arrivals=arrivals, probe=probe)


@pytest.mark.parametrize("where", ["arrivals", "memory"])
def test_losses_that_are_not_finite_are_refused(where: str) -> None:
    net, held, arrivals = model(), stream(9), stream(3, 1)
    if where == "arrivals":
        arrivals["x"][1, 0] = math.nan
    else:
        held["x"][1, 0] = math.nan
    buffer = Buffer(9, Reservoir(), check_finite=False)
    buffer.add(held)
    before, draws = trace(net, arrivals), buffer.draws.bit_generator.state
    with pytest.raises(ValueError, match="NaN or infinite"):
        buffer.sample(3, MIR(best=True), arrivals=arrivals, probe=Probe(net))
    assert trace(net, arrivals) == before
    assert all(np.isinf(values).all() for values, _ in buffer.store.notes.values())
    assert where != "arrivals" or buffer.draws.bit_generator.state == draws


def test_a_step_out_of_bounds_is_refused() -> None:
    probe, buffer = Probe(line(), loss=half_square), table(points((1, 0), (1, 2)))
    with pytest.raises(ValueError, match="losses are NaN or infinite"):
        buffer.sample(1, MIR(1e200), arrivals=points((1, 1)), probe=probe)


# -- in Avalanche's loop --------------------------------------------------------------------------


def batchnorm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(DIM, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


@pytest.mark.parametrize("build", [mlp, batchnorm])
def test_er_with_mir_is_the_bare_step(build: Callable[[], nn.Module]) -> None:
    data = unlabelled(40)
    made = ER(
        buffer=Buffer(12, Reservoir(), seed=3), batch_size_mem=4, retrieval=MIR(0.1, 9, best=True),
        **template(build()),
    )  # fmt: skip
    made.train(data.train_stream, eval_streams=[], shuffle=False)

    net, twin, retrieval = build().train(), Buffer(12, Reservoir(), seed=3), MIR(0.1, 9, best=True)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    for x, y in minibatches(data, 5):
        arrivals = {"x": x, "y": y}
        if len(twin):
            m = twin.sample(4, retrieval, arrivals=arrivals, probe=Probe(net))
            x, y = torch.cat([x, m["x"]]), torch.cat([y, m["y"]])
        sgd.zero_grad()
        mean_cross_entropy(net(x), y).backward()
        sgd.step()
        twin.add(arrivals)
    torch.testing.assert_close(parameters(made.model), parameters(net), atol=1e-6, rtol=0)
    assert same(made.replay.buffer.state_dict(), twin.state_dict())
    if build is batchnorm:
        assert int(made.model[1].num_batches_tracked) == 8
        torch.testing.assert_close(made.model[1].running_mean, net[1].running_mean)


def test_derpp_draws_twice_by_mir_between_its_forward_and_its_backward_pass() -> None:
    data = unlabelled(40)
    options = {"alpha": 0.3, "beta": 0.5, "batch_size_mem": 4, "retrieval": MIR(0.1, 6)}
    made = DERpp(buffer=Buffer(12, Reservoir(), seed=3), **options, **template(batchnorm()))
    made.train(data.train_stream, eval_streams=[], shuffle=False)

    net, twin = batchnorm().train(), Buffer(12, Reservoir(), seed=3)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    for x, y in minibatches(data, 5):
        arrivals = {"x": x, "y": y}
        z = net(x)
        loss = mean_cross_entropy(z, y)
        if len(twin):
            m = twin.sample(4, MIR(0.1, 6), arrivals=arrivals, probe=Probe(net))
            loss = loss + 0.3 * (net(m["x"]) - m["logits"]).square().mean()
            m = twin.sample(4, MIR(0.1, 6), arrivals=arrivals, probe=Probe(net))
            loss = loss + 0.5 * mean_cross_entropy(net(m["x"]), m["y"])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        twin.add({**arrivals, "logits": z.detach()})
    torch.testing.assert_close(parameters(made.model), parameters(net), atol=1e-6, rtol=0)
    assert torch.equal(made.replay.buffer["x"], twin["x"])


def test_the_model_sees_raw_rows_in_their_evaluation_view() -> None:
    """With views that would spoil the rows if both or none of them were used."""
    seen: list[Tensor] = []

    class Spied(MIR):
        def rows(self, store, n, rng, arrivals, probe):
            seen.append(arrivals["x"])
            assert float(probe.prepare(arrivals["x"]).min()) >= 100
            return super().rows(store, n, rng, arrivals, probe)

    views = Views(train=lambda x: x * 0.5, eval=lambda x: x + 110)
    made = ER(buffer=Buffer(12, Reservoir()), views=views, retrieval=Spied(), **template())
    data = unlabelled(20)
    made.train(data.train_stream, eval_streams=[], shuffle=False)
    raw = [x for x, _ in minibatches(data, 5)]
    assert len(seen) == 3 and all(torch.equal(x, y) for x, y in zip(seen, raw[1:], strict=True))


def test_the_retrieval_of_the_buffer_is_used_too() -> None:
    calls = []

    class Counted(MIR):
        def rows(self, *args):
            calls.append(1)
            return super().rows(*args)

    made = ER(buffer=Buffer(12, Reservoir(), Counted()), **template())
    made.train(unlabelled(20).train_stream, eval_streams=[])
    assert len(calls) == 3
