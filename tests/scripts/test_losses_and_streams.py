"""Strategies with losses of their own, and streams beyond images, through the scripts: results and resumption."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

CASES: list[dict[str, Any]] = [
    {"strategy": "er_aml", "policy": "reservoir"},
    {"strategy": "er_aml", "policy": "class_balanced", "strategy_options": ("task_free=True", "temperature=0.3")},
    {"strategy": "scr", "policy": "class_balanced", "strategy_options": ("projection=8",), "momentum": 0.9},
    {"strategy": "scr", "policy": "reservoir", "augment": True},
    {"strategy": "er_lwf", "policy": "reservoir"},
    {"strategy": "latent", "policy": "reservoir", "strategy_options": ("cut=body.2", "half=True")},
    {"strategy": "latent", "policy": "ring", "strategy_options": ("front_rate=0.1",), "momentum": 0.5},
    {"strategy": "gdumb", "policy": "greedy_balanced", "strategy_options": ("passes=3",), "momentum": 0.9},
    {
        "strategy": "rainbow_memory",
        "policy": "rainbow_memory",
        "strategy_options": ("passes=2", "reset_head=True", "cutmix=0.5"),
    },
    {
        "strategy": "gcr",
        "policy": "gcr",
        "strategy_options": ("gamma=0.1", "reservoir_size=9", "correct_only=True"),
    },
    {"strategy": "greedy_coreset", "policy": "class_balanced", "optimizer": "adam"},
    {"strategy": "icarl", "policy": "icarl"},
    {"strategy": "icarl", "policy": "reservoir"},
    {"strategy": "derpp", "policy": "reservoir", "stream": "split_text"},
    {"strategy": "er", "policy": "k_means", "stream": "split_wine"},
    {"strategy": "er", "policy": "herding", "stream": "split_embedded_digits"},
    {"strategy": "derpp", "policy": "class_balanced", "stream": "split_embedded_digits", "momentum": 0.5},
    {"strategy": "der", "policy": "ring", "stream": "permuted_breast_cancer", "tasks": 2, "per_class": None},
]


class Killed(BaseException):
    pass


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    kept = ("average_accuracy", "accuracy_matrix", "parameters_sha256", "memory_sha256", "memory_bytes")
    return {name: found[name] for name in kept}


@pytest.mark.parametrize("chosen", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_resuming_anywhere_equals_not_stopping(
    chosen: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import plots
    from config import Config
    from experiment import Experiment, Progress

    for picture in ("accuracy_matrix", "memory_classes"):
        monkeypatch.setattr(plots, picture, lambda *args: None)

    def make(name: str, resume: bool = False) -> Experiment:
        common = {"memory": 17, "per_class": 12, "epochs": 2, "checkpoint_every": 2, "eval_every": 3}
        return Experiment(Config(**{**common, **chosen}, name=name, out=str(tmp_path), resume=resume))

    make("whole").run()
    trained = itertools.count(1)
    iteration = Progress.after_training_iteration

    def dies(self: Progress, *args: Any, **kwargs: Any) -> None:
        iteration(self, *args, **kwargs)
        if next(trained) in (5, 16):
            raise Killed

    monkeypatch.setattr(Progress, "after_training_iteration", dies)
    for resume in (False, True, True):
        try:
            make("cut", resume).run()
            break
        except Killed:
            continue
    assert result(tmp_path / "whole") == result(tmp_path / "cut")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "latent", "policy": "k_means"}, "LatentReplay stores activations, and KMeans shows"),
        ({"strategy": "latent", "retrieval": "mir"}, "LatentReplay stores activations, and MIR shows"),
        ({"strategy": "latent", "policy": "ocs"}, "OCS takes every add as a whole task; use another policy"),
        ({"strategy": "latent", "strategy_options": ("cut=body.9",)}, "no module 'body.9' to cut at"),
        ({"stream": "next_word", "per_class": 3}, "takes neither --class-order nor --per-class"),
        ({"model": "bag_of_words"}, "split_digits has no token ids: torch.uint8; use --model mlp"),
        ({"stream": "split_text", "augment": True}, "--augment is for images"),
        ({"stream": "split_text", "normalise": True}, "--normalise is for numbers"),
    ],
)
def test_what_does_not_fit_is_told_before_training(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    from config import Config
    from experiment import Experiment

    with pytest.raises(ValueError, match=message):
        Experiment(Config(**options, out=str(tmp_path)))
    assert not any(tmp_path.iterdir())


def test_language_modelling_through_the_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from functools import partial

    import tables
    from config import Config
    from experiment import Experiment

    short = partial(tables.benchmarks.next_word, per_source=30)
    monkeypatch.setattr(tables.benchmarks, "next_word", short)
    run = Experiment(Config(stream="next_word", strategy="er", memory=30, out=str(tmp_path), checkpoint_every=0))
    run.run()
    assert run.buffer["x"].shape == (30, 8) and run.buffer["x"].is_floating_point() is False
    assert len(run.matrix()) == 6


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_rows_of_a_table_are_scaled_and_normalised_like_images(dtype: Any, tmp_path: Path) -> None:
    from config import Config
    from experiment import Experiment

    rows, labels = np.random.default_rng(0).integers(0, 256, (40, 5)).astype(dtype), np.arange(40) % 2
    np.savez(tmp_path / "mine.npz", x_train=rows, y_train=labels, x_test=rows, y_test=labels)
    options: dict[str, Any] = {"stream": "split_npz", "data": str(tmp_path / "mine.npz"), "tasks": 1}
    plain, scaled = (Experiment(Config(**options, normalise=chosen)) for chosen in (False, True))
    given = plain.stream.data.x_train
    unit = torch.from_numpy(rows / 255 if dtype == np.uint8 else rows)
    torch.testing.assert_close(plain.views.train(given).double(), unit, rtol=1e-6, atol=0)
    wanted = (unit - unit.mean(0)) / unit.std(0, unbiased=False)
    torch.testing.assert_close(scaled.views.eval(given).double(), wanted, rtol=1e-5, atol=1e-5)
