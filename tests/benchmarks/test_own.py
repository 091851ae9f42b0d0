"""Your own arrays and image folders: what is read, and what the errors say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from replaykit.benchmarks import folder, npz, split_folder, split_npz

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (8, 6, 5, 3), dtype=np.uint8)  # NHWC
Y = np.array([0, 1] * 4)


def save(path: Path, **changes: Any) -> Path:
    arrays = {"x_train": X, "y_train": Y, "x_test": X[:4], "y_test": Y[:4], **changes}
    np.savez(path / "mine.npz", **{key: value for key, value in arrays.items() if value is not None})
    return path / "mine.npz"


def test_channels_last_become_channels_first(tmp_path: Path) -> None:
    data = npz(save(tmp_path))
    assert data.name == "mine"
    assert data.shape == (3, 6, 5)
    assert data.x_train.is_contiguous()
    assert torch.equal(data.x_train, torch.from_numpy(X).permute(0, 3, 1, 2))
    assert data.x_train.dtype == torch.uint8
    assert data.source.endswith("mine.npz")


def test_channels_first_grey_and_rows_are_taken_as_they_are(tmp_path: Path) -> None:
    first = X.transpose(0, 3, 1, 2)
    assert np.array_equal(npz(save(tmp_path, x_train=first, x_test=first[:4])).x_train.numpy(), first)
    grey = X[..., 0]
    assert npz(save(tmp_path, x_train=grey, x_test=grey[:4])).shape == (1, 6, 5)
    rows = RNG.normal(size=(8, 7))
    data = npz(save(tmp_path, x_train=rows, x_test=rows[:4]))
    assert data.shape == (7,)
    assert data.x_train.dtype == torch.float32
    assert len(data.mean) == 7


def test_a_layout_that_could_be_either_must_be_said(tmp_path: Path) -> None:
    x = RNG.integers(0, 256, (8, 3, 5, 3), dtype=np.uint8)
    path = save(tmp_path, x_train=x, x_test=x[:4])
    with pytest.raises(ValueError, match="layout='NCHW' or layout='NHWC'"):
        npz(path)
    assert np.array_equal(npz(path, layout="NCHW").x_train.numpy(), x)
    assert np.array_equal(npz(path, layout="NHWC").x_train.numpy(), x.transpose(0, 3, 1, 2))
    with pytest.raises(ValueError, match="got 'CHW'"):
        npz(path, layout="CHW")  # type: ignore[arg-type]


def test_labels_are_renumbered_and_the_names_kept(tmp_path: Path) -> None:
    y = np.array([70, -3, 70, -3, 5, 5, 70, 5], np.int16)
    data = npz(save(tmp_path, y_train=y, y_test=y[:4, None]))
    assert data.classes == 3
    assert data.y_train.tolist() == [2, 0, 2, 0, 1, 1, 2, 1]
    assert data.y_test.tolist() == [2, 0, 2, 0]
    assert data.class_names == ("-3", "5", "70")
    named = npz(save(tmp_path, classes=np.array(["cat", "dog"])))
    assert named.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"y_test": None}, ValueError, r"lacks \['y_test'\], it has \['x_test', 'x_train', 'y_train'\]"),
        ({"y_train": Y[:7]}, ValueError, "8 rows and y_train 7"),
        ({"y_train": Y + 0.5}, TypeError, "y_train in .* is float64; expected integers"),
        ({"y_train": np.array(["a", "b"] * 4)}, TypeError, "put their names into an array 'classes'"),
        ({"y_train": np.stack([Y, Y], 1)}, ValueError, r"expected one label a row: \[n\]"),
        ({"y_test": Y[:4] + 1}, ValueError, r"has labels \[2\] that y_train lacks; it has \[0, 1\]"),
        ({"x_train": X.astype(np.int64)}, TypeError, "is int64; expected uint8"),
        ({"x_train": X[0, 0]}, ValueError, "x_train has 5 rows and y_train 8"),
        ({"x_train": X[..., None]}, ValueError, r"has shape \(8, 6, 5, 3, 1\)"),
        ({"x_test": X[:4, :5]}, ValueError, "must be alike"),
        ({"classes": np.array(["a", "b", "c"])}, ValueError, "class_names has 3 entries, expected 2"),
        ({"x_train": np.array([object()] * 8)}, ValueError, "cannot read .*mine.npz"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    path = save(tmp_path, **changes)
    with pytest.raises(error, match=message):
        npz(path)


def test_files_that_are_missing_or_corrupt(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.npz; expected an \.npz"):
        npz(tmp_path / "absent.npz")
    whole = save(tmp_path).read_bytes()
    for name, content in {"cut": whole[: len(whole) // 2], "text": b"hello", "empty": b""}.items():
        broken = tmp_path / f"{name}.npz"
        broken.write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot read .*{name}.npz"):
            npz(broken)
    np.save(tmp_path / "single.npy", X)
    with pytest.raises(ValueError, match="cannot read"):
        npz(tmp_path / "single.npy")


def test_further_columns_are_numbers_of_the_training_rows(tmp_path: Path) -> None:
    weight = np.linspace(1, 2, 8, dtype=np.float32)
    data = npz(save(tmp_path, column_weight=weight, column_age=np.arange(8, dtype=np.int16), unread=np.zeros(3)))
    assert {name: column.dtype for name, column in data.columns.items()} == {
        "weight": torch.float64,
        "age": torch.int64,
    }
    assert np.array_equal(data.columns["weight"].numpy(), weight.astype(np.float64))
    with pytest.raises(TypeError, match=r"column_name in .*mine\.npz is <U1; expected numbers"):
        npz(save(tmp_path, column_name=np.array(["a"] * 8)))
    with pytest.raises(ValueError, match=r"column 'weight' has shape \[4\], expected .* \[8\]"):
        npz(save(tmp_path, column_weight=weight[:4]))


def test_split_npz_makes_tasks(tmp_path: Path) -> None:
    stream = split_npz(save(tmp_path), tasks=2)
    assert stream.name == "split_mine"
    x, y = stream.tensors(1)
    assert y.tolist() == [1] * 4
    assert np.array_equal(x.numpy(), X[1::2].transpose(0, 3, 1, 2))


def write_images(root: Path, sizes: tuple[int, ...] = (5,)) -> dict[str, Any]:
    """Two classes, two training and one test image of each; returns the pixels by file."""
    written: dict[str, Any] = {}
    for split, count in (("train", 2), ("test", 1)):
        for label, name in enumerate(("ant", "bee")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                side = sizes[i % len(sizes)]
                pixels = RNG.integers(0, 256, (side, side + 1, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
                written[f"{split}{label}{i}"] = pixels
    return written


def test_image_folders(tmp_path: Path) -> None:
    pixels = write_images(tmp_path)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    data = folder(tmp_path)
    assert data.class_names == ("ant", "bee")
    assert data.y_train.tolist() == [0, 0, 1, 1]
    assert data.y_test.tolist() == [0, 1]
    assert data.shape == (3, 5, 6)
    assert np.array_equal(data.x_train[3].numpy(), pixels["train11"].transpose(2, 0, 1))
    grey = folder(tmp_path, channels=1)
    assert grey.shape == (1, 5, 6)
    stream = split_folder(tmp_path, tasks=2, size=4)
    assert stream.tensors(1)[0].shape == (2, 3, 4, 4)


def test_images_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    write_images(tmp_path, sizes=(5, 7))
    with pytest.raises(ValueError, match=r"is 7 × 8 pixels, those before it 5 × 6; pass size="):
        folder(tmp_path)
    assert folder(tmp_path, size=6).shape == (3, 6, 6)


def test_image_folders_that_are_missing_or_corrupt(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no class folders in .*train; expected train/<class>"):
        folder(tmp_path / "absent")
    write_images(tmp_path)
    (tmp_path / "test" / "wasp").mkdir()
    with pytest.raises(ValueError, match=r"classes \['wasp'\]"):
        folder(tmp_path)
    (tmp_path / "test" / "wasp").rmdir()
    broken = tmp_path / "train" / "bee" / "2.png"
    broken.write_bytes((tmp_path / "train" / "bee" / "0.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"cannot read the image .*2\.png"):
        folder(tmp_path)
    for file in (tmp_path / "train").glob("*/*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="no images in"):
        folder(tmp_path)
