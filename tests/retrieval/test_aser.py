"""ASER against exact Shapley values, and the draws it makes."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from guided_memories import memory, model, stream, trace
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import p_value, uniform_subset_p_value
from reference import small_networks as nets
from reference.knn_shapley import of_rows
from reference.laws import RARE
from small_streams import CLASSES, DIM, minibatches, mlp, parameters, template, unlabelled
from torch import nn
from torch.nn.functional import cross_entropy as mean_cross_entropy

from replaykit import Batch, Buffer
from replaykit.policies import Reservoir
from replaykit.probe import Probe
from replaykit.retrieval.aser import ASER, balanced, rows_of
from replaykit.strategies import ER, DERpp
from replaykit.testing import same

MODES = ("mean", "extreme", "negative")


class Watched(Probe):
    """A probe that remembers the batches whose features it was asked for."""

    asked: list[Batch]

    def features(self, batch: Batch):  # type: ignore[no-untyped-def]
        self.__dict__.setdefault("asked", []).append(batch)
        return super().features(batch)


def plain(net: nn.Module | None = None) -> Watched:
    """Features are the rows themselves."""
    return Watched(net or nn.Linear(1, 1).double(), features=lambda x: x)


def points(x: Sequence[float], y: Sequence[int]) -> Batch:
    labels = torch.tensor(y, dtype=torch.int64)
    return {"x": torch.tensor(x, dtype=torch.float64)[:, None], "y": labels, "id": torch.arange(len(x))}


def full(rows: Batch, capacity: int = 0, seed: int = 0, device: str = "cpu") -> Buffer:
    """A memory of these rows that has already refused one."""
    buffer = Buffer(capacity or len(rows["y"]), Reservoir(), seed=seed, device=device)
    buffer.add(rows)
    buffer.store.seen += 1
    return buffer


# -- the draw -------------------------------------------------------------------------------------

LABELS = st.lists(st.integers(-2, 4), min_size=1, max_size=40)  # below 0: rows that nobody has labelled


@settings(max_examples=100, deadline=None)
@given(labels=LABELS, k=st.integers(0, 50), seed=st.integers(0, 99))
def test_a_balanced_draw_is_as_even_as_the_rows_allow(labels: list[int], k: int, seed: int) -> None:
    drawn = balanced(np.array(labels), k, np.random.default_rng(seed)).tolist()
    assert len(drawn) == len(set(drawn)) == min(k, len(labels))
    held, taken = Counter(labels), Counter(labels[i] for i in drawn)
    level = max(taken.values(), default=0)
    assert all(taken[c] in (min(held[c], level), min(held[c], level - 1)) for c in held)
    assert drawn == balanced(np.array(labels), 99, np.random.default_rng(seed)).tolist()[:k]


def test_rows_of_a_balanced_draw_are_uniform_within_their_class() -> None:
    labels, runs, rng = np.array([7] * 6 + [2] * 3), 1000, np.random.default_rng(0)
    hits = np.zeros(9, np.int64)
    for _ in range(runs):
        hits[balanced(labels, 4, rng)] += 1
    assert uniform_subset_p_value(hits[:6], runs, 2) > RARE and uniform_subset_p_value(hits[6:], runs, 2) > RARE


def test_the_class_that_gives_one_row_more_is_any_whatever_its_size() -> None:
    """Also the order of the classes is by chance, and so ties of the score favour no class."""
    labels, rng = np.array([0] * 30 + [1] * 3 + [2] * 2), np.random.default_rng(0)
    drawn = [labels[balanced(labels, 4, rng)] for _ in range(1500)]
    law = dict.fromkeys(range(3), 1 / 3)
    assert p_value(Counter(int(y[3]) for y in drawn), law) > RARE
    assert p_value(Counter(int(y[0]) for y in drawn), law) > RARE


@pytest.mark.parametrize(("per_class", "classes", "rows"), [(1.5, 10, 15), (1.5, 3, 5), (1, 7, 7), (9, 10, 90)])
def test_rows_for_each_class_may_be_a_fraction(per_class: float, classes: int, rows: int) -> None:
    """1.5 means the same for candidates and for evaluation (the released code: 1 a class, and 1.5 · classes)."""
    assert rows_of(per_class, classes) == rows
    n = 40 * classes
    buffer, probe = full(points(range(n), [i % classes for i in range(n)])), plain()
    buffer.draw(1, ASER(per_class=per_class), arrivals=points([0], [0]), probe=probe)
    drawn = probe.asked[1]["x"][:, 0].long().tolist()
    assert len(drawn) == len(set(drawn)) == 2 * rows
    for part in (drawn[:rows], drawn[rows:]):
        counts = np.bincount(np.array(part) % classes, minlength=classes)
        assert counts.max() - counts.min() <= 1


# -- the score ------------------------------------------------------------------------------------


def exact_scores(
    mode: str, rows: list[int], others: list[int], arrivals: Batch, held: Batch, k: int
) -> dict[int, Fraction]:
    """Score of each of the candidates `rows`, rows of `held` like the `others` of the cooperative evaluation."""
    labels, features = held["y"][rows].tolist(), held["x"][rows].tolist()

    def values(batch: Batch, numbers: list[int]) -> list[list[Fraction]]:
        return [of_rows(batch["x"][i].tolist(), int(batch["y"][i]), features, labels, k) for i in numbers]

    beside, against = values(held, others), values(arrivals, list(range(len(arrivals["y"]))))
    scores = {}
    for m, row in enumerate(rows):
        coop, adv = [v[m] for v in beside] or [Fraction(0)], [v[m] for v in against] or [Fraction(0)]
        scores[row] = {
            "mean": sum(coop) / len(coop) - sum(adv) / len(adv),
            "extreme": max(coop) - min(adv),
            "negative": -sum(adv),
        }[mode]
    return scores


@settings(max_examples=80, deadline=None)
@given(
    held=st.lists(
        st.tuples(st.floats(-3, 3, width=32), st.integers(0, 3)), min_size=2, max_size=30, unique_by=lambda r: r[0]
    ),
    arrivals=st.lists(st.tuples(st.floats(-3, 3, width=32), st.integers(0, 4)), max_size=6),
    n=st.integers(1, 12),
    k=st.integers(1, 40),
    per_class=st.floats(1, 6),
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 99),
)
def test_it_takes_the_candidates_of_the_highest_exact_score(
    held: list, arrivals: list, n: int, k: int, per_class: float, mode: str, seed: int
) -> None:
    rows = points([x for x, _ in held], [y for _, y in held])
    batch = points([x for x, _ in arrivals], [y for _, y in arrivals])
    probe, buffer = plain(), full(rows, seed=seed)
    drawn = buffer.sample(n, ASER(k, per_class, mode), arrivals=batch, probe=probe)["id"].tolist()
    share = rows_of(per_class, len(set(rows["y"].tolist())))
    candidates = min(len(held), max(n, share))
    if candidates <= n:  # no choice
        assert len(probe.asked) == 1 and len(set(drawn)) == len(drawn) == candidates
        return
    by_value = {x: i for i, (x, _) in enumerate(held)}
    asked = [by_value[x] for x in probe.asked[1]["x"][:, 0].tolist()]
    others = asked[candidates:]
    assert len(set(asked)) == len(asked) == min(len(held), candidates + (0 if mode == "negative" else share))
    scores = exact_scores(mode, asked[:candidates], others, batch, rows, k)
    assert [scores[row] for row in drawn] == sorted(scores.values(), reverse=True)[:n]
    assert len(set(drawn)) == n


@pytest.mark.parametrize("mode", MODES)
def test_hand_case(mode: str) -> None:
    """Class 0 at 0 and 1, class 1 at 10 and 11; a row of class 1 arrives at 0: K = 1.

    The two candidates are one row of each class, the others evaluate. For the arrival, class 0 is nearest and
    wrong, class 1 second and right: values -1/2 and +1/2. For either evaluation row its own class is nearest:
    values 1 and 0. So class 0, beside which it arrives, scores ½ - (-½) = 1, or 1 - (-½), or ½; class 1 less.
    """
    buffer, arrivals = full(points([0, 1, 10, 11], [0, 0, 1, 1])), points([0], [1])
    for _ in range(10):
        drawn = buffer.sample(1, ASER(1, 1, mode), arrivals=arrivals, probe=plain())
        assert drawn["y"].tolist() == [0]


def test_candidates_of_equal_score_are_equally_likely() -> None:
    """No matter their class and place: all rows and the arrival at one point, all of other classes than it."""
    buffer, runs, hits = full(points([0.0] * 8, [0, 1] * 4)), 400, np.zeros(8, np.int64)
    for _ in range(runs):
        hits[buffer.draw(3, ASER(3, 4, "negative"), arrivals=points([0.0], [2]), probe=plain())] += 1
    assert uniform_subset_p_value(hits, runs, 3) > RARE


def test_no_row_is_left_for_the_cooperative_evaluation() -> None:
    """Then only the arrivals count, and no score is NaN."""
    buffer = full(points([0, 1, 2, 3], [0, 1, 0, 1]))
    for mode in MODES:
        drawn = buffer.sample(1, ASER(1, 2, mode), arrivals=points([0.2], [1]), probe=plain())
        assert drawn["x"].item() == 0  # the nearest, and wrong


# -- the candidates -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("n", "per_class"), [(1, 1), (10, 1), (10, 1.5), (10, 9), (60, 1), (100, 1.5)])
def test_as_many_distinct_rows_as_asked_for(n: int, per_class: float, mode: str) -> None:
    """Also where classes are rare (label counts 1, 2, 57)."""
    rows = {**stream(60), "y": torch.tensor([0, 1, 1] + [2] * 57)}
    buffer = full(rows, capacity=70)
    drawn = buffer.draw(n, ASER(per_class=per_class, mode=mode), arrivals=stream(7, 1), probe=Probe(model()))
    assert len(set(drawn.tolist())) == len(drawn) == min(n, 60)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    rows, arrivals = stream(60), stream(7, 1)
    expected = full(rows).draw(5, ASER(per_class=3), arrivals=arrivals, probe=Probe(model())).tolist()
    rows["y"], arrivals["y"] = rows["y"].to(dtype), arrivals["y"].to(dtype)
    assert full(rows).draw(5, ASER(per_class=3), arrivals=arrivals, probe=Probe(model())).tolist() == expected


@pytest.mark.parametrize("b", [0, 1, 7, 33])
def test_any_number_of_arrivals(b: int) -> None:
    for mode in MODES:
        drawn = full(stream(60)).draw(10, ASER(3, 4, mode), arrivals=stream(b, 1), probe=Probe(model()))
        assert len(set(drawn.tolist())) == 10


def test_empty_slots_are_never_read() -> None:
    buffer = memory(20, capacity=30)
    buffer.store.release(np.array([0, 3, 7, 19]))
    for n in (3, 16, 50):
        drawn = buffer.draw(n, ASER(per_class=2), arrivals=stream(3, 1), probe=Probe(model())).tolist()
        assert len(set(drawn)) == len(drawn) == min(n, 16) and not {0, 3, 7, 19} & set(drawn)


def test_replay_is_uniform_and_without_the_model_until_a_row_was_dropped() -> None:
    buffer, probe, runs, hits = memory(9, capacity=9), plain(), 600, np.zeros(9, np.int64)
    for _ in range(runs):
        hits[buffer.draw(4, ASER(), arrivals=stream(2, 1), probe=probe)] += 1
    assert uniform_subset_p_value(hits, runs, 4) > RARE and not hasattr(probe, "asked")
    buffer.add(stream(1, 2, first=9))
    buffer.draw(1, ASER(), arrivals=stream(2, 1), probe=Watched(model()))
    with pytest.raises(ValueError, match="NaN"):
        broken = model()
        broken.body[0].weight.data.fill_(math.nan)
        buffer.draw(1, ASER(), arrivals=stream(2, 1), probe=Probe(broken))


def test_memories_do_not_share_anything() -> None:
    """The released code keeps its classes in one table for all memories."""

    def draws(buffer: Buffer, retrieval: ASER, i: int) -> list[int]:
        return buffer.draw(6, retrieval, arrivals=stream(4, i), probe=Probe(model())).tolist()

    shared = ASER(per_class=2)
    one, two = full(stream(50, 3), seed=1), full(stream(70, 4), seed=2)
    mixed = [(draws(one, shared, i), draws(two, shared, i)) for i in range(4)]
    one, two = full(stream(50, 3), seed=1), full(stream(70, 4), seed=2)
    apart = list(zip(*([draws(b, ASER(per_class=2), i) for i in range(4)] for b in (one, two)), strict=True))
    assert mixed == apart
    assert (
        full(stream(50, 3), seed=9).draw(6, shared, arrivals=stream(4, 0), probe=Probe(model())).tolist()
        != mixed[0][0]
    )


# -- what stays as it was -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_looking_leaves_no_trace(mode: str) -> None:
    net, buffer, arrivals = model(), full(stream(30)), stream(7, 1)
    net.body[1].eval()
    held, decisions = buffer.read(buffer.store.filled), buffer.rng.bit_generator.state
    before = trace(net, arrivals, held)
    buffer.sample(5, ASER(mode=mode), arrivals=arrivals, probe=Probe(net))
    assert trace(net, arrivals, held) == before
    assert same(buffer.read(buffer.store.filled), held) and buffer.rng.bit_generator.state == decisions
    assert not buffer.store.notes


def test_in_chunks_as_in_one() -> None:
    torch.manual_seed(0)
    net, held, arrivals = nets.convnet().double(), nets.rows(60, 3, 8, 8), nets.rows(9, 3, 8, 8)
    passes: list[int] = []
    net.register_forward_hook(lambda _, args, out: passes.append(len(out)))
    probes = Probe(net), Probe(net, budget=150_000)
    draws = [full(held).draw(12, ASER(per_class=4), arrivals=arrivals, probe=probe).tolist() for probe in probes]
    assert draws[0] == draws[1] and max(passes) == 40 > 2 * passes[-1]


def test_the_same_rows_on_every_device(device: str) -> None:
    expected = full(stream(50)).draw(10, ASER(3, 4), arrivals=stream(6, 1), probe=Probe(model())).tolist()
    net = model().to(device)
    for store, rows in ((device, device), (device, "cpu"), ("cpu", device)):
        arrivals = {name: column.to(rows) for name, column in stream(6, 1).items()}
        buffer = full(stream(50), device=store)
        assert buffer.draw(10, ASER(3, 4), arrivals=arrivals, probe=Probe(net)).tolist() == expected


# -- errors ---------------------------------------------------------------------------------------


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="mode is 'mean', 'extreme' or 'negative', got 'asvm'"):
        ASER(mode="asvm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="neighbours is a number of rows >= 1, got 0"):
        ASER(0)
    for rows in (0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"per_class is a number of rows a class >= 1, got {rows}"):
            ASER(per_class=rows)


def test_what_a_draw_lacks_is_named() -> None:
    buffer, arrivals, probe = full(stream(9)), stream(3, 1), Probe(model())
    with pytest.raises(ValueError, match="ASER chooses by the model"):
        buffer.sample(2, ASER(), arrivals=arrivals)
    with pytest.raises(ValueError, match=r"ASER needs columns \['x', 'y'\]; the stream's batch lacks \['y'\]"):
        buffer.sample(2, ASER(), arrivals={"x": arrivals["x"]}, probe=probe)
    for bad in (arrivals["y"].double(), torch.tensor([0, -1, 2])):
        before = buffer.draws.bit_generator.state
        with pytest.raises(ValueError, match="labels 'y' must"):
            buffer.sample(2, ASER(), arrivals={**arrivals, "y": bad}, probe=probe)
        assert buffer.draws.bit_generator.state == before


# -- in Avalanche's loop --------------------------------------------------------------------------


def batchnorm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(DIM, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


@pytest.mark.parametrize("build", [mlp, batchnorm])
def test_er_with_aser_is_the_bare_step(build: Callable[[], nn.Module]) -> None:
    data, retrieval = unlabelled(80), ASER(3, 3)
    made = ER(buffer=Buffer(20, Reservoir(), seed=3), batch_size_mem=4, retrieval=retrieval, **template(build()))
    made.train(data.train_stream, eval_streams=[], shuffle=False)

    net, twin = build().train(), Buffer(20, Reservoir(), seed=3)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    for x, y in minibatches(data, 5):
        arrivals = {"x": x, "y": y}
        if len(twin):
            m = twin.sample(4, ASER(3, 3), arrivals=arrivals, probe=Probe(net))
            x, y = torch.cat([x, m["x"]]), torch.cat([y, m["y"]])
        sgd.zero_grad()
        mean_cross_entropy(net(x), y).backward()
        sgd.step()
        twin.add(arrivals)
    torch.testing.assert_close(parameters(made.model), parameters(net), atol=1e-6, rtol=0)
    assert same(made.replay.buffer.state_dict(), twin.state_dict())
    if build is batchnorm:
        assert int(made.model[1].num_batches_tracked) == 16


def test_derpp_with_aser() -> None:
    made = DERpp(buffer=Buffer(12, Reservoir()), retrieval=ASER(3, 3), batch_size_mem=4, **template(batchnorm()))
    made.train(unlabelled(80).train_stream, eval_streams=[])
    assert int(made.model[1].num_batches_tracked) == 1 + 3 * 15  # no pass of ASER's among them
    assert bool(parameters(made.model).isfinite().all()) and len(made.replay.buffer) == 12
