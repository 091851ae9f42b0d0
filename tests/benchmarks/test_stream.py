"""Streams: rows of every task, options of `split`, refusals."""

import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from replaykit.benchmarks import Data, Stream, digits, noisy_labels, rotated, split, split_digits
from replaykit.benchmarks.splits import imbalanced_mnist, split_cifar10, split_mnist


def toy(classes: int = 4, per_class: int = 10) -> Data:
    """Rows that carry their own number, sorted by class."""
    n = classes * per_class
    x = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 2, 2).contiguous()
    y = torch.arange(classes).repeat_interleave(per_class)
    return Data("toy", x, y, x.flip(0), y.flip(0), classes)


def test_tasks_hold_their_classes_and_nothing_else() -> None:
    data = toy()
    stream = split(data, 2, order=[3, 0, 1, 2])
    assert len(stream) == 2
    assert stream.classes == 4
    assert stream.class_order == [3, 0, 1, 2]
    assert stream.name == "split_toy"
    x, y = stream.tensors(0)
    assert y.tolist() == [0] * 10 + [3] * 10
    assert x[:, 0, 0, 0].tolist() == [*range(10), *range(30, 40)]
    assert x.dtype == torch.uint8
    x, y = stream.tensors(1, "test")
    assert sorted(set(y.tolist())) == [1, 2]
    assert torch.equal(x[:, 0, 0, 0], data.x_test[stream.rows(1, "test"), 0, 0, 0])


def test_the_seed_changes_nothing_unless_an_option_draws() -> None:
    data = toy()
    for task in range(2):
        assert np.array_equal(split(data, 2, seed=0).train[task], split(data, 2, seed=9).train[task])
    drawing: list[dict[str, Any]] = [
        {"per_class": 5},
        {"fraction": 0.5},
        {"long_tail": 4.0},
        {"noise": 0.5},
        {"blurry": 0.4},
    ]
    for option in drawing:
        first = [split(data, 2, seed=1, **option).rows(task).tolist() for task in range(2)]
        again = [split(data, 2, seed=1, **option).rows(task).tolist() for task in range(2)]
        other = [split(data, 2, seed=2, **option).rows(task).tolist() for task in range(2)]
        assert first == again
        assert first != other


def test_thinning() -> None:
    data = toy()
    assert [len(rows) for rows in split(data, 2, per_class=3).train] == [6, 6]
    assert [len(rows) for rows in split(data, 2, fraction=0.2).train] == [4, 4]
    tail = split(data, 4, per_class=8, long_tail=8)
    assert [len(rows) for rows in tail.train] == [8, 4, 2, 1]
    assert [len(rows) for rows in tail.test] == [10] * 4  # the test set stays whole


def test_one_option_leaves_the_draws_of_another_alone() -> None:
    plain = split(toy(), 2, noise=0.3, seed=5)
    blurred = split(toy(), 2, noise=0.3, blurry=0.4, order="seed", seed=5)
    assert torch.equal(plain.data.y_train, blurred.data.y_train)


def test_noise_keeps_the_true_labels() -> None:
    data = toy()
    stream = split(data, 2, noise=0.3, seed=1)
    assert stream.true_labels is not None
    assert torch.equal(stream.true_labels, data.y_train)
    assert int((stream.data.y_train != stream.true_labels).sum()) == 12
    assert torch.equal(stream.data.y_test, data.y_test)
    for task, classes in enumerate(stream.classes_per_task):
        assert set(stream.tensors(task)[1].tolist()) <= set(classes)  # by the labels that training sees
    assert split(data, 2).true_labels is None


def test_noise_spares_rows_that_thinning_removed() -> None:
    stream = split(toy(), 2, per_class=4, noise=0.5)
    assert stream.true_labels is not None
    changed = np.flatnonzero((stream.data.y_train != stream.true_labels).numpy())
    assert set(changed) <= set(np.concatenate(stream.train))
    assert len(changed) == 8


def test_asymmetric_noise_reaches_split() -> None:
    stream = split(toy(), 2, noise=1.0, noise_kind="asymmetric", flips={0: 3})
    assert stream.data.y_train.tolist() == noisy_labels(toy().y_train, 1.0, "asymmetric", flips={0: 3}).tolist()


