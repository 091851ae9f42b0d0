"""Published data sets, in the files that torchvision reads and writes, and scikit-learn's digits."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor

from replaykit.benchmarks.data import Data
from replaykit.benchmarks.own import npz

Root = str | os.PathLike[str]

# Mean and standard deviation of the training pixels, as the field quotes them.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "MNIST": ((0.1307,), (0.3081,)),
    "FashionMNIST": ((0.2860,), (0.3530,)),
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def mnist(root: Root, download: bool = False) -> Data:
    """MNIST, 60,000 and 10,000 images 1×28×28, from ``root/MNIST/raw``.

    Raises:
        FileNotFoundError: the folder is not there and `download` is False.
        ValueError: files that cannot be read.
        ConnectionError: `download` failed.
    """
    return _torchvision("mnist", "MNIST", Path(root), "MNIST/raw", download)


def fashion_mnist(root: Root, download: bool = False) -> Data:
    """Fashion-MNIST, shaped as MNIST, from ``root/FashionMNIST/raw``. Raises as `mnist`."""
    return _torchvision("fashion_mnist", "FashionMNIST", Path(root), "FashionMNIST/raw", download)


def cifar10(root: Root, download: bool = False) -> Data:
    """CIFAR-10, 50,000 and 10,000 images 3×32×32.

    From ``root/cifar-10-batches-py``; where that is absent and nothing is to be downloaded, from
    ``root/cifar10.npz`` (arrays x_train, y_train, x_test, y_test). `source` says which. Raises as `mnist`.
    """
    return _cifar("cifar10", "CIFAR10", Path(root), "cifar-10-batches-py", download)


def cifar100(root: Root, download: bool = False) -> Data:
    """CIFAR-100 with fine labels, from ``root/cifar-100-python`` or ``root/cifar100.npz``, as `cifar10`."""
    return _cifar("cifar100", "CIFAR100", Path(root), "cifar-100-python", download)


def digits() -> Data:
    """The 1,797 handwritten digits that come with scikit-learn, 1×8×8, 16 grey levels scaled to 0..255.

    Every fifth image of a class is for testing (364), the others for training (1,433). No file is needed.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(np.rint(pixels * (255 / 16)).astype(np.uint8)).reshape(-1, 1, 8, 8)
    y = torch.from_numpy(labels.astype(np.int64))
    test = np.concatenate([np.flatnonzero(labels == c)[::5] for c in range(10)])
    held = torch.zeros(len(y), dtype=torch.bool)
    held[torch.from_numpy(test)] = True
    return Data("digits", x[~held], y[~held], x[held], y[held], classes=10, source="scikit-learn")


def _cifar(name: str, kind: str, root: Path, files: str, download: bool) -> Data:
    root = root.expanduser()
    packed = root / f"{name}.npz"
    if packed.is_file() and not (root / files).exists() and not download:
        mean, std = STATISTICS[kind]
        return npz(packed, name, layout="NHWC", mean=mean, std=std)
    return _torchvision(name, kind, root, files, download, f" or the file {packed}")


def _torchvision(name: str, kind: str, root: Path, files: str, download: bool, instead: str = "") -> Data:
    from torchvision import datasets

    folder = root.expanduser() / files
    if not download and not folder.is_dir():
        raise FileNotFoundError(
            f"{name}: no folder {folder}{instead}; copy the files there, or pass download=True"
        )
    try:
        train = getattr(datasets, kind)(root.expanduser(), train=True, download=download)
        test = getattr(datasets, kind)(root.expanduser(), train=False)
        arrays = (*_tensors(train), *_tensors(test))
    except (
        *(OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, IndexError),
        *(AssertionError, AttributeError, pickle.UnpicklingError),
    ) as error:
        raise _explained(name, folder, download, error) from error
    mean, std = STATISTICS[kind]
    # torchvision calls MNIST's classes "0 - zero", ...
    names = tuple(label.split(" - ")[0] for label in train.classes)
    return Data(name, *arrays, len(names), mean, std, names, source=str(folder))


def _tensors(dataset: Any) -> tuple[Tensor, Tensor]:
    """x uint8 [n, c, h, w] and y int64 [n] of a torchvision data set that holds everything."""
    x = torch.as_tensor(dataset.data)
    x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()
    y = torch.as_tensor(dataset.targets, dtype=torch.int64)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} images and {len(y)} labels")
    return x, y


def _explained(name: str, folder: Path, download: bool, error: Exception) -> Exception:
    # torchvision raises the same kinds for a missing network, a full disk and a truncated file.
    told = " ".join(f"{type(error).__name__}: {error}".split())
    if download and (isinstance(error, URLError) or "ownload" in told):
        return ConnectionError(
            f"{name}: the download into {folder} failed ({told}); check the network, or copy the files there"
        )
    return ValueError(
        f"{name}: the files in {folder} are incomplete or cannot be read ({told}); delete the folder and pass "
        "download=True, or copy it again"
    )
