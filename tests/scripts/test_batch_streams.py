"""Runs on a stream of batches with fewer test tasks, Adam anew for every batch: metrics, files, resumption."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from replaykit.benchmarks import in_batches, split_digits


class Killed(BaseException):
    pass


@pytest.fixture(autouse=True)
def batches_of_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six batches of 20 rows over five pairs of digits, under the name of the stream of digits."""
    import tables

    def make(root: str, download: bool, tasks: int, per_class: int | None) -> Any:
        return in_batches(split_digits(per_class=12), 20)

    monkeypatch.setitem(tables.STREAMS, "split_digits", (make, 5, "mlp"))


def config(tmp_path: Path, **options: Any) -> Any:
    from config import Config

    default = {
        "strategy": "greedy_coreset",
        "optimizer": "adam",
        "fresh_optimizer": True,
        "epochs": 3,
        "memory": 15,
    }
    return Config(**{**default, "train_mb_size": 8, "out": str(tmp_path), **options})


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    for name in ("config", "versions", "seconds", "samples_per_second", "selection_seconds"):
        found.pop(name, None)
    return found


@pytest.mark.parametrize(
    "chosen",
    [
        {"policy": "reservoir"},
        {"policy": "greedy_coreset", "evaluate": "end"},
        {"policy": "class_balanced", "fresh_optimizer": False, "eval_every": 4},
        {"strategy": "er", "policy": "class_balanced", "optimizer": "sgd", "momentum": 0.9},
    ],
    ids=lambda chosen: "-".join(map(str, chosen.values())),
)
def test_a_run_cut_within_a_batch_or_after_it_resumes_to_the_same_bits(
    chosen: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiment import Experiment, Progress

    def make(name: str, resume: bool = False) -> Experiment:
        return Experiment(config(tmp_path, **chosen, name=name, resume=resume, checkpoint_every=4))

    make("whole").run()
    trained = itertools.count(1)
    iteration = Progress.after_training_iteration

    def dies(self: Progress, *args: Any, **kwargs: Any) -> None:
        iteration(self, *args, **kwargs)
        # At iterations 7, 10 and 27 of 54, nine a batch: saved were 4, then 9 with the first batch done, then 24.
        if next(trained) in (7, 13, 31):
            raise Killed

    monkeypatch.setattr(Progress, "after_training_iteration", dies)
    positions = []
    for attempt in range(4):
        run = make("cut", resume=attempt > 0)
        positions.append(None if run.saved is None else (run.task, run.saved["position"]))
        try:
            run.run()
            break
        except Killed:
            continue
    assert positions == [None, (0, [1, 1]), (1, [0, 0]), (2, [1, 3])]
    assert result(tmp_path / "whole") == result(tmp_path / "cut")
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "cut/metrics.jsonl").read_bytes()


def test_a_fresh_optimiser_is_another_run(tmp_path: Path) -> None:
    from experiment import Experiment

    found = {}
    for strategy, fresh in itertools.product(("greedy_coreset", "er", "sgd"), (True, False)):
        run = Experiment(config(tmp_path, strategy=strategy, fresh_optimizer=fresh, evaluate="end"))
        run.run()
        found[strategy, fresh] = result(run.folder)["parameters_sha256"]
        steps = {int(state["step"]) for state in run.strategy.optimizer.state.values()}
        assert steps == ({9} if fresh else {54}), (strategy, fresh)
    assert len(set(found.values())) == 6


def test_metrics_that_need_a_test_task_for_each_training_task_are_left_out(tmp_path: Path) -> None:
    from experiment import Experiment

    names = {}
    for evaluate, strategy in (("task", "greedy_coreset"), ("end", "greedy_coreset"), ("task", "joint")):
        run = Experiment(config(tmp_path, evaluate=evaluate, strategy=strategy, name=f"{evaluate}-{strategy}"))
        run.run()
        found = result(run.folder)
        matrix = torch.tensor(found["accuracy_matrix"])
        assert matrix.shape == ((6, 5) if (evaluate, strategy) == ("task", "greedy_coreset") else (1, 5))
        assert found["average_accuracy"] == pytest.approx(float(matrix[-1].mean()))
        lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        assert len(lines) == len(matrix)
        names[evaluate, strategy] = set(found)
        if matrix.shape == (6, 5):
            # After batch 2 (rows 20 to 39 of 24 a task) two of the five test tasks count as seen.
            assert lines[1]["average_accuracy"] == pytest.approx(float(matrix[1, :2].mean()))
            anytime = [matrix[t, : k + 1].mean() for t, k in enumerate(run.stream.current)]
            assert found["average_anytime_accuracy"] == pytest.approx(float(torch.stack(anytime).mean()))
        assert len(run.held) == (1 if strategy == "joint" else 6)
        for picture in ("accuracy_matrix.png", *(["memory_classes.png"] if strategy != "joint" else [])):
            assert (run.folder / picture).stat().st_size > 0
    dense = {"average_anytime_accuracy", "worst_case_accuracy"}
    assert names["task", "greedy_coreset"] - names["end", "greedy_coreset"] == dense
    assert names["end", "greedy_coreset"] == names["task", "joint"]
    assert not {"forgetting", "backward_transfer"} & set.union(*names.values())


def test_the_settings_of_the_imbalanced_stream() -> None:
    from config import Config

    def completed(policy: str, **options: Any) -> Config:
        given = {"stream": "imbalanced_mnist", "strategy": "greedy_coreset", "optimizer": "adam", **options}
        return Config(policy=policy, **given).completed()

    for policy, beta in (("reservoir", 100.0), ("class_balanced", 10.0), ("greedy_coreset", 10.0)):
        found = completed(policy)
        assert (found.lr, found.beta, found.batch_size_mem) == (5e-4, beta, None)
        assert found.completed() == found
    assert completed("reservoir", beta=3.0, lr=0.1, batch_size_mem=7).beta == 3.0
    assert completed("reservoir", stream="split_digits").batch_size_mem is None
    assert completed("reservoir", stream="split_digits").lr == 0.001
    assert Config(strategy="er").completed().batch_size_mem == 10
    with pytest.raises(ValueError, match="--momentum is for sgd, got 0.9 with --optimizer adam"):
        completed("reservoir", momentum=0.9)


@pytest.mark.parametrize("option", [{"tasks": 2}, {"class_order": 1}, {"per_class": 3}])
def test_the_imbalanced_stream_is_what_it_is(option: dict[str, int], tmp_path: Path) -> None:
    from experiment import Experiment

    with pytest.raises(ValueError, match="imbalanced_mnist takes neither --tasks, --class-order nor --per-class"):
        Experiment(config(tmp_path, stream="imbalanced_mnist", **option))
