"""A data set as whole tensors: what every stream is cut from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """Training and test set of a classification problem, in memory, untransformed.

    Attributes:
        name: what the data are called in results.
        x_train: images [n, c, h, w] or feature rows [n, d], uint8 (0 to 255) or float32; or token ids
            [n, length], int64 from 0.
        y_train: labels 0 to classes - 1, int64 [n].
        x_test, y_test: the same for the test set.
        classes: number of classes.
        mean, std: one number a channel (a feature for rows), of the training set, with uint8 counted as
            0 to 1. Computed when not given; empty for token ids.
        class_names: one name a class; the numbers when not given.
        source: where the arrays came from.
        vocabulary: the word of every token id.
        columns: what else is known of every training row, by name, int64 or float64 [n]: for memories that read a
            weight, say.

    Raises:
        TypeError: a dtype other than those above.
        ValueError: shapes, lengths or labels that do not fit, NaN or infinity, an empty split, a column that is
            named x, y or t.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    class_names: Sequence[str] = ()
    source: str = ""
    vocabulary: Sequence[str] = ()
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            x, y = getattr(self, f"x_{split}"), getattr(self, f"y_{split}")
            _check_rows(self.name, split, x, y)
            _check_labels(self.name, split, y, self.classes)
        if self.x_train.shape[1:] != self.x_test.shape[1:] or self.x_train.dtype != self.x_test.dtype:
            raise ValueError(
                f"{self.name}: training rows are {list(self.x_train.shape[1:])} of {self.x_train.dtype}, "
                f"test rows {list(self.x_test.shape[1:])} of {self.x_test.dtype}; they must be alike"
            )
        if self.are_ids:
            self._check_ids()
        elif not self.mean or not self.std:
            mean, std = channel_statistics(self.x_train)
            object.__setattr__(self, "mean", self.mean or mean)
            object.__setattr__(self, "std", self.std or std)
        if not self.class_names:
            object.__setattr__(self, "class_names", tuple(map(str, range(self.classes))))
        self._check_lengths()
        for name, column in self.columns.items():
            _check_column(self.name, name, column, len(self.y_train))

    def _check_lengths(self) -> None:
        channels = 0 if self.are_ids else self.x_train.shape[1]
        wanted = {"mean": channels, "std": channels, "class_names": self.classes}
        for name, length in wanted.items():
            if len(getattr(self, name)) != length:
                raise ValueError(f"{self.name}: {name} has {len(getattr(self, name))} entries, expected {length}")

    def _check_ids(self) -> None:
        lowest = min(int(self.x_train.min()), int(self.x_test.min()))
        highest = max(int(self.x_train.max()), int(self.x_test.max()))
        if lowest < 0 or highest >= len(self.vocabulary):
            raise ValueError(
                f"{self.name}: token ids {lowest} to {highest} for a vocabulary of {len(self.vocabulary)} words; "
                "give a word for every id"
            )

    @property
    def are_ids(self) -> bool:
        """Whether a row is a sequence of token ids."""
        return self.x_train.dtype == torch.int64

    @property
    def shape(self) -> torch.Size:
        """Shape of one row: (c, h, w), (d,) or (length,)."""
        return self.x_train.shape[1:]

    def as_float(self) -> Data:
        """The same data as float32, uint8 mapped to [0, 1]; four times the bytes.

        Raises:
            TypeError: token ids, which are names and no numbers.
        """
        if self.are_ids:
            raise TypeError(f"{self.name} holds token ids, which have no floating-point form; leave as_float out")
        if self.x_train.dtype == torch.float32:
            return self
        return replace(self, x_train=self.x_train.float().div_(255), x_test=self.x_test.float().div_(255))

    def __repr__(self) -> str:
        return (
            f"Data({self.name!r}, train {list(self.x_train.shape)}, test {list(self.x_test.shape)} of "
            f"{self.x_train.dtype}, {self.classes} classes, from {self.source or 'memory'})"
        )


def channel_statistics(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and (population) standard deviation of every channel of x [n, c, ...], uint8 counted as 0 to 1.

    A channel without variance gets 1, so that dividing by it changes nothing.
    """
    mean, std = [], []
    for channel in range(x.shape[1]):
        values = x[:, channel].reshape(-1)
        if values.dtype == torch.uint8:
            # The histogram holds all there is to know, without a float copy of the data.
            weight = torch.bincount(values, minlength=256).double()
            values = torch.arange(256, dtype=torch.float64) / 255
        else:
            weight = torch.ones(1, dtype=torch.float64).expand(len(values))
            values = values.double()
        centre = (weight * values).sum() / weight.sum()
        deviation = ((weight * (values - centre) ** 2).sum() / weight.sum()).sqrt()
        mean.append(float(centre))
        std.append(float(deviation) or 1.0)
    return tuple(mean), tuple(std)


def _check_rows(name: str, split: str, x: Tensor, y: Tensor) -> None:
    if x.dtype not in (torch.uint8, torch.float32, torch.int64):
        raise TypeError(
            f"{name}: x_{split} is {x.dtype}, expected uint8 (0 to 255), float32, or int64 token ids; convert it"
        )
    if x.ndim not in (2, 4) or (x.dtype == torch.int64 and x.ndim != 2):
        raise ValueError(
            f"{name}: x_{split} is {x.dtype} {list(x.shape)}, expected images [n, c, h, w], rows [n, d] or token "
            "ids [n, length]"
        )
    if y.dtype != torch.int64 or y.ndim != 1:
        raise TypeError(f"{name}: y_{split} is {y.dtype} of shape {list(y.shape)}, expected int64 [n]")
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(
            f"{name}: x_{split} has {len(x)} rows and y_{split} {len(y)}; they must be equal and not zero"
        )
    if x.is_floating_point() and not bool(x.isfinite().all()):
        raise ValueError(f"{name}: x_{split} holds NaN or infinity; clean it first")


def _check_labels(name: str, split: str, y: Tensor, classes: int) -> None:
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise ValueError(f"{name}: y_{split} holds labels {low} to {high}, expected 0 to {classes - 1}")


def _check_column(name: str, column: str, values: Tensor, n: int) -> None:
    if column in ("x", "y", "t"):
        raise ValueError(f"{name}: a further column cannot be named {column!r}; rows have one of that name")
    if values.dtype not in (torch.int64, torch.float64):
        raise TypeError(f"{name}: column {column!r} is {values.dtype}, expected int64 or float64; convert it")
    if values.shape != (n,):
        raise ValueError(
            f"{name}: column {column!r} has shape {list(values.shape)}, expected a number a row: [{n}]"
        )
