"""Everything that is exported has a name in the scripts, and memories that read columns of the data get them."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from replaykit import losses, policies, retrieval, selectors, strategies
from replaykit.avalanche import Template
from replaykit.benchmarks import digits


def classes(module: Any) -> set[type]:
    return {kind for name in module.__all__ if isinstance(kind := getattr(module, name), type)}


def test_every_strategy_has_a_name(tmp_path: Path) -> None:
    from config import Config
    from experiment import Experiment
    from tables import STRATEGIES

    made = {
        type(Experiment(Config(strategy=name, policy="greedy_balanced", out=str(tmp_path))).strategy)
        for name in STRATEGIES
    }
    assert made == classes(strategies) | {Template}


def test_every_policy_has_a_name() -> None:
    from tables import POLICIES

    # A coreset of no selector in particular is for Python; each selector has a policy of its own.
    assert set(POLICIES.values()) == classes(policies) - {policies.Coreset}
    frames = {"Selector", "PerClass", "Nystrom"}  # the last is for data too large for a kernel, no memory
    choosing = {kind.__name__ for kind in classes(selectors) if hasattr(kind, "select")} - frames
    named = {"Bilevel": "GreedyCoreset", "Rainbow": "RainbowMemory"}
    assert {"GCR", "KCenter", "LeastConfidence"} <= choosing
    assert {named.get(name, name) for name in choosing} <= {policy.__name__ for policy in POLICIES.values()}


def test_every_retrieval_has_a_name() -> None:
    from tables import RETRIEVALS

    assert set(RETRIEVALS.values()) == classes(retrieval) - {retrieval.Retrieval, retrieval.GuidedRetrieval}


def test_every_loss_of_replayed_rows_has_a_name() -> None:
    from tables import LOSSES

    # A model to distil from is remembered by ER-LwF, and sums are for Python.
    beside = {losses.AsymmetricCrossEntropy, losses.Features, losses.TaskAware}
    told = {losses.Distillation, losses.Sum}
    assert {make for make, _ in LOSSES.values()} == classes(losses) - beside - told


# -- columns of the data --------------------------------------------------------------------------------


READERS = {"chao": "weight", "efraimidis_spirakis": "weight", "forgetting": "forgetting"}


def options(column: str, out: Path, **changes: Any) -> dict[str, Any]:
    """Of a run on digits with one more column."""
    data, path = digits(), out / f"{column}.npz"
    splits = {name: getattr(data, name).numpy() for name in ("x_train", "y_train", "x_test", "y_test")}
    number = np.arange(len(data.y_train))
    values = {"weight": np.where(number % 2, 50.0, 1.0), "forgetting": number % 4}
    np.savez(path, **splits, **{f"column_{column}": values[column]})
    common = {"stream": "split_npz", "data": str(path), "strategy": "er", "memory": 20, "per_class": 12}
    return {**common, "tasks": 2, "checkpoint_every": 2, "out": str(out), **changes}


@pytest.mark.parametrize("policy", READERS)
def test_memories_read_columns_of_the_data_and_resume(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import plots
    from config import Config
    from experiment import Experiment, Progress

    for picture in ("accuracy_matrix", "memory_classes"):
        monkeypatch.setattr(plots, picture, lambda *args: None)

    chosen = options(READERS[policy], tmp_path, policy=policy)

    def make(name: str, resume: bool = False) -> Experiment:
        return Experiment(Config(name=name, resume=resume, **chosen))

    whole = make("whole")
    whole.run()
    memory = whole.buffer
    given = {row.numpy().tobytes(): number for number, row in enumerate(whole.stream.data.x_train)}
    numbers = [given[row.numpy().tobytes()] for row in memory["x"]]
    column = whole.stream.data.columns[READERS[policy]]
    assert torch.equal(memory[READERS[policy]], column[numbers]), "rows keep their own"
    assert float(column[numbers].double().mean()) > 1.5 * float(column.double().mean()), "and it decides"

    trained, iteration = itertools.count(1), Progress.after_training_iteration

    def dies(self: Progress, *args: Any, **kwargs: Any) -> None:
        iteration(self, *args, **kwargs)
        if next(trained) == 9:  # of 6 a task
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "after_training_iteration", dies)
    with pytest.raises(KeyboardInterrupt):
        make("cut").run()
    cut = make("cut", resume=True)
    cut.run()
    assert cut.iteration == whole.iteration == 12
    for name in memory.store.columns:
        assert torch.equal(cut.buffer[name], memory[name]), name
    for first, second in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("policy", READERS)
def test_data_without_the_column_are_told_before_training(policy: str, tmp_path: Path) -> None:
    from config import Config
    from experiment import Experiment

    message = (
        f"policy '{policy}' reads a column '{READERS[policy]}' that split_digits does not have; use another.*"
    )
    with pytest.raises(ValueError, match=message + f"'column_{READERS[policy]}'"):
        Experiment(Config(policy=policy, out=str(tmp_path)))
    assert Experiment(Config(strategy="sgd", policy=policy, out=str(tmp_path))).config.policy == policy
    chosen = options("weight", tmp_path, policy="herding")
    with pytest.raises(ValueError, match="policy 'herding' writes a column 'weight', and split_weight has one of"):
        Experiment(Config(**chosen))


def test_sources_reach_the_memory_in_the_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the stream numbers its tasks, rows say which one they are of, also when all come at once."""
    from functools import partial

    import tables
    from config import Config
    from experiment import Experiment

    monkeypatch.setattr(tables.benchmarks, "next_word", partial(tables.benchmarks.next_word, per_source=30))
    run = Experiment(
        Config(
            stream="next_word",
            strategy="er",
            policy="class_balanced",
            policy_options=("column=t",),
            retrieval="mixed_sources",
            retrieval_options=("ratios={0: 0.5, 1: 0.3, 2: 0.2, 3: 0, 4: 0, 5: 0}",),
            memory=30,
            out=str(tmp_path),
            checkpoint_every=0,
        )
    )
    drawn: list[torch.Tensor] = []
    draw = run.buffer.draw

    def watched(*args: Any, **kwargs: Any) -> Any:
        slots = draw(*args, **kwargs)
        drawn.append(torch.bincount(run.buffer.read(slots)["t"], minlength=6))
        return slots

    monkeypatch.setattr(run.buffer, "draw", watched)
    run.run()
    assert torch.bincount(run.buffer["t"]).tolist() == [5] * 6
    assert drawn[-1].tolist() == [5, 3, 2, 0, 0, 0]
    joint = Experiment(Config(stream="next_word", strategy="joint", out=str(tmp_path)))
    assert torch.bincount(joint.columns()["t"]).tolist() == [24] * 6
