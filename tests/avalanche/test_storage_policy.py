"""Our buffers behind Avalanche's own replay plugin."""

import gc
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from avalanche.benchmarks import split_online_stream
from avalanche.benchmarks.utils import make_avalanche_dataset
from avalanche.benchmarks.utils.transform_groups import DefaultTransformGroups
from avalanche.core import Agent
from avalanche.training.plugins import AGEMPlugin, EWCPlugin, LwFPlugin, ReplayPlugin
from PIL import Image
from small_streams import (
    CLASSES,
    STREAMS,
    Labelled,
    Spy,
    as_classification_dataset,
    benchmark_from_datasets,
    classic,
    mlp,
    naive,
    no_warnings,
    parameters,
    rows,
    unlabelled,
)
from torch import nn
from torch.utils.data import Dataset, default_collate

from replaykit import Buffer, policies
from replaykit.avalanche import StoragePolicy
from replaykit.testing import reloaded, same


class Minibatches(Spy):
    def before_forward(self, strategy, *args, **kwargs) -> None:
        self.batches.append([column.clone() for column in strategy.mbatch])


def policy(capacity: int = 12, seed: int = 0) -> StoragePolicy:
    return StoragePolicy(Buffer(capacity, policies.Reservoir(), seed=seed))


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("name", STREAMS)
def test_it_serves_the_replay_plugin_on_every_benchmark(name: str, online: bool) -> None:
    storage, data, spy = policy(), STREAMS[name](), Minibatches()
    stream = split_online_stream(data.train_stream, 10, seed=0) if online else data.train_stream
    plugin = ReplayPlugin(mem_size=12, batch_size_mem=4, storage_policy=storage)
    with no_warnings():
        naive(plugin, spy).train(stream, eval_streams=[])
    assert storage.max_size == 12 == len(storage.buffer) and storage.memory.seen == 80
    assert len(spy.batches[-1][0]) == 5 + 4
    width = len(next(iter(data.train_stream)).dataset[0])
    assert all(len(batch) == width for batch in spy.batches)


@pytest.mark.parametrize("name", STREAMS)
def test_its_data_set_is_what_the_buffer_holds_and_looks_like_the_data(name: str) -> None:
    storage, data = policy(), STREAMS[name]()
    for experience in data.train_stream:
        storage.post_adapt(Agent(), experience)
    shown, like = storage.buffer, data.train_stream[0].dataset
    assert type(shown) is type(like) and len(shown) == 12
    columns = default_collate([shown[i] for i in range(12)])
    names = ["x", "y", "t"][: len(columns)]
    for column, stored in zip(columns, names, strict=True):
        assert torch.equal(column, storage.memory[stored])
    theirs = default_collate([like[i] for i in range(3)])
    assert [c.dtype for c in columns] == [c.dtype for c in theirs]
    default_collate([like[0], shown[0]])  # one batch of both
    assert list(shown.targets) == storage.memory["y"].tolist()
    samples = {float(s[0][0]): s for e in data.train_stream for s in e.dataset}
    for sample in shown:
        origin = samples[float(sample[0][0])]
        for ours, theirs in zip(sample, origin, strict=True):
            assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


def test_it_stores_what_the_buffer_alone_would_store() -> None:
    storage, twin, data = policy(), Buffer(12, policies.Reservoir(), seed=0), unlabelled()
    strategy = naive(ReplayPlugin(12, storage_policy=storage))
    strategy.train(data.train_stream, eval_streams=[])
    for experience in data.train_stream:
        x, y = default_collate([experience.dataset[i] for i in range(len(experience.dataset))])
        twin.add({"x": x, "y": y})
    assert torch.equal(storage.memory["x"], twin["x"]) and torch.equal(storage.memory["y"], twin["y"])


def test_update_and_post_adapt_are_the_same() -> None:
    first, second, data = policy(), policy(), unlabelled()
    strategy = naive()
    with no_warnings():
        for strategy.experience in data.train_stream:
            first.update(strategy)
            second.post_adapt(strategy, strategy.experience)
    assert torch.equal(first.memory["x"], second.memory["x"])


def test_before_any_data_it_is_an_empty_data_set() -> None:
    assert len(policy().buffer) == 0
    assert len(policy().buffer.concat(unlabelled().train_stream[0].dataset)) == 40


def test_the_view_follows_the_memory() -> None:
    storage, data = policy(), unlabelled()
    storage.post_adapt(None, data.train_stream[0])
    first = storage.buffer
    assert storage.buffer is first
    storage.post_adapt(None, data.train_stream[1])
    assert storage.buffer is not first and set(storage.buffer.targets) == {0, 1, 2, 3}


