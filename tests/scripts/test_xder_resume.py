"""X-DER from the command line, cut within a task: visits, tasks and generators come back."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"
QUICK = ["--strategy", "xder", "--policy", "xder", "--memory", "40", "--checkpoint-every", "4"]
# Two tasks of six iterations: the third checkpoint is that of iteration 8, within the second task, and stays when
# the fourth, at the end of that task, is cut.
JOBS: dict[str, dict[str, Any]] = {
    "whole": {"argv": ["--name", "whole"]},
    "left": {"argv": ["--name", "left"], "kill": 4},
    "cut": {"argv": ["--name", "cut"], "kill": 4},
    "resumed": {"argv": ["--name", "cut", "--resume"]},
    "domains": {"argv": ["--name", "domains", "--stream", "next_word"]},
    "small": {"argv": ["--name", "small", "--memory", "9"]},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Folder of all runs, and exit code and output of each."""
    folder = tmp_path_factory.mktemp("runs")
    listed = [
        {**job, "argv": [str(SCRIPTS / "train.py"), "--out", ".", *QUICK, *job["argv"]]} for job in JOBS.values()
    ]
    for job in listed[:4]:
        job["argv"] += ["--tasks", "2", "--per-class", "12"]
    command = [sys.executable, str(Path(__file__).with_name("run_scripts.py")), str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, input=json.dumps(listed), capture_output=True, text=True, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, dict(zip(JOBS, json.loads(done.stdout.splitlines()[-1]), strict=True))


def test_a_run_cut_within_a_task_resumes_to_the_same_bits(runs):
    folder, done = runs
    assert done["cut"]["code"] == -signal.SIGKILL and done["resumed"]["code"] == 0, done["resumed"]["output"]
    results = [json.loads((folder / name / "result.json").read_text()) for name in ("whole", "cut")]
    for name in ("parameters_sha256", "memory_sha256", "accuracy_matrix"):
        assert results[0][name] == results[1][name]
    lines = [(folder / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert lines[0] == lines[1]


def test_visits_of_the_task_are_in_the_checkpoint(runs):
    folder, done = runs
    assert done["left"]["code"] == -signal.SIGKILL
    visits = {}
    for name, task in (("left", 1), ("whole", 2)):
        saved = torch.load(folder / name / "checkpoint.pt", weights_only=True)
        assert saved["strategy"] == {"task": task}
        visits[name] = saved["buffer"]["store"]["notes"]["xder_visits"]["values"]
    # Two iterations of the second task, each with two draws of ten; after a task the count begins anew.
    assert 20 <= visits["left"].sum() <= 40 and visits["left"].max() == 2 and not visits["whole"].any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("domains", "X-DER needs tasks that share no class, but [0, 1, 2, 3, 4, ...] are in several"),
        ("small", "10 classes share 9 slots; make a memory of at least 10 slots"),
    ],
)
def test_what_cannot_work_is_said_before_the_run_begins(runs, name: str, message: str):
    folder, done = runs
    assert done[name]["code"] == 1 and f"ValueError: {message}" in done[name]["output"]
    assert not (folder / name).exists()
