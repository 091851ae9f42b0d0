"""Buffers of replaykit as storage of Avalanche's own replay plugin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils.data import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.training.storage_policy import ExemplarsBuffer
from torch import Tensor
from torch.utils.data import Dataset

from replaykit.avalanche.dataset import TASK_LABELS, column_names, pieces
from replaykit.avalanche.samples import Split, decode, encode, stored_columns
from replaykit.buffer import Buffer
from replaykit.probe import Probe
from replaykit.store import Batch, IntArray


class StoragePolicy(ExemplarsBuffer):
    """An `ExemplarsBuffer` whose rows live in a buffer, for `ReplayPlugin(storage_policy=...)` and its like.

    It is updated after every experience or sub-experience, with all its samples at once. Samples are stored
    as they are before the transforms of training, which Avalanche applies at every visit; the stream itself
    is not held. Data sets of any shape will do, with or without task labels, as long as every part of a
    sample is a tensor, a number, a NumPy array or a PIL image, of one shape throughout.

    Args:
        buffer: where the rows live. Its capacity is the `mem_size` that the plugin must be given.
        probe: makes the probe of a strategy, if the policy needs one; default: the strategy's model, shown the
            samples as they are stored.
        like: for a buffer that has rows already (a restored one): the data set that they came from, whose class,
            transforms and attributes the buffer does not hold. Where data sets with different transforms came by,
            a list of them, in the order in which they came. Default: known from the first update on.

    Raises:
        ValueError: `buffer` is asked for while there are rows and no data set is known.

    Columns: x and y; `t`, when there are task labels; the other attributes of the data set under their names;
    `pipeline`, once data sets with other transforms than the first one's have come by.
    """

    def __init__(
        self, buffer: Buffer, probe: Callable[[Any], Probe] | None = None, like: Any | Sequence[Any] = ()
    ) -> None:
        # Not the constructor of Avalanche, which would set a size of its own.
        if not isinstance(buffer, Buffer):
            raise TypeError(f"expected a replaykit.Buffer, got {type(buffer).__name__}")
        self.memory, self.probe = buffer, probe
        self._splits: list[Split] = []
        self._kinds: tuple[tuple[str, str], ...] = ()
        self._form: _Form | None = None
        self._shown: tuple[int, int, int] = (-1, -1, -1)
        self._buffer: Any = AvalancheDataset([])
        for dataset in like if isinstance(like, (list, tuple)) else [like]:
            self._learn(dataset)

    @property
    def max_size(self) -> int:
        """The capacity of the buffer; change it by `resize`."""
        return self.memory.capacity

    def update(self, strategy: Any, **kwargs: Any) -> None:
        self.post_adapt(strategy, strategy.experience)

    def post_adapt(self, agent_state: Any, exp: Any) -> None:
        """Offer the samples of an experience to the buffer.

        Raises:
            TypeError, ValueError: samples that do not fit the memory. Nothing has changed then.
        """
        dataset = exp.dataset
        if len(dataset) == 0:
            return
        batch, kinds, splits = self._columns(dataset)
        if self._kinds and kinds != self._kinds:
            raise ValueError(f"the memory holds samples of {dict(self._kinds)}, got {dict(kinds)}")
        self.memory.add(batch, self._probe(agent_state))
        self._kinds, self._splits, self._form = kinds, splits, _Form.of(dataset)

    def resize(self, strategy: Any, new_size: int) -> None:
        """Change the capacity as the policy of the buffer does it; most refuse to grow."""
        self.memory.resize(new_size)
        self._shown = (-1, -1, -1)

    @property
    def buffer(self) -> Any:
        """The stored samples as a data set with the columns of the current data (a view of the memory)."""
        if self._form is None and len(self.memory):
            raise ValueError(
                f"the memory holds {len(self.memory)} rows, and no data set says what samples they are; pass "
                "StoragePolicy(buffer, like=dataset) the data set that they came from"
            )
        state = (self.memory.seen, len(self.memory), self.memory.capacity)
        if state != self._shown and self._form is not None:
            self._buffer, self._shown = self._view(self._form), state
        return self._buffer

    # -- inside ---------------------------------------------------------------------------------------

    def _learn(self, dataset: Any) -> None:
        """What samples of a data set are, without storing any."""
        if len(dataset) == 0:
            return
        first = [int(piece.where[0]) for piece in pieces(dataset._flat_data) if len(piece.where)]
        batch, kinds, splits = self._columns(dataset.subset(sorted(first)))
        store = self.memory.store
        if len(store):
            if unknown := sorted(batch.keys() - store.columns.keys() - {"pipeline"}):
                raise ValueError(
                    f"the memory has columns {sorted(store.columns)}, samples like these have also {unknown}"
                )
            if "pipeline" in store.columns:
                batch.setdefault("pipeline", torch.zeros(len(first), dtype=torch.int16))
            store.check(batch)
        self._kinds, self._splits, self._form = kinds, splits, _Form.of(dataset)

    def _probe(self, agent: Any) -> Probe | None:
        if not self.memory.policy.needs:
            return None
        return self.probe(agent) if self.probe else Probe(agent.model)

    def _columns(self, dataset: Any) -> tuple[Batch, tuple[tuple[str, str], ...], list[Split]]:
        """The samples of a data set as columns, the kind of each, and the splits known afterwards."""
        splits, parts = list(self._splits), []
        pipeline = torch.zeros(len(dataset), dtype=torch.int16)
        for piece in pieces(dataset._flat_data):
            split = Split.of(piece)
            known = [i for i, other in enumerate(splits) if other.read == split.read]
            if not known:
                splits.append(split)
            pipeline[torch.from_numpy(piece.where)] = known[0] if known else len(splits) - 1
            parts.append((torch.from_numpy(piece.where), stored_columns(piece, split)))
        coded = _merged(parts)
        attributes = list(dataset._data_attributes.values())
        coded += [encode(list(attribute), f"attribute {attribute.name}") for attribute in attributes]
        held = len(coded) - len(attributes)
        names = column_names(None, held) + tuple(_attribute_column(a.name) for a in attributes)
        batch = dict(zip(names, (column for _, column in coded), strict=True))
        if len(splits) > 1:
            batch["pipeline"] = pipeline
        return batch, tuple(zip(names, (kind for kind, _ in coded), strict=True)), splits

    def _view(self, form: _Form) -> Any:
        store = self.memory.store
        slots = store.filled.copy()
        if "pipeline" not in store.columns:
            return self._shown_through(self._splits[0], slots, form)
        number = store.host("pipeline")[slots]
        if len(slots) and number.max() >= len(self._splits):
            raise ValueError(
                f"rows of the memory came with {int(number.max()) + 1} different transforms, {len(self._splits)} "
                "are known; pass like= a list of the data sets, in the order in which they came"
            )
        parts = [self._shown_through(self._splits[p], slots[number == p], form) for p in np.unique(number)]
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.concat(part)
        return whole

    def _shown_through(self, split: Split, slots: IntArray, form: _Form) -> Any:
        """Rows of the memory as a data set of the class, attributes and transforms that they came with."""
        kinds = dict(self._kinds)
        attributes = [
            DataAttribute(_Values(self.memory, column, kinds[column], slots), name, in_sample)
            for name, in_sample in form.attributes
            for column in [_attribute_column(name)]
        ]
        held = dict(self._kinds[: len(kinds) - len(attributes)])
        return form.kind(
            [_Rows(self.memory, held, slots)],
            data_attributes=attributes,
            transform_groups=split.transform_groups(),
            collate_fn=form.collate,
        )


@dataclass(frozen=True)
class _Form:
    """What a data set is, without the data: its class, attributes (name, part of a sample), collation."""

    kind: type
    attributes: tuple[tuple[str, bool], ...]
    collate: Callable[[list[Any]], Any]

    @classmethod
    def of(cls, dataset: Any) -> _Form:
        attributes = ((name, a.use_in_getitem) for name, a in dataset._data_attributes.items())
        return cls(type(dataset), tuple(attributes), dataset.collate_fn)


class _Rows(Dataset[tuple[Any, ...]]):
    """Samples of a memory, before the transforms of training."""

    def __init__(self, memory: Buffer, kinds: dict[str, str], slots: IntArray) -> None:
        self.memory, self.kinds, self.slots = memory, kinds, slots

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        row = self.memory.read(self.slots[index : index + 1], self.kinds)
        return tuple(decode(kind, row[name][0].cpu()) for name, kind in self.kinds.items())


class _Values(Sequence[Any]):
    """One attribute of the samples of a memory."""

    def __init__(self, memory: Buffer, column: str, kind: str, slots: IntArray) -> None:
        self.memory, self.column, self.kind, self.slots = memory, column, kind, slots

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, index: Any) -> Any:
        row = self.memory.read(self.slots[index : index + 1], [self.column])[self.column]
        return decode(self.kind, row[0].cpu())


def _attribute_column(name: str) -> str:
    return "t" if name == TASK_LABELS else name


def _merged(parts: list[tuple[Tensor, list[tuple[str, Tensor]]]]) -> list[tuple[str, Tensor]]:
    """The columns of several pieces in the order of the data set."""
    kinds = [[kind for kind, _ in columns] for _, columns in parts]
    if any(other != kinds[0] for other in kinds):
        raise TypeError(f"the data set joins samples of different kinds: {kinds}")
    order = torch.cat([where for where, _ in parts]).argsort()
    columns = [torch.cat([columns[i][1] for _, columns in parts]) for i in range(len(kinds[0]))]
    return [(kind, column.index_select(0, order)) for kind, column in zip(kinds[0], columns, strict=True)]
