"""Kernels and the forms in which a pool's kernel matrix is held."""

import numpy as np
import pytest
import torch
from reference import ntk as reference
from scipy.spatial.distance import cdist, pdist

from replaykit.selectors import RBF, ConvolutionalNTK, FullyConnectedNTK, Linear, Pool
from replaykit.selectors.gram import BlockGram, DenseGram, FactorGram, checked_gram, pool_gram
from replaykit.selectors.kernels import median_distance
from replaykit.selectors.pool import Dense

SIDE = 6
KERNELS = {
    "linear": Linear(0.5),
    "rbf": RBF(3.0),
    "dense": FullyConnectedNTK(),
    "convolutional": ConvolutionalNTK(filter_size=3),
}


def images(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, SIDE, SIDE, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=KERNELS)
def kernel(request):
    return KERNELS[request.param]


def test_kernels_are_symmetric_and_positive(kernel, device):
    x = images(40)
    x[7], x[8] = x[3], 0  # a duplicate, an image of zeros
    values = kernel(x.to(device)).cpu()
    assert values.shape == (40, 40) and values.dtype == torch.float64
    assert torch.equal(values, values.T)
    assert torch.linalg.eigvalsh(values)[0] > -1e-6 * values.trace()


def test_a_kernel_of_two_sets_is_a_block_of_the_kernel_of_all(kernel):
    x = images(20)
    torch.testing.assert_close(kernel(x[:8], x[8:]), kernel(x)[:8, 8:], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(kernel(x[:8], x[:8]), kernel(x)[:8, :8], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["rbf", "dense", "convolutional"])
def test_results_do_not_depend_on_the_byte_budget(name):
    x, whole = images(15), KERNELS[name]
    pieces = type(whole)(**{**whole.__dict__, "max_bytes": 1})
    torch.testing.assert_close(pieces(x), whole(x), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(pieces(x[:4], x[4:]), whole(x[:4], x[4:]), rtol=1e-12, atol=1e-14)


def test_linear_and_gaussian_against_scipy():
    x = images(12)
    flat = x.flatten(1).numpy()
    np.testing.assert_allclose(Linear(2.0)(x).numpy(), 2 + flat @ flat.T, rtol=1e-12)
    np.testing.assert_allclose(Linear(2.0).features(x) @ Linear(2.0).features(x).T, 2 + flat @ flat.T, rtol=1e-12)
    expected = np.exp(-cdist(flat, flat, "sqeuclidean") / (2 * 1.7**2))
    np.testing.assert_allclose(RBF(1.7)(x).numpy(), expected, rtol=1e-9)
    far = x + 1e6  # the digits of the differences survive a large common mean
    np.testing.assert_allclose(RBF(1.7)(far).numpy(), expected, rtol=1e-6)


def test_median_heuristic():
    x = images(31)
    assert median_distance(x) == pytest.approx(np.median(pdist(x.flatten(1).numpy())))
    assert RBF().fit(x).bandwidth == median_distance(x)
    assert RBF(2.0).fit(x).bandwidth == 2.0
    half = torch.cat([x[:1]] * 20 + [x[1:2]])  # most pairs are duplicates and do not count
    assert median_distance(half) == pytest.approx(float((x[0] - x[1]).norm()))
    assert median_distance(x[:1].expand(5, -1, -1)) == 1.0
    assert median_distance(x[:1]) == 1.0
    with pytest.raises(ValueError, match="fit"):
        RBF()(x)


def test_dense_tangent_kernel_is_the_recursion():
    x = images(5).flatten(1)
    values = FullyConnectedNTK()(x)
    for i in range(5):
        for j in range(5):
            assert float(values[i, j]) == pytest.approx(reference.fully_connected(x[i], x[j]), rel=1e-7)
    assert float(FullyConnectedNTK(hidden=3)(x)[0, 1]) == pytest.approx(
        reference.fully_connected(x[0], x[1], hidden=3), rel=1e-9
    )


def test_convolutional_tangent_kernel_is_the_recursion():
    x = images(4)[:, :5]  # not square: the two sides have their own borders
    values = ConvolutionalNTK(filter_size=3)(x)
    for i in range(4):
        for j in range(4):
            assert float(values[i, j]) == pytest.approx(reference.convolutional(x[i], x[j], 3), rel=1e-7)


def test_channels_are_averaged():
    x = images(4)
    stacked = x[:, None].expand(-1, 3, -1, -1)
    torch.testing.assert_close(ConvolutionalNTK()(stacked), ConvolutionalNTK()(x), rtol=1e-7, atol=0)


def test_dense_tangent_kernel_is_the_limit_of_wide_networks():
    x = images(6, dtype=torch.float32).flatten(1)
    generator = torch.Generator().manual_seed(0)
    finite = reference.empirical_dense(x, 4096, generator)
    torch.testing.assert_close(
        finite, FullyConnectedNTK()(x), rtol=0.05, atol=0.05 * float(finite.diagonal().mean())
    )


def test_convolutional_tangent_kernel_is_the_limit_of_wide_networks():
    x = images(3, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    networks = [reference.WideConvolutional(128, SIDE, 3, generator) for _ in range(8)]
    finite = torch.stack([reference.empirical(network, x[:, None]) for network in networks]).mean(0)
    exact = ConvolutionalNTK(filter_size=3)(x)
    torch.testing.assert_close(finite, exact, rtol=0.05, atol=0.05 * float(exact.diagonal().mean()))


def test_single_precision_maps_are_close_enough():
    x = images(20)
    x[3] = x[4]
    exact, rough = ConvolutionalNTK()(x), ConvolutionalNTK(dtype=torch.float32)(x)
    assert rough.dtype == torch.float64
    assert (exact - rough).abs().max() < 1e-4 * exact.max()
    checked_gram(rough, "test")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(-1.0), "bias"),
        (lambda: RBF(0.0), "bandwidth"),
        (lambda: ConvolutionalNTK(filter_size=4), "odd"),
        (lambda: ConvolutionalNTK()(torch.zeros(3, 7)), "images"),
        (lambda: ConvolutionalNTK()(torch.zeros(3, 7, 7), torch.zeros(3, 6, 7)), "one shape"),
    ],
)
def test_bad_kernels_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_three_forms_of_a_gram_agree():
    x = images(25)
    kernel = Linear(1.0)
    forms = [DenseGram(kernel(x)), FactorGram(Dense(kernel.features(x))), BlockGram(kernel, x, max_bytes=600)]
    index, u = torch.tensor([3, 0, 17]), torch.randn(25, 4, dtype=torch.float64)
    for form in forms:
        assert len(form) == 25 and form.dtype == torch.float64
        torch.testing.assert_close(form.rows(index), forms[0].values[index])
        torch.testing.assert_close(form.product(u), forms[0].values @ u)
        part = form.subset(index)
        torch.testing.assert_close(part.product(u[:3]), forms[0].values[index][:, index] @ u[:3])


