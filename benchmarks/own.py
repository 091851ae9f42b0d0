"""Your own data: arrays in an ``.npz`` file, or folders of images."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from replaykit.benchmarks.data import Data

Array = NDArray[Any]

KEYS = ("x_train", "y_train", "x_test", "y_test")
COLUMN = "column_"
IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"))


def npz(
    path: str | os.PathLike[str],
    name: str | None = None,
    layout: Literal["NCHW", "NHWC"] | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Data:
    """Arrays ``x_train, y_train, x_test, y_test`` of an ``.npz`` file.

    Images are [n, h, w], [n, c, h, w] or [n, h, w, c] (`layout` says which when both fit), feature rows
    [n, d]; uint8 or floating point. Labels are integers of any value; they become 0..C-1 in ascending
    order, and the values, or the entries of an array ``classes`` in the file, become the class names. Numbers
    ``column_<name>`` [n_train] become a further column of the training rows, such as ``column_weight`` for the
    memories that read a weight.

    Raises:
        FileNotFoundError: no such file.
        TypeError: x is neither uint8 nor floating point, labels are not integers, or columns are not numbers.
        ValueError: not a readable npz file, an array is missing or does not fit, a test label that the
            training set lacks.
    """
    path = Path(path).expanduser()
    arrays = _arrays(path)
    name = name or path.stem
    labels = np.unique(_labels(arrays["y_train"], path, "y_train"))
    names = arrays.get("classes", labels)
    return Data(
        name=name,
        x_train=_images(arrays["x_train"], path, "x_train", layout),
        y_train=_positions(arrays["y_train"], labels, path, "y_train"),
        x_test=_images(arrays["x_test"], path, "x_test", layout),
        y_test=_positions(arrays["y_test"], labels, path, "y_test"),
        classes=len(labels),
        mean=tuple(mean),
        std=tuple(std),
        class_names=tuple(map(str, names.tolist())),
        source=str(path),
        columns=_columns(arrays, path),
    )


def _arrays(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; expected an .npz with the arrays {', '.join(KEYS)}")
    try:
        # Pickled objects are refused: reading data must not execute code.
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("it holds a single array, as numpy.save writes it")
        with loaded as file:
            missing = [key for key in KEYS if key not in file]
            if missing:
                raise ValueError(f"it lacks {missing}, it has {sorted(file)}")
            return {key: file[key] for key in file if key in (*KEYS, "classes") or key.startswith(COLUMN)}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"cannot read {path}: {error}; expected plain arrays {', '.join(KEYS)} saved with numpy.savez"
        ) from error


def _columns(arrays: dict[str, Array], path: Path) -> dict[str, torch.Tensor]:
    """Further columns by name, as int64 or float64."""
    found = {}
    for key, values in arrays.items():
        if key.startswith(COLUMN):
            whole = np.issubdtype(values.dtype, np.integer)
            if not whole and not np.issubdtype(values.dtype, np.floating):
                raise TypeError(f"{key} in {path} is {values.dtype}; expected numbers: convert and save again")
            kind = np.int64 if whole else np.float64
            found[key.removeprefix(COLUMN)] = torch.from_numpy(values.astype(kind))
    return found


def _images(x: Array, path: Path, key: str, layout: str | None) -> torch.Tensor:
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise TypeError(
            f"{key} in {path} is {x.dtype}; expected uint8 (0 to 255) or floating point: convert and save again"
        )
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and _channels_last(x.shape, path, key, layout):
        x = x.transpose(0, 3, 1, 2)
    elif x.ndim not in (2, 4):
        raise ValueError(f"{key} in {path} has shape {x.shape}; expected images [n, c, h, w] or rows [n, d]")
    return torch.from_numpy(np.ascontiguousarray(x, np.uint8 if x.dtype == np.uint8 else np.float32))


def _channels_last(shape: tuple[int, ...], path: Path, key: str, layout: str | None) -> bool:
    if layout is not None:
        if layout not in ("NCHW", "NHWC"):
            raise ValueError(f"layout is 'NCHW' or 'NHWC', got {layout!r}")
        return layout == "NHWC"
    first, last = shape[1] in (1, 3, 4), shape[3] in (1, 3, 4)
    if first == last:
        raise ValueError(f"{key} in {path} has shape {shape}: pass layout='NCHW' or layout='NHWC'")
    return last


def _labels(y: Array, path: Path, key: str) -> Array:
    if not np.issubdtype(y.dtype, np.integer):
        raise TypeError(
            f"{key} in {path} is {y.dtype}; expected integers: number the classes, and put their names into "
            "an array 'classes'"
        )
    if y.ndim == 2 and y.shape[1] == 1:  # as some libraries save them
        y = y[:, 0]
    if y.ndim != 1:
        raise ValueError(f"{key} in {path} has shape {y.shape}; expected one label a row: [n]")
    return y


def _positions(y: Array, labels: Array, path: Path, key: str) -> torch.Tensor:
    y = _labels(y, path, key)
    strange = np.setdiff1d(y, labels)
    if len(strange):
        raise ValueError(
            f"{key} in {path} has labels {strange.tolist()} that y_train lacks; it has {labels.tolist()}"
        )
    return torch.from_numpy(np.searchsorted(labels, y).astype(np.int64))


def folder(path: str | os.PathLike[str], size: int | None = None, channels: Literal[1, 3] = 3) -> Data:
    """Images in ``path/train/<class>/`` and ``path/test/<class>/``, in alphabetical order.

    Args:
        path: the folder that holds ``train`` and ``test``.
        size: side in pixels to which every image is scaled (bilinear). Without it all must be of one size.
        channels: 3 for colour, 1 for grey.

    Raises:
        FileNotFoundError: a folder is missing or holds no image.
        ValueError: an unreadable image, images of different sizes, a test class without training images.
    """
    root = Path(path).expanduser()
    names = _class_names(root / "train")
    strange = sorted(set(_class_names(root / "test")) - set(names))
    if strange:
        raise ValueError(f"{root / 'test'} has classes {strange} that {root / 'train'} lacks")
    mode = "RGB" if channels == 3 else "L"
    x_train, y_train = _read_images(root / "train", names, size, mode)
    x_test, y_test = _read_images(root / "test", names, size, mode)
    return Data(
        root.name, x_train, y_train, x_test, y_test, len(names), class_names=tuple(names), source=str(root)
    )


def _class_names(split: Path) -> list[str]:
    names = sorted(entry.name for entry in split.iterdir() if entry.is_dir()) if split.is_dir() else []
    if not names:
        raise FileNotFoundError(
            f"no class folders in {split}; expected train/<class>/*.png and test/<class>/*.png"
        )
    return names


def _read_images(
    split: Path, names: Sequence[str], size: int | None, mode: str
) -> tuple[torch.Tensor, torch.Tensor]:
    images: list[Array] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        for file in sorted((split / name).glob("*")):
            if file.suffix.lower() in IMAGE_SUFFIXES:
                image = _read_image(file, size, mode)
                if images and image.shape != images[0].shape:
                    raise ValueError(
                        f"{file} is {image.shape[1]} × {image.shape[2]} pixels, those before it "
                        f"{images[0].shape[1]} × {images[0].shape[2]}; pass size= to scale them all"
                    )
                images.append(image)
                labels.append(label)
    if not images:
        raise FileNotFoundError(f"no images in {split}; expected files {', '.join(sorted(IMAGE_SUFFIXES))}")
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def _read_image(file: Path, size: int | None, mode: str) -> Array:
    """One image as uint8 [c, h, w]."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            pixels = image.convert(mode)
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"cannot read the image {file}: {error}; replace or remove it") from error
    if size is not None:
        pixels = pixels.resize((size, size), Image.Resampling.BILINEAR)
    array = np.asarray(pixels, np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
