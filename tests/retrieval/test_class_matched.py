"""Replay with the labels of the batch that just came."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.laws import RARE
from reference.retrievals import largest_remainders, tallied
from scipy import stats

from replaykit import Buffer
from replaykit.policies import Reservoir
from replaykit.retrieval import ClassMatched


def memory(y: list[int], capacity: int = 0, column: str = "y") -> Buffer:
    buffer = Buffer(capacity or len(y), Reservoir(), ClassMatched(column), seed=0)
    buffer.add({"id": torch.arange(len(y)), column: torch.tensor(y)})
    return buffer


def draw(buffer: Buffer, n: int, came: list[int]) -> np.ndarray:
    return buffer.draw(n, arrivals={"y": torch.tensor(came)})


@settings(max_examples=60, deadline=None)
@given(came=st.lists(st.integers(0, 5), min_size=1, max_size=20), n=st.integers(1, 30))
def test_the_label_histogram_is_that_of_the_arrivals(came: list[int], n: int) -> None:
    """Every class has rows enough: shares by largest remainders, in exact arithmetic."""
    buffer = memory([label for label in range(6) for _ in range(30)] + [9] * 30)
    slots = draw(buffer, n, came)
    classes = sorted(set(came))
    wanted = largest_remainders([came.count(label) for label in classes], n)
    assert len(set(slots.tolist())) == n
    assert tallied(buffer["y"].numpy()[slots]) == {c: k for c, k in zip(classes, wanted, strict=True) if k}


def test_quotas_by_hand() -> None:
    buffer = memory([0] * 10 + [1] * 10 + [2] * 10)
    y = buffer["y"].numpy()
    assert tallied(y[draw(buffer, 10, [0, 0, 0, 1, 2])]) == {0: 6, 1: 2, 2: 2}
    assert tallied(y[draw(buffer, 4, [0, 1, 2])]) == {0: 2, 1: 1, 2: 1}  # a tie goes to the lower label
    assert tallied(y[draw(buffer, 9, [2, 0, 1])]) == {0: 3, 1: 3, 2: 3}
    assert tallied(y[draw(buffer, 1, [2, 0, 2])]) == {2: 1}


def test_rows_of_a_class_are_uniform() -> None:
    buffer = memory([0] * 6 + [1] * 4)
    hits = np.bincount([row for _ in range(1500) for row in draw(buffer, 4, [0, 0, 0, 1])], minlength=10)
    share = 1500 * 3 / 6
    assert stats.chi2.sf(((hits[:6] - share) ** 2).sum() / (share * (1 - 3 / 6) * 6 / 5), 5) > RARE
    assert stats.chisquare(hits[6:]).pvalue > RARE


def test_places_that_a_class_cannot_fill_are_uniform_over_the_rest() -> None:
    buffer = memory([0] * 2 + [1] * 8)
    hits = np.zeros(10)
    for _ in range(1200):
        slots = draw(buffer, 5, [0, 0, 0, 0, 3])
        assert len(set(slots.tolist())) == 5 and {0, 1} <= set(slots.tolist())
        hits[slots] += 1
    share = 1200 * 3 / 8
    assert stats.chi2.sf(((hits[2:] - share) ** 2).sum() / (share * (1 - 3 / 8) * 8 / 7), 7) > RARE


def test_a_batch_of_new_classes_is_met_by_uniform_replay() -> None:
    buffer = memory([0] * 3 + [1] * 5)
    hits = np.bincount([row for _ in range(1500) for row in draw(buffer, 2, [7, 8])], minlength=8)
    share = 1500 * 2 / 8
    assert stats.chi2.sf(((hits - share) ** 2).sum() / (share * (1 - 2 / 8) * 8 / 7), 7) > RARE


def test_all_rows_when_as_many_are_asked_for_and_only_filled_ones() -> None:
    buffer = memory([0, 1, 1, 2], capacity=9)
    assert sorted(draw(buffer, 4, [1])) == sorted(draw(buffer, 50, [0, 1])) == [0, 1, 2, 3]
    buffer.store.release(np.array([1]))
    for _ in range(30):
        assert 1 not in draw(buffer, 2, [1])


def test_another_column() -> None:
    buffer = memory([3, 3, 3, 5, 5, 5], column="t")
    slots = buffer.draw(2, arrivals={"t": torch.tensor([5, 5])})
    assert buffer["t"][slots].tolist() == [5, 5] and ClassMatched("t").columns == ("t",)


# -- bad input ----------------------------------------------------------------------------------------


def test_it_needs_the_arrivals_but_no_model() -> None:
    with pytest.raises(
        ValueError, match=r"ClassMatched chooses by the rows of the stream; pass sample\(n, arrivals="
    ):
        memory([0, 1]).sample(1)


@pytest.mark.parametrize(
    ("came", "message"),
    [
        (
            {"x": torch.zeros(2)},
            r"ClassMatched needs columns \['y'\]; the stream's batch lacks \['y'\]; add batches",
        ),
        ({"y": torch.zeros(2)}, "labels 'y' must be integers"),
        ({"y": torch.tensor([0, -1])}, "labels 'y' must not be negative, got -1"),
    ],
)
def test_arrivals_without_labels(came: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        memory([0, 1, 1]).sample(1, arrivals=came)


def test_a_memory_without_labels() -> None:
    buffer = Buffer(3, Reservoir(), ClassMatched())
    buffer.add({"x": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"the memory lacks \['y'\]; add batches that have it, or choose another"):
        draw(buffer, 1, [0])
