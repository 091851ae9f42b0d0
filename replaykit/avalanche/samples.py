"""Samples of an Avalanche data set as columns, and back: what a memory behind `ReplayPlugin` has to keep.

A sample is stored as it is before the transforms that training applies anew at every visit, and after those
that are part of the data (frozen ones: class numbers, the permutation of Permuted MNIST). Whatever comes out
again has the type it had: a tensor, a number, a NumPy array or a PIL image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils.transform_groups import TransformGroups
from avalanche.benchmarks.utils.transforms import MultiParamTransform, TupleTransform
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from replaykit.avalanche.dataset import Piece

_EVERY_POSITION = frozenset(range(16))


# -- types of values ----------------------------------------------------------------------------------


def encode(values: Sequence[Any], name: str) -> tuple[str, Tensor]:
    """Values of one column as a tensor [n, ...], and the kind that `decode` turns them back to.

    Raises:
        TypeError: values that are no tensors, numbers, arrays or images.
    """
    first = values[0]
    if isinstance(first, Tensor):
        return "tensor", torch.stack(list(values))
    if isinstance(first, (bool, int, float, np.number)):
        return "number", torch.as_tensor(np.asarray(values))
    if isinstance(first, np.ndarray):
        return "array", torch.from_numpy(np.stack(values))
    if isinstance(first, Image.Image):
        return f"image {first.mode}", torch.from_numpy(np.stack([np.asarray(value) for value in values]))
    raise TypeError(
        f"{name} holds {type(first).__name__} values, which a memory cannot store; "
        "expected tensors, numbers, NumPy arrays or PIL images"
    )


def decode(kind: str, row: Tensor) -> Any:
    """One row of a column as the value it was."""
    if kind == "tensor":
        return row
    if kind == "number":
        return row.item()
    return row.numpy() if kind == "array" else Image.fromarray(row.numpy())


# -- transforms ---------------------------------------------------------------------------------------


class Chain(MultiParamTransform):
    """Transforms of whole samples, one after the other."""

    def __init__(self, steps: tuple[Any, ...]) -> None:
        self.steps = steps

    def __call__(self, *sample: Any) -> Any:
        for step in self.steps:
            sample = step(*sample)
        return sample

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and self.steps == other.steps

    def __hash__(self) -> int:
        return hash(len(self.steps))

    def flat_transforms(self, position: int) -> list[Any]:
        return [flat for step in self.steps for flat in step.flat_transforms(position)]


@dataclass(frozen=True)
class Split:
    """A piece's transforms: `stored` to apply before storing, `read` anew at every visit, by group."""

    stored: Chain
    read: dict[str, Chain]

    @classmethod
    def of(cls, piece: Piece) -> Split:
        names = {"train", "eval"}.union(*(groups.transform_groups for level in piece.levels for groups in level))
        divided = {name: _divided(piece, name) for name in sorted(names)}
        # What is stored must not depend on chance: below a frozen transform, those of evaluation stand in.
        return cls(divided["eval"][0], {name: read for name, (_, read) in divided.items()})

    def transform_groups(self) -> TransformGroups | None:
        """What is left for reading, or None when it is nothing."""
        if not any(chain.steps for chain in self.read.values()):
            return None
        return TransformGroups({name: chain if chain.steps else None for name, chain in self.read.items()})


def _divided(piece: Piece, group: str) -> tuple[Chain, Chain]:
    """Everything up to the last frozen transform that touches the same part of a sample, and the rest."""
    stored: list[Any] = []
    read: list[Any] = []
    fixed: frozenset[int] = frozenset()
    for step, positions, frozen in reversed(list(_steps(piece, group))):
        if frozen or positions & fixed:
            fixed |= positions
            stored.append(step)
        else:
            read.append(step)
    return Chain(tuple(reversed(stored))), Chain(tuple(reversed(read)))


def _steps(piece: Piece, group: str) -> Iterator[tuple[Any, frozenset[int], bool]]:
    """The transforms of a piece, each with the parts of a sample that it touches and whether it is frozen."""
    for frozen, current in piece.levels:
        for groups in (frozen, current):
            # Groups that are the same for every name fill themselves in when asked; others may lack one.
            transform = groups[group] if group in groups.transform_groups or _any_name(groups) else None
            if transform is None:
                continue
            if not isinstance(transform, TupleTransform):
                yield transform, _EVERY_POSITION, groups is frozen
                continue
            for position, function in enumerate(transform.transforms):
                if function is not None:
                    alone = TupleTransform([None] * position + [function])
                    yield alone, frozenset((position,)), groups is frozen


def _any_name(groups: Any) -> bool:
    return hasattr(groups.transform_groups, "default_factory")


# -- samples ------------------------------------------------------------------------------------------


def stored_columns(piece: Piece, split: Split) -> list[tuple[str, Tensor]]:
    """The samples of a piece as they are stored: kind and values [m, ...] of every part."""
    leaf = piece.leaf
    if type(leaf).__getitem__ is TensorDataset.__getitem__ and not split.stored.steps:
        where = torch.from_numpy(piece.rows)
        return [("tensor", column.index_select(0, where)) for column in leaf.tensors]
    samples = [split.stored(*leaf[row]) for row in piece.rows.tolist()]
    return [encode(values, f"column {i}") for i, values in enumerate(zip(*samples, strict=True))]
