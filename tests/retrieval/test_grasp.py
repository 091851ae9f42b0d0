"""Rows near the mean of their class first, then gradually others."""

import copy
import pickle

import numpy as np
import pytest
import torch
from guided_memories import memory, model, stream, trace
from reference.laws import RARE
from reference.retrievals import cosine_distances, grasp
from scipy import stats

from replaykit import Buffer
from replaykit.policies import Reservoir
from replaykit.probe import Probe
from replaykit.retrieval import GRASP
from replaykit.retrieval.grasp import nearest
from replaykit.testing import reloaded, same


class Inputs:
    """A probe whose features are the inputs, and that counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def features(self, batch):
        self.asked.append(len(batch["x"]))
        return batch["x"]


def filled(x: list[list[float]], y: list[int], capacity: int = 0, retrieval: GRASP | None = None) -> Buffer:
    buffer = Buffer(capacity or len(y), Reservoir(), retrieval or GRASP(), seed=0)
    buffer.add({"id": torch.arange(len(y)), "x": torch.tensor(x), "y": torch.tensor(y)})
    return buffer


def arrivals(n: int = 2) -> dict[str, torch.Tensor]:
    return {"x": torch.zeros(n, 2), "y": torch.zeros(n, dtype=torch.int64)}


def draw(buffer: Buffer, n: int, probe: Inputs | None = None) -> list[int]:
    return buffer.draw(n, arrivals=arrivals(), probe=probe or Inputs()).tolist()  # type: ignore[arg-type]


X = [[1.0, 0.0], [1.0, 0.2], [1.0, 1.0], [0.0, 1.0], [0.3, 1.0], [-1.0, 1.0], [0.0, 2.0]]
Y = [4, 4, 4, 1, 1, 1, 1]


class Replayed:
    """A generator that gives what another run of the same seed gives, and keeps it."""

    def __init__(self, seed: int) -> None:
        self.rng, self.orders, self.draws = np.random.default_rng(seed), [], []

    def permutation(self, classes):
        self.orders.append(self.rng.permutation(classes))
        return self.orders[-1]

    def random(self, n):
        self.draws.append(self.rng.random(n))
        return self.draws[-1]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sizes", [[7], [1, 2, 3], [4, 4, 4, 4], [3] * 12])
def test_it_is_the_literal_loop(seed: int, sizes: list[int]) -> None:
    """Several draws of a cycle, whose distances go on; the numbers that it drew are given to the loop."""
    buffer, retrieval = filled(X, Y), GRASP(every=1000)
    distances = dict(enumerate(cosine_distances(X, Y)))
    for number, n in enumerate(sizes):
        rng = Replayed(100 * seed + number)
        found = retrieval.rows(buffer.store, n, rng, arrivals(), Inputs())  # type: ignore[arg-type]
        classes = np.unique(Y)
        orders = [[int(classes[place]) for place in order] for order in rng.orders]
        us = [list(numbers) for numbers in rng.draws]
        orders = [order[: len(numbers)] for order, numbers in zip(orders, us, strict=True)]
        assert found.tolist() == grasp(distances, dict(enumerate(Y)), n, orders, us)
        noted = buffer.store.note("grasp_distance", -1.0)
        assert noted.tolist() == pytest.approx([distances[row] for row in range(7)], rel=1e-6)


def test_distances_are_cosines_to_the_mean_of_the_class() -> None:
    """The mean (1, 1/2) has length √5/2: cosines 2/√5 and 1/√5. The row that came has added the larger distance."""
    buffer = filled([[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]], [0, 0, 1])
    wanted = np.array([1 - 2 / np.sqrt(5), 1 - 1 / np.sqrt(5), 0])
    drawn = draw(buffer, 2)
    for row in drawn:
        wanted[row] += 1 - 1 / np.sqrt(5) if row < 2 else 0
    assert buffer["grasp_distance"].tolist() == pytest.approx(wanted.tolist(), abs=1e-6)
    assert buffer["grasp_cycle"].tolist() == [3, 3, 3]


def test_one_row_comes_in_proportion_to_the_inverse_distance() -> None:
    distance = np.array([0.5, 0.1, 1.0, 0.25])
    found = [nearest(distance, u) for u in np.random.default_rng(0).random(4000)]
    law = 1 / (distance + 1e-7)
    assert stats.chisquare(np.bincount(found, minlength=4), 4000 * law / law.sum()).pvalue > RARE
    ends = np.cumsum(law) / law.sum()
    assert [nearest(distance, u) for u in (0.0, ends[0] - 1e-9, ends[0] + 1e-9, np.nextafter(1, 0))] == [
        0,
        0,
        1,
        3,
    ]


def test_from_easy_to_hard() -> None:
    """Along a cycle the mean distance of what is drawn grows; by its end all rows came about equally often."""
    g = np.random.default_rng(0)
    x = np.column_stack((np.ones(40), np.linspace(0, 3, 40) * g.choice([-1, 1], 40)))
    first, last, came = [], [], np.zeros(40)
    far = np.array(cosine_distances(x.tolist(), [0] * 40))
    for seed in range(60):
        buffer = Buffer(40, Reservoir(), GRASP(every=1000), seed=seed)
        buffer.add({"x": torch.from_numpy(x), "y": torch.zeros(40, dtype=torch.int64)})
        drawn = [draw(buffer, 5) for _ in range(40)]
        first.append(far[drawn[0] + drawn[1]].mean())
        last.append(far[drawn[-2] + drawn[-1]].mean())
        came += np.bincount(np.concatenate(drawn), minlength=40)
    assert stats.ttest_rel(last, first, alternative="greater").pvalue < 1e-6
    assert np.mean(first) < far.mean() - 2 * np.std(far) / np.sqrt(60)
    assert came.min() > 0.5 * came.mean() and came.max() < 2 * came.mean()


def test_classes_take_turns_whatever_their_sizes() -> None:
    buffer = filled([[1.0, 0.1 * i] for i in range(30)], [0] * 24 + [1] * 3 + [7] * 3)
    y = np.array([0] * 24 + [1] * 3 + [7] * 3)
    for n, most in ((3, 1), (6, 2), (9, 3)):
        counts = np.unique(y[draw(buffer, n)], return_counts=True)[1]
        assert counts.tolist() == [most] * 3
    assert sorted(np.unique(y[draw(buffer, 12)], return_counts=True)[1].tolist()) == [
        3,
        3,
        6,
    ]  # others are used up
    firsts = [y[draw(buffer, 1)[0]] for _ in range(900)]
    assert stats.chisquare(np.unique(firsts, return_counts=True)[1]).pvalue > RARE


def test_a_cycle_lasts_as_long_as_it_says() -> None:
    probe, buffer = Inputs(), filled(X, Y, retrieval=GRASP(every=4))
    for _ in range(3):
        draw(buffer, 2, probe)
    assert probe.asked == [7]
    buffer.add({"id": torch.arange(3), "x": torch.zeros(3, 2), "y": torch.zeros(3, dtype=torch.int64)})
    draw(buffer, 2, probe)
    assert probe.asked == [7]
    buffer.add({"id": torch.arange(1), "x": torch.ones(1, 2), "y": torch.zeros(1, dtype=torch.int64)})
    draw(buffer, 2, probe)
    assert probe.asked == [7, 7]


def test_by_default_a_cycle_is_as_long_as_the_memory() -> None:
    probe, buffer = Inputs(), filled(X, Y, retrieval=GRASP())
    for row in range(21):
        draw(buffer, 1, probe)
        buffer.add({"id": torch.tensor([row]), "x": torch.ones(1, 2), "y": torch.zeros(1, dtype=torch.int64)})
    assert probe.asked == [7] * 3


def test_rows_that_came_within_a_cycle_wait_for_the_next_but_fill_a_draw() -> None:
    buffer = filled(X[:4], Y[:4], capacity=9, retrieval=GRASP(every=100))
    draw(buffer, 1)
    buffer.add({"id": torch.arange(4, 9), "x": torch.ones(5, 2), "y": torch.zeros(5, dtype=torch.int64)})
    for _ in range(20):
        assert set(draw(buffer, 4)) == {0, 1, 2, 3}
    extra = [row for _ in range(400) for row in draw(buffer, 6) if row >= 4]
    assert stats.chisquare(np.bincount(extra, minlength=9)[4:]).pvalue > RARE
    assert sorted(draw(buffer, 20)) == list(range(9))


def test_a_cycle_whose_rows_are_all_gone_ends() -> None:
    probe, buffer = Inputs(), filled(X[:2], Y[:2], retrieval=GRASP(every=100_000))
    draw(buffer, 1, probe)
    while (buffer["id"] < 2).any():
        buffer.add({"id": torch.tensor([5]), "x": torch.ones(1, 2), "y": torch.zeros(1, dtype=torch.int64)})
    draw(buffer, 1, probe)
    assert probe.asked == [2, 2]


def test_a_cycle_may_last_for_ever() -> None:
    """Distances double with each round of a class; none of them overflows."""
    buffer = filled(X, Y, retrieval=GRASP(every=10**9))
    for _ in range(700):
        assert len(set(draw(buffer, 6))) == 6
    noted = buffer.store.note("grasp_distance", -1.0)[:7]
    assert np.isfinite(noted).all() and (noted >= 0).all()


def test_rows_at_the_mean_and_rows_without_a_direction() -> None:
    """A class of one row has distance 0, a row of zeros has no direction and distance 1."""
    buffer = filled([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]], [0, 1, 1])
    assert sorted(draw(buffer, 3)) == [0, 1, 2]
    buffer = filled([[0.0, 0.0], [0.0, 0.0]], [0, 0])
    assert sorted(draw(buffer, 2)) == [0, 1]


def test_a_group_by_another_column_and_models_that_want_the_task() -> None:
    seen: list[list[str]] = []

    class Names(Inputs):
        def features(self, batch):
            seen.append(sorted(batch))
            return super().features(batch)

    buffer = Buffer(4, Reservoir(), GRASP(column="t"), seed=0)
    assert buffer.retrieval.columns == ("x", "t")
    batch = {"x": torch.rand(4, 2), "t": torch.tensor([0, 0, 1, 1]), "z": torch.zeros(4)}
    buffer.add(batch)
    slots = buffer.draw(2, arrivals=batch, probe=Names())  # type: ignore[arg-type]
    assert sorted(batch["t"][slots].tolist()) == [0, 1] and seen == [["t", "x"]]


@pytest.mark.parametrize("how", ["state", "pickle", "copy"])
def test_a_run_cut_in_the_middle_of_a_cycle_draws_the_same(how: str) -> None:
    ends = []
    for stops in (False, True):
        buffer, drawn = filled(X, Y, retrieval=GRASP(every=6)), []
        for turn in range(8):
            if stops and turn == 4:
                if how == "state":
                    state = reloaded(buffer.state_dict())
                    buffer = Buffer(7, Reservoir(), GRASP(every=6), seed=5)
                    buffer.load_state_dict(state)
                else:
                    buffer = pickle.loads(pickle.dumps(buffer)) if how == "pickle" else copy.deepcopy(buffer)
            drawn.append(draw(buffer, 3))
            buffer.add({"id": torch.tensor([turn]), "x": torch.ones(1, 2), "y": torch.tensor([turn % 3])})
        ends.append({"drawn": drawn, "state": buffer.state_dict()})
    assert same(ends[0], ends[1])


def test_the_model_is_left_as_it_was() -> None:
    net, buffer, batch = model(), memory(20), stream(4, 1)
    before = trace(net, batch)
    assert len(buffer.draw(6, GRASP(), arrivals=batch, probe=Probe(net))) == 6
    assert trace(net, batch) == before


# -- bad input ----------------------------------------------------------------------------------------


def test_cycles_that_are_none() -> None:
    with pytest.raises(ValueError, match="every is a number of rows of the stream >= 1, got 0"):
        GRASP(every=0)


def test_what_it_needs() -> None:
    buffer = filled(X, Y)
    with pytest.raises(
        ValueError, match=r"GRASP chooses by the model and the rows of the stream; pass sample\(n, "
    ):
        buffer.sample(2)
    with pytest.raises(
        ValueError, match=r"GRASP needs columns \['x', 't'\]; the memory lacks \['t'\]; add batches"
    ):
        buffer.sample(2, GRASP(column="t"), arrivals=arrivals(), probe=Inputs())  # type: ignore[arg-type]


def test_features_that_are_not_finite() -> None:
    buffer = filled([[1.0, 0.0], [float("nan"), 1.0]], [0, 0])
    before = buffer.state_dict()["store"]["columns"]
    with pytest.raises(ValueError, match="features of stored rows are NaN or infinite: look at the learning rate"):
        draw(buffer, 1)
    assert same(buffer.state_dict()["store"]["columns"], before)
    buffer = filled([[1.0, 0.0], [0.5, 1.0]], [0, 0])
    assert sorted(draw(buffer, 2)) == [0, 1]
