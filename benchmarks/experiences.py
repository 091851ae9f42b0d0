"""A stream's tasks as Avalanche experiences. Imported when first asked for, since Avalanche takes seconds."""

# mypy: disallow-subclassing-any=False
# (Avalanche ships no types.)

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
from avalanche.benchmarks.scenarios.generic_scenario import CLScenario, SequenceCLStream
from avalanche.benchmarks.utils.classification_dataset import (
    ClassificationDataset,
    TaskAwareSupervisedClassificationDataset,
)
from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from torch import Tensor
from torch.utils.data import TensorDataset

from replaykit.benchmarks.scenarios import IntArray

if TYPE_CHECKING:
    from replaykit.benchmarks.stream import Split, Stream


def make_scenario(stream: Stream) -> CLScenario:
    """Train and test stream, with the attributes of class-incremental benchmarks that plugins read."""
    streams = [TaskStream(stream, "train"), TaskStream(stream, "test")]
    scenario = CLScenario(streams)
    scenario.n_classes = stream.classes
    scenario.classes_order = stream.class_order
    scenario.n_classes_per_exp = [len(group) for group in stream.classes_per_task]
    for each in streams:
        each.benchmark = scenario
    return scenario


class TaskStream(SequenceCLStream):
    """Experiences of one split, each made when it is first asked for.

    Where tasks change their rows, training experiences are made anew each time, so that the images of
    earlier tasks can leave the memory.
    """

    def __init__(self, stream: Stream, split: Split) -> None:
        super().__init__(split, benchmark=None)
        self._stream, self._split = stream, split
        self._keeps = stream.change is None or split == "test"
        self._made: dict[int, DatasetExperience] = {}

    def _full_length(self) -> int:
        return len(getattr(self._stream, self._split))

    def _make_experience(self, experience_idx: int) -> DatasetExperience:
        if experience_idx in self._made:
            return self._made[experience_idx]
        experience = self._experience(experience_idx)
        if self._keeps:
            self._made[experience_idx] = experience
        return experience

    def _experience(self, task: int) -> DatasetExperience:
        experience = DatasetExperience(dataset=self._dataset(task), current_experience=task)
        experience.benchmark = self.benchmark
        earlier = {c for group in self._classes[:task] for c in group}
        seen = earlier.union(self._classes[task])
        experience.classes_in_this_experience = list(self._classes[task])
        experience.previous_classes = sorted(earlier)
        experience.classes_seen_so_far = sorted(seen)
        experience.future_classes = sorted({c for group in self._classes for c in group} - seen)
        if self._stream.task_labels is not None:
            experience.task_label = self._task_label(task)
            experience.task_labels = [experience.task_label]
        return experience

    def _dataset(self, task: int) -> Any:
        """The rows of a task, over whole tensors: the data set's own, or those that the task changed."""
        rows = self._stream.rows(task, self._split)
        if self._stream.change is None:
            data = self._whole.subset(rows.tolist())
        else:
            data = self._over(*self._stream.tensors(task, self._split), rows)
        if self._stream.task_labels is None:
            return data
        labels = TaskLabels(ConstantSequence(self._task_label(task), len(rows)))
        return TaskAwareSupervisedClassificationDataset([data], data_attributes=[labels])

    def _task_label(self, task: int) -> int:
        return task if self._stream.task_labels else 0

    @cached_property
    def _whole(self) -> Any:
        data = self._stream.data
        if self._split == "train":
            return self._over(data.x_train, data.y_train, None)
        return self._over(data.x_test, data.y_test, None)

    def _over(self, x: Tensor, y: Tensor, rows: IntArray | None) -> Any:
        """An Avalanche data set over tensors, with the attributes of the given rows (all without)."""
        attributes = [DataAttribute(y.tolist(), "targets")]
        if self._split == "train" and self._stream.true_labels is not None:
            true = self._stream.true_labels.numpy()
            attributes.append(DataAttribute((true if rows is None else true[rows]).tolist(), "true_targets"))
        for name, column in self._stream.data.columns.items() if self._split == "train" else ():
            values = (column if rows is None else column[torch.from_numpy(rows)]).tolist()
            attributes.append(DataAttribute(values, name, use_in_getitem=True))
        transform = self._stream.transform
        groups = {"train": transform, "eval": self._stream.eval_transform or transform}
        # Without transforms Avalanche can flatten subsets, down to the tensors and one list of rows.
        given = groups if any(groups.values()) else None
        data = ClassificationDataset([TensorDataset(x, y)], data_attributes=attributes, transform_groups=given)
        return data if self._split == "train" else data.eval()

    @cached_property
    def _classes(self) -> list[list[int]]:
        """The classes whose labels occur in every task."""
        data = self._stream.data
        y = (data.y_train if self._split == "train" else data.y_test).numpy()
        return [np.unique(y[self._stream.rows(task, self._split)]).tolist() for task in range(self._full_length())]
