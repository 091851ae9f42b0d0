"""Runs cut by SIGKILL while they write a checkpoint, and what is left of them: results, lines, W&B."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb_records

SCRIPTS = Path(__file__).parents[2] / "scripts"
QUICK = ["--per-class", "30", "--memory", "40", "--checkpoint-every", "4"]  # five tasks of six iterations

# Momentum, augmentation, a retrieval, a stream loss and a policy's own state: each must come back.
CUT = {
    "er_apart": ["--strategy", "er", "--no-joint-forward", "--policy", "random_key", "--momentum", "0.9"],
    "er_ace": ["--strategy", "er_ace", "--policy", "class_balanced", "--retrieval", "class_balanced"],
    "derpp": ["--strategy", "derpp", "--policy", "partitioning", "--augment", "--eval-every", "5"],
}
# The third checkpoint is that of iteration 8, in the second task; with a period of a thousand, that of task 3.
WANDB = [*QUICK, "--name", "wandb", "--logger", "wandb", "--wandb-mode", "offline"]


def jobs() -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {}

    def job(key: str, *arguments: str, **options: Any) -> None:
        made[key] = {"argv": [str(SCRIPTS / "train.py"), "--out", ".", *arguments], **options}

    for name, extra in CUT.items():
        options = [*QUICK, *extra]
        job(f"whole {name}", *options, "--name", f"whole-{name}")
        job(f"cut {name}", *options, "--name", f"cut-{name}", kill=3)
        job(f"resumed {name}", *options, "--name", f"cut-{name}", "--resume")
    between = [*QUICK[:-1], "1000", *CUT["derpp"], "--name", "between"]
    job("cut between", *between, kill=3)
    job("resumed between", *between, "--resume")
    job("cut wandb", *WANDB, kill=3)
    job("resumed wandb", *WANDB, "--resume")
    job("often", *QUICK, "--name", "often", "--eval-every", "3")
    job("no login", *QUICK, "--name", "login", "--logger", "wandb")
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Folder of all runs, and exit code and output of each."""
    folder = tmp_path_factory.mktemp("runs")
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    env |= {"OMP_NUM_THREADS": "1", "HOME": str(folder)}
    command = [sys.executable, str(Path(__file__).with_name("run_scripts.py")), str(folder)]
    listed = jobs()
    text = json.dumps(list(listed.values()))
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, dict(zip(listed, json.loads(done.stdout.splitlines()[-1]), strict=True))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    assert found["seconds"] > found.pop("selection_seconds") > 0
    assert found.pop("seconds") > 0 and found.pop("samples_per_second") > 0
    del found["config"], found["versions"]  # a name differs; a commit may land between two runs
    return found


@pytest.mark.parametrize(
    ("whole", "cut", "key"),
    [*((f"whole-{name}", f"cut-{name}", name) for name in CUT), ("whole-derpp", *["between"] * 2)],
)
def test_a_run_killed_while_it_saves_resumes_to_the_same_bits(runs, whole, cut, key):
    folder, done = runs
    assert done[f"cut {key}"]["code"] == -signal.SIGKILL
    assert done[f"resumed {key}"]["code"] == 0, done[f"resumed {key}"]["output"]
    first, second = result(folder / whole), result(folder / cut)
    assert len(first["parameters_sha256"]) == len(first["memory_sha256"]) == 64
    assert first == second
    assert (folder / whole / "metrics.jsonl").read_bytes() == (folder / cut / "metrics.jsonl").read_bytes()


def test_digests_tell_runs_apart(runs):
    folder, _ = runs
    assert len({result(folder / f"whole-{name}")["parameters_sha256"] for name in CUT}) == len(CUT)


def test_no_step_has_two_lines(runs):
    """An evaluation that falls on the last iteration of a task is the one at its end."""
    folder, _ = runs
    assert [line["step"] for line in lines(folder / "often")] == list(range(3, 31, 3))
    steps = {*range(5, 31, 5), *range(6, 31, 6)}
    assert [line["step"] for line in lines(folder / "cut-derpp")] == sorted(steps)


