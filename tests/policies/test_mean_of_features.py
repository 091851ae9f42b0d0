"""Mean of features; what it has in common with k-means is in test_k_means.py."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import feature_memories as reference
from torch import Tensor

from replaykit import Batch, Buffer
from replaykit.policies.mean_of_features import MeanOfFeatures
from replaykit.testing import same

Y = st.lists(st.integers(0, 4), min_size=1, max_size=60)
CUTS = st.lists(st.integers(0, 60), max_size=6)


class Look:
    """A probe to which the features of a row are its x, plus `by` once the model has moved."""

    def __init__(self, by: float) -> None:
        self.by = by

    def features(self, batch: Batch) -> Tensor:
        return batch["x"] + self.by

    def cached(self) -> AbstractContextManager[None]:
        return nullcontext()


def fill(
    buffer: Buffer,
    features: Sequence[Sequence[float]] | np.ndarray,
    y: Sequence[int] | None = None,
    cuts: Sequence[int] = (),
    start: int = 0,
    shift: float = 0.0,
) -> Buffer:
    """Offer rows whose features are their x, plus `shift`."""
    x = torch.tensor(np.array(features), dtype=torch.float64)
    y = torch.tensor([0] * len(x) if y is None else list(y), dtype=torch.int64)
    edges = sorted({0, len(x), *(cut for cut in cuts if cut < len(x))})
    for low, high in pairwise(edges):
        ids = torch.arange(start + low, start + high)
        buffer.add({"id": ids, "x": x[low:high], "y": y[low:high]}, Look(shift))
    return buffer


def line(*features: float) -> list[list[float]]:
    return [[f] for f in features]


def places(buffer: Buffer) -> dict[int, list[int]]:
    """Rows of each class, in the order of its places."""
    held = dict(zip(buffer.store.filled.tolist(), buffer["id"].tolist(), strict=True))
    return {label: [held[slot] for slot in slots] for label, slots in buffer.policy.slots.items()}


def means(buffer: Buffer) -> dict[int, list[float]]:
    return {label: centre.mean.tolist() for label, centre in buffer.policy.centres.items()}


def draw(n: int, seed: int = 0) -> np.ndarray:
    """Features on a grid, so that fractions of them stay short."""
    return np.random.default_rng(seed).normal(size=(n, 3)).round(2)


# -- the law --------------------------------------------------------------------------------------


def test_hand_case() -> None:
    """q = 2: the mean goes 0, 4, 4, 3, 4; 4 takes the place of 0, which ties with 8, and 0 that of 8; 8 ties with 0."""
    buffer, stored = Buffer(2, MeanOfFeatures(1)), []
    for row, f in enumerate((0, 8, 4, 0, 8)):
        fill(buffer, line(f), start=row)
        stored.append(buffer["id"].tolist())
    assert stored == [[0], [0, 1], [2, 1], [2, 3], [2, 3]]
    assert means(buffer) == {0: [4]} and buffer.policy.centres[0].offered == 5


@settings(max_examples=100, deadline=None)
@given(
    y=Y,
    cuts=CUTS,
    capacity=st.integers(5, 23),
    seed=st.integers(0, 99),
    classes=st.sampled_from([None, 5]),
    momentum=st.sampled_from([None, 0.0, 0.5, 0.9]),
)
def test_it_is_the_literal_loop(
    y: list[int], cuts: list[int], capacity: int, seed: int, classes: int | None, momentum: float | None
) -> None:
    features = draw(len(y), seed)
    buffer = fill(Buffer(capacity, MeanOfFeatures(classes, momentum=momentum)), features, y, cuts)
    wanted = reference.mean_of_features(features.tolist(), y, capacity, classes, momentum)
    assert places(buffer) == {c: of.rows for c, of in wanted.items()}
    assert {c: centre.offered for c, centre in buffer.policy.centres.items()} == {
        c: of.count for c, of in wanted.items()
    }
    for label, of in wanted.items():
        assert np.allclose(means(buffer)[label], np.array(of.mean, float), rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    cuts=CUTS,
    capacity=st.integers(1, 6),
    numbers=st.lists(st.integers(-4, 4), min_size=1, max_size=50),
    momentum=st.sampled_from([None, 0.5]),
)
def test_ties_on_a_line_of_integers_are_those_of_the_literal_loop(
    cuts: list[int], capacity: int, numbers: list[int], momentum: float | None
) -> None:
    features, y = line(*numbers), [0] * len(numbers)
    buffer = fill(Buffer(capacity, MeanOfFeatures(1, momentum=momentum)), features, y, cuts)
    assert places(buffer)[0] == reference.mean_of_features(features, y, capacity, 1, momentum)[0].rows


def test_the_mean_is_that_of_all_rows_offered() -> None:
    features, y = draw(120), np.random.default_rng(1).integers(4, size=120)
    buffer = fill(Buffer(9, MeanOfFeatures()), features, y.tolist())
    for label, mean in means(buffer).items():
        assert np.allclose(mean, features[y == label].mean(0), rtol=0, atol=1e-12)


def test_the_memory_is_not_frozen_by_its_first_rows() -> None:
    """Distances are to the mean of now: the first row, at distance 0 when it came, has to leave."""
    buffer = fill(Buffer(3, MeanOfFeatures(1)), [*line(50, 60, 70), *draw(300)[:, :1].tolist()])
    assert min(buffer["id"].tolist()) > 2
    assert (buffer["x"] - means(buffer)[0][0]).abs().max() < 0.2


def test_a_mean_with_momentum_forgets() -> None:
    buffer = fill(Buffer(2, MeanOfFeatures(1, momentum=0.5)), line(8, 4, 0))
    assert means(buffer) == {0: [3]}


# -- when a class must shrink ---------------------------------------------------------------------


def test_the_rows_farthest_from_the_mean_leave() -> None:
    buffer = fill(Buffer(4, MeanOfFeatures()), line(0, 10, 4, 6, 5), [0, 0, 0, 0, 1])
    assert places(buffer) == {0: [2, 3], 1: [4]}


@settings(max_examples=60, deadline=None)
@given(y=Y, before=st.integers(5, 20), after=st.integers(5, 20), classes=st.sampled_from([None, 5]))
def test_resizing_keeps_the_rows_nearest_to_the_mean(
    y: list[int], before: int, after: int, classes: int | None
) -> None:
    features = draw(len(y))
    buffer = fill(Buffer(before, MeanOfFeatures(classes)), features, y)
    wanted = reference.mean_of_features(features.tolist(), y, before, classes)
    held = means(buffer)
    buffer.resize(after, grow="naive")
    for label, of in wanted.items():
        reference.drop_farthest(of, after // 5 if classes else reference.shares(wanted, after)[label])
        assert places(buffer)[label] == of.rows
    assert means(buffer) == held


def test_of_rows_that_tie_the_first_place_leaves() -> None:
    buffer = fill(Buffer(4, MeanOfFeatures(1)), line(-2, 2, -1, 1))
    buffer.resize(1)
    assert places(buffer) == {0: [3]}


# -- refreshing features --------------------------------------------------------------------------


def test_hand_case_of_a_refresh() -> None:
    """Stored 4 and 6 of mean 5 become 104 and 106; the mean of the class follows before it takes 110."""
    buffer = fill(Buffer(2, MeanOfFeatures(1, refresh_every=5)), line(0, 10, 4, 6))
    assert places(buffer) == {0: [3, 2]} and means(buffer) == {0: [5]}
    fill(buffer, line(10), start=4, shift=100)
    assert means(buffer) == {0: [106]} and buffer["stored_feature"].tolist() == [[106], [104]]


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_a_momentum_that_makes_no_sense(momentum: float) -> None:
    with pytest.raises(ValueError, match=r"weight of the old mean, in \[0, 1\), got"):
        MeanOfFeatures(momentum=momentum)


@pytest.mark.parametrize(
    "change",
    [
        {"slots": {5: torch.tensor([0])}},
        {"means": {0: torch.zeros(3)}},
        {"means": {0: torch.zeros(3), 1: torch.zeros(3, dtype=torch.float64)}},
        {"means": [0.0]},
        {"offered": {0: 3}},
        {"offered": {0: 3, 1: 0}},
        {"offered": {0: 2.5, 1: 9}},
        {"more": 1},
    ],
)
def test_states_that_are_not_ours_are_refused(change: dict[str, object]) -> None:
    policy = MeanOfFeatures(2)
    fill(Buffer(4, policy), draw(20), [0, 1] * 10)
    before = policy.state_dict()
    with pytest.raises(ValueError, match="state"):
        policy.load_state_dict({**before, **change})
    assert same(policy.state_dict(), before)
    policy.load_state_dict(before)
