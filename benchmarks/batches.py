"""Streams without tasks: any stream cut anew into batches of equal size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from replaykit.benchmarks.stream import Stream


def in_batches(stream: Stream, rows: int, keep_rest: bool = False) -> Stream:
    """The same rows in the same order, as training tasks of so many rows; the test tasks stay what they are.

    A batch may hold the end of one task and the beginning of the next, so nothing tells a learner where tasks
    change. In results, a batch belongs to the test task of its last row (`Stream.test_task`). What cannot fill a
    batch at the end is left out, or is a shorter one with `keep_rest`.

    Raises:
        ValueError: fewer than 1 row a batch, or more than the stream has; a stream whose tasks change their rows
            or label them, since a batch may hold rows of two.

    Example:
        >>> from replaykit.benchmarks import in_batches, split_digits
        >>> stream = in_batches(split_digits(), 200)
        >>> len(stream), len(stream.train_stream), len(stream.test_stream)
        (7, 7, 5)
    """
    order = np.concatenate(stream.train)
    if not 1 <= rows <= len(order):
        raise ValueError(f"cannot cut {len(order)} rows of {stream.name} into batches of {rows}")
    if stream.change is not None or stream.task_labels:
        what = "change their rows" if stream.change is not None else "label their rows (task_labels=True)"
        raise ValueError(f"{stream.name}: its tasks {what}, and a batch may hold rows of two tasks")
    starts = range(0, len(order) if keep_rest else len(order) - rows + 1, rows)
    train = [order[start : start + rows] for start in starts]
    task_of = np.repeat(stream.current, [len(part) for part in stream.train])
    y, place = stream.data.y_train.numpy(), stream.class_order.index
    return replace(
        stream,
        train=train,
        classes_per_task=[sorted(np.unique(y[part]).tolist(), key=place) for part in train],
        test_task=[int(task_of[start + len(part) - 1]) for start, part in zip(starts, train, strict=True)],
    )
