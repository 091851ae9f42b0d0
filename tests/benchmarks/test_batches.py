"""Streams cut anew into batches: a partition in order, what each belongs to, and refusals."""

from typing import Any

import numpy as np
import pytest
import torch

from replaykit import metrics
from replaykit.benchmarks import Stream, imbalanced_mnist, in_batches, permuted, split, split_digits
from replaykit.benchmarks.data import Data


def toy(n: int = 24, **options: Any) -> Stream:
    """Rows that carry their own number; labels 0 0 0 ... 1 1 1 ... over four classes in two tasks."""
    x = torch.arange(n, dtype=torch.uint8)[:, None]
    y = torch.arange(4).repeat_interleave(n // 4)
    return split(Data("toy", x, y, x, y, 4), 2, **options)


@pytest.mark.parametrize("keep_rest", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 6, 12, 13, 24])
def test_batches_are_the_stream_in_its_order(rows: int, keep_rest: bool) -> None:
    given = toy(order=[2, 0, 1, 3])
    stream = in_batches(given, rows, keep_rest)
    whole = np.concatenate(given.train)
    kept = len(whole) if keep_rest else len(whole) // rows * rows
    assert np.array_equal(np.concatenate(stream.train), whole[:kept])
    assert {len(part) for part in stream.train[:-1]} <= {rows}
    assert len(stream.train[-1]) == (kept - 1) % rows + 1
    for task, classes in enumerate(stream.classes_per_task):
        assert list(classes) == sorted(set(stream.tensors(task)[1].tolist()), key=[2, 0, 1, 3].index)


def test_a_batch_belongs_to_the_task_of_its_last_row() -> None:
    stream = in_batches(toy(), 5)  # two tasks of twelve rows
    assert not stream.paired and toy().paired
    assert stream.current == [0, 0, 1, 1]
    assert toy().current == [0, 1]
    assert in_batches(stream, 10).current == [0, 1]
    assert len(stream.test) == 2 and stream.tensors(1, "test")[1].tolist() == [2] * 6 + [3] * 6
    with pytest.raises(IndexError, match=r"has tasks 0\.\.1, got 2"):
        stream.tensors(2, "test")
    # What `current` is for: the anytime accuracy counts a task from its first batch on.
    rows = [[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.5, 1.0]]
    assert metrics.average_anytime_accuracy(rows, stream.current) == pytest.approx((1 + 1 + 0.5 + 0.75) / 4)


def test_avalanche_sees_batches_to_train_on_and_tasks_to_test() -> None:
    stream = in_batches(split_digits(), 200)
    assert len(stream.train_stream) == len(stream) == 7 and len(stream.test_stream) == 5
    for task, experience in enumerate(stream.train_stream):
        assert len(experience.dataset) == 200
        assert experience.classes_in_this_experience == sorted(stream.classes_per_task[task])
        assert torch.equal(experience.dataset[199][0], stream.tensors(task)[0][199])
    assert stream.train_stream[1].classes_in_this_experience == [0, 1, 2, 3]
    assert stream.train_stream[1].previous_classes == [0, 1]
    assert [e.classes_in_this_experience for e in stream.test_stream] == [[2 * i, 2 * i + 1] for i in range(5)]
    assert stream.scenario.n_classes == 10


def test_noisy_labels_come_along() -> None:
    given = toy(noise=0.5)
    stream = in_batches(given, 7)
    assert stream.true_labels is given.true_labels
    for task in range(len(stream)):
        assert set(stream.classes_per_task[task]) == set(stream.tensors(task)[1].tolist())


@pytest.mark.parametrize("rows", [0, -3, 25])
def test_batches_that_cannot_be_cut(rows: int) -> None:
    with pytest.raises(ValueError, match=f"cannot cut 24 rows of split_toy into batches of {rows}"):
        in_batches(toy(), rows)


def test_rows_of_two_tasks_cannot_be_changed_or_labelled() -> None:
    x = torch.arange(24, dtype=torch.uint8)[:, None]
    data = Data("toy", x, torch.arange(24) % 2, x, torch.arange(24) % 2, 2)
    with pytest.raises(ValueError, match="permuted_toy: its tasks change their rows"):
        in_batches(permuted(data, 2, per_task=4), 2)
    with pytest.raises(ValueError, match=r"split_toy: its tasks label their rows \(task_labels=True\)"):
        in_batches(toy(task_labels=True), 2)
    assert len(in_batches(toy(task_labels=None), 2).train_stream) == 12


@pytest.mark.parametrize("wrong", [[], [0], [1, 0], [0, 2], [-1, 0]])
def test_test_tasks_that_do_not_fit(wrong: list[int]) -> None:
    given = toy()
    parts = {"train": given.train, "test": given.test, "classes_per_task": given.classes_per_task}
    assert Stream("mine", given.data, **parts, test_task=[0, 0]).current == [0, 0]
    with pytest.raises(ValueError, match=r"test_task needs a number in 0\.\.1 for each of the 2 training tasks"):
        Stream("mine", given.data, **parts, test_task=wrong)


def test_the_imbalanced_stream_in_the_batches_of_the_paper(data_root: Any) -> None:
    stream = in_batches(imbalanced_mnist(data_root), 125)
    assert [len(part) for part in stream.train] == [125] * 22
    assert stream.current == [0, 1, 1, 2, 3, 3, *[4] * 16]
    assert len({row for part in stream.train for row in part.tolist()}) == 2750
    assert [len(rows) for rows in stream.test] == [2115, 2042, 1874, 1986, 1983]