def test_wandb_gets_what_the_files_get_and_a_resumed_run_is_the_same_run(runs):
    folder, done = runs
    assert done["cut wandb"]["code"] == -signal.SIGKILL
    assert done["resumed wandb"]["code"] == 0, done["resumed wandb"]["output"]
    first, second = wandb_records.read(folder / "wandb", seconds=0)  # the first was killed
    assert first.id == second.id and first.name == second.name == "wandb"
    assert second.config["memory"] == 40 and second.config["stream"] == "split_digits"
    assert second.axes["*"] == "step"
    # Killed while it saved iteration 8, after the evaluation of iteration 6; resumed from iteration 6.
    assert [record["step"] for record in first.history] == [6]
    assert [record["step"] for record in second.history] == [12, 18, 24, 30]
    for record, line in zip(first.history + second.history, lines(folder / "wandb"), strict=True):
        assert record["step"] == line["step"] and record["average_accuracy"] == line["average_accuracy"]
        held = {str(label): n for label, n in enumerate(record["memory/classes"]["values"]) if n}
        assert held == line["memory/classes"]
        assert record["memory/images"]["count"] > 0 and record["accuracy"]["nrows"] == line["task"]
    final = json.loads((folder / "wandb" / "result.json").read_text())
    for name in ("average_accuracy", "forgetting", "average_anytime_accuracy", "worst_case_accuracy"):
        assert second.summary[name] == final[name]


def test_a_missing_wandb_login_is_told_without_a_traceback(runs):
    _, done = runs
    output = done["no login"]["output"]
    assert done["no login"]["code"] == 1 and "Traceback" not in output
    assert "wandb login" in output and "offline mode" in output


def misfit(strategy: str, policy: str, retrieval: str) -> str | None:
    """What a combination is refused with; None: it must run."""
    from tables import POLICIES

    made = POLICIES[policy](**({"recent": 3} if policy in ("gss_iqp", "gss_clust") else {}))
    name = type(made).__name__
    if policy in ("chao", "efraimidis_spirakis", "forgetting"):
        column = "forgetting" if policy == "forgetting" else "weight"
        return f"policy '{policy}' reads a column '{column}' that split_digits does not have"
    if strategy in ("der", "derpp") and made.per_task:
        return f"logits belong to a training step.*another policy than {name}"
    if strategy == "latent" and made.per_task:
        return f"LatentReplay stores the activations of each step, {name} takes every add as a whole task"
    if strategy == "latent" and (made.needs or retrieval in ("mir", "aser", "grasp")):
        return "LatentReplay stores activations, and .* shows stored rows to the model"
    if strategy == "gdumb" and policy in ("lars", "labrs", "abs"):
        return f"GDumb does not run the network on the stream.*another policy than {name}"
    return None


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_every_strategy_takes_every_policy(every, tmp_path, monkeypatch):
    """Every fifth pair of them, each strategy with others, or all."""
    import plots
    from config import Config
    from experiment import Experiment
    from tables import POLICIES, RETRIEVALS, STRATEGIES

    for picture in ("accuracy_matrix", "memory_classes"):
        monkeypatch.setattr(plots, picture, lambda *args: None)
    # Not every memory has weights to draw by.
    retrievals = itertools.cycle(name for name in RETRIEVALS if name != "weighted")
    with_memory = [name for name in STRATEGIES if name not in ("sgd", "joint")]
    recent = {"policy_options": ("recent=2",)}
    for strategy, policy in list(itertools.product(with_memory, POLICIES))[::every]:
        config = Config(
            strategy=strategy,
            policy=policy,
            retrieval=next(retrievals),
            per_class=4,
            memory=12,
            tasks=1,
            checkpoint_every=0,
            out=str(tmp_path),
            **(recent if policy in ("gss_iqp", "gss_clust") else {}),
        )
        if (message := misfit(strategy, policy, config.retrieval)) is not None:
            with pytest.raises(ValueError, match=message):
                Experiment(config)
            continue
        run = Experiment(config)
        run.run()
        # GDumb's sampler keeps floor(12 / classes) rows a class, GSS-Clust what is far enough apart, ABS a quarter.
        fewest = {"gss_clust": 1, "abs": 8}.get(policy, 10)
        assert fewest <= len(run.buffer) <= 12 and run.iteration == 4, config


@pytest.mark.parametrize("model", ["mlp", "convnet", "slim_resnet18", "resnet18"])
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 20), (7,)])
def test_models_fit_the_images(model, shape, tmp_path):
    from config import Config
    from experiment import Experiment

    rng = np.random.default_rng(0)
    arrays = {f"x_{split}": rng.integers(0, 256, (8, *shape), np.uint8) for split in ("train", "test")}
    np.savez(tmp_path / "own.npz", **arrays, y_train=np.arange(8) % 2, y_test=np.arange(8) % 2)
    config = Config(stream="split_npz", data=str(tmp_path / "own.npz"), model=model, tasks=1, out=str(tmp_path))
    if model != "mlp" and (len(shape) == 1 or (model == "convnet" and shape[1] != shape[2])):
        with pytest.raises(ValueError, match=r"images.*; use --model mlp"):
            Experiment(config)
        return
    run = Experiment(config)
    x, _ = run.stream.tensors(0)
    assert run.model(run.views.eval(x)).shape == (8, 2)
