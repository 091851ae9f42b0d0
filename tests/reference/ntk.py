"""Tangent kernels the long way: pixel by pixel from the recursion, and from gradients of finite wide networks."""

import math

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import conv2d

BIAS = 0.05


def dual(sxx: float, sxy: float, syy: float) -> tuple[float, float]:
    """E[relu(u) relu(v)] and E[relu'(u) relu'(v)] for centred Gaussians with these covariances."""
    scale = math.sqrt(sxx * syy)
    angle = math.acos(max(-1.0, min(1.0, sxy / scale)))
    value = scale * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / (2 * math.pi)
    return value, (math.pi - angle) / (2 * math.pi)


def dense_tail(sxx: float, sxy: float, syy: float, theta: float, hidden: int) -> float:
    for _ in range(hidden):
        sxx, sxy, syy = (value + BIAS**2 for value in (sxx, sxy, syy))
        theta += sxy
        sxy, slope = dual(sxx, sxy, syy)
        theta *= slope
        sxx, syy = sxx / 2, syy / 2
    return theta + sxy + BIAS**2


def fully_connected(x: Tensor, z: Tensor, hidden: int = 2) -> float:
    d = len(x)
    return dense_tail(float(x @ x) / d, float(x @ z) / d, float(z @ z) / d, 0.0, hidden)


def convolutional(x: Tensor, z: Tensor, filter_size: int, convolutions: int = 2, hidden: int = 1) -> float:
    """For two images [h, w], with loops over pixels and neighbourhoods."""
    h, w = x.shape
    reach = filter_size // 2

    def box(values: list[list[float]]) -> list[list[float]]:
        def mean(i: int, j: int) -> float:
            near = [
                values[a][b]
                for a in range(i - reach, i + reach + 1)
                for b in range(j - reach, j + reach + 1)
                if 0 <= a < h and 0 <= b < w
            ]
            return sum(near) / filter_size**2

        return [[mean(i, j) for j in range(w)] for i in range(h)]

    def lifted(values: list[list[float]]) -> list[list[float]]:
        return [[value + BIAS**2 for value in line] for line in box(values)]

    sxx, sxy, syy = ((a * b).tolist() for a, b in ((x, x), (x, z), (z, z)))
    theta = [[0.0] * w for _ in range(h)]
    for _ in range(convolutions):
        sxx, sxy, syy, spread = lifted(sxx), lifted(sxy), lifted(syy), box(theta)
        for i in range(h):
            for j in range(w):
                theta[i][j] = spread[i][j] + sxy[i][j]
                sxy[i][j], slope = dual(sxx[i][j], sxy[i][j], syy[i][j])
                theta[i][j] *= slope
                sxx[i][j], syy[i][j] = sxx[i][j] / 2, syy[i][j] / 2

    def mean(values: list[list[float]]) -> float:
        return sum(map(sum, values)) / (h * w)

    return dense_tail(mean(sxx), mean(sxy), mean(syy), mean(theta), hidden)


def empirical_dense(x: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Tangent kernel [n, n] of one network with two hidden layers, from its back-propagated signals.

    The gradient of a weight matrix is an outer product, so its inner products factorise and the 16 million
    entries of a wide layer are never formed for each row.
    """
    sizes = [x.shape[1], width, width, 1]
    weights = [
        torch.randn(b, a, generator=generator, dtype=x.dtype) for a, b in zip(sizes, sizes[1:], strict=False)
    ]
    biases = [torch.randn(b, generator=generator, dtype=x.dtype) for b in sizes[1:]]
    inputs, slopes, h = [x], [], x
    for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
        pre = h @ w.T / math.sqrt(w.shape[1]) + BIAS * b
        if layer < 2:
            slopes.append((pre > 0).to(x.dtype))
            h = pre.relu()
            inputs.append(h)
    signal = x.new_ones(len(x), 1)
    kernel = x.new_zeros(len(x), len(x))
    for layer in (2, 1, 0):
        fan_in = weights[layer].shape[1]
        kernel += (signal @ signal.T) * (inputs[layer] @ inputs[layer].T / fan_in + BIAS**2)
        if layer:
            signal = signal @ weights[layer] / math.sqrt(fan_in) * slopes[layer - 1]
    return kernel


class WideConvolutional(torch.nn.Module):
    """(same convolution, ReLU) twice, flatten, dense, ReLU, dense, all parameters standard normal."""

    def __init__(self, width: int, side: int, filter_size: int, generator: torch.Generator) -> None:
        super().__init__()
        f, shapes = filter_size, []
        shapes += [(width, 1, f, f), (width, width, f, f), (width, width * side**2), (1, width)]
        draw = lambda *shape: torch.nn.Parameter(torch.randn(*shape, generator=generator))  # noqa: E731
        self.weights = torch.nn.ParameterList([draw(*shape) for shape in shapes])
        self.biases = torch.nn.ParameterList([draw(shape[0]) for shape in shapes])

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in (0, 1):
            w = self.weights[layer]
            h = conv2d(h, w / math.sqrt(w[0].numel()), BIAS * self.biases[layer], padding="same").relu()
        h = h.flatten(1)
        for layer in (2, 3):
            w = self.weights[layer]
            h = h @ w.T / math.sqrt(w.shape[1]) + BIAS * self.biases[layer]
            h = h.relu() if layer == 2 else h
        return h[:, 0]


def empirical(model: torch.nn.Module, x: Tensor) -> Tensor:
    """Tangent kernel [n, n] of a network with one output, from per-row gradients."""
    parameters = dict(model.named_parameters())
    rows = vmap(grad(lambda p, row: functional_call(model, p, (row[None],))[0]), (None, 0))(parameters, x)
    flat = torch.cat([value.flatten(1) for value in rows.values()], dim=1)
    return (flat @ flat.T).detach()
