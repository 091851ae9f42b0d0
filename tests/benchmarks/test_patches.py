"""Embeddings by a dictionary of patches, against their formulas written out."""

import numpy as np
import pytest
import torch

from replaykit.benchmarks import PatchEmbedding, digits, embedded


def images(n: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((n, 2, 9, 7), dtype=np.float32))


def small(rows: torch.Tensor, **options) -> PatchEmbedding:
    return PatchEmbedding(rows, **{"atoms": 4, "side": 3, "stride": 2, "patches": 300, **options})


def test_a_vector_is_the_pooled_assignment_of_its_patches() -> None:
    net, x = small(images()), images(3, seed=1)
    for image, vector in zip(x, net(x), strict=True):
        maps = torch.zeros(4, 4, 3, dtype=torch.float64)
        for i in range(4):
            for j in range(3):
                patch = image[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].flatten().double()
                patch = (patch - patch.mean()) / (patch.var() + 10 / 255**2).sqrt()
                white = (patch - net.mean) @ net.whitening.double()
                far = (white - net.centroids).norm(dim=1)
                maps[:, i, j] = (far.mean() - far).clamp(min=0)
        quadrants = [
            maps[:, rows, columns].mean((1, 2))
            for rows in (slice(0, 2), slice(2, 4))
            for columns in (slice(0, 2), slice(1, 3))
        ]
        expected = torch.stack(quadrants, 1).flatten() / net.scale
        torch.testing.assert_close(vector.double(), expected, rtol=1e-3, atol=1e-4)


def test_whitened_patches_have_the_identity_as_covariance_up_to_the_constant() -> None:
    x = images(60)
    net = small(x, patches=4000)
    drawn = net._draw(x, 4000, np.random.default_rng(0))
    covariance = torch.cov(((drawn - net.mean) @ net.whitening).T.double())
    plain = torch.linalg.eigvalsh(torch.cov(drawn.T.double()))
    torch.testing.assert_close(torch.linalg.eigvalsh(covariance), plain / (plain + 0.1), rtol=1e-3, atol=1e-4)


def test_bytes_are_pixels_from_0_to_1_and_the_seed_decides() -> None:
    pixels = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (8, 1, 8, 8), dtype=np.uint8))
    made = [small(rows, seed=3)(rows) for rows in (pixels, pixels.float() / 255, pixels)]
    torch.testing.assert_close(made[0], made[1])
    assert torch.equal(made[0], made[2])
    assert not torch.allclose(made[0], small(pixels, seed=4)(pixels), atol=1e-3)


def test_brightness_and_contrast_hardly_matter() -> None:
    x = images()
    net = small(x)
    torch.testing.assert_close(net(x), net(0.5 * x + 0.25), rtol=0.02, atol=0.02)


def test_as_a_stream_of_embeddings() -> None:
    data = digits()
    vectors = embedded(data, PatchEmbedding(data.x_train, atoms=5, side=3, stride=1, patches=500))
    assert vectors.x_train.shape == (len(data.y_train), 20) and vectors.x_train.isfinite().all()


@pytest.mark.parametrize("shape", [(5, 3, 2, 9), (5, 9)])
def test_images_that_hold_no_patch_are_refused(shape) -> None:
    with pytest.raises(ValueError, match="at least 3 × 3, got"):
        small(torch.rand(shape))
