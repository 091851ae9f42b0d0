"""Reading an Avalanche data set as whole tensors, when that is what lies underneath it.

An `AvalancheDataset` is a tree: subsets, concatenations and transforms around the data sets that hold the
samples. Here the tree is walked once, with arrays of rows, instead of once a sample.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils.data import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData, LazyIndices
from avalanche.benchmarks.utils.transforms import MultiParamCompose, TupleTransform
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from torch.utils.data.dataloader import default_collate

from replaykit.store import IntArray

TASK_LABELS = "targets_task_labels"


class NotTensors(Exception):
    """Why the rows of a data set are not simply rows of whole tensors."""


@dataclass(frozen=True)
class Piece:
    """Rows of one data set that holds samples, and what the tree around it does to them.

    Attributes:
        leaf: the data set, or for an attribute the sequence of values.
        rows: rows of the leaf [m].
        where: their positions in the whole data set [m].
        levels: groups of transforms (frozen, current), from the leaf outward.
    """

    leaf: Any
    rows: IntArray
    where: IntArray
    levels: tuple[tuple[Any, Any], ...]


@dataclass(frozen=True)
class TensorRows:
    """A data set as `rows` [n] of whole columns; with rows None, as the columns themselves."""

    columns: list[Tensor]
    rows: IntArray | None

    def __len__(self) -> int:
        return len(self.columns[0]) if self.rows is None else len(self.rows)

    def gathered(self) -> list[Tensor]:
        """Every column, its rows in the order of the data set [n, ...]."""
        if self.rows is None:
            return self.columns
        where = torch.from_numpy(self.rows)
        return [column.index_select(0, where.to(column.device)) for column in self.columns]


class Kept:
    """The last few values computed for some objects, which are held so that their identity stays theirs."""

    def __init__(self, size: int = 8) -> None:
        self.size = size
        self._values: OrderedDict[tuple[int, ...], tuple[tuple[Any, ...], Any]] = OrderedDict()

    def get(self, objects: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        key = tuple(map(id, objects))
        if key not in self._values:
            self._values[key] = (objects, compute())
            if len(self._values) > self.size:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key][1]

    def __reduce__(self) -> tuple[type[Kept], tuple[int]]:
        """A copy starts empty: checkpoints of a strategy must not carry its data."""
        return Kept, (self.size,)


def column_names(dataset: Any, width: int) -> tuple[str, ...]:
    """Names of the `width` columns of a mini-batch: x, y, what the samples have beyond, then attributes.

    Raises:
        ValueError: fewer than two columns, or an attribute named like a column.
    """
    attributes = [
        "t" if name == TASK_LABELS else name
        for name, attribute in getattr(dataset, "_data_attributes", {}).items()
        if attribute.use_in_getitem
    ]
    held = width - len(attributes)
    if held < 2:
        raise ValueError(f"a mini-batch needs x and y, got {held} columns and the attributes {attributes}")
    names = ("x", "y", *(f"column{i}" for i in range(2, held)), *attributes)
    if len(set(names)) < width:
        raise ValueError(f"columns of a mini-batch need names of their own, got {list(names)}")
    return names


# -- the tree ---------------------------------------------------------------------------------------


def pieces(node: Any, rows: IntArray | None = None) -> list[Piece]:
    """What lies under the given rows (default: all) of a data set or attribute."""
    if rows is None:
        rows = np.arange(len(node))
    return list(_walk(node, rows, np.arange(len(rows))))


def _walk(node: Any, rows: IntArray, where: IntArray) -> Iterator[Piece]:
    if isinstance(node, AvalancheDataset):
        yield from _walk(node._flat_data, rows, where)
    elif isinstance(node, DataAttribute):
        yield from _walk(node.data, rows, where)
    elif isinstance(node, FlatData):
        if node._indices is not None:
            rows = _lookup(node._indices, rows)
        level = (getattr(node, "_frozen_transform_groups", None), getattr(node, "_transform_groups", None))
        for piece in _among(node._datasets, node._cumulative_sizes, rows, where):
            outer = () if level == (None, None) else (level,)
            yield Piece(piece.leaf, piece.rows, piece.where, piece.levels + outer)
    elif type(node) is Subset:
        yield from _walk(node.dataset, _lookup(node.indices, rows), where)
    elif type(node) is ConcatDataset:
        yield from _among(node.datasets, node.cumulative_sizes, rows, where)
    else:
        yield Piece(node, rows, where, ())


def _among(parts: list[Any], ends: list[int], rows: IntArray, where: IntArray) -> Iterator[Piece]:
    """Split rows of a concatenation over its parts, part p ending before row ends[p]."""
    if len(parts) == 1:
        yield from _walk(parts[0], rows, where)
        return
    owner = np.searchsorted(np.asarray(ends), rows, side="right")
    for part in np.unique(owner):
        mine = np.flatnonzero(owner == part)
        start = ends[part - 1] if part else 0
        yield from _walk(parts[part], rows[mine] - start, where[mine])


def _lookup(indices: Any, rows: IntArray) -> IntArray:
    if 4 * len(rows) < len(indices):  # a mini-experience of a long one
        return np.fromiter((indices[row] for row in rows.tolist()), np.int64, len(rows))
    if isinstance(indices, LazyIndices) and isinstance(indices._eager_list, np.ndarray):
        indices = indices._eager_list
    return np.asarray(indices, dtype=np.int64)[rows]


# -- columns ----------------------------------------------------------------------------------------


def tensor_rows(dataset: Any, kept: Kept) -> TensorRows:
    """A data set as rows of whole tensors, with the columns and dtypes that collating its samples gives.

    Raises:
        NotTensors: there are transforms of x, samples that are not tensors, or a collate function.
    """
    if getattr(type(dataset), "__getitem__", None) is not AvalancheDataset.__getitem__:
        raise NotTensors(f"{type(dataset).__name__} is not a plain AvalancheDataset")
    if dataset.collate_fn is not default_collate:
        raise NotTensors("the data set has its own collate function")
    if len(dataset) == 0:
        raise NotTensors("the data set is empty")
    group = dataset._flat_data._transform_groups.current_group
    parts = pieces(dataset._flat_data)
    columns = [_columns(part, group, kept) for part in parts]
    attributes = [a for a in dataset._data_attributes.values() if a.use_in_getitem]
    constants = [_constant(attribute) for attribute in attributes]
    if len(parts) == 1 and None not in constants:
        n = len(columns[0][0])
        return TensorRows(columns[0] + [c.expand(n) for c in constants if c is not None], parts[0].rows)
    return TensorRows(_assembled(parts, columns, len(dataset)) + [_values(a) for a in attributes], None)


def _assembled(parts: list[Piece], columns: list[list[Tensor]], n: int) -> list[Tensor]:
    kinds = [[(column.dtype, column.shape[1:]) for column in part] for part in columns]
    if any(kind != kinds[0] for kind in kinds):
        raise NotTensors("the data set joins samples of different shapes or dtypes")
    whole = [torch.empty((n, *shape), dtype=dtype) for dtype, shape in kinds[0]]
    for part, held in zip(parts, columns, strict=True):
        rows, where = torch.from_numpy(part.rows), torch.from_numpy(part.where)
        for column, source in zip(whole, held, strict=True):
            column.index_copy_(0, where, source.index_select(0, rows))
    return whole


def _columns(piece: Piece, group: str, kept: Kept) -> list[Tensor]:
    """Whole columns of a leaf, labels already as the frozen transforms make them."""
    getitem = getattr(type(piece.leaf), "__getitem__", None)
    integers = type(piece.leaf).__name__ == "_TensorClassificationDataset"  # its labels come as numbers
    if not isinstance(piece.leaf, TensorDataset) or not (getitem is TensorDataset.__getitem__ or integers):
        raise NotTensors(f"samples come from a {type(piece.leaf).__name__}, not from a TensorDataset")
    columns = list(piece.leaf.tensors)
    if len(columns) < 2:
        raise NotTensors("samples have no label")
    if any(column.device.type != "cpu" or column.requires_grad for column in columns):
        raise NotTensors("tensors of the data set lie on a device or want a gradient")
    changes = _label_transforms(piece, group)
    if changes or integers:
        labels = columns[1]
        columns[1] = kept.get((labels, *changes), lambda: _mapped(labels, changes, integers))
    return columns


def _label_transforms(piece: Piece, group: str) -> list[Callable[[Any], Any]]:
    found: list[Callable[[Any], Any]] = []
    for frozen, current in piece.levels:
        for groups in (frozen, current):
            try:
                transform = groups.transform_groups[group]
            except KeyError:
                raise NotTensors(f"no transform group {group!r}") from None
            if transform is None or (isinstance(transform, MultiParamCompose) and not transform.transforms):
                continue
            if not isinstance(transform, TupleTransform):
                raise NotTensors(f"samples pass through a {type(transform).__name__}")
            for position, function in enumerate(transform.transforms):
                # Frozen transforms of labels, such as a change of class numbers, are fixed; others may draw.
                if function is not None and (position != 1 or groups is not frozen):
                    raise NotTensors(f"samples pass through a transform of {'xy'[position > 0]}")
                if function is not None:
                    found.append(function)
    return found


def _mapped(labels: Tensor, changes: list[Callable[[Any], Any]], integers: bool) -> Tensor:
    if labels.ndim != 1 or labels.dtype.is_floating_point:
        raise NotTensors("labels are transformed and not plain integers")
    values, inverse = np.unique(labels.numpy(), return_inverse=True)
    results: list[Any] = values.tolist() if integers else list(torch.from_numpy(values))
    try:
        for change in changes:
            results = [change(value) for value in results]
        return _collated(results).index_select(0, torch.from_numpy(inverse))
    except (TypeError, IndexError, KeyError, ValueError) as error:
        raise NotTensors(f"a transform of the labels fails on some of them: {error}") from error


def _collated(values: list[Any]) -> Tensor:
    column = default_collate(values)
    if not isinstance(column, Tensor):
        raise NotTensors(f"values of type {type(values[0]).__name__} do not collate to a tensor")
    return column


def _constant(attribute: Any) -> Tensor | None:
    """The one value of an attribute [1], or None when it has several."""
    leaves = [piece.leaf for piece in pieces(attribute)] if len(attribute) else []
    if not all(isinstance(leaf, ConstantSequence) for leaf in leaves):
        return None
    values = {leaf[0] for leaf in leaves}
    return _collated([values.pop()]) if len(values) == 1 else None


def _values(attribute: Any) -> Tensor:
    values: list[Any] = [None] * len(attribute)
    for piece in pieces(attribute):
        for position, row in zip(piece.where.tolist(), piece.rows.tolist(), strict=True):
            values[position] = piece.leaf[row]
    return _collated(values)
