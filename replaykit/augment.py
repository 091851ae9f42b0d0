"""Views: how a raw batch becomes the input of a model, on the device where the batch lies.

A memory keeps raw rows; every time they are replayed they are seen anew. The random part draws from torch's
global generators, like dropout and any other randomness of training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Views:
    """Two functions of a raw batch [n, ...]: `train` may be random, row by row; `eval` is not."""

    train: Callable[[Tensor], Tensor]
    eval: Callable[[Tensor], Tensor]


def views(
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    crop: int | None = None,
    flip: bool = False,
) -> Views:
    """Views of images [n, c, h, w] or rows [n, c]: uint8 is divided by 255, floating numbers stay as they are.

    Args:
        mean, std: of each channel, of values in [0, 1]; give both or none.
        crop: pad every side by this many black pixels and cut an image of the old size at a random place,
            another one for each row (training only).
        flip: mirror every row left to right with probability 1/2 (training only).

    Any other function of a batch will do too, for instance a `kornia.augmentation` pipeline. Crop and flip
    are done here, before the conversion to float, by one gather: the pixels that kornia's `RandomCrop` and
    `RandomHorizontalFlip` give, at about a twentieth of the time for batches of ten.

    Raises:
        ValueError: mean without std, std not above 0, a negative crop.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"normalisation needs both mean and std, got mean={mean}, std={std}")
    if crop is not None and crop < 0:
        raise ValueError(f"crop is a number of pixels of padding >= 0, got {crop}")
    scale = _Scale(mean, std)
    if not crop and not flip:
        return Views(scale, scale)
    return Views(_Train(scale, crop or 0, flip), scale)


class _Scale:
    def __init__(
        self, mean: float | Sequence[float] | None = None, std: float | Sequence[float] | None = None
    ) -> None:
        self.affine: tuple[Tensor, Tensor] | None = None
        if mean is not None and std is not None:
            deviation = torch.as_tensor(std, dtype=torch.float32).reshape(-1)
            if not bool((deviation > 0).all()):
                raise ValueError(f"std must be above 0, got {std}")
            self.affine = torch.as_tensor(mean, dtype=torch.float32).reshape(-1), deviation

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype == torch.uint8:
            x = x.float().div_(255)
        if self.affine is not None:
            if self.affine[0].device != x.device:
                self.affine = self.affine[0].to(x.device), self.affine[1].to(x.device)
            # One value a channel: of an image over its pixels, of a table's row a column.
            mean, std = (value.reshape(-1, *[1] * (x.ndim - 2)) for value in self.affine)
            x = (x - mean).div_(std)
        return x


class _Train:
    def __init__(self, scale: _Scale, crop: int, flip: bool) -> None:
        self.scale, self.crop, self.flip = scale, crop, flip

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise ValueError(f"crop and flip need images [n, c, h, w], got {list(x.shape)}")
        n, device = len(x), x.device
        corner = torch.randint(2 * self.crop + 1, (2, n), device=device) if self.crop else None
        mirrored = torch.rand(n, device=device) < 0.5 if self.flip else None
        return self.scale(shifted(x, self.crop, corner, mirrored))


def shifted(x: Tensor, pad: int, corner: Tensor | None, mirrored: Tensor | None) -> Tensor:
    """Cut rows of x [n, c, h, w] out of their padded selves, then mirror some.

    Args:
        corner: top and left edge of each cut in the padded image [2, n], in [0, 2 pad]; None: no cut.
        mirrored: which rows to mirror [n]; None: no row.
    """
    n, c, h, w = x.shape
    column = torch.arange(w, device=x.device).expand(n, 1, w)
    if mirrored is not None:
        column = torch.where(mirrored[:, None, None], w - 1 - column, column)
    row = torch.arange(h, device=x.device)[:, None]
    if corner is not None:
        x = functional.pad(x, (pad, pad, pad, pad))
        row, column = row + corner[0][:, None, None], column + corner[1][:, None, None]
    pixel = (row * x.shape[3] + column).view(n, 1, h * w).expand(n, c, h * w)
    return x.flatten(2).gather(2, pixel).view(n, c, h, w)
