"""Avalanche benchmarks, networks and strategies small enough for tests."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from replaykit.retrieval import Prioritised
from replaykit.store import Store

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a missing QP solver, and deprecations in what it imports
    from avalanche.benchmarks import (
        benchmark_from_datasets,
        class_incremental_benchmark,
        nc_benchmark,
        tensors_benchmark,
    )
    from avalanche.benchmarks.utils.utils import as_classification_dataset
    from avalanche.core import SupervisedPlugin
    from avalanche.logging import BaseLogger
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

CLASSES = 4
DIM = 6


class Labelled(TensorDataset):
    """Tensors with the `targets` that Avalanche looks for."""

    def __init__(self, *tensors: Tensor) -> None:
        super().__init__(*tensors)
        self.targets = tensors[1]


class Silent(BaseLogger):
    """A logger that drops everything (an evaluator without any warns)."""


def rows(n: int = 80, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs [n, DIM], the first entry of each its number, and labels [n] of CLASSES separable classes."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    x = torch.randn(n, DIM, generator=g) + 2 * nn.functional.one_hot(y, DIM)
    x[:, 0] = torch.arange(n) / n
    return x, y


def unlabelled(n: int = 80, tasks: int = 2, data: TensorDataset | None = None) -> Any:
    """Class-incremental, mini-batches [x, y]: the new style of benchmark."""
    data = data or Labelled(*rows(n))
    held = as_classification_dataset(data)
    return class_incremental_benchmark(
        {"train": held, "test": held}, num_experiences=tasks, class_order=list(range(CLASSES))
    )


def classic(n: int = 80, tasks: int = 2, task_labels: bool = False, **options: Any) -> Any:
    """The classic benchmark: mini-batches [x, y, t], classes numbered by a frozen transform."""
    data = Labelled(*rows(n))
    return nc_benchmark(data, data, n_experiences=tasks, task_labels=task_labels, seed=1, **options)


def several(n: int = 80) -> Any:
    """A tensor data set for each of two experiences, classes mixed."""
    x, y = rows(n)
    parts = [as_classification_dataset(Labelled(x[i::2], y[i::2])) for i in range(2)]
    return benchmark_from_datasets(train=parts, test=parts)


def joined(n: int = 80) -> Any:
    """Experiences that concatenate rows of two tensor data sets."""
    x, y = rows(n)
    parts = [as_classification_dataset(Labelled(x[i::2], y[i::2])) for i in range(2)]
    whole = parts[0].concat(parts[1])
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()
    halves = [whole.subset(order[: n // 2]), whole.subset(order[n // 2 :])]
    return benchmark_from_datasets(train=halves, test=halves)


def numbers(n: int = 80) -> Any:
    """Labels that come as Python numbers, with a task label for each experience."""
    x, y = rows(n)
    return tensors_benchmark(
        train_tensors=[(x[i::2], y[i::2]) for i in range(2)],
        test_tensors=[(x, y)],
        task_labels=[0, 1],
    )


def mlp(classes: int = CLASSES, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(DIM, 8), nn.ReLU(), nn.Linear(8, classes))


def template(model: nn.Module | None = None, lr: float = 0.1, **options: Any) -> dict[str, Any]:
    """Arguments of a strategy: SGD, batches of 5, no output."""
    model = model or mlp()
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=lr),
        "train_mb_size": 5,
        "eval_mb_size": 16,
        "evaluator": EvaluationPlugin(loggers=[Silent()]),
        **options,
    }


def naive(*plugins: Any, **options: Any) -> Any:
    return Naive(**template(plugins=list(plugins), **options))


class Spy(SupervisedPlugin):
    """Keeps what it sees of every training iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[Tensor]] = []
        self.outputs: list[Tensor] = []
        self.from_memory: list[Tensor] = []
        self.losses: list[float] = []

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.batches.append([column.clone() for column in strategy.mbatch])
        self.from_memory.append(strategy.from_memory.clone())

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.outputs.append(strategy.mb_output.detach().clone())

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.losses.append(strategy.loss.item())


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@contextmanager
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert not caught, [str(warning.message) for warning in caught]


STREAMS = {
    "unlabelled": unlabelled,
    "classic": classic,
    "task labels": partial(classic, task_labels=True),
    "renumbered": partial(classic, class_ids_from_zero_from_first_exp=True),
    "several": several,
    "joined": joined,
    "numbers": numbers,
}


def minibatches(benchmark: Any, size: int, epochs: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels of a benchmark's training stream, in order, as a bare loop would read them."""
    for experience in benchmark.train_stream:
        whole_x, whole_y = zip(*experience.dataset, strict=True)
        for _ in range(epochs):
            for i in range(0, len(whole_x), size):
                yield torch.stack(whole_x[i : i + size]), torch.stack(whole_y[i : i + size])


class Told(Prioritised):
    """Notes every loss that it is told, by slot, in order."""

    def __init__(self, replace: bool = False) -> None:
        super().__init__(replace=replace)
        self.told: list[tuple[int, float]] = []

    def observe(self, store: Store, slots: np.ndarray, losses: np.ndarray) -> None:
        self.told += zip(slots.tolist(), losses.tolist(), strict=True)
        super().observe(store, slots, losses)

    def is_told(self, slots: np.ndarray, losses: Tensor) -> bool:
        """Whether of these slots, rows of which have always had these losses, nothing else was told."""
        known = dict(zip(slots.tolist(), losses.tolist(), strict=True))
        return all(abs(loss - known[slot]) < 1e-4 for slot, loss in self.told if slot in known)
