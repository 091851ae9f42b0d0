"""The pool: quantities on demand, subsets, vectors by their inner products, and what is refused."""

import numpy as np
import pytest
import torch
from reference.factored import Factored
from torch import nn

from replaykit.gradients import last_layer_gradients, per_sample_gradients
from replaykit.selectors import CRAIG, GCR, GraNd, Herding, KCenter, Pool, Vectors
from replaykit.selectors.gradient_vectors import GradientVectors
from replaykit.selectors.outer_products import OuterProducts
from replaykit.selectors.pool import Dense, as_vectors, checked_vectors, working_dtype
from replaykit.selectors.rows import Rows, squared_distances
from replaykit.selectors.unit import Unit


def factors(n: int = 20) -> Factored:
    rng = np.random.default_rng(0)
    return Factored(torch.from_numpy(rng.normal(size=(n, 3))), torch.from_numpy(rng.normal(size=(n, 4))))


def network_gradients(n: int = 30):
    """Last-layer gradients of a network and the same rows as a matrix, with two duplicates and labels."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(n, 6, generator=generator)
    x[5] = x[4]
    y = torch.randint(3, (n,), generator=generator)
    y[5] = y[4]
    gradients = last_layer_gradients(model, {"x": x, "y": y})
    return gradients, gradients.explicit(), y


def check(vectors: Vectors, dense: torch.Tensor, tolerance: float = 1e-10) -> None:
    n = len(dense)
    gram, index = dense @ dense.T, torch.tensor([3, 0, 7])
    w = torch.linspace(-1, 2, n).to(dense)
    pairs = [
        (vectors.gram(), gram),
        (vectors.gram_rows(index), gram[index]),
        (vectors.gram_times(w), gram @ w),
        (vectors.norms(), dense.norm(dim=1)),
        (vectors.rows(index).gram(), gram[index][:, index]),
    ]
    for mine, expected in pairs:
        assert mine.dtype == expected.dtype
        assert (mine - expected).abs().max() <= tolerance * expected.abs().max()
    assert len(vectors) == n and len(vectors.rows(index)) == 3
    assert isinstance(vectors, Vectors)


def test_every_kind_of_vectors_answers_like_the_matrix(device: str) -> None:
    g = factors()
    dense = g.dense()
    check(as_vectors(dense), dense)
    check(g, dense)
    unit = dense / dense.norm(dim=1, keepdim=True)
    check(Unit(Dense(dense)), unit)
    check(Unit(g), unit)
    check(as_vectors(dense.reshape(20, 3, 5)), dense)


def test_gradients_of_a_model_are_vectors() -> None:
    gradients, explicit, _ = network_gradients()
    assert isinstance(as_vectors(gradients), OuterProducts)
    dense = explicit.double()
    for vectors in (as_vectors(gradients), GradientVectors(gradients)):
        check(vectors, explicit, 1e-5)
        # In float64 the products are exact to the float32 factors.
        precise = vectors.to(torch.float64)
        assert torch.allclose(precise.norms().square(), precise.gram().diagonal(), rtol=1e-14)
        assert torch.allclose(precise.gram_rows(torch.arange(4)), (dense @ dense.T)[:4], rtol=1e-5, atol=1e-6)
        check(precise, dense, 1e-5)
        check(Unit(precise), dense / dense.norm(dim=1, keepdim=True), 1e-5)


def test_gradients_are_outer_products_only_where_their_factors_are() -> None:
    x = {"x": torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), "y": torch.arange(9) % 2}
    for bias in (True, False):
        model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2, bias=bias))
        found = last_layer_gradients(model, x)
        r, h = found.outer_product()
        weight = (r[:, :, None] * h[:, None, :5]).flatten(1)
        expected = torch.cat([weight, r], 1) if bias else weight
        torch.testing.assert_close(found.explicit(), expected)
        assert h.shape == (9, 5 + bias)
        part = found.rows(torch.tensor([7, 2])).outer_product()
        assert torch.equal(part[0], r[[7, 2]]) and torch.equal(part[1], h[[7, 2]])
        assert isinstance(as_vectors(per_sample_gradients(model, x)), GradientVectors)
    convolution = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 4), nn.Flatten())
    assert isinstance(as_vectors(per_sample_gradients(convolution, x)), GradientVectors)


def test_selectors_take_the_gradients_of_a_model() -> None:
    gradients, explicit, y = network_gradients()
    rng = np.random.default_rng(0)
    for selector in (GCR(), CRAIG(), KCenter("gradients"), Herding("gradients"), GraNd()):
        rows, weights = selector.select(Pool(30, y, gradients=gradients), 9, rng)
        dense_rows, dense_weights = selector.select(Pool(30, y, gradients=explicit), 9, rng)
        assert rows.tolist() == dense_rows.tolist(), type(selector).__name__
        assert torch.allclose(weights, dense_weights, rtol=1e-4)


def test_distances_of_duplicates_are_zero_and_others_are_right() -> None:
    gradients, explicit, _ = network_gradients()
    # A model may round equal inputs differently, by their place in the batch; copies are equal.
    copies = torch.arange(30)
    copies[5] = 4
    gradients, explicit = gradients.rows(copies), explicit[copies]
    vectors = as_vectors(gradients).to(torch.float64)
    squares = vectors.norms().square()
    distances = squared_distances(vectors, torch.arange(30), squares)
    expected = torch.cdist(explicit.double(), explicit.double()).square()
    assert distances[4, 5] == distances[5, 4] == 0 == distances.diagonal().max()
    assert torch.allclose(distances, expected, rtol=1e-5, atol=1e-6)
    shifted = Dense(torch.full((5, 50), 0.1) + torch.arange(5)[:, None] * 0.01 + 3)
    squares = shifted.norms().square()
    assert (squared_distances(shifted, torch.arange(5), squares).diagonal() == 0).all()


def test_quantities_are_computed_once_and_only_when_asked_for() -> None:
    calls = []

    def features() -> torch.Tensor:
        calls.append(1)
        return torch.arange(12.0).reshape(6, 2)

    pool = Pool(
        6, torch.arange(6), torch.arange(6.0), features=features, gradients=factors(6), x=torch.zeros(6, 2, 2)
    )
    half = pool.subset(torch.tensor([5, 1, 3]))
    quarter = half.subset(torch.tensor([2, 0]))
    assert calls == []
    assert quarter.tensor("features").tolist() == [[6, 7], [10, 11]]
    assert half.tensor("features").shape == (3, 2) and pool.vectors("features").norms().shape == (6,)
    assert calls == [1]
    assert (quarter.n, quarter.y.tolist(), quarter.weight.tolist()) == (2, [3, 5], [3, 5])
    assert torch.equal(half.vectors("gradients").gram(), factors(6).rows(torch.tensor([5, 1, 3])).gram())
    assert half.vectors("x").gram_times(torch.zeros(3)).shape == (3,)


def test_precision_follows_the_size() -> None:
    assert working_dtype(4096) is torch.float64 and working_dtype(4097) is torch.float32
    small, large = torch.ones(4096, 1, dtype=torch.float32), torch.ones(4097, 1, dtype=torch.float64)
    assert checked_vectors(Pool(4096, features=small), "features", "S").norms().dtype is torch.float64
    assert checked_vectors(Pool(4097, features=large), "features", "S").norms().dtype is torch.float32


def test_rows_are_held_only_within_the_budget() -> None:
    matrix = torch.arange(36.0).reshape(6, 6)
    sizes = []

    def compute(index: torch.Tensor) -> torch.Tensor:
        sizes.append(len(index))
        return matrix[index]

    for max_bytes, held in ((6 * 6 * 4, True), (6 * 6 * 4 - 1, False), (48, False), (1, False)):
        sizes.clear()
        rows = Rows(6, compute, matrix, max_bytes)
        assert (rows.matrix is not None) == held
        index = torch.tensor([4, 0, 5, 2])
        assert torch.equal(rows(index), matrix[index])
        assert torch.equal(rows.row(torch.tensor(3)), matrix[3])
        assert torch.equal(torch.cat([piece.clone() for piece in rows.pieces(index)]), matrix[index])
    assert sizes == [4, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": torch.zeros(2)}, "'y' must have shape"),
        ({"weight": torch.ones(3, 1)}, "'weight' must have shape"),
        ({"weight": torch.tensor([1.0, -1, 1])}, "weights must be >= 0, got -1"),
        ({"weight": torch.tensor([1.0, torch.nan, 1])}, "Pool: weight of row 1 holds NaN"),
    ],
)
def test_bad_pools_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pool(3, **arguments)


def test_missing_and_misshapen_quantities_are_named() -> None:
    pool = Pool(3, features=torch.ones(2, 2), gradients=factors(3))
    with pytest.raises(ValueError, match="'features' has 2 rows, the pool has 3"):
        pool.tensor("features")
    with pytest.raises(KeyError, match="no 'logits', only"):
        pool.tensor("logits")
    with pytest.raises(TypeError, match="'gradients' of this pool is a Factored"):
        pool.tensor("gradients")
