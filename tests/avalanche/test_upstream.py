"""What is broken in Avalanche 0.6 and stepped around here; a failure says that it was mended there."""

import warnings

import pytest
import torch
from avalanche.benchmarks import split_online_stream
from avalanche.models import IncrementalClassifier
from avalanche.training import supervised
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer, ReservoirSamplingBuffer
from small_streams import CLASSES, DIM, classic, naive, no_warnings, template, unlabelled
from torch import nn

from replaykit import Buffer, policies
from replaykit.avalanche import StoragePolicy
from replaykit.strategies import DER


def test_the_default_replay_plugin_freezes_on_the_first_task_of_an_online_stream() -> None:
    def classes(plugin: ReplayPlugin) -> set[int]:
        naive(plugin).train(split_online_stream(unlabelled(200).train_stream, 5, seed=0), eval_streams=[])
        return {int(y) for y in plugin.storage_policy.buffer.targets}

    assert classes(ReplayPlugin(20)) == {0, 1}
    ours = StoragePolicy(Buffer(20, policies.Reservoir()))
    assert classes(ReplayPlugin(20, storage_policy=ours)) == {0, 1, 2, 3}


def test_avalanches_der_does_not_survive_a_growing_head() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(DIM, 8), nn.ReLU(), IncrementalClassifier(8, 2))

    theirs = supervised.DER(mem_size=20, batch_size_mem=5, **template(model()))
    data = classic(fixed_class_order=list(range(CLASSES)))
    with pytest.raises(RuntimeError, match="size of tensor"):
        theirs.train(data.train_stream, eval_streams=[])
    ours = DER(buffer=Buffer(20, policies.Reservoir()), **template(model()))
    ours.train(data.train_stream, eval_streams=[])
    assert ours.replay.buffer["logits"].shape == (20, CLASSES)


def test_avalanches_class_balanced_buffer_needs_task_labels() -> None:
    data = unlabelled()
    with pytest.raises(RuntimeError, match="equal size"):
        naive(ReplayPlugin(20, storage_policy=ClassBalancedBuffer(20))).train(data.train_stream, eval_streams=[])


def test_avalanches_buffers_warn_at_every_update() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        naive(ReplayPlugin(20, storage_policy=ReservoirSamplingBuffer(20))).train(
            split_online_stream(unlabelled().train_stream, 10, seed=0), eval_streams=[]
        )
    assert sum(w.category is DeprecationWarning for w in caught) == 8
    ours = StoragePolicy(Buffer(20, policies.Reservoir()))
    with no_warnings():
        naive(ReplayPlugin(20, storage_policy=ours)).train(
            split_online_stream(unlabelled().train_stream, 10, seed=0), eval_streams=[]
        )


def test_the_last_part_of_an_online_experience_is_not_flagged() -> None:
    parts = list(split_online_stream(unlabelled().train_stream, 10, seed=0))
    assert len(parts) == 8 and not any(part.is_last_subexp for part in parts)
    assert torch.is_tensor(parts[0].dataset[0][0])
