"""Perturbed images, batched over rows, on the device where the rows lie.

`rainbow_views` are the copies of Rainbow Memory's uncertainty, `AutoAugment` and `cutmix` are its training
augmentations.

Source: Bang et al., Rainbow Memory, CVPR 2021, section 4.1 and its released code (the two families); Cubuk et al.,
AutoAugment, CVPR 2019, and RandAugment, NeurIPS 2020; Yun et al., CutMix, ICCV 2019. The last three are kornia's.
Departures:
- kornia draws the operations of `AutoAugment` and `RandAugment` once for a call, their strength and direction for
  each row: the rows of a batch are perturbed by the same operations.
- RandAugment applies two operations at magnitude 9 of 30; the paper of Rainbow Memory does not name them.
- The horizontal and the vertical flip are always done, since each view is used once.
- Cutouts of 8, 16, 24 and 32 pixels are of images of 32; sides are scaled to the size of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

COPIES = 12
_SIDES, _ANGLES, _THRESHOLDS = (8, 16, 24, 32), (45, 90), (128, 64, 32)


def rainbow_views(
    size: int | tuple[int, int], kind: Literal["vr", "vr_randaug"] = "vr_randaug", seed: int = 0
) -> Sequence[Callable[[Tensor], Tensor]]:
    """Twelve functions of raw images [n, c, h, w], uint8 or floating in [0, 1], to perturbed ones of the kind.

    Every call of a view starts from the same state, made of `seed` and the view's number, and no global generator
    is touched: the same batch always gives the same copies, after a resumption too. So what is drawn for a row
    depends on its place in the batch; the copies of a part of a batch are not those of the whole batch.

    Args:
        size: height and width of the images, or both in one.
        kind: ``"vr_randaug"``, twelve draws of RandAugment; ``"vr"``, each of these once: cutouts of four sizes, a
            horizontal and a vertical flip, a rotation by up to 45 and one by up to 90 degrees to either side, the
            inversion, and solarisation from 128, 64 and 32 upward.
    """
    side = min(size) if isinstance(size, tuple) else size
    if side < 1:
        raise ValueError(f"size is a number of pixels >= 1, got {size}")
    if kind not in ("vr", "vr_randaug"):
        raise ValueError(f"kind is 'vr' or 'vr_randaug', got {kind!r}")
    if kind == "vr_randaug":
        return [RandAugment(_seed(seed, number)) for number in range(COPIES)]
    return [
        *(Cutout(max(1, round(cut * side / 32)), _seed(seed, number)) for number, cut in enumerate(_SIDES)),
        *(Flip(-1), Flip(-2)),
        *(Rotation(angle, _seed(seed, number)) for number, angle in enumerate(_ANGLES, len(_SIDES))),
        *(Solarise(0), *map(Solarise, _THRESHOLDS)),
    ]


@dataclass(frozen=True)
class Flip:
    """Mirrors an axis: -1 is left to right, -2 upside down."""

    axis: int

    def __call__(self, x: Tensor) -> Tensor:
        return checked(x).flip(self.axis)


@dataclass(frozen=True)
class Solarise:
    """Inverts values from a threshold (of 256) upward; from 0, all of them."""

    threshold: int

    def __call__(self, x: Tensor) -> Tensor:
        top = 255 if checked(x).dtype == torch.uint8 else 1.0
        return torch.where(x >= self.threshold * top / 255, top - x, x)


@dataclass(frozen=True)
class Cutout:
    """Blackens a square of every row, whose centre is any pixel; what lies outside of the image is lost."""

    side: int
    seed: int

    def __call__(self, x: Tensor) -> Tensor:
        n, _, h, w = checked(x).shape
        generator = torch.Generator().manual_seed(self.seed)
        inside = torch.ones(n, 1, h, w, dtype=torch.bool, device=x.device)
        for axis, length in ((2, h), (3, w)):
            start = torch.randint(length, (n,), generator=generator).to(x.device) - self.side // 2
            place = torch.arange(length, device=x.device) - start[:, None]
            shape = [n, 1, 1, 1]
            shape[axis] = length
            inside &= ((place >= 0) & (place < self.side)).view(shape)
        return x.masked_fill(inside, 0)


@dataclass(frozen=True)
class Rotation:
    """Turns every row around its centre by up to `degrees` to either side; the nearest pixel, black outside."""

    degrees: float
    seed: int

    def __call__(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        turn = (2 * torch.rand(len(checked(x)), generator=generator) - 1) * math.radians(self.degrees)
        return rotated(x, turn.to(x.device))


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Images x [n, c, h, w] turned counter-clockwise by `turn` radians [n]: the nearest pixel, black outside."""
    n, _, h, w = x.shape
    if n == 0:
        return x
    cos, sin, nothing = turn.cos(), turn.sin(), torch.zeros_like(turn)
    rows = [torch.stack([cos, -sin * (h / w), nothing], 1), torch.stack([sin * (w / h), cos, nothing], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    kind = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    turned = functional.grid_sample(x.to(kind), grid.to(kind), mode="nearest", align_corners=False)
    return turned.to(x.dtype)


@dataclass(frozen=True)
class RandAugment:
    """kornia's RandAugment of two operations; every call starts from `seed`."""

    seed: int
    operations: int = 2
    magnitude: int = 9

    def __call__(self, x: Tensor) -> Tensor:
        with _seeded(self.seed, x.device):
            return _coloured(x, _kornia("RandAugment", self.operations, self.magnitude))


@dataclass(frozen=True)
class AutoAugment:
    """kornia's AutoAugment, a random training augmentation of raw rows; it draws from torch's global generator.

    Args:
        policy: ``"cifar10"``, which Rainbow Memory uses for every data set; ``"imagenet"`` or ``"svhn"``.
    """

    policy: str = "cifar10"

    def __post_init__(self) -> None:
        if self.policy not in ("cifar10", "imagenet", "svhn"):
            raise ValueError(f"policy is 'cifar10', 'imagenet' or 'svhn', got {self.policy!r}")

    def __call__(self, x: Tensor) -> Tensor:
        return _coloured(x, _kornia("AutoAugment", self.policy))


def cutmix(
    x: Tensor, y: Tensor, probability: float = 0.5, alpha: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """With some probability, paste a box of other rows into the rows of a batch; draws from torch's generator.

    One box for the batch and one permutation of its rows. The box has about 1 - λ of the area, λ ~ Beta(alpha,
    alpha), and lies within the image (that of the paper may be cut at the border).

    Args:
        x: images [n, c, h, w], floating point.
        y: labels [n].

    Returns:
        The images; their labels y; the labels of the rows that were pasted [n]; and the share λ [] of y, made anew
        of the pixels of the box. The loss is λ · loss(y) + (1 - λ) · loss(pasted).
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability lies in [0, 1], got {probability}")
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha is a positive number, got {alpha}")
    if len(checked(x)) == 0:
        return x, y, y, x.new_ones(())
    mixed, labels = _kornia("RandomCutMixV2", probability, alpha)(x, y)
    return mixed, y, labels[0, :, 1].to(y.dtype), labels[0, 0, 2]


def checked(x: Tensor) -> Tensor:
    """The same images, or an error that says what they should be.

    Raises:
        ValueError: not [n, c, h, w].
        TypeError: neither uint8 nor floating.
    """
    if x.ndim != 4:
        raise ValueError(f"perturbations are of images [n, c, h, w], got rows of shape {list(x.shape[1:])}")
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise TypeError(f"images are uint8, or floating in [0, 1], got {x.dtype}")
    return x


# -- kornia -------------------------------------------------------------------------------------------


def _coloured(x: Tensor, augment: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply what wants colours in [0, 1] to images of 1 or 3 channels."""
    n, channels, _, _ = checked(x).shape
    if channels not in (1, 3):
        raise ValueError(f"these augmentations are of images with 1 or 3 channels, got {channels}")
    if n == 0:
        return x
    bright = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    # On an accelerator the check would wait for the device.
    if bright.is_cpu and not bool(((bright >= 0) & (bright <= 1)).all()):
        low, high = float(bright.min()), float(bright.max())
        raise ValueError(f"floating images lie in [0, 1], got {low} to {high}; perturb them before normalising")
    done = augment(bright.expand(-1, 3, -1, -1)).clamp(0, 1)[:, :channels]
    return (done * 255).round().to(x.dtype) if x.dtype == torch.uint8 else done.to(x.dtype)


@lru_cache(maxsize=8)
def _kornia(name: str, *options: Any) -> Callable[..., Any]:
    """One of kornia's modules. Imported late: it takes a third of a second."""
    if name == "RandomCutMixV2":
        from kornia.augmentation import RandomCutMixV2

        probability, alpha = options
        keys: list[Any] = ["input", "class"]
        mixing: Callable[..., Any] = RandomCutMixV2(
            p=probability, beta=alpha, data_keys=keys, same_on_batch=True, use_correct_lambda=True
        )
        return mixing
    from kornia.augmentation import auto

    made: Callable[..., Any] = getattr(auto, name)(*options)
    return made


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run the body with torch's global generators at `seed`, and put them back."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would set the accelerators' too
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
