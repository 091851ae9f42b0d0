"""A small text that comes with scikit-learn, the documentation of its own classes, as token ids.

The words depend on the installed version of scikit-learn, so results are comparable within one installation only.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from typing_extensions import Unpack

from replaykit.benchmarks.data import Data
from replaykit.benchmarks.scenarios import Groups, IntArray
from replaykit.benchmarks.splits import SplitOptions, split
from replaykit.benchmarks.stream import Stream

SOURCES = ("cluster", "datasets", "decomposition", "ensemble", "linear_model", "metrics")
OTHER = "<other>"
_Windows: TypeAlias = list[tuple[int, list[str]]]


def documentation(
    length: int = 16, words: int = 1000, sources: Sequence[str] = SOURCES, per_source: int | None = None
) -> Data:
    """Windows of the documentation of scikit-learn's modules: token ids int64 [n, length], label = module.

    Docstrings of a module's public names in alphabetical order, lower case, letters only, cut into windows one
    after the other; every fifth window of a module is for testing. Id 0 stands for every word that is not among
    the most frequent of the training windows.

    Args:
        length: words of a window.
        words: size of the vocabulary, id 0 included.
        sources: names of modules of scikit-learn.
        per_source: number of windows of each module, from its beginning; all without.

    Raises:
        ValueError: no such module, one without that many windows, or a number below 1.
    """
    if length < 1 or words < 2 or not sources:
        raise ValueError(f"expected length >= 1, words >= 2 and a source, got {length}, {words}, {list(sources)}")
    parts = [_windows(source, length, per_source) for source in sources]
    train = [(label, window) for label, part in enumerate(parts) for i, window in enumerate(part) if i % 5]
    test = [(label, window) for label, part in enumerate(parts) for window in part[::5]]
    count = Counter(word for _, window in train for word in window)
    # Of equally frequent words the first in the alphabet, so that the order of reading does not matter.
    frequent = sorted(count, key=lambda word: (-count[word], word))[: words - 1]
    ids = {word: number for number, word in enumerate(frequent, 1)}
    x_train, y_train = _ids(train, ids)
    x_test, y_test = _ids(test, ids)
    return Data(
        *("documentation", x_train, y_train, x_test, y_test, len(sources)),
        class_names=tuple(sources),
        source="scikit-learn",
        vocabulary=(OTHER, *frequent),
    )


def split_text(tasks: int | Groups = 3, length: int = 16, **options: Unpack[SplitOptions]) -> Stream:
    """Which module is a window of documentation from? Two modules a task. Options of `split`."""
    return split(documentation(length), tasks, **options)


def next_word(
    length: int = 8,
    words: int = 300,
    sources: Sequence[str] = SOURCES,
    per_source: int | None = None,
) -> Stream:
    """Language modelling: given `length` words, the next one; a task for each source, one head for all.

    Mini-batches carry the source as their task label, for memories and retrievals that mix sources. Arguments as
    for `documentation`.
    """
    text = documentation(length + 1, words, sources, per_source)
    (x_train, source_train, y_train), (x_test, source_test, y_test) = (
        (x[:, :-1].contiguous(), source.numpy(), x[:, -1].contiguous())
        for x, source in ((text.x_train, text.y_train), (text.x_test, text.y_test))
    )
    data = Data(
        *("next_word", x_train, y_train, x_test, y_test, len(text.vocabulary)),
        class_names=text.vocabulary,
        source=text.source,
        vocabulary=text.vocabulary,
    )
    train, test = ([np.flatnonzero(of == s) for s in range(len(sources))] for of in (source_train, source_test))
    return Stream(
        name="next_word",
        data=data,
        train=train,
        test=test,
        classes_per_task=[list(range(data.classes))] * len(sources),
        task_labels=True,
    )


def _windows(source: str, length: int, limit: int | None) -> list[list[str]]:
    try:
        module = importlib.import_module(f"sklearn.{source}")
        names = sorted(module.__all__)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(
            f"{source!r} is no module of scikit-learn with public names ({error}); such are {list(SOURCES)}"
        ) from error
    texts = [inspect.getdoc(getattr(module, name, None)) or "" for name in names]
    found = re.findall("[a-z]+", " ".join(texts).lower())
    windows = [found[start : start + length] for start in range(0, len(found) - length + 1, length)]
    if len(windows) < max(5, limit or 1) or (limit is not None and limit < 2):
        raise ValueError(
            f"sklearn.{source} has {len(windows)} windows of {length} words, asked for {limit or 'at least 5'}; "
            "choose a shorter length, another source, or per_source >= 2"
        )
    return windows[:limit]


def _ids(windows: _Windows, ids: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    tokens: IntArray = np.array([[ids.get(word, 0) for word in window] for _, window in windows], np.int64)
    return torch.from_numpy(tokens), torch.tensor([label for label, _ in windows])
