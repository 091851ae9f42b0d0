"""A stream of tasks over one data set: which rows belong to which task, and what each task does to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from replaykit.benchmarks.data import Data
from replaykit.benchmarks.scenarios import IntArray

Split: TypeAlias = Literal["train", "test"]


@dataclass(frozen=True, eq=False, repr=False)
class Stream:
    """Tasks as lists of row numbers; for our own loops by `tensors`, for Avalanche by its two streams.

        for task in range(len(stream)):
            x, y = stream.tensors(task)

        for experience in stream.train_stream:
            strategy.train(experience)
            strategy.eval(stream.test_stream)

    Both give the raw rows of the data set, uint8 unless it was made ``as_float``. The Avalanche data sets lie
    over the whole tensors without a copy, with one column of task labels as `task_labels` says.

    Attributes:
        name: what the stream is called in results.
        data: the data set; its labels are those that training sees.
        train, test: row numbers of every task, in the order of the stream.
        classes_per_task: the classes that belong to every task (to its centre, where boundaries are blurry).
        change: ``(x, task) -> x`` of the same shape and dtype, applied to the rows of a task.
        task_labels: True gives every row its task's number, False gives 0 as Avalanche's class-incremental
            benchmarks do, None leaves the column out.
        true_labels: labels before noise [n_train], None where no noise was added.
        transform, eval_transform: applied by Avalanche row by row to training and test rows, e.g. torchvision
            transforms. Test rows get `transform` too where `eval_transform` is not given, as in Avalanche. Slow;
            leave them out where the images are normalised and augmented in batches.
        test_task: the test task that every training task belongs to, in ascending order, where the two are cut
            otherwise (see `in_batches`); None where they go in pairs.

    Raises:
        ValueError: lists of different lengths, an empty task, rows that do not exist or come twice in a task,
            test tasks that do not exist or do not ascend.
    """

    name: str
    data: Data
    train: Sequence[IntArray]
    test: Sequence[IntArray]
    classes_per_task: Sequence[Sequence[int]]
    change: Callable[[Tensor, int], Tensor] | None = None
    task_labels: bool | None = False
    true_labels: Tensor | None = None
    transform: Callable[[Any], Any] | None = None
    eval_transform: Callable[[Any], Any] | None = None
    test_task: Sequence[int] | None = None
    _changed: dict[tuple[str, int], Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        lengths = (len(self.train), len(self.test), len(self.classes_per_task))
        if not self.train or lengths[0] != lengths[2] or (self.paired and lengths[0] != lengths[1]):
            raise ValueError(f"{self.name}: train, test and classes_per_task need one entry a task, got {lengths}")
        self._check_test_task()
        for split in ("train", "test"):
            n = len(getattr(self.data, f"y_{split}"))
            for task, rows in enumerate(getattr(self, split)):
                _check_rows(f"{self.name}, task {task}, {split}", rows, n)

    def _check_test_task(self) -> None:
        given, tasks = list(self.test_task or ()), len(self.test)
        fits = len(given) == len(self) and given == sorted(given) and given[0] >= 0 and given[-1] < tasks
        if not self.paired and not fits:
            raise ValueError(
                f"{self.name}: test_task needs a number in 0..{tasks - 1} for each of the {len(self)} training "
                f"tasks, in ascending order, got {given}"
            )

    def __len__(self) -> int:
        """Number of training tasks."""
        return len(self.train)

    @property
    def paired(self) -> bool:
        """Whether every training task has a test task of its own."""
        return self.test_task is None

    @property
    def current(self) -> list[int]:
        """The test task in training during every training task: `current` of `replaykit.metrics`."""
        return list(range(len(self)) if self.test_task is None else self.test_task)

    @property
    def classes(self) -> int:
        """Number of classes, which is the width of the one head."""
        return self.data.classes

    @property
    def class_order(self) -> list[int]:
        """The classes in their order of appearance."""
        return list(dict.fromkeys(c for group in self.classes_per_task for c in group))

    def tensors(self, task: int, split: Split = "train") -> tuple[Tensor, Tensor]:
        """Rows x [n, ...] and labels y [n] of a task, in the order of the stream.

        Where tasks change their rows, the changed test rows of every task and training rows of the last task
        asked for are kept (do not write to them), so that evaluating again costs nothing.

        Raises:
            IndexError: no such task.
            ValueError: a split other than "train" and "test".
        """
        rows = torch.from_numpy(self.rows(task, split))
        x, y = (getattr(self.data, f"{axis}_{split}") for axis in "xy")
        if self.change is None:
            return x.index_select(0, rows), y.index_select(0, rows)
        if (split, task) not in self._changed:
            if split == "train":
                for key in [key for key in self._changed if key[0] == "train"]:
                    del self._changed[key]
            self._changed[split, task] = self.change(x.index_select(0, rows), task)
        return self._changed[split, task], y.index_select(0, rows)

    def rows(self, task: int, split: Split = "train") -> IntArray:
        """Row numbers of a task in the tensors of `data`. Raises as `tensors`."""
        if split not in ("train", "test"):
            raise ValueError(f"split is 'train' or 'test', got {split!r}")
        listed: Sequence[IntArray] = getattr(self, split)
        if not 0 <= task < len(listed):
            raise IndexError(f"{self.name} has tasks 0..{len(listed) - 1}, got {task}")
        return listed[task]

    @cached_property
    def scenario(self) -> Any:
        """The stream as an Avalanche ``CLScenario``."""
        # Avalanche takes seconds to import, and only its users should wait.
        from replaykit.benchmarks.experiences import make_scenario

        return make_scenario(self)

    @property
    def train_stream(self) -> Any:
        """Avalanche's training stream: one experience a task, made when asked for."""
        return self.scenario.train_stream

    @property
    def test_stream(self) -> Any:
        """Avalanche's test stream: one experience a task."""
        return self.scenario.test_stream

    def __repr__(self) -> str:
        rows = [len(rows) for rows in self.train]
        return f"Stream({self.name!r}, {len(self)} tasks of {rows} rows, {self.classes} classes, {self.data!r})"


def _check_rows(where: str, rows: IntArray, n: int) -> None:
    if len(rows) == 0:
        raise ValueError(f"{where}: no rows; give the task other classes or keep more of the data")
    if rows.min() < 0 or rows.max() >= n:
        raise ValueError(f"{where}: row numbers {rows.min()} to {rows.max()}, the data have rows 0 to {n - 1}")
    if len(np.unique(rows)) != len(rows):
        raise ValueError(f"{where}: a row number comes twice")