def test_subsets_tasks_and_classes_of_the_view_are_found() -> None:
    storage, data = policy(16), classic(task_labels=True)
    for experience in data.train_stream:
        storage.post_adapt(None, experience)
    shown = storage.buffer
    assert sorted(shown.task_set) == [0, 1]
    assert sum(len(shown.task_set[t]) for t in (0, 1)) == 16
    for label, where in shown.targets.val_to_idx.items():
        assert all(int(s[1]) == label for s in shown.subset(where))
    naive(ReplayPlugin(16, batch_size_mem=4, task_balanced_dataloader=True, storage_policy=storage)).train(
        data.train_stream, eval_streams=[]
    )


def test_resizing_is_the_buffers() -> None:
    class First(policies.Reservoir):
        def resize(self, store, capacity, rng, grow="forbid"):
            return store.filled[:capacity].copy()

    storage = StoragePolicy(Buffer(12, First()))
    storage.post_adapt(None, unlabelled().train_stream[0])
    storage.resize(None, 5)
    assert storage.max_size == 5 == len(storage.buffer)
    with pytest.raises(AttributeError):
        storage.max_size = 7


# -- transforms and types of samples ------------------------------------------------------------------


class Pictures(Dataset):
    """PIL images with integer labels."""

    def __init__(self, n: int = 24) -> None:
        g = np.random.default_rng(0)
        self.pixels = g.integers(256, size=(n, 4, 4, 3), dtype=np.uint8)
        self.targets = [i % CLASSES for i in range(n)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int):
        return Image.fromarray(self.pixels[i]), self.targets[i]


def test_images_are_stored_raw_and_pass_through_the_transforms_at_every_visit() -> None:
    from torchvision.transforms import Compose, RandomHorizontalFlip, ToTensor

    def flipped():
        return Compose([RandomHorizontalFlip(), ToTensor()])

    from avalanche.benchmarks import nc_benchmark

    data = nc_benchmark(
        Pictures(), Pictures(), 2, False, seed=1, train_transform=flipped(), eval_transform=ToTensor()
    )
    storage = policy(24)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES))
    naive(ReplayPlugin(24, storage_policy=storage), model=model).train(data.train_stream, eval_streams=[])
    assert storage.memory["x"].dtype == torch.uint8 and storage.memory["x"].shape == (24, 4, 4, 3)
    shown = storage.buffer
    raw = {Pictures().pixels[i].tobytes() for i in range(24)}
    assert {x.numpy().tobytes() for x in storage.memory["x"]} == raw
    train = {shown[0][0].numpy().tobytes() for _ in range(30)}
    evaluated = {shown.eval()[0][0].numpy().tobytes() for _ in range(30)}
    assert len(train) == 2 and len(evaluated) == 1 and evaluated < train


def test_frozen_transforms_are_part_of_the_data() -> None:
    # As in Permuted MNIST: each experience has its own frozen permutation below a common train transform.
    x, y = rows(20)
    experiences = []
    double = lambda a: 2 * a  # noqa: E731
    for shift in range(2):
        permuted = make_avalanche_dataset(
            as_classification_dataset(Labelled(x, y)),
            frozen_transform_groups=DefaultTransformGroups((partial(torch.roll, shifts=shift), None)),
        )
        held = make_avalanche_dataset(permuted, transform_groups={"train": (double, None), "eval": (None, None)})
        experiences.append(as_classification_dataset(held))
    storage = policy(40)
    for experience in benchmark_from_datasets(train=experiences).train_stream:
        storage.post_adapt(None, experience)
    assert "pipeline" not in storage.memory.store.columns
    expected = torch.cat([x, x.roll(1, dims=1)])
    assert torch.equal(storage.memory["x"], expected)
    shown = storage.buffer
    assert torch.equal(torch.stack([s[0] for s in shown]), 2 * expected)
    assert torch.equal(torch.stack([s[0] for s in shown.eval()]), expected)


