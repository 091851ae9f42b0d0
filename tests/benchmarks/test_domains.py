"""Permuted and rotated streams: the change itself, and which rows a task has."""

from typing import Any

import numpy as np
import pytest
import torch

from replaykit.benchmarks import Data, digits, permuted, permuted_mnist, rotated, rotated_mnist
from replaykit.benchmarks.domains import Permutations, Rotations


def colour(n: int = 6, side: int = 4) -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)
    y = torch.arange(n) % 2
    return Data("colour", x, y, x.clone(), y.clone(), 2)


@pytest.mark.parametrize("data", [digits(), colour()], ids=["grey", "colour"])
def test_permutations_can_be_undone_and_differ_between_tasks(data: Data) -> None:
    stream = permuted(data, 3, seed=4)
    assert isinstance(stream.change, Permutations)
    seen = []
    for task in range(3):
        x, y = stream.tensors(task)
        back = Permutations(np.argsort(stream.change.orders[task])[None])
        assert torch.equal(back(x, 0), data.x_train)
        assert torch.equal(y, data.y_train)
        assert not torch.equal(x, data.x_train)
        seen.append(x)
    assert not torch.equal(seen[0], seen[1])
    again = permuted(data, 3, seed=4)
    assert torch.equal(again.tensors(2)[0], seen[2])
    assert not torch.equal(permuted(data, 3, seed=5).tensors(2)[0], seen[2])


def test_permutation_by_a_loop() -> None:
    data = colour()
    stream = permuted(data, 1, seed=1)
    assert isinstance(stream.change, Permutations)
    x, _ = stream.tensors(0)
    order = stream.change.orders[0]
    for row in range(len(x)):
        for channel in range(3):
            for pixel in range(16):
                moved = data.x_train[row, channel].flatten()[order[pixel]]
                assert x[row, channel].flatten()[pixel] == moved


def test_train_and_test_are_changed_alike() -> None:
    stream = permuted(colour(), 2)
    assert torch.equal(stream.tensors(1, "train")[0], stream.tensors(1, "test")[0])


def test_first_task_as_it_is_and_given_permutations() -> None:
    data = colour()
    assert torch.equal(permuted(data, 2, identity_first=True).tensors(0)[0], data.x_train)
    mirrored = permuted(data, 1, permutations=[np.arange(16).reshape(4, 4)[:, ::-1].ravel()])
    assert torch.equal(mirrored.tensors(0)[0], data.x_train.flip(3))
    for wrong in (np.zeros((1, 16)), np.arange(16), np.arange(15)[None]):
        with pytest.raises(ValueError, match=r"expected permutations of 0..15 for 1 tasks"):
            permuted(data, 1, permutations=wrong)


def test_rows_of_features_can_be_permuted_but_not_turned() -> None:
    x = torch.arange(20.0).reshape(4, 5)
    y = torch.tensor([0, 1, 0, 1])
    data = Data("rows", x, y, x, y, 2)
    stream = permuted(data, 2)
    assert isinstance(stream.change, Permutations)
    assert torch.equal(stream.tensors(1)[0], x[:, stream.change.orders[1]])
    with pytest.raises(ValueError, match="only images"):
        rotated(data, 2)


def test_quarter_turns_are_exact_and_leave_the_dtype() -> None:
    data = colour()
    stream = rotated(data, 4, angles=[0, 90, 180, 270])
    for task in range(4):
        x, _ = stream.tensors(task)
        assert x.dtype == torch.uint8
        assert torch.equal(x, torch.rot90(data.x_train, task, (2, 3)))
    assert torch.equal(Rotations([33.0], chunk=2)(data.x_train, 0), Rotations([33.0])(data.x_train, 0))


def test_angles_are_drawn_in_the_half_circle() -> None:
    change = rotated(colour(), 200, seed=3).change
    assert isinstance(change, Rotations)
    angles = np.array(change.angles)
    assert angles.min() >= 0
    assert angles.max() < 180
    assert abs(angles.mean() - 90) < 4 * 180 / np.sqrt(12 * 200)
    with pytest.raises(ValueError, match="one angle for each of the 3 tasks, got 2"):
        rotated(colour(), 3, angles=[1, 2])


def test_float_images_are_turned_without_rounding() -> None:
    x, _ = rotated(digits(), 1, angles=[30], as_float=True).tensors(0)
    rounded, _ = rotated(digits(), 1, angles=[30]).tensors(0)
    assert x.dtype == torch.float32
    assert float((x * 255 - rounded.float()).abs().max()) < 0.51


def test_rows_of_a_task() -> None:
    data = digits()
    every = permuted(data, 3)
    assert all(np.array_equal(rows, np.arange(1433)) for rows in every.train)
    assert all(len(rows) == 364 for rows in every.test)
    few = permuted(data, 3, per_task=100)
    assert [len(rows) for rows in few.train] == [100] * 3
    assert not np.array_equal(few.train[0], few.train[1])
    apart = rotated(data, 3, disjoint=True)
    assert np.array_equal(np.sort(np.concatenate(apart.train)), np.arange(1433))
    both = rotated(data, 3, disjoint=True, per_task=400)
    assert len(set(np.concatenate(both.train))) == 1200
    assert every.classes_per_task == [list(range(10))] * 3
    assert every.class_order == list(range(10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_task": 2000}, r"per_task must be in 1..1433 here, got 2000"),
        ({"per_task": 0}, "got 0"),
        ({"per_task": 600, "disjoint": True}, r"1..477 here"),
    ],
)
def test_rows_that_cannot_be_drawn(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        permuted(digits(), 3, **options)
    with pytest.raises(ValueError, match=message):
        rotated(digits(), 3, **options)


def test_no_task_is_refused() -> None:
    for make in (permuted, rotated):
        with pytest.raises(ValueError, match="task"):
            make(digits(), 0)


def test_only_the_last_training_task_is_kept() -> None:
    stream = permuted(digits(), 3)
    first = stream.tensors(0)[0]
    assert stream.tensors(0)[0] is first
    stream.tensors(1)
    assert stream.tensors(0)[0] is not first
    assert torch.equal(stream.tensors(0)[0], first)
    assert stream.tensors(2, "test")[0] is stream.tensors(2, "test")[0]


def test_real_mnist(data_root: Any) -> None:
    try:
        stream = permuted_mnist(data_root, 2, per_task=1000)
        turned = rotated_mnist(data_root, 2, per_task=1000, angles=[0, 45])
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    plain = stream.data.x_train[stream.rows(0)]
    changed = stream.tensors(0)[0]
    assert torch.equal(plain.flatten(1).sort().values, changed.flatten(1).sort().values)
    assert torch.equal(turned.tensors(0)[0], turned.data.x_train[turned.rows(0)])
    assert len(stream.tensors(1, "test")[0]) == 10000
