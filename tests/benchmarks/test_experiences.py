"""Streams in Avalanche: experiences, strategies, online splits, plugins."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks import split_online_stream, with_classes_timeline
from avalanche.benchmarks.scenarios.validation_scenario import benchmark_with_validation_stream
from avalanche.models import IncrementalClassifier, MTSimpleMLP
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer
from avalanche.training.supervised import Naive
from torch.utils.data import TensorDataset, default_collate

from replaykit.avalanche.dataset import column_names
from replaykit.benchmarks import Network, digits, mlp, permuted, split, split_digits


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


def naive(model: torch.nn.Module, lr: float = 0.1, **options: Any) -> Naive:
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        criterion=torch.nn.CrossEntropyLoss(),
        evaluator=EvaluationPlugin(),
        **{"train_mb_size": 10, "eval_mb_size": 100, **options},
    )


def accuracy(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def test_experiences_show_the_rows_of_tensors() -> None:
    stream = split_digits(order=[9, 0, 1, 2, 3, 4, 5, 6, 7, 8])
    for name, experiences in (("train", stream.train_stream), ("test", stream.test_stream)):
        assert len(experiences) == 5
        assert experiences.name == name
        for task, experience in enumerate(experiences):
            x, y = stream.tensors(task, name)  # type: ignore[arg-type]
            assert experience.current_experience == task
            assert experience.origin_stream is experiences
            assert len(experience.dataset) == len(y)
            row = experience.dataset[3]
            assert torch.equal(row[0], x[3])
            assert int(row[1]) == int(y[3])
            assert row[2] == 0
            assert list(experience.dataset.targets) == y.tolist()


@pytest.mark.parametrize("make", [split, permuted])
def test_columns_of_the_data_come_with_their_training_rows(make: Any) -> None:
    data = digits()
    number = torch.arange(len(data.y_train))
    stream = make(replace(data, columns={"number": number, "half": number.double() / 2}), 5, as_float=True)
    data = stream.data
    for task in (0, 3):
        dataset = stream.train_stream[task].dataset
        assert len(dataset[0]) == 5 and len(stream.test_stream[task].dataset[0]) == 3
        batch = default_collate([dataset[i] for i in (0, 7, 50)])
        columns = dict(zip(column_names(dataset, 5), batch, strict=True))
        rows = columns["number"]
        assert rows.tolist() == stream.rows(task)[[0, 7, 50]].tolist()
        assert torch.equal(columns["half"], rows.double() / 2) and columns["t"].tolist() == [0, 0, 0]
        assert torch.equal(columns["y"], data.y_train[rows])


def test_class_attributes() -> None:
    experience = split_digits().train_stream[1]
    assert experience.classes_in_this_experience == [2, 3]
    assert experience.previous_classes == [0, 1]
    assert experience.classes_seen_so_far == [0, 1, 2, 3]
    assert experience.future_classes == [4, 5, 6, 7, 8, 9]
    benchmark = experience.benchmark
    assert benchmark.n_classes == 10
    assert benchmark.n_classes_per_exp == [2] * 5
    assert benchmark.classes_order == list(range(10))
    assert benchmark.streams["test"] is benchmark.test_stream


def test_one_tensor_data_set_without_a_copy_lies_under_all_tasks() -> None:
    stream = split_digits()
    bottoms = set()
    for task, experience in enumerate(stream.train_stream):
        flat = experience.dataset.train()._flat_data
        (bottom,) = flat._datasets
        assert isinstance(bottom, TensorDataset)
        assert bottom.tensors[0].data_ptr() == stream.data.x_train.data_ptr()
        assert bottom.tensors[0].dtype == torch.uint8
        assert list(flat._indices) == stream.train[task].tolist()
        bottoms.add(id(bottom))
    assert len(bottoms) == 1


def test_streams_can_be_sliced_and_experiences_are_kept() -> None:
    experiences = split_digits().train_stream
    assert [e.current_experience for e in experiences[1:3]] == [1, 2]
    assert experiences[2] is experiences[2]


@pytest.mark.parametrize(("task_labels", "third"), [(True, [2]), (False, [0]), (None, [])])
def test_task_labels(task_labels: bool | None, third: list[int]) -> None:
    experience = split_digits(task_labels=task_labels).train_stream[2]
    assert list(experience.dataset[0][2:]) == third
    assert getattr(experience, "task_labels", []) == third
    assert hasattr(experience.dataset, "targets_task_labels") == (task_labels is not None)
    if third:
        assert experience.task_label == third[0]


def test_true_labels_travel_with_the_training_rows_alone() -> None:
    stream = split_digits(noise=0.4)
    assert stream.true_labels is not None
    data = stream.train_stream[1].dataset
    assert list(data.true_targets) == stream.true_labels[stream.rows(1)].tolist()
    assert list(data.subset([4, 7]).true_targets) == [list(data.true_targets)[i] for i in (4, 7)]
    assert len(data[0]) == 3
    assert not hasattr(stream.test_stream[1].dataset, "true_targets")


def test_transforms_of_training_and_test_rows() -> None:
    def to_float(x: torch.Tensor) -> torch.Tensor:
        return x.float() / 255

    def negative(x: torch.Tensor) -> torch.Tensor:
        return -(x.float() / 255)

    stream = split_digits(transform=to_float, eval_transform=negative)
    x, _ = stream.tensors(0)
    train = stream.train_stream[0].dataset
    assert torch.equal(train.train()[1][0], x[1].float() / 255)
    assert torch.equal(train.eval()[1][0], -x[1].float() / 255)
    assert float(stream.test_stream[0].dataset.eval()[0][0].max()) <= 0
    both = split_digits(transform=to_float)
    assert torch.equal(both.test_stream[0].dataset.eval()[1][0], both.tensors(0, "test")[0][1].float() / 255)
    strategy = naive(mlp(64, seed=0))
    strategy.train(both.train_stream[0])
    strategy.eval(both.test_stream)


def test_naive_learns_the_digits_in_one_task() -> None:
    stream = split_digits(1, as_float=True)
    model = mlp(64, seed=0)
    strategy = naive(model, lr=0.03, train_epochs=3)
    for experience in stream.train_stream:
        strategy.train(experience)
    assert accuracy(model, *stream.tensors(0, "test")) > 0.8


def test_naive_forgets_over_five_tasks() -> None:
    stream = split_digits(as_float=True)
    model = mlp(64, seed=0)
    strategy = naive(model)
    for experience in stream.train_stream:
        strategy.train(experience)
    strategy.eval(stream.test_stream)
    assert accuracy(model, *stream.tensors(4, "test")) > 0.8
    assert accuracy(model, *stream.tensors(0, "test")) < 0.2


def test_raw_bytes_meet_a_clear_error() -> None:
    with pytest.raises(TypeError, match="as_float=True"):
        naive(mlp(64)).train(split_digits().train_stream[0])


@pytest.mark.parametrize("task_labels", [False, None])
def test_incremental_classifier_grows_with_the_classes(task_labels: bool | None) -> None:
    model: Network = mlp(64, seed=0)
    model.classifier = IncrementalClassifier(model.width)
    strategy = naive(model)
    widths = []
    stream = split_digits(as_float=True, task_labels=task_labels, per_class=20)
    for experience in stream.train_stream:
        strategy.train(experience)
        widths.append(model(torch.zeros(1, 64)).shape[1])
    assert widths == [2, 4, 6, 8, 10]


def test_task_labels_reach_a_multi_head_model() -> None:
    model = MTSimpleMLP(input_size=64, hidden_size=16)
    strategy = naive(model)
    stream = split_digits(as_float=True, task_labels=True, per_class=20)
    for experience in stream.train_stream:
        strategy.train(experience)
    strategy.eval(stream.test_stream)
    assert len(model.classifier.classifiers) == 5


def test_online_streams() -> None:
    stream = split_digits(as_float=True, per_class=20)
    model: Network = mlp(64, seed=0)
    model.classifier = IncrementalClassifier(model.width)
    strategy = naive(model)
    online = split_online_stream(stream.train_stream, 10, seed=0, access_task_boundaries=True)
    sizes = []
    for experience in online:
        sizes.append(len(experience.dataset))
        strategy.train(experience, eval_streams=[])
    assert sizes == [10] * 20
    assert model(torch.zeros(1, 64)).shape[1] == 10


def test_online_streams_without_boundaries_know_their_classes() -> None:
    stream = split_digits(as_float=True, per_class=20)
    online = with_classes_timeline(split_online_stream(stream.train_stream, 10, seed=0))
    seen = [set(e.classes_in_this_experience) for e in online]
    assert seen[0] <= {0, 1}
    assert seen[-1] <= {8, 9}
    rows = torch.cat([torch.stack([row[0] for row in e.dataset]) for e in online])
    expected = torch.cat([stream.tensors(task)[0] for task in range(5)])
    assert torch.equal(rows.flatten(1).sum(1).sort().values, expected.flatten(1).sum(1).sort().values)


@pytest.mark.parametrize("task_labels", [False, True])
def test_avalanche_replay(task_labels: bool) -> None:
    buffer = ClassBalancedBuffer(20)
    strategy = naive(mlp(64, seed=0), plugins=[ReplayPlugin(20, storage_policy=buffer)])
    stream = split_digits(as_float=True, per_class=20, task_labels=task_labels)
    for experience in stream.train_stream:
        strategy.train(experience)
    assert sorted(buffer.buffer.targets) == [c for c in range(10) for _ in range(2)]


def test_avalanche_tools_take_the_scenario() -> None:
    benchmark = benchmark_with_validation_stream(split_digits(as_float=True).scenario, 0.2)
    assert len(benchmark.valid_stream) == 5
    assert len(benchmark.train_stream[0].dataset) == 230


def test_permuted_streams_make_training_experiences_one_at_a_time() -> None:
    stream = permuted(digits(), 3, as_float=True, per_task=200)
    model = mlp(64, seed=0)
    strategy = naive(model)
    for task, experience in enumerate(stream.train_stream):
        assert experience.classes_in_this_experience == list(range(10))
        assert torch.equal(experience.dataset[5][0], stream.tensors(task)[0][5])
        strategy.train(experience)
    strategy.eval(stream.test_stream)
    assert accuracy(model, *stream.tensors(2, "test")) > 0.5
    assert stream.train_stream[0] is not stream.train_stream[0]
    assert stream.test_stream[0] is stream.test_stream[0]
    order = np.argsort(stream.change.orders[1])  # type: ignore[union-attr]
    x = stream.train_stream[1].dataset._flat_data._datasets[0].tensors[0]
    back = x.flatten(1)[:, torch.from_numpy(order)]
    assert torch.equal(back, stream.data.x_train[stream.rows(1)].flatten(1))


def test_noisy_and_blurry_experiences_have_the_labels_of_their_rows() -> None:
    stream = split(digits(), 5, noise=0.2, blurry=0.1, seed=3)
    for task, experience in enumerate(stream.train_stream):
        assert list(experience.dataset.targets) == stream.tensors(task)[1].tolist()
        assert experience.classes_in_this_experience == sorted(set(stream.tensors(task)[1].tolist()))
