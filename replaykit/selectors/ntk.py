"""Neural tangent kernels of wide ReLU networks, in closed form.

Source: Borsos, Mutny and Krause, Coresets via Bilevel Optimization, NeurIPS 2020 (the
proxies of the experiments); the recursion is that of Jacot et al. 2018, of Arora et al. 2019 for convolutions.
Parametrisation "ntk": weights of standard deviation 1 / sqrt(fan in), biases of `bias_std`.

Sigma is the covariance of the pre-activations of two inputs, Theta their tangent kernel. A dense layer adds
bias_std^2 to Sigma and the new Sigma to Theta. A ReLU takes, with the angle t = arccos of the correlation,

    Sigma <- sqrt(v v') (sin t + (pi - t) cos t) / 2 pi,   Theta <- Theta (pi - t) / 2 pi,   v <- v / 2.

The convolutional network has no pooling before it is flattened, so only covariances of the same pixel in
both images are needed: a map per pair instead of a map of maps.

Cost per pair of rows: O(1) beyond the inner product (dense), O(pixels * (height + width)) (convolutional).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from replaykit.selectors.kernels import chunks, symmetric


@dataclass(frozen=True)
class FullyConnectedNTK:
    """Kernel of an infinitely wide multi-layer perceptron on flattened rows.

    Args:
        hidden: ReLU layers; the published network has two.
        bias_std: standard deviation of the biases.
        max_bytes: of the temporary values; results do not depend on it.
    """

    hidden: int = 2
    bias_std: float = 0.05
    max_bytes: int = 256 << 20

    def fit(self, x: Tensor) -> FullyConnectedNTK:
        return self

    def __call__(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        left = a.flatten(1)
        right = left if b is None else b.flatten(1)
        width = left.shape[1]
        square_left, square_right = (x.square().sum(1) / width for x in (left, right))
        values = left.new_empty((len(left), len(right)))
        for rows in chunks(len(left), 6 * len(right) * left.element_size(), self.max_bytes):
            sigma = left[rows] @ right.T / width
            values[rows] = _dense_layers(
                sigma,
                torch.zeros_like(sigma),
                square_left[rows, None],
                square_right,
                self.hidden,
                self.bias_std,
            )
        if b is None:
            zero = torch.zeros_like(square_left)
            diagonal = _dense_layers(square_left, zero, None, None, self.hidden, self.bias_std)
            symmetric(values).diagonal().copy_(diagonal)
        return values


@dataclass(frozen=True)
class ConvolutionalNTK:
    """Kernel of an infinitely wide convolutional network on images [n, h, w] or [n, channels, h, w].

    The network: (same-padded convolution, ReLU) twice, flatten, dense, ReLU, dense; no pooling.

    Args:
        convolutions: number of convolutions.
        filter_size: side of their filters, odd.
        hidden: dense ReLU layers after flattening.
        bias_std: standard deviation of the biases.
        max_bytes: of the temporary maps. None: 8 MiB on a CPU, where maps that stay in the cache are
            faster, 1 GiB elsewhere. Results do not depend on it.
        dtype: of the maps. None: that of the images. float32 halves the time of float64 and leaves a
            relative error of about 1e-5.
    """

    convolutions: int = 2
    filter_size: int = 5
    hidden: int = 1
    bias_std: float = 0.05
    max_bytes: int | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.filter_size % 2 == 0 or self.filter_size < 1:
            raise ValueError(f"ConvolutionalNTK: filter_size must be odd, got {self.filter_size}")

    def fit(self, x: Tensor) -> ConvolutionalNTK:
        return self

    def __call__(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        dtype = self.dtype or a.dtype
        left = _images(a).to(dtype)
        right = left if b is None else _images(b).to(dtype)
        if left.shape[1:] != right.shape[1:]:
            raise ValueError(
                f"ConvolutionalNTK: images of one shape expected, got {list(a.shape)}, {list(right.shape)}"
            )
        n, m, device = len(left), len(right), left.device
        if b is None:
            i, j = torch.triu_indices(n, n, 1, device=device).unbind()
        else:
            i = torch.arange(n, device=device).repeat_interleave(m)
            j = torch.arange(m, device=device).repeat(n)
        variances = self._variances(left), self._variances(right)
        scales = [[*(v.sqrt() for v in maps[:-1]), maps[-1]] for maps in variances]
        values = left.new_zeros((n, m))
        pair_bytes = (2 * left.shape[1] + 8) * left[0, 0].numel() * left.element_size()
        budget = self.max_bytes or (8 << 20 if device.type == "cpu" else 1 << 30)
        for some in chunks(len(i), pair_bytes, budget):
            values[i[some], j[some]] = self._pairs(left, right, scales[0], scales[1], i[some], j[some])
        if b is None:
            symmetric(values).diagonal().copy_(self._diagonal(variances[0]))
        return values.to(a.dtype)

    def _variances(self, x: Tensor) -> list[Tensor]:
        """Pre-activation variances [n, h, w] of every convolution, then the flattened [n]."""
        variance, layers = x.square().mean(1), []
        for _ in range(self.convolutions):
            variance = self._box(variance).add_(self.bias_std**2)
            layers.append(variance)
            variance = variance / 2
        return [*layers, variance.mean((1, 2))]

    def _pairs(self, x: Tensor, z: Tensor, vx: list[Tensor], vz: list[Tensor], i: Tensor, j: Tensor) -> Tensor:
        """Kernel of the pairs (i, j); `vx`, `vz` hold deviations per layer, then the flattened variance."""
        sigma = x.index_select(0, i).mul_(z.index_select(0, j))
        sigma = sigma[:, 0] if sigma.shape[1] == 1 else sigma.mean(1)
        theta = sigma
        for layer in range(self.convolutions):
            sigma = self._box(sigma).add_(self.bias_std**2)
            theta = self._box(theta).add_(sigma) if layer else sigma
            scale = vx[layer].index_select(0, i).mul_(vz[layer].index_select(0, j))
            sigma, theta = _relu(sigma, theta, scale)
        return _dense_layers(
            sigma.mean((1, 2)), theta.mean((1, 2)), vx[-1][i], vz[-1][j], self.hidden, self.bias_std
        )

    def _diagonal(self, variances: list[Tensor]) -> Tensor:
        theta = torch.zeros_like(variances[0])
        for variance in variances[:-1]:
            theta = (self._box(theta) + variance) / 2
        return _dense_layers(variances[-1], theta.mean((1, 2)), None, None, self.hidden, self.bias_std)

    def _box(self, maps: Tensor) -> Tensor:
        """Zero-padded mean over filter_size x filter_size neighbourhoods, [..., h, w].

        Two products with banded matrices: pooling layers take ten times as long.
        """
        rows, columns = (_band(side, self.filter_size, maps) for side in maps.shape[-2:])
        return rows @ (maps @ columns)


def _band(side: int, width: int, like: Tensor) -> Tensor:
    place = torch.arange(side, device=like.device)
    return ((place[:, None] - place).abs() <= width // 2).to(like.dtype).div_(width)


def _images(x: Tensor) -> Tensor:
    if x.ndim not in (3, 4):
        raise ValueError(
            f"ConvolutionalNTK: images [n, h, w] or [n, channels, h, w] expected, got {list(x.shape)}; "
            "use FullyConnectedNTK or RBF for vectors"
        )
    return x[:, None] if x.ndim == 3 else x


def _dense_layers(
    sigma: Tensor, theta: Tensor, v: Tensor | None, w: Tensor | None, hidden: int, bias_std: float
) -> Tensor:
    """Tangent kernel after (dense, ReLU) times `hidden`, dense. Without variances: of equal inputs."""
    for _ in range(hidden):
        sigma = sigma + bias_std**2
        theta = theta + sigma
        if v is None or w is None:
            sigma, theta = sigma / 2, theta / 2
        else:
            v, w = v + bias_std**2, w + bias_std**2
            sigma, theta = _relu(sigma, theta, (v * w).sqrt_())
            v, w = v / 2, w / 2
    return theta + sigma + bias_std**2


def _relu(sigma: Tensor, theta: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """One ReLU layer; `scale` is the product of the two standard deviations."""
    # Both inputs all zero and no bias: the scale is 0 and so is the result.
    scale = scale.clamp_(min=torch.finfo(sigma.dtype).tiny)
    cosine = (sigma / scale).clamp_(-1, 1)
    share = torch.acos(cosine).mul_(-0.5 / math.pi).add_(0.5)
    theta = theta * share
    share.mul_(cosine)
    sine = cosine.square_().neg_().add_(1).sqrt_()
    return share.add_(sine, alpha=0.5 / math.pi).mul_(scale), theta