def test_transforms_below_a_frozen_one_are_stored_with_it_in_their_evaluation_form() -> None:
    x, y = rows(20)
    inner = make_avalanche_dataset(
        as_classification_dataset(Labelled(x, y)),
        transform_groups={"train": (lambda a: a + torch.rand(()), None), "eval": (lambda a: 2 * a, None)},
    )
    frozen = DefaultTransformGroups((partial(torch.roll, shifts=1), None))
    held = as_classification_dataset(make_avalanche_dataset(inner, frozen_transform_groups=frozen))
    storage = policy(20)
    storage.post_adapt(None, benchmark_from_datasets(train=[held]).train_stream[0])
    assert torch.equal(storage.memory["x"], 2 * x.roll(1, dims=1))
    assert torch.equal(torch.stack([s[0] for s in storage.buffer]), storage.memory["x"])
    # A frozen transform of the labels alone leaves those of x where they are: at the reading.
    data = classic(train_transform=lambda a: 3 * a, eval_transform=None)
    storage = policy(80)
    for experience in data.train_stream:
        storage.post_adapt(None, experience)
    assert set(storage.memory["x"][:, 0].tolist()) == set(rows()[0][:, 0].tolist())
    assert torch.equal(torch.stack([s[0] for s in storage.buffer]), 3 * storage.memory["x"])


def test_rows_keep_the_transforms_of_the_experience_they_came_with() -> None:
    x, y = rows(20)
    experiences = [
        as_classification_dataset(
            Labelled(x[i::2], y[i::2]), transform_groups={"train": (partial(torch.mul, i + 2), None)}
        )
        for i in range(2)
    ]
    storage = policy(20)
    for experience in benchmark_from_datasets(train=experiences).train_stream:
        storage.post_adapt(None, experience)
    assert storage.memory["pipeline"].tolist() == [0] * 10 + [1] * 10
    assert torch.equal(torch.stack([s[0] for s in storage.buffer]), torch.cat([2 * x[::2], 3 * x[1::2]]))
    assert list(storage.buffer.targets) == torch.cat([y[::2], y[1::2]]).tolist()


def test_arrays_and_numbers_come_back_as_they_went() -> None:
    class Arrays(Dataset):
        targets = [i % 2 for i in range(6)]  # noqa: RUF012

        def __len__(self) -> int:
            return 6

        def __getitem__(self, i: int):
            return np.full((2,), i, np.float32), self.targets[i], 0.5 * i, i > 2

    storage = policy(6)
    storage.post_adapt(None, benchmark_from_datasets(train=[as_classification_dataset(Arrays())]).train_stream[0])
    x, label, number, flag = storage.buffer[5]
    assert isinstance(x, np.ndarray) and x.dtype == np.float32 and x.tolist() == [5, 5]
    assert label == 1 and type(label) is int
    assert number == 2.5 and type(number) is float and flag is True


def test_samples_that_cannot_be_stored_are_refused() -> None:
    class Words(Pictures):
        def __getitem__(self, i: int):
            return "word", self.targets[i]

    storage = policy()
    held = benchmark_from_datasets(train=[as_classification_dataset(Words())])
    with pytest.raises(TypeError, match="holds str values"):
        storage.post_adapt(None, held.train_stream[0])
    storage.post_adapt(None, unlabelled().train_stream[0])
    with pytest.raises(ValueError, match="holds samples of"):
        storage.post_adapt(
            None, benchmark_from_datasets(train=[as_classification_dataset(Pictures())]).train_stream[0]
        )
    assert storage.memory.seen == 40
    with pytest.raises(TypeError, match=r"replaykit\.Buffer, got int"):
        StoragePolicy(200)


# -- its life -----------------------------------------------------------------------------------------


def test_the_stream_is_not_held() -> None:
    storage, leaves = policy(), []
    strategy = naive(ReplayPlugin(12, storage_policy=storage))
    for i in range(20):
        leaf = Labelled(*rows(20, seed=i))
        leaves.append(weakref.ref(leaf.tensors[0]))
        strategy.train(
            benchmark_from_datasets(train=[as_classification_dataset(leaf)]).train_stream, eval_streams=[]
        )
        del leaf
    gc.collect()
    assert sum(leaf() is not None for leaf in leaves) == 0
    assert len(storage._splits) == 1


@pytest.mark.parametrize("other", [lambda: EWCPlugin(0.1), lambda: LwFPlugin(1.0, 2.0), lambda: AGEMPlugin(10, 8)])
def test_it_works_beside_avalanches_regularisers(other) -> None:
    storage = policy()
    strategy = naive(ReplayPlugin(12, storage_policy=storage), other(), lr=0.05)
    strategy.train(classic().train_stream, eval_streams=[])
    assert len(storage.buffer) == 12 and parameters(strategy.model).isfinite().all()


