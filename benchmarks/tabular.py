"""Tabular data that come with scikit-learn, standardised, and streams over them."""

from __future__ import annotations

import numpy as np
import torch
from typing_extensions import Unpack

from replaykit.benchmarks.data import Data
from replaykit.benchmarks.domains import DomainOptions, permuted
from replaykit.benchmarks.scenarios import Groups
from replaykit.benchmarks.splits import SplitOptions, split
from replaykit.benchmarks.stream import Stream


def wine() -> Data:
    """178 wines of three cultivars, 13 chemical measurements; every fifth row of a class is for testing."""
    return _table("wine")


def breast_cancer() -> Data:
    """569 tumours, malignant or benign, 30 measurements; every fifth row of a class is for testing."""
    return _table("breast_cancer")


def _table(name: str) -> Data:
    """Feature rows, float32, with the mean and the deviation of the training rows taken out."""
    from sklearn import datasets

    loaded = getattr(datasets, f"load_{name}")()
    labels = np.asarray(loaded.target, np.int64)
    x = torch.from_numpy(np.asarray(loaded.data, np.float64))
    y = torch.from_numpy(labels)
    classes = int(labels.max()) + 1
    held = torch.zeros(len(y), dtype=torch.bool)
    held[torch.from_numpy(np.concatenate([np.flatnonzero(labels == c)[::5] for c in range(classes)]))] = True
    x = ((x - x[~held].mean(0)) / x[~held].std(0, correction=0)).float()
    names = tuple(map(str, loaded.target_names))
    return Data(name, x[~held], y[~held], x[held], y[held], classes, class_names=names, source="scikit-learn")


def split_wine(tasks: int | Groups = 3, **options: Unpack[SplitOptions]) -> Stream:
    """The wines, one cultivar a task, without any file. Options of `split`."""
    return split(wine(), tasks, **options)


def permuted_breast_cancer(tasks: int = 5, **options: Unpack[DomainOptions]) -> Stream:
    """The tumours, with the columns of the table shuffled anew in every task. Options of `permuted`."""
    return permuted(breast_cancer(), tasks, **options)
