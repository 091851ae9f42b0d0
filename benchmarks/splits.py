"""Class-incremental streams: every class in one task, one head for all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from typing_extensions import Unpack

from replaykit.benchmarks.data import Data
from replaykit.benchmarks.noise import noisy_labels
from replaykit.benchmarks.own import folder, npz
from replaykit.benchmarks.published import Root, cifar10, cifar100, digits, fashion_mnist, mnist
from replaykit.benchmarks.scenarios import (
    Groups,
    IntArray,
    Order,
    Seed,
    class_groups,
    class_incremental,
    imbalanced_blocks,
)
from replaykit.benchmarks.scenarios import (
    blurry as blurry_rows,
)
from replaykit.benchmarks.stream import Stream
from replaykit.benchmarks.subsets import long_tailed, subset


class StreamOptions(TypedDict, total=False):
    """What every stream takes: see `Stream`, and `Data.as_float` for the last."""

    task_labels: bool | None
    transform: Callable[[Any], Any] | None
    eval_transform: Callable[[Any], Any] | None


class SplitOptions(StreamOptions, total=False):
    """What the functions ``split_*`` pass on to `split`, which explains them."""

    order: Order
    seed: int
    per_class: int | None
    fraction: float | None
    long_tail: float | Sequence[int] | None
    noise: float
    noise_kind: Literal["symmetric", "asymmetric"]
    flips: Mapping[int, int] | None
    blurry: float
    as_float: bool


def split(
    data: Data,
    tasks: int | Groups = 5,
    *,
    order: Order = None,
    seed: int = 0,
    per_class: int | None = None,
    fraction: float | None = None,
    long_tail: float | Sequence[int] | None = None,
    noise: float = 0.0,
    noise_kind: Literal["symmetric", "asymmetric"] = "symmetric",
    flips: Mapping[int, int] | None = None,
    blurry: float = 0.0,
    as_float: bool = False,
    **options: Unpack[StreamOptions],
) -> Stream:
    """Cut a data set into tasks by class.

    Labels are not renumbered: class 7 is 7 in whichever task it comes. Only the training rows are thinned,
    made noisy and blurred, in this order; a task's test rows are all test rows of its classes.

    Args:
        data: from `mnist`, `cifar10`, `digits`, `npz`, `folder`, ...
        tasks: number of tasks, or the classes of every task, e.g. ``[[0, 1, 2], [3, 4]]``.
        order: the classes in their order of appearance; None is 0..C-1, ``"seed"`` a random order.
        seed: of all draws below and of a random order. It changes nothing else: without any of these
            options the stream is the same for every seed.
        per_class, fraction: keep this many rows of every class, or this share (`subset`).
        long_tail: imbalance factor, or rows of every class (`long_tailed`).
        noise, noise_kind, flips: rate and kind of wrong labels (`noisy_labels`). A row goes to the task of
            its given label; `Stream.true_labels` keeps the true ones.
        blurry: share of its rows that a class gives to the other tasks (`scenarios.blurry`).
        as_float: rows as float32 in [0, 1] instead of uint8, four times the memory. For scripts that feed
            the rows to a network as they come.
        options: `Stream`'s task_labels, transform and eval_transform.

    Raises:
        ValueError: as the functions named above.
    """
    # One generator for each purpose, so that switching one option on leaves the draws of the others alone.
    draws = np.random.default_rng(seed).spawn(5)
    groups = class_groups(data.classes, tasks, order, draws[0])
    rows = _kept(data, per_class, fraction, long_tail, draws[1], draws[2])
    true_labels = None
    if noise:
        true_labels, y = data.y_train, data.y_train.clone()
        y[torch.from_numpy(rows)] = torch.from_numpy(
            noisy_labels(true_labels.numpy()[rows], noise, noise_kind, draws[3], flips)
        )
        data = replace(data, y_train=y)
    y_kept = data.y_train.numpy()[rows]
    parts = blurry_rows(y_kept, groups, blurry, draws[4]) if blurry else class_incremental(y_kept, groups)
    return Stream(
        name=f"split_{data.name}",
        data=data.as_float() if as_float else data,
        train=[rows[part] for part in parts],
        test=class_incremental(data.y_test, groups),
        classes_per_task=groups,
        true_labels=true_labels,
        **options,
    )


def _kept(
    data: Data,
    per_class: int | None,
    fraction: float | None,
    long_tail: float | Sequence[int] | None,
    subset_seed: Seed,
    tail_seed: Seed,
) -> IntArray:
    """Training rows that thinning leaves."""
    y = data.y_train.numpy()
    rows = np.arange(len(y))
    if per_class is not None or fraction is not None:
        rows = rows[subset(y[rows], per_class, fraction, subset_seed)]
    if long_tail is not None:
        rows = rows[long_tailed(y[rows], long_tail, tail_seed)]
    return rows


def split_mnist(
    root: Root, tasks: int | Groups = 5, download: bool = False, **options: Unpack[SplitOptions]
) -> Stream:
    """Split-MNIST: digits 0 and 1, then 2 and 3, ... Options of `split`; data as in `mnist`."""
    return split(mnist(root, download), tasks, **options)


def split_fashion_mnist(
    root: Root, tasks: int | Groups = 5, download: bool = False, **options: Unpack[SplitOptions]
) -> Stream:
    """Split Fashion-MNIST. Options of `split`; data as in `fashion_mnist`."""
    return split(fashion_mnist(root, download), tasks, **options)


def split_cifar10(
    root: Root, tasks: int | Groups = 5, download: bool = False, **options: Unpack[SplitOptions]
) -> Stream:
    """Split-CIFAR-10, two classes a task. Options of `split` (``per_class=2500`` is the half stream)."""
    return split(cifar10(root, download), tasks, **options)


def split_cifar100(
    root: Root, tasks: int | Groups = 10, download: bool = False, **options: Unpack[SplitOptions]
) -> Stream:
    """Split-CIFAR-100, ten classes a task. Options of `split`; data as in `cifar100`."""
    return split(cifar100(root, download), tasks, **options)


def split_digits(tasks: int | Groups = 5, **options: Unpack[SplitOptions]) -> Stream:
    """The digits of scikit-learn, two classes a task, without any file. Options of `split`."""
    return split(digits(), tasks, **options)


def split_npz(
    path: str | os.PathLike[str],
    tasks: int | Groups = 5,
    layout: Literal["NCHW", "NHWC"] | None = None,
    **options: Unpack[SplitOptions],
) -> Stream:
    """Your own arrays. Options of `split`; the file as in `npz`."""
    return split(npz(path, layout=layout), tasks, **options)


def split_folder(
    path: str | os.PathLike[str],
    tasks: int | Groups = 5,
    size: int | None = None,
    channels: Literal[1, 3] = 3,
    **options: Unpack[SplitOptions],
) -> Stream:
    """Your own image folders. Options of `split`; the folders as in `folder`."""
    return split(folder(path, size, channels), tasks, **options)


def imbalanced_mnist(
    root: Root,
    sizes: Sequence[int] = (200, 200, 200, 200, 2000),
    download: bool = False,
    as_float: bool = False,
    **options: Unpack[StreamOptions],
) -> Stream:
    """The imbalanced stream of Borsos et al. over MNIST: 200 images of each pair, 2,000 of the last.

    ``np.concatenate(stream.train)`` are the 2,800 rows in the order of the stream (`imbalanced_blocks`).
    """
    data = mnist(root, download)
    groups = class_groups(data.classes, len(sizes))
    return Stream(
        name="imbalanced_mnist",
        data=data.as_float() if as_float else data,
        train=imbalanced_blocks(data.y_train, groups, sizes),
        test=class_incremental(data.y_test, groups),
        classes_per_task=groups,
        **options,
    )
