"""Scenarios: every row in one task, counts as specified, the same seed the same tasks."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils import shuffle as sklearn_shuffle

from replaykit.benchmarks import (
    blurry,
    class_groups,
    class_incremental,
    domain_incremental,
    imbalanced_blocks,
)
from replaykit.benchmarks.scenarios import IntArray, as_labels

seeds = st.integers(0, 2**32 - 1)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[IntArray, int]:
    """Labels in any order, and a number of tasks that divides the classes."""
    tasks = draw(st.integers(1, 5))
    classes = tasks * draw(st.integers(1, 3))
    counts = draw(st.lists(st.integers(1, 40), min_size=classes, max_size=classes))
    rng = np.random.default_rng(draw(seeds))
    return rng.permutation(np.repeat(np.arange(classes), counts)), tasks


def same(left: list[IntArray], right: list[IntArray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def is_partition(parts: list[IntArray], n: int) -> bool:
    return np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))


@given(labelled(), seeds)
def test_class_incremental_is_a_partition_by_class(case: tuple[IntArray, int], seed: int) -> None:
    y, tasks = case
    groups = class_groups(int(y.max()) + 1, tasks, "seed", seed)
    parts = class_incremental(y, groups)
    assert is_partition(parts, len(y))
    for part, group in zip(parts, groups, strict=True):
        assert set(y[part]) == set(group)
        assert (np.diff(part) > 0).all()
    assert same(parts, class_incremental(torch.from_numpy(y), tasks, "seed", seed))


def test_orders_and_groups() -> None:
    assert class_groups(6, 3) == [[0, 1], [2, 3], [4, 5]]
    assert class_groups(6, 2, [5, 3, 1, 0, 2, 4]) == [[5, 3, 1], [0, 2, 4]]
    assert class_groups(6, [[4], [0, 1]]) == [[4], [0, 1]]
    shuffled = class_groups(100, 10, "seed", 1)
    assert shuffled != class_groups(100, 10)
    assert shuffled == class_groups(100, 10, "seed", 1)
    assert shuffled != class_groups(100, 10, "seed", 2)
    assert sorted(c for group in shuffled for c in group) == list(range(100))


def test_classes_that_no_group_names_are_left_out_and_absent_ones_are_empty() -> None:
    parts = class_incremental([0, 1, 2, 0], [[2], [0, 7]])
    assert [part.tolist() for part in parts] == [[2], [0, 3]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 3), "10 classes do not divide into 3 tasks; take a number that divides them, .* give the groups"),
        ((10, 0), "do not divide"),
        ((4, 2, [0, 1, 2, 2]), "name each of the classes 0..3 once"),
        ((4, 2, "random"), "got 'random'"),
        ((4, [[0], [1]], [0, 1]), "drop order="),
        ((4, [[0], [0, 1]]), "classes of its own"),
        ((4, [[0], []]), "classes of its own"),
        ((4, []), "groups must name classes in 0..3"),
        ((4, [[0], [4]]), "groups must name classes in 0..3"),
    ],
)
def test_orders_and_groups_that_do_not_fit(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_groups(*arguments)


def test_labels_must_be_counts() -> None:
    with pytest.raises(TypeError, match="must be integers, got float"):
        as_labels(torch.tensor([0.5]))
    with pytest.raises(ValueError, match=r"shape \[n\]"):
        as_labels(np.zeros((1, 2), np.int64))
    with pytest.raises(ValueError, match="not negative"):
        as_labels([0, -1])


@given(st.integers(1, 300), st.data(), seeds)
def test_domain_incremental_is_an_even_partition(n: int, data: st.DataObject, seed: int) -> None:
    tasks = data.draw(st.integers(1, min(n, 20)))
    parts = domain_incremental(n, tasks, seed)
    assert is_partition(parts, n)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert same(parts, domain_incremental(n, tasks, seed))


def test_domain_incremental_needs_rows() -> None:
    with pytest.raises(ValueError, match="3 rows into 4 tasks"):
        domain_incremental(3, 4)


@settings(deadline=None)
@given(labelled(), st.floats(0, 0.95), seeds)
def test_blurry_shares_are_exact_within_one(case: tuple[IntArray, int], share: float, seed: int) -> None:
    y, tasks = case
    share = share if tasks > 1 else 0.0
    groups = class_groups(int(y.max()) + 1, tasks)
    parts = blurry(y, groups, share, seed)
    assert is_partition(parts, len(y))
    for own, group in enumerate(groups):
        for label in group:
            n = int((y == label).sum())
            counts = [int((y[part] == label).sum()) for part in parts]
            assert abs(counts[own] - (1 - share) * n) <= 1
            others = [count for task, count in enumerate(counts) if task != own]
            assert all(abs(count - share * n / (tasks - 1)) <= 1 for count in others)
    assert same(parts, blurry(y, groups, share, seed))


def test_blurry_without_a_share_is_class_incremental() -> None:
    y = np.arange(40) % 4
    assert same(blurry(y, [[0, 1], [2, 3]], 0.0), class_incremental(y, 2))


def test_blurry_gives_the_odd_rows_to_every_task_alike() -> None:
    # One row of a class is given away; over seeds, each of the four other tasks gets it a quarter of the time.
    y = np.zeros(10, np.int64)
    groups = [[0], [1], [2], [3], [4]]
    gets = np.zeros(5)
    for seed in range(1000):
        gets += [len(part) for part in blurry(y, groups, 0.1, seed)]
    assert gets[0] == 9000
    assert ((gets[1:] - 250) ** 2 / 250).sum() < 16.3  # chi-square, 3 degrees of freedom, 0.1 %


@pytest.mark.parametrize("share", [10, 1.0, -0.1])
def test_blurry_takes_a_fraction(share: float) -> None:
    with pytest.raises(ValueError, match="share is a fraction"):
        blurry([0, 1], [[0], [1]], share)
    with pytest.raises(ValueError, match="one task"):
        blurry([0, 1], [[0, 1]], 0.1)


def test_imbalanced_blocks_are_those_of_the_released_code() -> None:
    y = np.random.default_rng(0).integers(0, 10, 30000)
    blocks = imbalanced_blocks(y)
    draw = np.random.RandomState(0)
    for task, block in enumerate(blocks):
        of_pair = np.where(np.logical_or(y == 2 * task, y == 2 * task + 1))[0]
        chosen = draw.choice(of_pair, 2000 if task == 4 else 200, replace=False)
        assert np.array_equal(block, sklearn_shuffle(chosen, random_state=0))
    assert [len(block) for block in blocks] == [200] * 4 + [2000]


def test_imbalanced_blocks_leave_the_global_generator_alone() -> None:
    before = np.random.get_state(legacy=False)  # noqa: NPY002
    imbalanced_blocks(np.arange(100) % 4, [[0, 1], [2, 3]], [5, 10])
    after = np.random.get_state(legacy=False)  # noqa: NPY002
    assert str(before) == str(after)


def test_imbalanced_blocks_that_cannot_be_drawn() -> None:
    y = np.arange(100) % 4
    with pytest.raises(ValueError, match="one size for each group"):
        imbalanced_blocks(y, [[0, 1]], [1, 2])
    with pytest.raises(ValueError, match=r"60 rows of classes \[0, 1\], which have 50"):
        imbalanced_blocks(y, [[0, 1]], [60])
