"""The loader that slices tensors gives what Avalanche's per-sample loader gives, or steps aside."""

from functools import partial

import numpy as np
import pytest
import torch
from avalanche.benchmarks import nc_benchmark, split_online_stream
from avalanche.benchmarks.utils.data_loader import (
    GroupBalancedDataLoader,
    ReplayDataLoader,
    TaskBalancedDataLoader,
)
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin
from small_streams import (
    CLASSES,
    DIM,
    STREAMS,
    Labelled,
    Silent,
    as_classification_dataset,
    benchmark_from_datasets,
    classic,
    naive,
    parameters,
    rows,
    unlabelled,
)
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from replaykit import Buffer, policies
from replaykit.avalanche import Replay
from replaykit.avalanche.dataset import Kept, NotTensors, pieces, tensor_rows
from replaykit.avalanche.loading import sliced


def nested() -> object:
    """torch's own subsets and concatenations below Avalanche's."""
    x, y = rows()
    joint = ConcatDataset([Subset(Labelled(x, y), list(range(70, 10, -1))), Labelled(x[:7], y[:7])])
    return nc_benchmark(
        *[as_classification_dataset(_with_targets(joint))] * 2, n_experiences=2, task_labels=False, seed=1
    )


def _with_targets(data: ConcatDataset) -> ConcatDataset:
    data.targets = [int(data[i][1]) for i in range(len(data))]
    return data


def both_tasks() -> object:
    """One experience with rows of two tasks, which Avalanche's loader balances."""
    data = classic(task_labels=True)
    first, second = (e.dataset for e in data.train_stream)
    mixed = first.concat(second.subset(list(range(13))))
    stream = benchmark_from_datasets(train=[mixed])
    for experience in stream.train_stream:
        experience.task_labels = [0, 1]
    stream.test_stream = stream.train_stream
    return stream


LOADED = {**STREAMS, "nested": nested, "both tasks": both_tasks}


