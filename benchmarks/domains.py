"""Domain-incremental streams: the same classes in every task, seen in another way; one head for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from typing_extensions import Unpack

from replaykit.benchmarks.data import Data
from replaykit.benchmarks.published import Root, mnist
from replaykit.benchmarks.scenarios import IntArray, domain_incremental
from replaykit.benchmarks.splits import StreamOptions
from replaykit.benchmarks.stream import Stream


class DomainOptions(StreamOptions, total=False):
    """What the functions for MNIST pass on to `permuted` and `rotated`, which explain them."""

    seed: int
    per_task: int | None
    disjoint: bool
    as_float: bool


@dataclass(frozen=True)
class Permutations:
    """``x[..., pixel] -> x[..., order[task, pixel]]``, all channels of an image alike."""

    orders: IntArray  # [tasks, pixels]

    def __call__(self, x: Tensor, task: int) -> Tensor:
        order = torch.from_numpy(self.orders[task])
        pixels = x.reshape(-1, self.orders.shape[1])  # [n·c, h·w] of images, [n, d] of rows
        return pixels.index_select(1, order).view(x.shape)


@dataclass(frozen=True)
class Rotations:
    """Images turned anticlockwise by the task's angle in degrees, bilinear, with zeros outside."""

    angles: Sequence[float]
    chunk: int = 5000

    def __call__(self, x: Tensor, task: int) -> Tensor:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import rotate

        angle, parts = float(self.angles[task]), torch.split(x, self.chunk)
        return torch.cat([rotate(part, angle, InterpolationMode.BILINEAR) for part in parts])


def permuted(
    data: Data,
    tasks: int = 20,
    *,
    seed: int = 0,
    identity_first: bool = False,
    permutations: ArrayLike | None = None,
    per_task: int | None = None,
    disjoint: bool = False,
    as_float: bool = False,
    **options: Unpack[StreamOptions],
) -> Stream:
    """Every task shuffles the pixels in its own fixed way.

    Args:
        data: images, or rows of features.
        tasks: number of tasks.
        seed: of the permutations and of the draws below.
        identity_first: leave the first task as it is.
        permutations: [tasks, pixels], to repeat a stream from elsewhere; in place of `seed`'s.
        per_task: number of training rows of a task, drawn anew for each; all rows without.
        disjoint: no training row comes in two tasks.
        as_float: float32 in [0, 1] instead of uint8.
        options: `Stream`'s task_labels, transform and eval_transform.

    Raises:
        ValueError: permutations that are none or of another shape, too many rows asked for.
    """
    rng, draws = np.random.default_rng(seed).spawn(2)
    pixels = math.prod(data.shape[-2:])  # of one channel, or the features of a row
    if permutations is None:
        orders = np.stack([rng.permutation(pixels) for _ in range(max(tasks, 1))])
        if identity_first:
            orders[0] = np.arange(pixels)
    else:
        orders = np.asarray(permutations, np.int64)
    if orders.shape != (tasks, pixels) or not (np.sort(orders, axis=1) == np.arange(pixels)).all():
        raise ValueError(f"expected permutations of 0..{pixels - 1} for {tasks} tasks, got shape {orders.shape}")
    rows = _rows(len(data.y_train), tasks, per_task, disjoint, draws)
    return _stream(f"permuted_{data.name}", data, rows, Permutations(orders), as_float, options)


def rotated(
    data: Data,
    tasks: int = 20,
    *,
    seed: int = 0,
    angles: Sequence[float] | None = None,
    per_task: int | None = None,
    disjoint: bool = False,
    as_float: bool = False,
    **options: Unpack[StreamOptions],
) -> Stream:
    """Every task turns the images by its own angle, uniform in [0, 180) degrees or from `angles`.

    The other arguments are those of `permuted`.

    Raises:
        ValueError: data without images, other than one angle a task, too many rows asked for.
    """
    if len(data.shape) != 3:
        raise ValueError(f"{data.name} has rows of shape {list(data.shape)}; only images [c, h, w] can be turned")
    rng, draws = np.random.default_rng(seed).spawn(2)
    turns = rng.uniform(0, 180, max(tasks, 0)).tolist() if angles is None else [float(a) for a in angles]
    if len(turns) != tasks:
        raise ValueError(f"expected one angle for each of the {tasks} tasks, got {len(turns)}")
    rows = _rows(len(data.y_train), tasks, per_task, disjoint, draws)
    return _stream(f"rotated_{data.name}", data, rows, Rotations(turns), as_float, options)


def permuted_mnist(
    root: Root,
    tasks: int = 20,
    download: bool = False,
    *,
    identity_first: bool = False,
    permutations: ArrayLike | None = None,
    **options: Unpack[DomainOptions],
) -> Stream:
    """Permuted MNIST; twenty tasks of all 60,000 images as in the DER paper. Options of `permuted`."""
    data = mnist(root, download)
    return permuted(data, tasks, identity_first=identity_first, permutations=permutations, **options)


def rotated_mnist(
    root: Root,
    tasks: int = 20,
    download: bool = False,
    *,
    angles: Sequence[float] | None = None,
    **options: Unpack[DomainOptions],
) -> Stream:
    """Rotated MNIST; twenty tasks of all 60,000 images as in the DER paper. Options of `rotated`."""
    return rotated(mnist(root, download), tasks, angles=angles, **options)


def _rows(n: int, tasks: int, per_task: int | None, disjoint: bool, rng: np.random.Generator) -> list[IntArray]:
    """Training rows of every task."""
    if disjoint:
        parts = domain_incremental(n, tasks, rng)
        smallest = min(len(part) for part in parts)
    else:
        parts, smallest = [np.arange(n)] * tasks, n
    if per_task is None:
        return parts
    if not 1 <= per_task <= smallest:
        raise ValueError(f"per_task must be in 1..{smallest} here, got {per_task}")
    return [np.sort(rng.choice(part, per_task, replace=False)) for part in parts]


def _stream(
    name: str,
    data: Data,
    rows: list[IntArray],
    change: Permutations | Rotations,
    as_float: bool,
    options: StreamOptions,
) -> Stream:
    everything = list(range(data.classes))
    return Stream(
        name=name,
        data=data.as_float() if as_float else data,
        train=rows,
        test=[np.arange(len(data.y_test))] * len(rows),
        classes_per_task=[everything] * len(rows),
        change=change,
        **options,
    )
