"""The networks of the papers: a body that ends in features, and a linear classifier.

``model(x) = model.classifier(model.features(x))``. Inputs are floating point; bodies flatten them where
needed. Parameters are drawn from torch's global generator, as PyTorch modules do; with ``seed=`` the draws
come from that seed, and the global CPU generator is left where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from replaykit.benchmarks.dropout import Dropout


class Network(nn.Module):
    """A body that maps x [n, ...] to features [n, d], and a linear classifier over them.

    `classifier` may be replaced, e.g. by Avalanche's ``IncrementalClassifier(model.width)``.

    Args:
        body: maps x [n, ...] to features [n, width].
        width: number of features.
        classes: width of the head.
    """

    def __init__(self, body: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"a head needs at least one class, got {classes}")
        self.width = width
        self.body = body
        self.classifier: nn.Module = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features [n, d] of x [n, ...].

        Raises:
            TypeError: x is not floating point.
        """
        if not x.is_floating_point():
            raise TypeError(
                f"the network got {x.dtype}, expected floating point; convert it with x.float() / 255, make the "
                "stream with as_float=True, or pass views=... to the replay plugin"
            )
        features: Tensor = self.body(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of x [n, ...]. Raises as `features`."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw parameters from `seed` (CPU) and put the global generator back; without a seed, nothing."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def mlp(
    inputs: int = 784,
    hidden: Sequence[int] = (100, 100),
    classes: int = 10,
    dropout: float = 0.0,
    seed: int | None = None,
) -> Network:
    """Fully connected layers with ReLU, Xavier-uniform weights and zero biases.

    Source: Buzzega et al., Dark Experience for General Continual Learning, NeurIPS 2020 (784-100-100-10).
    `dropout` follows every ReLU.

    Raises:
        ValueError: no hidden layer.
    """
    if not hidden:
        raise ValueError("an mlp needs at least one hidden layer, got hidden=()")
    with seeded(seed):
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise((inputs, *hidden)):
            layers += [nn.Linear(before, after), nn.ReLU()]
            if dropout:
                layers.append(Dropout(dropout))
        model = Network(nn.Sequential(*layers), hidden[-1], classes)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
    return model


def convnet(
    classes: int = 10, channels: int = 1, size: int = 28, dropout: float = 0.5, seed: int | None = None
) -> Network:
    """Two 5×5 convolutions (32, 64) with dropout, ReLU and 2×2 pooling, then a layer of 128.

    Source: the ConvNet of Borsos et al., NeurIPS 2020, whose order is layer, dropout, ReLU.

    Raises:
        ValueError: images smaller than 16 pixels, which the convolutions use up.
    """
    side = ((size - 4) // 2 - 4) // 2
    if side < 1:
        raise ValueError(f"convnet needs images of at least 16 × 16 pixels, got {size} × {size}; use mlp")

    def stage(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 5), Dropout(dropout), nn.ReLU(), nn.MaxPool2d(2)]

    with seeded(seed):
        body = nn.Sequential(
            *stage(channels, 32),
            *stage(32, 64),
            nn.Flatten(),
            *(nn.Linear(64 * side * side, 128), Dropout(dropout), nn.ReLU()),
        )
        return Network(body, 128, classes)
