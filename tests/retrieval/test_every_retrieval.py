"""What every retrieval promises: filled slots, all different, and the same draws whatever happens in between."""

import copy
import inspect
import pickle
import random
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from guided_memories import model, stream
from reference.laws import RARE
from scipy import stats

from replaykit import Batch, Buffer, retrieval
from replaykit.policies import LABRS, PartitioningReservoir, Reservoir
from replaykit.probe import Probe
from replaykit.testing import reloaded, same

Make = Callable[[], object]
MAKES: dict[str, Make] = {
    "ASER": retrieval.ASER,
    "ClassBalanced": retrieval.ClassBalanced,
    "ClassMatched": retrieval.ClassMatched,
    "GRASP": partial(retrieval.GRASP, every=25),
    "LeastReplayed": retrieval.LeastReplayed,
    "LeastReplayed of losses": partial(retrieval.LeastReplayed, 0.2, column="loss"),
    "MIR": retrieval.MIR,
    "MixedSources": partial(retrieval.MixedSources, column="y"),
    "MixedSources at random": partial(retrieval.MixedSources, column="y", rounding="random"),
    "Prioritised": partial(retrieval.Prioritised, beta=0.5),
    "Uniform": retrieval.Uniform,
    "Weighted": partial(retrieval.Weighted, "loss"),
}
NET = model().eval()


def rows(n: int, first: int = 0) -> Batch:
    batch = stream(n, seed=first, first=first)
    return {**batch, "loss": torch.rand(n, generator=torch.Generator().manual_seed(first)) + 0.1}


def draw(buffer: Buffer, n: int, turn: int = 0) -> np.ndarray:
    return buffer.draw(n, arrivals=rows(5, 1000 + turn), probe=Probe(NET))


def test_every_one_is_here() -> None:
    public = [getattr(retrieval, name) for name in retrieval.__all__]
    chosen = {cls.__name__ for cls in public if inspect.isclass(cls)} - {"Retrieval", "GuidedRetrieval"}
    assert {name.split()[0] for name in MAKES} == chosen


@pytest.mark.parametrize("name", MAKES)
def test_rows_of_a_draw_are_distinct_filled_and_as_many_as_asked_for(name: str) -> None:
    buffer = Buffer(40, Reservoir(), MAKES[name](), seed=0)
    buffer.add(rows(30))
    gone = {0, 3, 29}
    buffer.store.release(np.array(sorted(gone)))
    buffer.store.seen += 50  # as if rows had been dropped
    for turn, n in enumerate((1, 2, 9, 26, 27, 28, 500)):
        slots = draw(buffer, n, turn).tolist()
        assert len(slots) == len(set(slots)) == min(n, 27) and not gone & set(slots) and max(slots) < 30


@pytest.mark.parametrize("name", ["ASER", "ClassBalanced", "ClassMatched", "GRASP", "MixedSources"])
def test_groups_must_be_one_number_a_row(name: str) -> None:
    """A matrix of labels, which `PartitioningReservoir` takes, is no grouping of rows."""
    buffer = Buffer(8, PartitioningReservoir(), MAKES[name](), seed=0)
    labels = torch.eye(4, dtype=torch.int64)[torch.arange(30) % 4]
    buffer.add({**rows(30), "y": labels})
    with pytest.raises(
        ValueError, match=r"column 'y' holds rows of shape \[4\].* one integer a row; name a column"
    ):
        draw(buffer, 4)


@pytest.mark.parametrize("name", ["ASER", "ClassBalanced", "ClassMatched", "GRASP", "MixedSources"])
def test_rows_from_before_a_late_column_are_not_taken_for_group_0(name: str) -> None:
    buffer = Buffer(8, Reservoir(), MAKES[name](), seed=0)
    buffer.add({key: column for key, column in rows(5).items() if key != "y"})
    buffer.add(rows(2, 5))
    buffer.store.seen += 50  # as if rows had been dropped
    with pytest.raises(ValueError, match="column 'y' came late: 5 of 7 stored rows have none; add batches"):
        draw(buffer, 4)
    buffer.store.release(np.arange(5))
    assert sorted(draw(buffer, 2).tolist()) == [5, 6]


@pytest.mark.parametrize("name", MAKES)
def test_the_memory_and_global_generators_stay(name: str) -> None:
    buffer = Buffer(20, Reservoir(), MAKES[name](), seed=0)
    buffer.add(rows(30))
    columns = buffer.state_dict()["store"]["columns"]
    before = (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))
    kept = buffer.rng.bit_generator.state
    for turn in range(5):
        draw(buffer, 6, turn)
    assert same(buffer.state_dict()["store"]["columns"], columns) and buffer.rng.bit_generator.state == kept
    assert (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())) == before


@pytest.mark.parametrize("how", ["state", "pickle", "copy"])
@pytest.mark.parametrize("policy", [Reservoir, LABRS])
@pytest.mark.parametrize("name", MAKES)
def test_an_interrupted_run_draws_the_same(name: str, policy: Callable[[], Reservoir], how: str) -> None:
    """Offers, draws and the losses of replayed rows, against a run that was saved and loaded in the middle."""
    ends = []
    for stops in (False, True):
        buffer, drawn = Buffer(14, policy(), MAKES[name](), seed=4), []
        losses = np.random.default_rng(0)
        for turn in range(8):
            if stops and turn == 4:
                if how == "state":
                    state = reloaded(buffer.state_dict())
                    buffer = Buffer(14, policy(), MAKES[name](), seed=9)
                    buffer.load_state_dict(state)
                else:
                    buffer = pickle.loads(pickle.dumps(buffer)) if how == "pickle" else copy.deepcopy(buffer)
            buffer.add(rows(7, 7 * turn))
            slots = draw(buffer, 5, turn)
            drawn.append(buffer.drawn(slots))
            buffer.observe(slots, losses.exponential(size=len(slots)))
        ends.append({"drawn": drawn, "state": buffer.state_dict()})
    assert same(ends[0], ends[1])


@pytest.mark.parametrize("name", ["ClassMatched", "LeastReplayed", "MixedSources", "Prioritised"])
def test_rows_that_nothing_tells_apart_are_uniform(name: str) -> None:
    buffer = Buffer(12, Reservoir(), MAKES[name](), seed=0)
    batch = {**rows(12), "y": torch.zeros(12, dtype=torch.int64)}
    buffer.add(batch)
    hits = np.zeros(12)
    for _ in range(600):
        buffer.store.note("replayed", 0.0)[:] = 0
        hits[buffer.draw(4, arrivals=batch)] += 1
    share = 600 * 4 / 12
    assert stats.chi2.sf(((hits - share) ** 2).sum() / (share * (1 - 4 / 12) * 12 / 11), 11) > RARE


@pytest.mark.parametrize("what", ["policy", "retrieval"])
def test_classes_instead_of_objects(what: str) -> None:
    given = {"policy": Reservoir(), "retrieval": retrieval.Uniform(), what: retrieval.ClassBalanced}
    with pytest.raises(TypeError, match=f"ClassBalanced is a class; make a {what} of it: ClassBalanced"):
        Buffer(5, **given)


def test_something_that_is_no_retrieval() -> None:
    with pytest.raises(TypeError, match=r"a retrieval has a method rows\(store, n, rng\), str has none"):
        Buffer(5, Reservoir(), "uniform")  # type: ignore[arg-type]
