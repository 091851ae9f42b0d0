"""Embeddings of images that need no pretrained network: a dictionary of patches, learned without labels.

Source: A. Coates, A. Ng, H. Lee, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning"
(AISTATS 2011), sections 3.1, 3.2.1 and 4: patches are normalised, whitened and assigned softly to the centroids of
k-means, and the assignments are pooled over the four quadrants of the image.

Departures: k-means in mini-batches (scikit-learn's); average instead of sum pooling, so that a vector does not
depend on the size of the image; features are scaled by their deviation over images that the dictionary is from.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn

_CONTRAST = 10 / 255**2  # added to the variance of a patch, in units of pixels from 0 to 1
_WHITENING = 0.1


class PatchEmbedding(nn.Module):
    """Raw images [n, c, h, w] to float32 vectors [n, 4 · atoms].

    Args:
        images: what the dictionary is learned from [n, c, h, w], uint8 or float; no labels are used.
        atoms: entries of the dictionary.
        side: of a patch, in pixels.
        stride: from a patch to the next, in pixels.
        patches: patches to learn from.
        seed: of the patches drawn and of k-means.

    Raises:
        ValueError: no images [n, c, h, w], or smaller ones than a patch.

    Example:
        >>> images = torch.rand(20, 1, 8, 8)
        >>> PatchEmbedding(images, atoms=5, side=3, patches=200)(images).shape
        torch.Size([20, 20])
    """

    mean: Tensor
    whitening: Tensor
    centroids: Tensor
    scale: Tensor

    def __init__(
        self,
        images: Tensor,
        atoms: int = 200,
        side: int = 6,
        stride: int = 2,
        patches: int = 50_000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if images.ndim != 4 or min(images.shape[2:]) < side:
            raise ValueError(f"expected images [n, c, h, w] of at least {side} × {side}, got {list(images.shape)}")
        self.side, self.stride = side, stride
        rng = np.random.default_rng(seed)
        drawn = self._draw(images, patches, rng)
        mean = drawn.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov((drawn - mean).T.double()))
        whitening = (vectors * (values + _WHITENING).rsqrt()) @ vectors.T
        white = (drawn - mean) @ whitening.float()
        found = MiniBatchKMeans(atoms, batch_size=4096, n_init=1, random_state=seed).fit(white.numpy())
        self.register_buffer("mean", mean)
        self.register_buffer("whitening", whitening.float())
        self.register_buffer("centroids", torch.from_numpy(found.cluster_centers_).float())
        self.register_buffer("scale", torch.ones(4 * atoms))
        some = torch.from_numpy(rng.permutation(len(images))[:2000])
        deviation = torch.cat([self(images[part]) for part in torch.split(some, 100)]).std(0)
        self.scale.copy_(deviation.clamp(min=1e-6))

    def _draw(self, images: Tensor, patches: int, rng: np.random.Generator) -> Tensor:
        """Normalised patches [patches, c · side²] of random places."""
        n, _, height, width = images.shape
        image = torch.from_numpy(rng.integers(n, size=patches))
        top = torch.from_numpy(rng.integers(height - self.side + 1, size=patches))
        left = torch.from_numpy(rng.integers(width - self.side + 1, size=patches))
        within = torch.arange(self.side)
        rows, columns = top[:, None, None] + within[:, None], left[:, None, None] + within
        drawn = _scaled(images[image[:, None, None], :, rows, columns])  # [patches, side, side, c]
        return _normalised(drawn.permute(0, 3, 1, 2).flatten(1))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        columns = nn.functional.unfold(_scaled(images), self.side, stride=self.stride)  # [n, c · side², places]
        n, _, places = columns.shape
        white = (_normalised(columns.transpose(1, 2).flatten(0, 1)) - self.mean) @ self.whitening
        distances = torch.cdist(white, self.centroids)
        near = (distances.mean(1, keepdim=True) - distances).clamp(min=0)
        grid = [(length - self.side) // self.stride + 1 for length in images.shape[2:]]
        maps = near.reshape(n, places, -1).transpose(1, 2).reshape(n, -1, *grid)
        return nn.functional.adaptive_avg_pool2d(maps, 2).flatten(1) / self.scale


def _scaled(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _normalised(patches: Tensor) -> Tensor:
    """Every patch [m, d] without its mean, divided by its deviation."""
    variance, mean = torch.var_mean(patches, 1, keepdim=True)
    return (patches - mean) / (variance + _CONTRAST).sqrt()
