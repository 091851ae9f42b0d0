"""`Data`: what it refuses, what it computes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from replaykit.benchmarks import Data
from replaykit.benchmarks.data import channel_statistics


def images(n: int = 6, channels: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, 3, 3), dtype=torch.uint8, generator=generator)


def toy(**changes: Any) -> Data:
    arguments: dict[str, Any] = {
        "name": "toy",
        "x_train": images(),
        "y_train": torch.tensor([0, 1, 2] * 2),
        "x_test": images(3, seed=1),
        "y_test": torch.tensor([0, 1, 2]),
        "classes": 3,
    }
    return Data(**{**arguments, **changes})


def test_statistics_of_uint8_are_those_of_the_scaled_images() -> None:
    x = images(50, 3)
    scaled = x.double() / 255
    mean, std = channel_statistics(x)
    assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist(), abs=1e-12)
    assert toy(x_train=x[:6], x_test=x[:3]).mean == channel_statistics(x[:6])[0]


def test_statistics_of_rows_are_per_feature_and_a_constant_feature_gets_one() -> None:
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    assert channel_statistics(x) == ((2.0, 5.0), (1.0, 1.0))


def test_given_statistics_and_names_are_kept() -> None:
    data = toy(mean=(0.1, 0.2), std=(0.3, 0.4), class_names=("a", "b", "c"))
    assert data.mean == (0.1, 0.2)
    assert data.std == (0.3, 0.4)
    assert data.class_names == ("a", "b", "c")
    assert toy().class_names == ("0", "1", "2")


def test_as_float_scales_once() -> None:
    data = toy()
    floating = data.as_float()
    assert floating.x_train.dtype == floating.x_test.dtype == torch.float32
    assert torch.equal(floating.x_train, data.x_train.float() / 255)
    assert floating.as_float() is floating
    assert floating.mean == data.mean  # statistics count uint8 as 0 to 1, so they hold for both


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x_train": images().double()}, TypeError, "expected uint8"),
        ({"x_train": images()[:, 0]}, ValueError, r"expected images \[n, c, h, w\]"),
        ({"y_train": torch.zeros(6)}, TypeError, "expected int64"),
        ({"y_test": torch.zeros(3, 1, dtype=torch.int64)}, TypeError, "expected int64"),
        ({"y_train": torch.zeros(5, dtype=torch.int64)}, ValueError, "6 rows and y_train 5"),
        ({"x_test": images(0), "y_test": torch.zeros(0, dtype=torch.int64)}, ValueError, "not zero"),
        ({"x_test": images(3, 1)}, ValueError, "must be alike"),
        ({"x_test": images(3).float()}, ValueError, "must be alike"),
        ({"y_test": torch.tensor([0, 1, 3])}, ValueError, "labels 0 to 3, expected 0 to 2"),
        ({"y_train": torch.tensor([0, 1, -1] * 2)}, ValueError, "labels -1 to 1"),
        ({"x_train": images().float() / 0}, ValueError, "NaN or infinity"),
        ({"mean": (0.5,), "std": (1.0, 1.0)}, ValueError, "mean has 1 entries, expected 2"),
        ({"class_names": ("a",)}, ValueError, "class_names has 1 entries, expected 3"),
        (
            {"columns": {"t": torch.zeros(6).double()}},
            ValueError,
            "cannot be named 't'; rows have one of that name",
        ),
        (
            {"columns": {"weight": torch.zeros(6)}},
            TypeError,
            "column 'weight' is torch.float32, expected int64 or",
        ),
        (
            {"columns": {"weight": torch.zeros(3).double()}},
            ValueError,
            r"'weight' has shape \[3\], expected .*\[6\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        toy(**changes)


def test_data_cannot_be_changed_in_place() -> None:
    with pytest.raises(AttributeError):
        toy().classes = 4  # type: ignore[misc]
    assert replace(toy(), classes=4, class_names=()).classes == 4


def test_repr_is_short() -> None:
    text = repr(toy())
    assert "toy" in text
    assert len(text) < 200
