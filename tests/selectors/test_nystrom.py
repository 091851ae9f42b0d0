"""The Nyström proxy against the kernel that it approximates."""

import numpy as np
import pytest
import torch

from replaykit.selectors import RBF, Bilevel, Nystrom, Pool
from replaykit.selectors.nystrom import nystrom_features


def pool(n=60, d=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=g)
    return Pool(n, y, x=torch.randn(n, d, generator=g, dtype=torch.float64) + y[:, None])


def test_all_rows_as_landmarks_give_the_kernel_back():
    x = pool().tensor("x")
    features = nystrom_features(RBF(1.0), x, x)
    torch.testing.assert_close(features @ features.T, RBF(1.0)(x), atol=1e-7, rtol=0)


def test_more_landmarks_approximate_better():
    x = pool(200).tensor("x")
    kernel, errors = RBF(2.0), []
    for q in (5, 20, 80):
        features = nystrom_features(kernel, x, x[:q])
        assert features.shape == (200, q)
        errors.append(float((features @ features.T - kernel(x)).norm()))
        landmarks = features[:q] @ features[:q].T
        torch.testing.assert_close(landmarks, kernel(x[:q]), atol=1e-4, rtol=0)
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_small_eigenvalues_are_raised_to_the_floor():
    x = pool().tensor("x")[:1].expand(5, -1)  # a kernel matrix of rank 1
    for floor in (1e-7, 1e-3):
        features = nystrom_features(RBF(1.0), x, x, floor=floor)
        assert features.isfinite().all()
        torch.testing.assert_close(features @ features.T, torch.ones(5, 5).double(), atol=1e-6, rtol=0)


def test_chunks_do_not_matter():
    x = pool().tensor("x")
    whole = nystrom_features(RBF(1.0), x, x[:7])
    torch.testing.assert_close(nystrom_features(RBF(1.0), x, x[:7], max_bytes=1), whole, rtol=1e-12, atol=1e-14)


def test_the_whole_pool_as_landmarks_selects_like_the_kernel():
    candidates = pool()
    exact, _ = Bilevel(RBF(1.0), ridge=0.01).select(candidates, 15, np.random.default_rng(3))
    # The landmarks take one draw from the generator before the start does.
    rng = np.random.default_rng(3)
    selector = Nystrom(RBF(1.0), ridge=0.01, landmarks=60)
    gram, targets = selector.gram(candidates, np.random.default_rng(0)), selector.loss.targets(candidates.y, None)
    rows, _ = selector.greedy(gram, targets, 15, candidates.weight, rng)
    assert rows.tolist() == exact.tolist()


def test_flags_change_the_selection():
    candidates = pool()
    chosen = [
        Nystrom(RBF(1.0), ridge=0.01, **flags).select(candidates, 15, np.random.default_rng(0))[0].tolist()
        for flags in ({}, {"landmarks": 4}, {"floor": 1.0})
    ]
    assert chosen[0] != chosen[1] and chosen[0] != chosen[2]


def test_sizes_devices_and_repeats(device):
    candidates = pool(20)
    there = Pool(20, candidates.y.to(device), x=candidates.tensor("x").to(device))
    for k in (0, 1, 7, 20, 30):
        rows, weights = Nystrom(landmarks=8).select(there, k, np.random.default_rng(0))
        assert len(set(rows.tolist())) == len(weights) == min(k, 20)
        again, _ = Nystrom(landmarks=8).select(candidates, k, np.random.default_rng(0))
        assert again.tolist() == rows.tolist()


class Opposite:
    def fit(self, x):
        return self

    def __call__(self, a, b=None):
        return -(a @ (a if b is None else b).T)


def test_bad_input():
    with pytest.raises(ValueError, match="Nystrom.*landmarks"):
        Nystrom(landmarks=0)
    with pytest.raises(ValueError, match="Nystrom.*kernel"):
        Nystrom(None)
    with pytest.raises(ValueError, match="Nystrom.*eigenvalue"):
        Nystrom(Opposite()).select(pool(), 3, np.random.default_rng(0))
    broken = Pool(3, torch.zeros(3, dtype=torch.int64), x=torch.tensor([[1.0], [torch.nan], [2.0]]))
    with pytest.raises(ValueError, match="Nystrom.*NaN"):
        Nystrom().select(broken, 3, np.random.default_rng(0))
