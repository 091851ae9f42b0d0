"""The tree against a cumulative sum, and the nodes it touches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit.retrieval.segment_tree import SegmentTree

WEIGHTS = st.lists(st.integers(0, 9), min_size=1, max_size=70)


def numbers(values: list[int]) -> np.ndarray:
    return np.array(values, np.float64)


@settings(max_examples=60, deadline=None)
@given(values=WEIGHTS)
def test_every_fraction_finds_the_place_of_the_cumulative_sum(values: list[int]) -> None:
    """Whole weights: sums are exact, and the middle of each unit of the total is far from every end."""
    tree, total = SegmentTree(numbers(values)), sum(values)
    assert tree.root == total and tree[np.arange(len(values))].tolist() == values
    units = np.arange(total)
    found = tree.find((units + 0.5) / max(total, 1))
    assert found.tolist() == np.searchsorted(np.cumsum(values), units, side="right").tolist()


def test_a_fraction_at_an_end_belongs_to_the_next_place() -> None:
    tree = SegmentTree(numbers([1, 0, 2, 1]))  # a total of 4: quarters are exact
    assert tree.find(np.array([0, 0.25, 0.5, 0.75])).tolist() == [0, 2, 2, 3]
    assert tree.find(np.array([np.nextafter(0.25, 0), np.nextafter(1.0, 0)])).tolist() == [0, 3]


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=40), u=st.floats(0, 1, exclude_max=True))
def test_no_rounding_leads_to_a_place_of_weight_zero(values: list[float], u: float) -> None:
    spread = np.zeros(3 * len(values))
    spread[1::3] = values
    place = SegmentTree(spread).find(np.array([u, np.nextafter(1.0, 0)]))
    assert (spread[place] > 0).all()


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(0, 1e6), min_size=1, max_size=40),
    data=st.data(),
    combine=st.sampled_from([np.add, np.maximum]),
)
def test_an_updated_tree_is_the_tree_built_anew_to_the_last_bit(values, data, combine) -> None:
    tree, now = SegmentTree(numbers(values), combine), numbers(values)
    for _ in range(3):
        places = np.array(data.draw(st.lists(st.integers(0, len(values) - 1), unique=True)), np.int64)
        now[places] = data.draw(st.lists(st.floats(0, 1e6), min_size=len(places), max_size=len(places)))
        tree.update(places, now[places])
        assert tree.nodes.tolist() == SegmentTree(now, combine).nodes.tolist()
    assert tree.root == pytest.approx(combine.reduce(now))


class Counted(np.ndarray):
    """Counts the entries that are read or written."""

    touched = 0

    def __getitem__(self, key):
        part = np.asarray(super().__getitem__(key))
        Counted.touched += part.size
        return part

    def __setitem__(self, key, value):
        Counted.touched += np.size(value)
        super().__setitem__(key, value)


@pytest.mark.parametrize("n", [1, 1_000, 1 << 17])
@pytest.mark.parametrize("k", [1, 32])
def test_work_grows_with_the_logarithm_of_the_size(n: int, k: int) -> None:
    tree, rng = SegmentTree(np.ones(n)), np.random.default_rng(0)
    tree.nodes, depth = tree.nodes.view(Counted), (n - 1).bit_length()
    k = min(k, n)
    Counted.touched = 0
    tree.find(rng.random(k))
    assert 0 < Counted.touched <= 2 * k * depth + 1
    Counted.touched = 0
    tree.update(rng.choice(n, k, replace=False), rng.random(k))
    assert 0 < Counted.touched <= k * (3 * depth + 1)
    Counted.touched = 0
    tree.update(np.empty(0, np.int64), np.empty(0))
    assert Counted.touched == 0