def test_the_plugin_still_checks_the_size() -> None:
    with pytest.raises(AssertionError):
        ReplayPlugin(mem_size=13, storage_policy=policy(12))
    assert ReplayPlugin(mem_size=12, storage_policy=policy(12)).mem_size == 12


def test_a_whole_online_stream_is_remembered() -> None:
    storage = policy(40)
    strategy = naive(ReplayPlugin(40, storage_policy=storage), model=mlp())
    strategy.train(split_online_stream(unlabelled(200).train_stream, 5, seed=0), eval_streams=[])
    counts = torch.bincount(storage.memory["y"], minlength=CLASSES)
    assert storage.memory.seen == 200 and counts.sum() == 40 and counts.min() >= 2


# -- memories that have rows already ------------------------------------------------------------------


def restored(storage: StoragePolicy) -> Buffer:
    memory = Buffer(storage.memory.capacity, policies.Reservoir(), seed=9)
    memory.load_state_dict(reloaded(storage.memory.state_dict()))
    return memory


def samples(dataset) -> list[list[object]]:
    return [[torch.as_tensor(part).tolist() for part in sample] for sample in dataset]


@pytest.mark.parametrize("name", STREAMS)
def test_a_restored_memory_shows_its_rows_at_once(name: str) -> None:
    storage, data = policy(), STREAMS[name]()
    for experience in data.train_stream:
        storage.post_adapt(Agent(), experience)
    like = data.train_stream[0].dataset
    shown = StoragePolicy(restored(storage), like=like).buffer
    assert type(shown) is type(like) and len(shown) == 12
    assert samples(shown) == samples(storage.buffer) and list(shown.targets) == list(storage.buffer.targets)


def test_a_run_with_a_restored_memory_goes_on_like_one_that_was_not_interrupted() -> None:
    ends = []
    for stops in (False, True):
        storage, data = policy(), classic(train_transform=lambda a: 3 * a, eval_transform=None)
        torch.manual_seed(0)
        strategy = naive(ReplayPlugin(12, batch_size_mem=4, storage_policy=storage), model=mlp())
        strategy.train(data.train_stream[0], eval_streams=[])
        if stops:
            like = data.train_stream[0].dataset
            storage = StoragePolicy(restored(storage), like=like)
            strategy.plugins = [p for p in strategy.plugins if not isinstance(p, ReplayPlugin)]
            strategy.plugins.append(ReplayPlugin(12, batch_size_mem=4, storage_policy=storage))
        torch.manual_seed(1)
        strategy.train(data.train_stream[1], eval_streams=[])
        ends.append((parameters(strategy.model), storage.memory.state_dict()))
    assert torch.equal(ends[0][0], ends[1][0]) and same(ends[0][1], ends[1][1])


def test_without_a_data_set_the_rows_of_a_restored_memory_are_not_guessed() -> None:
    storage, data = policy(), unlabelled()
    storage.post_adapt(None, data.train_stream[0])
    again = StoragePolicy(restored(storage))
    with pytest.raises(
        ValueError, match=r"holds 12 rows, and no data set says what .* StoragePolicy\(buffer, like="
    ):
        len(again.buffer)
    again.post_adapt(None, data.train_stream[1])
    assert len(again.buffer) == 12


def test_restored_rows_keep_the_transforms_of_their_data_sets() -> None:
    x, y = rows(20)
    experiences = [
        as_classification_dataset(
            Labelled(x[i::2], y[i::2]), transform_groups={"train": (partial(torch.mul, i + 2), None)}
        )
        for i in range(2)
    ]
    storage = policy(20)
    for experience in benchmark_from_datasets(train=experiences).train_stream:
        storage.post_adapt(None, experience)
    again = StoragePolicy(restored(storage), like=experiences)
    assert samples(again.buffer) == samples(storage.buffer)
    with pytest.raises(
        ValueError, match="came with 2 different transforms, 1 are known; pass like= a list of the"
    ):
        len(StoragePolicy(restored(storage), like=experiences[0]).buffer)


def test_a_data_set_that_the_rows_do_not_come_from() -> None:
    storage = policy()
    storage.post_adapt(None, unlabelled().train_stream[0])
    with pytest.raises(ValueError, match=r"the memory has columns .*, samples like these have also \['t'\]"):
        StoragePolicy(restored(storage), like=classic(task_labels=True).train_stream[0].dataset)
    with pytest.raises(ValueError, match="column 'x' holds rows .* got rows"):
        StoragePolicy(restored(storage), like=as_classification_dataset(Pictures()))
