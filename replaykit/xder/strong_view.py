"""The views that prepare future heads: every image cropped, mirrored and coloured at random."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def strong_view(
    channels: int, height: int, width: int, finish: Callable[[Tensor], Tensor] | None = None
) -> Callable[[Tensor], Tensor]:
    """A function of raw images [n, c, h, w], uint8 or floats in [0, 1], that draws anew for each image.

    A crop of 20 to 100 % of the area at the old size, mirrored with probability 1/2; brightness, contrast and
    saturation within 0.4 and hue within 0.1 with probability 0.8; gray with probability 0.2. Images of one
    channel have brightness and contrast alone. The draws are torch's.

    Args:
        finish: makes the network's input of floats in [0, 1], such as a normalisation.
    """
    # kornia takes a second to import, and only this loss needs it.
    from kornia import augmentation

    if channels not in (1, 3):
        raise ValueError(f"strong views are for images of 1 or 3 channels, got {channels}; pass another view")
    steps: list[nn.Module] = [
        augmentation.RandomResizedCrop((height, width), scale=(0.2, 1.0), cropping_mode="resample"),
        augmentation.RandomHorizontalFlip(),
    ]
    if channels == 3:
        steps += [augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), augmentation.RandomGrayscale(p=0.2)]
    else:
        steps.append(augmentation.ColorJitter(0.4, 0.4, p=0.8))
    pipeline = nn.Sequential(*steps)

    @torch.no_grad()
    def view(x: Tensor) -> Tensor:
        x = x.float().div_(255) if x.dtype == torch.uint8 else x
        strong: Tensor = pipeline(x)
        return strong if finish is None else finish(strong)

    return view
