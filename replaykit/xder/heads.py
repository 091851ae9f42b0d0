"""Which outputs of a network belong to which task: sets of any size, in any order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Stage:
    """The outputs [c] as task `task` sees them. Outputs that no task owns are in none of the sets.

    Attributes:
        past, present, future: outputs of the tasks before, of this one and of those to come, bool [c].
        later: present or future.
        coming: the outputs of each task to come, as indices.
        owner: the outputs of the task that an output belongs to, bool [c, c].
    """

    task: int
    past: Tensor
    present: Tensor
    future: Tensor
    later: Tensor
    coming: tuple[Tensor, ...]
    owner: Tensor

    def own(self, y: Tensor) -> Tensor:
        """The outputs of the task that each label [n] belongs to, bool [n, c]."""
        return self.owner[y]


class Heads:
    """The outputs of one layer, divided among the tasks of a stream that is known beforehand.

    Args:
        classes_per_task: labels of each task, in the order of training; `Stream.classes_per_task` has it, and
            ``[e.classes_in_this_experience for e in benchmark.train_stream]``.

    Attributes:
        tasks: the same, as tuples.
        outputs: outputs that a network needs, one more than the largest label.

    Raises:
        TypeError: something else than lists of labels.
        ValueError: no task, a task without classes, a negative label, a label in two tasks.
    """

    def __init__(self, classes_per_task: Sequence[Sequence[int]] | None) -> None:
        try:
            if classes_per_task is None:
                raise TypeError("None has no tasks")
            self.tasks = tuple(tuple(int(label) for label in classes) for classes in classes_per_task)
        except TypeError as error:
            raise TypeError(
                "classes_per_task lists the labels of every task, such as [[0, 1], [2, 3]]; got "
                f"{classes_per_task!r}. X-DER needs to know the tasks (`Stream.classes_per_task` has them): a "
                "stream without them cannot be used, take DERpp there"
            ) from error
        labels = [label for classes in self.tasks for label in classes]
        if not self.tasks or not all(self.tasks):
            raise ValueError(f"every task has at least one class, got {list(self.tasks)}")
        if min(labels) < 0:
            raise ValueError(f"labels are numbers >= 0, got {min(labels)}")
        if len(set(labels)) != len(labels):
            twice = sorted(label for label, times in Counter(labels).items() if times > 1)
            few = ", ".join(map(str, twice[:5])) + ", ..." * (len(twice) > 5)
            raise ValueError(
                f"X-DER needs tasks that share no class, but [{few}] are in several; a stream of domains or with "
                "blurry boundaries is one for DERpp"
            )
        self.outputs = max(labels) + 1

    def __len__(self) -> int:
        """Number of tasks."""
        return len(self.tasks)

    def stage(self, task: int, outputs: int, device: torch.device | str = "cpu") -> Stage:
        """The outputs as seen from a task, counted from 0, of a network that has `outputs` of them."""
        if outputs < self.outputs:
            raise ValueError(
                f"the network has {outputs} outputs, the largest label is {self.outputs - 1}; give it at least "
                f"{self.outputs} outputs"
            )
        of = torch.full((outputs,), -1)
        for number, classes in enumerate(self.tasks):
            of[list(classes)] = number
        of = of.to(device)
        return Stage(
            task,
            past=(of >= 0) & (of < task),
            present=of == task,
            future=of > task,
            later=of >= task,
            coming=tuple(torch.tensor(classes, device=device) for classes in self.tasks[task + 1 :]),
            owner=of[:, None] == of,
        )


class SeenOutputs(nn.Module):
    """A network that predicts some classes only, those of `labels`: its other outputs are -inf."""

    def __init__(self, network: nn.Module, labels: Sequence[int]) -> None:
        super().__init__()
        self.network, self.labels = network, list(labels)

    def forward(self, x: Tensor) -> Tensor:
        return only(self.network(x), self.labels)


def only(z: Tensor, labels: Sequence[int]) -> Tensor:
    """Outputs [n, c] with all but those of some labels at -inf; all of them where there is no label."""
    if len(labels) == 0:
        return z
    kept = torch.full_like(z, float("-inf"))
    index = torch.tensor(labels, device=z.device)
    return kept.index_copy(1, index, z.index_select(1, index))
