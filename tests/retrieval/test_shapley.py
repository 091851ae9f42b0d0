"""Shapley values of nearest neighbours against their definition."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.knn_shapley import by_subsets, of_rows, recursion, utility

from replaykit.retrieval.shapley import knn_shapley, ranked, sorted_shapley

MATCHES = st.lists(st.booleans(), min_size=1, max_size=12)


def values(matches: list[bool] | tuple[int, ...], k: int) -> list[float]:
    return sorted_shapley(torch.tensor([list(matches)]), k)[0].tolist()


@pytest.mark.parametrize(
    ("matches", "k", "expected"),
    [
        ((1, 0, 1), 1, (5 / 6, -1 / 6, 1 / 3)),
        ((1, 0, 1, 1), 2, (0.25, -0.25, 0.25, 0.25)),
        ((1,), 1, (1.0,)),
        ((0, 1), 1, (-1 / 2, 1 / 2)),
        ((1, 1, 0), 5, (0.2, 0.2, 0.0)),
        ((0, 0, 1), 5, (0.0, 0.0, 0.2)),  # K > n: a_n / K; the released code has a_n / n = 1/3
    ],
)
def test_hand_cases(matches: tuple[int, ...], k: int, expected: tuple[float, ...]) -> None:
    assert values(matches, k) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("k", range(1, 9))
@pytest.mark.parametrize("n", range(1, 7))
def test_every_pattern_of_labels_against_all_subsets(n: int, k: int) -> None:
    patterns = list(product((False, True), repeat=n))
    found = sorted_shapley(torch.tensor(patterns), k)
    expected = [by_subsets(pattern, k) for pattern in patterns]
    assert [recursion(pattern, k) for pattern in patterns] == expected
    assert torch.allclose(found, torch.tensor([[float(v) for v in row] for row in expected]).double(), atol=1e-14)


@settings(max_examples=100, deadline=None)
@given(MATCHES, st.integers(1, 20))
def test_efficiency(matches: list[bool], k: int) -> None:
    """The values add up to what all rows together are worth."""
    assert math.fsum(values(matches, k)) == pytest.approx(float(utility(range(len(matches)), matches, k)))
    assert sum(recursion(matches, k)) == Fraction(sum(matches[:k]), k)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2), st.integers(0, 2)), min_size=1, max_size=9),
    queries=st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2), st.integers(0, 2)), max_size=4),
    k=st.integers(1, 11),
)
def test_rows_get_the_values_of_their_places(rows: list[tuple], queries: list[tuple], k: int) -> None:
    """On a grid, where many distances are equal: then the first row is the nearer one."""
    features, y = torch.tensor(rows).split([2, 1], 1)
    query, query_y = torch.tensor(queries, dtype=torch.int64).reshape(-1, 3).split([2, 1], 1)
    found = knn_shapley(query.float(), query_y[:, 0], features.float(), y[:, 0], k)
    assert found.shape == (len(queries), len(rows)) and found.dtype == torch.float64
    for i, (*point, label) in enumerate(queries):
        expected = of_rows(point, label, [row[:2] for row in rows], [row[2] for row in rows], k)
        assert found[i].tolist() == pytest.approx([float(v) for v in expected], abs=1e-14)


def test_equal_rows_far_from_the_origin_are_at_equal_distance() -> None:
    """By matrix products their distances would be rounding errors, and the order by chance."""
    point = torch.randn(1, 64, generator=torch.Generator().manual_seed(0)) * 1000
    features, y = point.repeat(40, 1), torch.tensor([0, 1] * 20)
    assert knn_shapley(point, torch.tensor([0]), features, y, 1)[0].tolist() == values((1, 0) * 20, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_features(dtype: torch.dtype, device: str) -> None:
    features = torch.tensor([[0.0], [3.0], [1.0]], dtype=dtype, device=device)
    y = torch.tensor([1, 1, 0], device=device)
    found = knn_shapley(features[:1], y[:1], features, y, 1)
    assert found.tolist() == [pytest.approx([5 / 6, 1 / 3, -1 / 6])]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["query", "row"])
def test_features_that_are_not_finite(bad: float, where: str) -> None:
    query, row = torch.zeros(1, 2), torch.zeros(3, 2)
    (query if where == "query" else row)[0, 0] = bad
    with pytest.raises(ValueError, match="features are NaN or infinite"):
        knn_shapley(query, torch.zeros(1), row, torch.zeros(3), 1)


def test_ranking_ignores_rounding_but_nothing_else() -> None:
    third = sum([0.1] * 3)  # 0.30000000000000004
    assert ranked(torch.tensor([0.3, third, 0.3, 0.3 + 1e-9, 0.2], dtype=torch.float64)).tolist() == [
        3,
        0,
        1,
        2,
        4,
    ]
    assert ranked(torch.tensor([-1.0, 5.0, -1.0, 5.0])).tolist() == [1, 3, 0, 2]
    assert ranked(torch.zeros(0)).dtype == np.int64
