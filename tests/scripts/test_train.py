"""The scripts from outside and from inside: results, resumption to the bit, and what a user is told."""

import itertools
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from replaykit.policies import Coreset

SCRIPTS = Path(__file__).parents[2] / "scripts"
QUICK = ["--per-class", "20", "--memory", "20", "--checkpoint-every", "3"]


def start(out: Path, *arguments: str, script: str = "train.py") -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPTS / script), "--out", str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=out)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    options = [*QUICK, "--epochs", "2", "--momentum", "0.5", "--policy", "class_balanced", "--augment"]
    whole = start(tmp_path, "--name", "whole", *options)
    cut = start(tmp_path, "--name", "cut", *options)
    saved = tmp_path / "cut" / "checkpoint.pt"
    while not saved.exists():
        assert cut.poll() is None, cut.communicate()
        time.sleep(0.005)
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    output = finish(whole)
    assert "accuracy_matrix.png and memory_classes.png" in output
    assert not torch.load(saved, weights_only=True)["finished"], "the run was over before it could be killed"
    finish(start(tmp_path, "--name", "cut", *options, "--resume"))
    first, second = result(tmp_path / "whole"), result(tmp_path / "cut")
    for name in ("parameters_sha256", "memory_sha256", "accuracy_matrix", "forgetting"):
        assert first[name] == second[name], name
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    assert lines[0] == lines[1] and len(lines[0].splitlines()) == 5
    for name in ("config.json", "accuracy_matrix.png", "memory_classes.png"):
        assert (tmp_path / "cut" / name).stat().st_size > 0
    table = subprocess.run(
        [sys.executable, str(SCRIPTS / "table.py"), "--markdown", str(tmp_path / "whole" / "result.json")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"| {100 * first['average_accuracy']:.2f} |" in table.stdout


class Killed(BaseException):
    pass


STRATEGIES = ("sgd", "joint", "er", "er_ace", "der", "derpp")
GUIDED: list[dict[str, Any]] = [
    {"strategy": "gss", "policy": "gss_greedy", "strategy_options": ("repeats=2",)},
    {"strategy": "ocs", "policy": "ocs", "strategy_options": ("kappa=4", "pool=10")},
    {"strategy": "er", "policy": "gss_iqp", "policy_options": ("recent=6",), "retrieval": "mir"},
    {"strategy": "derpp", "policy": "k_means", "retrieval": "aser", "layers": "last"},
    {"strategy": "er_ace", "policy": "shapley"},
    {"strategy": "er", "policy": "mean_of_features"},
    {"strategy": "gss", "policy": "gss_clust", "policy_options": ("recent=6",)},
    {"strategy": "rehearsal", "policy": "herding", "loss": "derpp", "strategy_options": ("candidates=30",)},
    {"strategy": "rehearsal", "policy": "gcr", "loss": "weighted"},
    {"strategy": "er", "policy": "lars", "retrieval": "prioritised", "retrieval_options": ("beta=0.5",)},
    {"strategy": "er", "policy": "labrs", "retrieval": "least_replayed", "reptile_every": 4},
    {"strategy": "derpp", "policy": "abs", "retrieval": "mixed_sources"},
    {"strategy": "er", "policy": "greedy_coreset", "retrieval": "grasp"},
    {"strategy": "er_lwf", "policy": "icarl", "retrieval": "class_matched"},
    {"strategy": "xder_ce", "policy": "xder"},
    {"strategy": "gdumb", "policy": "rainbow_memory", "strategy_options": ("passes=2",)},
    {"strategy": "agem", "policy": "k_center"},
    {"strategy": "er_aml", "policy": "moderate"},
    {"strategy": "scr", "policy": "badge"},
]
# Coresets that differ by their selector alone, which keeps nothing between tasks.
SELECTORS = ("bcsr", "grad_match", "craig", "facility_location", "graph_cut", "log_determinant", "grand", "el2n")
SELECTORS += ("least_confidence", "margin", "entropy", "importance")
POLICIES = ("reservoir", "random_key", "ring", "class_balanced", "partitioning", "balanced", "greedy_balanced")
GRID = [{"strategy": STRATEGIES[i % 4 + 2], "policy": policy} for i, policy in enumerate(POLICIES)]
GRID += [{"strategy": "sgd", "policy": "reservoir"}, {"strategy": "joint", "policy": "reservoir"}]


def test_every_policy_of_the_scripts_is_resumed_in_a_test() -> None:
    from tables import POLICIES as ALL

    by_columns = {"chao", "efraimidis_spirakis", "forgetting"}  # of the data: test_names.py
    assert {case["policy"] for case in [*GRID, *GUIDED]} | set(SELECTORS) | by_columns == set(ALL)
    assert all(issubclass(ALL[policy], Coreset) for policy in SELECTORS)


@pytest.mark.parametrize("chosen", [*GRID, *GUIDED], ids=lambda case: f"{case['strategy']}-{case['policy']}")
def test_resuming_anywhere_equals_not_stopping(
    chosen: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from config import Config
    from experiment import Experiment, Progress

    def make(name: str, resume: bool = False) -> Experiment:
        return Experiment(
            Config(
                **chosen,
                memory=17,
                per_class=12,
                epochs=2,
                name=name,
                out=str(tmp_path),
                checkpoint_every=2,
                resume=resume,
                eval_every=3,
            )
        )

    make("whole").run()
    trained = itertools.count(1)
    iteration = Progress.after_training_iteration

    def dies(self: Progress, *args: Any, **kwargs: Any) -> None:
        iteration(self, *args, **kwargs)
        if next(trained) in (5, 16):
            raise Killed

    monkeypatch.setattr(Progress, "after_training_iteration", dies)
    for attempt in range(3):
        try:
            make("cut", resume=attempt > 0).run()
            break
        except Killed:
            continue
    first, second = result(tmp_path / "whole"), result(tmp_path / "cut")
    for found in (first, second):
        for name in ("config", "seconds", "selection_seconds", "samples_per_second", "versions"):
            del found[name]
    assert first == second


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stream": "split_imagenet"}, "unknown stream 'split_imagenet'; there are split_digits"),
        ({"strategy": "magic"}, "unknown strategy 'magic'; there are sgd, joint, rehearsal, er, er_ace"),
        ({"policy": "magic"}, "unknown policy 'magic'; there are reservoir"),
        ({"memory": 0}, "--memory must be at least 1, got 0"),
        ({"retrieval": "magic"}, "unknown retrieval 'magic'; there are uniform"),
        ({"policy_options": ("size=3",)}, "policy 'reservoir' takes compat=...; got 'size=3'"),
        (
            {"policy": "gss_greedy", "policy_options": ("references=0",)},
            "references is a number of gradients >= 1",
        ),
        (
            {"strategy_options": ("fuse_replay",)},
            "strategy 'derpp' takes .*fuse_replay=..., .*; got 'fuse_replay'",
        ),
        ({"strategy": "derpp", "policy": "ocs"}, "logits belong to a training step"),
        (
            {"strategy": "xder_ce", "alpha": 0.2},
            "--alpha is for der, derpp, gcr and losses.* xder_ce does not read it",
        ),
        ({"strategy": "rehearsal", "loss": "logits", "beta": 1.0}, "--beta is for .* rehearsal does not read it"),
        ({"strategy": "er", "loss": "derpp"}, "--loss is for --strategy rehearsal, er has a loss of its own"),
        ({"strategy": "rehearsal", "loss": "magic"}, "unknown loss 'magic'; there are cross_entropy, weighted,"),
        ({"strategy": "rehearsal", "loss": "weighted"}, "looks at a column 'weight'.* Use another loss"),
        ({"lr": -1.0}, "--lr must be a finite number >= 0, got -1.0"),
        ({"lr": math.inf}, "--lr must be a finite number >= 0, got inf"),
        ({"seed": -1}, "--seed is a whole number >= 0, got -1"),
        ({"class_order": -1}, "--class-order is a whole number >= 0, got -1"),
        ({"reptile_every": 2, "reptile_rate": math.nan}, "--reptile-rate must be from 0 to 1, got nan"),
        ({"tasks": 3}, "10 classes do not divide into 3 tasks; take a number that divides them"),
        (
            {"stream": "split_text", "model": "mlp"},
            "split_documentation holds token ids; use --model bag_of_words",
        ),
        ({"stream": "split_text", "model": "convnet"}, "no images; use --model bag_of_words"),
        ({"stream": "split_mnist", "data": "nowhere"}, "nowhere"),
        ({"resume": True, "name": "never"}, "no checkpoint"),
        ({"stream": "permuted_mnist", "per_class": 3}, "takes neither"),
    ],
)
def test_bad_input_is_told(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    from config import Config
    from experiment import Experiment

    with pytest.raises((ValueError, OSError, RuntimeError), match=message.replace("(", r"\(")):
        Experiment(Config(**{"out": str(tmp_path), **change}))
    assert not any(tmp_path.iterdir()), "a run that could not start leaves no folder"


def test_a_cut_run_is_not_replaced_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from config import Config
    from experiment import Experiment, Progress

    def dies(self: Progress, *args: Any, **kwargs: Any) -> None:
        raise Killed

    options: dict[str, Any] = {"out": str(tmp_path), "name": "a", "per_class": 3, "tasks": 2, "memory": 5}
    with monkeypatch.context() as patched:
        iteration = Progress.before_training_exp
        patched.setattr(
            Progress,
            "before_training_exp",
            lambda self, s: (self.experiment.task and dies(self)) or iteration(self, s),
        )
        with pytest.raises(Killed):
            Experiment(Config(**options)).run()
    with pytest.raises(
        ValueError, match="holds a run that was cut; go on with --resume, start over with --replace"
    ):
        Experiment(Config(**options)).run()
    Experiment(Config(**options, replace=True)).run()
    Experiment(Config(**options)).run()  # a finished one may be run again


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    import checkpoint
    from config import Config
    from experiment import Experiment

    run = Experiment(Config(out=str(tmp_path), name="a", per_class=3, tasks=1, memory=5))
    run.folder.mkdir()
    with (
        checkpoint.alone(run.folder),
        pytest.raises(ValueError, match="another process runs in .*a; wait for its"),
    ):
        run.run()
    assert not (run.folder / "config.json").exists()
    run.run()
    assert (run.folder / "result.json").exists()


def test_a_checkpoint_of_another_run_or_a_broken_one_is_refused(tmp_path: Path) -> None:
    from config import Config
    from experiment import Experiment

    options: dict[str, Any] = {"out": str(tmp_path), "name": "a", "per_class": 3, "tasks": 1, "memory": 5}
    Experiment(Config(**options)).run()
    with pytest.raises(ValueError, match="memory: 5 then, 6 now"):
        Experiment(Config(**{**options, "memory": 6, "resume": True}))
    with pytest.raises(ValueError, match="is finished"):
        Experiment(Config(**options, resume=True)).run()
    file = tmp_path / "a" / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        Experiment(Config(**options, resume=True))


def test_an_offline_wandb_run(tmp_path: Path) -> None:
    output = finish(
        start(tmp_path, "--name", "w", *QUICK, "--tasks", "2", "--logger", "wandb", "--wandb-mode", "offline")
    )
    assert list((tmp_path / "w" / "wandb").glob("offline-run-*/*.wandb")), output


@pytest.mark.parametrize(
    "script",
    ["train.py", "split_mnist.py", "split_cifar10.py", "split_cifar100.py", "imbalanced_mnist.py", "table.py"],
)
def test_help(script: str, tmp_path: Path) -> None:
    assert "--" in finish(
        subprocess.Popen(
            [sys.executable, str(SCRIPTS / script), "--help"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    )


def test_types_of_the_data_are_told_without_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from config import Config
    from train import command

    rows = np.zeros((4, 2), np.float32)
    np.savez(tmp_path / "mine.npz", x_train=rows, y_train=rows[:, 0], x_test=rows, y_test=rows[:, 0])
    np.save(tmp_path / "mine.npy", rows)
    for name, message in {
        "mine.npz": "TypeError: y_train in .* is float32; expected integers",
        "mine.npy": "it holds a single array.*; expected plain arrays x_train",
    }.items():
        monkeypatch.setattr("sys.argv", ["train.py", "--stream", "split_npz", "--data", str(tmp_path / name)])
        with pytest.raises(SystemExit, match=message):
            command(Config(out=str(tmp_path / "runs")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"atoms": 0}, "--atoms must be at least 1, got 0"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"threads": 0}, "--threads must be at least 1, got 0"),
        ({}, r"nowhere.*fetch them by scripts/train.py --download"),
    ],
)
def test_an_embedding_that_cannot_be_is_told(options: dict[str, int], message: str, tmp_path: Path) -> None:
    from embed import main

    with pytest.raises(SystemExit, match=message):
        main("mnist", tmp_path / "e.npz", data="nowhere", **options)