def run(data, fast: bool, online: bool, **options):
    """Everything a run leaves behind: parameters, memory, generator, metrics."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(DIM, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, CLASSES))
    evaluator = EvaluationPlugin(
        accuracy_metrics(epoch=True, stream=True), loss_metrics(experience=True), loggers=[Silent()]
    )
    buffer = Buffer(12, policies.Reservoir(), seed=0)
    replay = Replay(buffer, 3, fast_loader=fast)
    strategy = naive(replay, model=model, evaluator=evaluator, train_epochs=2)
    stream = split_online_stream(data.train_stream, 7, seed=0) if online else data.train_stream
    strategy.train(stream, eval_streams=[], **options)
    loading = replay.loading
    metrics = strategy.eval(data.test_stream)
    return parameters(model), buffer["x"], torch.random.get_rng_state(), metrics, loading


@pytest.mark.parametrize(
    "options",
    [{}, {"shuffle": False}, {"drop_last": True}],
    ids=["shuffled", "in order", "drop last"],
)
@pytest.mark.parametrize(
    ("name", "online"),
    [(name, False) for name in LOADED]
    + [(name, True) for name in ("unlabelled", "classic", "task labels", "joined", "both tasks")],
)
def test_a_run_with_sliced_loading_is_bit_equal_to_one_without(name: str, online: bool, options: dict) -> None:
    fast, slow = (run(LOADED[name](), flag, online, **options) for flag in (True, False))
    assert fast[4] == "sliced" and slow[4] == "per sample: fast_loader=False"
    for ours, theirs in zip(fast[:3], slow[:3], strict=True):
        assert torch.equal(ours, theirs)
    assert fast[3] == slow[3]


def same_batches(ours, theirs) -> None:
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) == len(b)
        for p, q in zip(a, b, strict=True):
            assert torch.equal(p, q) and p.dtype == q.dtype


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: TaskBalancedDataLoader(a.concat(b), batch_size=6, oversample_small_groups=True),
        lambda a, b: TaskBalancedDataLoader(a.concat(b), batch_size=6, shuffle=True),
        lambda a, b: GroupBalancedDataLoader([a, b], batch_size=7, shuffle=True),
        lambda a, b: ReplayDataLoader(
            a, b, batch_size=4, batch_size_mem=5, oversample_small_tasks=True, shuffle=True
        ),
        lambda a, b: DataLoader(a.concat(b), batch_size=9, shuffle=True),
        lambda a, b: DataLoader(a, sampler=torch.utils.data.RandomSampler(a, True, 25), batch_size=4),
    ],
    ids=["tasks", "tasks shuffled", "groups", "replay", "plain", "with replacement"],
)
def test_batches_of_avalanches_loaders_are_the_same(make) -> None:
    first, second = (e.dataset for e in classic(task_labels=True).train_stream)
    second = second.subset(list(range(11)))
    loader = make(first, second)
    ours = sliced(loader, torch.device("cpu"), Kept())
    assert len(ours) == len(loader)
    for seed in range(2):
        torch.manual_seed(seed)
        theirs, state = list(loader), torch.random.get_rng_state()
        torch.manual_seed(seed)
        same_batches(ours, theirs)
        assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", LOADED)
def test_rows_of_a_data_set_are_its_samples(name: str) -> None:
    for experience in LOADED[name]().train_stream:
        dataset = experience.dataset
        columns = tensor_rows(dataset, Kept()).gathered()
        theirs = torch.utils.data.default_collate([dataset[i] for i in range(len(dataset))])
        same_batches([columns], [theirs])


def test_classes_are_renumbered_as_the_benchmark_says() -> None:
    first = classic(class_ids_from_zero_from_first_exp=True).train_stream[0]
    assert set(tensor_rows(first.dataset, Kept()).gathered()[1].tolist()) == {0, 1}
    plain = classic().train_stream[0]
    assert set(tensor_rows(plain.dataset, Kept()).gathered()[1].tolist()) != {0, 1}


def test_whole_experiences_of_one_tensor_data_set_are_not_copied() -> None:
    data = unlabelled()
    leaf = pieces(data.train_stream[0].dataset._flat_data)[0].leaf
    columns = tensor_rows(data.train_stream[0].dataset, Kept()).columns
    assert columns[0].data_ptr() == leaf.tensors[0].data_ptr()


# -- stepping aside -----------------------------------------------------------------------------------


class Lazy(Dataset):
    def __init__(self) -> None:
        self.x, self.targets = rows()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int):
        return self.x[i], int(self.targets[i])


class Doubled(Labelled):
    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return 2 * x, y


def lazily():
    held = as_classification_dataset(Lazy())
    return benchmark_from_datasets(train=[held], test=[held])


def doubled():
    held = as_classification_dataset(Doubled(*rows()))
    return benchmark_from_datasets(train=[held], test=[held])


def collated():
    held = as_classification_dataset(Labelled(*rows()))
    held.collate_fn = lambda samples: torch.utils.data.default_collate(samples)
    return benchmark_from_datasets(train=[held], test=[held])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lazily, "samples come from a Lazy"),
        (doubled, "samples come from a Doubled"),
        (collated, "own collate function"),
        (partial(classic, train_transform=lambda x: 2 * x), "a transform of x"),
        (partial(classic, eval_transform=lambda x: 2 * x), "sliced"),
        (lambda: nc_benchmark(*[Labelled(*rows())] * 2, 2, False, seed=1), "sliced"),
    ],
    ids=["lazy", "overridden", "collate", "train transform", "only in evaluation", "plain"],
)
def test_what_cannot_be_sliced_is_loaded_as_ever(make, reason: str) -> None:
    fast, slow = run(make(), True, False), run(make(), False, False)
    assert reason in fast[4]
    assert all(torch.equal(a, b) for a, b in zip(fast[:3], slow[:3], strict=True))
    assert fast[3] == slow[3]


def test_transforms_of_the_evaluation_are_applied_in_evaluation() -> None:
    data = classic(eval_transform=lambda x: 2 * x)
    replay = Replay(Buffer(12, policies.Reservoir()))
    strategy = naive(replay)
    strategy.train(data.train_stream, eval_streams=[])
    assert replay.loading == "sliced"
    strategy.eval(data.test_stream)
    assert replay.loading == "per sample: samples pass through a transform of x"


def test_persistent_workers_and_other_loaders_are_left_alone() -> None:
    dataset = unlabelled().train_stream[0].dataset
    for loader, reason in (
        (DataLoader(dataset, 5, num_workers=1, persistent_workers=True), "keeps its workers"),
        (DataLoader(dataset, batch_size=None), "does not form batches"),
        (
            GroupBalancedDataLoader([dataset], batch_size=5, num_workers=1, persistent_workers=True),
            "keeps its workers",
        ),
        (GroupBalancedDataLoader([dataset], batch_size=5, collate_fn=list), "own collate function"),
        ([[torch.zeros(1)]], "the loader is a list"),
    ):
        with pytest.raises(NotTensors, match=reason):
            sliced(loader, torch.device("cpu"), Kept())


def test_target_transforms_that_are_not_frozen_are_left_alone() -> None:
    data = classic()
    dataset = data.train_stream[0].dataset.replace_current_transform_group((None, lambda y: y))
    with pytest.raises(NotTensors, match="a transform of y"):
        tensor_rows(dataset, Kept())


# -- the small cache ----------------------------------------------------------------------------------


def test_the_cache_keeps_the_last_few_and_travels_empty() -> None:
    import pickle

    kept, computed = Kept(2), []
    objects = [np.zeros(1) for _ in range(3)]

    def value(i: int) -> int:
        return kept.get((objects[i],), lambda: computed.append(i) or i)

    assert [value(i) for i in (0, 1, 0, 2, 0, 1)] == [0, 1, 0, 2, 0, 1]
    assert computed == [0, 1, 2, 1]
    assert not pickle.loads(pickle.dumps(kept))._values