def test_blurry_boundaries_cover_every_row_once() -> None:
    stream = split(toy(), 2, blurry=0.2)
    assert np.array_equal(np.sort(np.concatenate(stream.train)), np.arange(40))
    assert torch.bincount(stream.tensors(0)[1], minlength=4).tolist() == [8, 8, 2, 2]
    assert set(stream.tensors(0, "test")[1].tolist()) == {0, 1}


def test_float_streams() -> None:
    x, _ = split(toy(), 2, as_float=True).tensors(1)
    assert x.dtype == torch.float32
    assert torch.equal(x, split(toy(), 2).tensors(1)[0].float() / 255)


def test_digits() -> None:
    stream = split_digits()
    assert [set(stream.tensors(task)[1].tolist()) for task in range(5)] == [
        {2 * task, 2 * task + 1} for task in range(5)
    ]
    assert sum(len(rows) for rows in stream.train) == len(digits().y_train)
    assert "split_digits" in repr(stream)
    with pytest.raises(ValueError, match="10 classes do not divide into 3 tasks"):
        split_digits(3)
    assert [len(set(group)) for group in split_digits([[0, 1, 2], [9]]).classes_per_task] == [3, 1]


def stream(**changes: Any) -> Stream:
    rows = [np.arange(20), np.arange(20, 40)]
    arguments: dict[str, Any] = {
        "name": "mine",
        "data": toy(),
        "train": rows,
        "test": rows,
        "classes_per_task": [[0, 1], [2, 3]],
    }
    return Stream(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": [np.arange(4)]}, r"one entry a task, got \(2, 1, 2\)"),
        ({"train": [], "test": [], "classes_per_task": []}, "one entry a task"),
        ({"train": [np.arange(4), np.arange(0)]}, "mine, task 1, train: no rows"),
        (
            {"test": [np.arange(4), np.array([3, 40])]},
            "task 1, test: row numbers 3 to 40, the data have rows 0 to 39",
        ),
        ({"train": [np.array([-1]), np.arange(4)]}, "row numbers -1 to -1"),
        ({"train": [np.array([1, 2, 1]), np.arange(4)]}, "comes twice"),
    ],
)
def test_streams_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream(**changes)


def test_tasks_and_splits_that_do_not_exist() -> None:
    for task in (-1, 2):
        with pytest.raises(IndexError, match=rf"mine has tasks 0..1, got {task}"):
            stream().tensors(task)
    with pytest.raises(ValueError, match="'train' or 'test', got 'valid'"):
        stream().tensors(0, "valid")  # type: ignore[arg-type]


def test_rows_keep_the_order_they_were_given() -> None:
    order = np.array([5, 2, 9])
    assert stream(train=[order, np.arange(4)]).tensors(0)[0][:, 0, 0, 0].tolist() == [5, 2, 9]


def test_real_streams(data_root: Any) -> None:
    try:
        mnist = split_mnist(data_root)
        half = split_cifar10(data_root, per_class=2500)
        imbalanced = imbalanced_mnist(data_root)
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    assert [len(rows) for rows in mnist.train] == [12665, 12089, 11263, 12183, 11800]
    assert [len(rows) for rows in mnist.test] == [2115, 2042, 1874, 1986, 1983]
    assert [len(rows) for rows in half.train] == [5000] * 5
    assert [len(rows) for rows in imbalanced.train] == [200] * 4 + [2000]
    assert len(np.concatenate(imbalanced.train)) // 125 == 22
    assert set(imbalanced.tensors(4)[1].tolist()) == {8, 9}


def test_making_a_stream_leaves_the_global_generators() -> None:
    before = (torch.get_rng_state(), str(np.random.get_state(legacy=False)), random.getstate())  # noqa: NPY002
    split_digits(order="seed", per_class=20, noise=0.2, blurry=0.1)
    rotated(toy(), 2, per_task=5).tensors(1)
    after = (torch.get_rng_state(), str(np.random.get_state(legacy=False)), random.getstate())  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_importing_and_loading_do_not_wait_for_avalanche() -> None:
    code = "import sys, replaykit.benchmarks as b; b.split_digits().tensors(0); print('avalanche' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
