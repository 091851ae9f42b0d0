"""The published sets: torchvision's files, what is said when they fail, and the real data where they are."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from replaykit.benchmarks import Data, cifar10, cifar100, digits, fashion_mnist, mnist
from replaykit.benchmarks.data import channel_statistics


def write_idx(root: Path, n: int = 20) -> Path:
    """A small MNIST in its own file format."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "t10k"):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = np.arange(n, dtype=np.uint8) % 10
        header = struct.pack(">4i", 2051, n, 28, 28)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + labels.tobytes())
    return raw


def test_digits_are_split_class_by_class_and_always_alike() -> None:
    data, again = digits(), digits()
    assert data.x_train.shape == (1433, 1, 8, 8)
    assert data.x_test.shape == (364, 1, 8, 8)
    assert data.x_train.dtype == torch.uint8
    assert int(data.x_train.max()) == 255
    assert torch.equal(data.x_train, again.x_train)
    train, test = torch.bincount(data.y_train), torch.bincount(data.y_test)
    assert torch.equal(test, -(-(train + test) // 5))  # every fifth, the first included


def test_mnist_files_are_read(tmp_path: Path) -> None:
    raw = write_idx(tmp_path)
    data = mnist(tmp_path)
    images = np.frombuffer((raw / "train-images-idx3-ubyte").read_bytes()[16:], np.uint8)
    assert np.array_equal(data.x_train.numpy().ravel(), images)
    assert data.y_train.tolist() == list(range(10)) * 2
    assert data.class_names == tuple("0123456789")
    assert (data.mean, data.std) == ((0.1307,), (0.3081,))
    assert data.source == str(raw)


@pytest.mark.parametrize(
    ("load", "folder"),
    [
        (mnist, "MNIST/raw"),
        (fashion_mnist, "FashionMNIST/raw"),
        (cifar10, "cifar-10-batches-py or the file .*cifar10.npz"),
        (cifar100, "cifar-100-python or the file .*cifar100.npz"),
    ],
)
def test_missing_data_say_where_they_were_sought(
    load: Callable[[Path], Data], folder: str, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=f"no folder .*{folder}; copy the files .* download=True"):
        load(tmp_path)


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "gone", "empty"])
def test_corrupt_mnist_files_are_named(file: str, damage: str, tmp_path: Path) -> None:
    path = write_idx(tmp_path) / file
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes({"cut": content[:-5], "garbage": b"x" * 500, "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"mnist: the files in .*MNIST/raw .* delete the folder"):
        mnist(tmp_path)


def test_images_and_labels_of_different_number_are_refused(tmp_path: Path) -> None:
    raw = write_idx(tmp_path)
    (raw / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 3) + bytes(3))
    with pytest.raises(ValueError, match="20 images and 3 labels"):
        mnist(tmp_path)


def test_corrupt_cifar_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"cifar10: the files in .*cifar-10-batches-py"):
        cifar10(tmp_path)


def test_a_failed_download_is_a_connection_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = "http://127.0.0.1:9/"
    monkeypatch.setattr(datasets.MNIST, "mirrors", [nowhere])
    monkeypatch.setattr(datasets.CIFAR10, "url", nowhere + "cifar.tar.gz")
    for load in (mnist, cifar10):
        with pytest.raises(ConnectionError, match=r"the download into .* failed .* check the network"):
            load(tmp_path, download=True)


def test_cifar_is_read_from_an_npz_where_the_batches_are_absent(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    y = np.arange(10)
    np.savez(tmp_path / "cifar10.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    data = cifar10(tmp_path)
    assert np.array_equal(data.x_train.numpy(), x.transpose(0, 3, 1, 2))
    assert data.source.endswith("cifar10.npz")
    assert data.mean == (0.4914, 0.4822, 0.4465)
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ValueError, match="cifar-10-batches-py"):
        cifar10(tmp_path)


@pytest.mark.parametrize(
    ("load", "train", "shape"),
    [(mnist, 60000, (1, 28, 28)), (fashion_mnist, 60000, (1, 28, 28)), (cifar10, 50000, (3, 32, 32))],
)
def test_real_data(load: Callable[[Path], Data], train: int, shape: tuple[int, ...], data_root: Path) -> None:
    try:
        data = load(data_root)
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    assert len(data.x_train) == train
    assert len(data.x_test) == 10000
    assert data.shape == shape
    assert data.x_train.dtype == torch.uint8
    assert torch.bincount(data.y_test).tolist() == [1000] * 10 or load is mnist
    mean, std = channel_statistics(data.x_train)
    assert mean == pytest.approx(data.mean, abs=1e-3)
    assert std == pytest.approx(data.std, abs=3e-3)  # CIFAR-10 may have gone through JPEG