def test_a_pool_holds_its_kernel_in_the_form_that_fits():
    n = 50
    x = images(n)
    pool = Pool(n, x=x, few=x[:, 0])
    assert isinstance(pool_gram(pool, "x", RBF(), 1 << 20, "test"), DenseGram)
    assert isinstance(pool_gram(pool, "x", RBF(), 1000, "test"), BlockGram)
    assert isinstance(pool_gram(pool, "few", Linear(), 1 << 20, "test"), FactorGram)
    inner = pool_gram(pool, "few", None, 1 << 20, "test")
    torch.testing.assert_close(inner.product(torch.eye(n).double()), x[:, 0] @ x[:, 0].T)


def test_precision_follows_the_size_of_the_pool():
    for n, dtype in ((4096, torch.float64), (4097, torch.float32)):
        pool = Pool(n, x=torch.randn(n, 3))
        assert pool_gram(pool, "x", Linear(), 1 << 30, "test").dtype == dtype


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(3, 4), "square|\\[n, n\\]"),
        (torch.tensor([[1.0, 0.5], [0.2, 1.0]]), "symmetric"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "eigenvalue"),
        (torch.tensor([[0.0, 1.0], [1.0, 0.0]]), "symmetric|eigenvalue"),
        (torch.tensor([[1.0, torch.nan], [torch.nan, 1.0]]), "NaN"),
    ],
)
def test_what_is_not_a_kernel_matrix(values, message):
    with pytest.raises(ValueError, match=f"chooser.*({message})"):
        checked_gram(values, "chooser")


def test_rounding_below_zero_is_still_a_kernel():
    x = images(30)[:, 0]
    values = x @ x.T  # rank 6: the other eigenvalues are rounding errors of both signs
    assert torch.linalg.eigvalsh(values)[0] < 0
    assert checked_gram(values, "test") is values
    assert checked_gram(torch.zeros(3, 3), "test").sum() == 0
