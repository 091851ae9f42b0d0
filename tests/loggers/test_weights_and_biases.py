import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb_records
from PIL import Image

from replaykit.loggers import Counts, Images, Matrix, WandB


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


def offline(folder: Path, **extra) -> WandB:
    return WandB(folder, "project", "run 1", {"lr": 0.1, "stream": {"tasks": 5}}, mode="offline", **extra)


def test_everything_logged_offline_can_be_read_back(tmp_path):
    pixels = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)
    logger = offline(tmp_path)
    logger.log(
        100,
        {
            "average_accuracy": 0.75,
            "matrix": Matrix([[0.5, math.nan], [0.25, 1.0]]),
            "memory_classes": Counts({0: 3, 2: 5}),
            "memory": Images(pixels, ["class 0", "class 2"]),
        },
    )
    logger.log(250, {"average_accuracy": 0.5, "memory_classes": Counts({})})
    logger.summary({"forgetting": 0.125})
    logger.close()

    (run,) = wandb_records.read(tmp_path)
    assert (run.project, run.name, run.id) == ("project", "run 1", logger.id)
    assert run.config["lr"] == 0.1 and run.config["stream"] == {"tasks": 5}
    assert run.axes["*"] == "step"
    first, second = run.history
    assert [(r["step"], r["average_accuracy"]) for r in run.history] == [(100, 0.75), (250, 0.5)]
    assert first["memory_classes"]["values"] == [3, 0, 5]
    assert first["memory_classes"]["bins"] == [-0.5, 0.5, 1.5, 2.5]
    assert second["memory_classes"]["values"] == [0]
    assert run.summary["forgetting"] == 0.125 and run.summary["average_accuracy"] == 0.5

    (files,) = tmp_path.glob("wandb/offline-run-*/files")
    assert first["memory"]["captions"] == ["class 0", "class 2"]
    for picture, name in zip(pixels, first["memory"]["filenames"], strict=True):
        assert np.array_equal(np.array(Image.open(files / name)), picture.permute(1, 2, 0).numpy())
    table = (files / first["matrix"]["path"]).read_text()
    assert '"columns":["after task","on task 1","on task 2"]' in table.replace(", ", ",").replace(": ", ":")
    assert "[2,0.25,1.0]" in table.replace(", ", ",")
    heat = np.array(Image.open(files / first["matrix_map"]["path"]))
    assert heat.shape == (32, 32, 3)
    assert [heat[y, x].tolist() for y, x in ((0, 0), (0, 31), (31, 0), (31, 31))] == [
        *([127] * 3, [96, 0, 0], [63] * 3, [255] * 3)
    ]


def test_resuming_continues_the_run_and_starting_anew_does_not(tmp_path):
    first = offline(tmp_path)
    first.log(1, {"a": 0.1})
    first.close()
    assert (tmp_path / "wandb_id.txt").read_text().strip() == first.id
    time.sleep(1.1)  # W&B names the folders of the parts by the second
    second = offline(tmp_path, resume=True)
    second.log(2, {"a": 0.2})
    second.close()
    assert second.id == first.id
    parts = wandb_records.read(tmp_path)
    assert [part.id for part in parts] == [first.id] * 2
    assert [r["step"] for part in parts for r in part.history] == [1, 2]
    third = offline(tmp_path)
    third.close()
    assert third.id != first.id


def test_disabled_writes_no_run(tmp_path):
    logger = WandB(tmp_path, "p", "n", {}, mode="disabled")
    logger.log(1, {"a": 0.5, "m": Matrix([[1.0]]), "c": Counts({1: 1})})
    logger.summary({"a": 0.5})
    logger.close()
    assert not list(tmp_path.glob("wandb/*run*"))


def test_a_missing_login_names_the_ways_out(tmp_path):
    # In a process of its own: W&B would ask a terminal, and remembers a session's login.
    code = f"from replaykit.loggers import WandB; WandB({str(tmp_path)!r}, 'p', 'n', {{}})"
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode != 0
    assert "RuntimeError: Weights & Biases did not start" in done.stderr
    assert "wandb login" in done.stderr and "offline mode" in done.stderr
    assert not (tmp_path / "wandb_id.txt").exists()


def test_wandb_is_imported_only_by_who_logs_to_it():
    code = "import sys, replaykit.loggers; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
