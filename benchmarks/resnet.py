"""ResNet-18 for 32×32 images, at full width and slim.

Source: He et al., Deep Residual Learning, CVPR 2016, with a 3×3 stem and no first pooling; the slim one is
that of Lopez-Paz and Ranzato, Gradient Episodic Memory, NeurIPS 2017. PyTorch's own initialisation. Global
average pooling, so that other image sizes work too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from replaykit.benchmarks.networks import Network, seeded


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, which is a 1×1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """[n, before, h, w] to [n, after, h / stride, w / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def resnet18(classes: int = 10, nf: int = 64, channels: int = 3, seed: int | None = None) -> Network:
    """ResNet-18: stages of nf, 2·nf, 4·nf, 8·nf channels; 11.17 million parameters at nf = 64, 10 classes."""
    return _resnet((2, 2, 2, 2), classes, nf, channels, seed)


def slim_resnet18(classes: int = 10, nf: int = 20, channels: int = 3, seed: int | None = None) -> Network:
    """ResNet-18 of 20, 40, 80, 160 channels, as online methods use it; 1.095 million parameters."""
    return _resnet((2, 2, 2, 2), classes, nf, channels, seed)


def _resnet(blocks: Sequence[int], classes: int, nf: int, channels: int, seed: int | None) -> Network:
    with seeded(seed):
        layers: list[nn.Module] = [
            nn.Conv2d(channels, nf, 3, padding=1, bias=False),
            nn.BatchNorm2d(nf),
            nn.ReLU(),
        ]
        before = nf
        for stage, count in enumerate(blocks):
            after = nf * 2**stage
            for block in range(count):
                layers.append(BasicBlock(before, after, 2 if stage and not block else 1))
                before = after
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return Network(nn.Sequential(*layers), before, classes)
