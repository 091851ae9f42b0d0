import json
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
from table import Options, main

CONFIG = {
    "stream": "split_mnist",
    "strategy": "er",
    "policy": "reservoir",
    "retrieval": "uniform",
    "memory": 200,
    "lr": 0.1,
    "name": None,
}


#: What scripts/compare.py writes beside its runs.
NO_RUN = json.dumps({"config": CONFIG, "methods": []})


def write(folder: Path, name: str, accuracy: float, seed: int, **config: Any) -> Path:
    path = folder / f"{name}.json"
    found = {"average_accuracy": accuracy, "forgetting": 0.25, "seconds": 10.0 + seed}
    path.write_text(json.dumps({**found, "config": {**CONFIG, "name": name, "seed": seed, **config}}))
    return path


def rows(output: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line]


def test_mean_and_deviation_over_seeds_of_like_runs(tmp_path, capsys):
    accuracies = [0.80, 0.84, 0.82]
    paths = [write(tmp_path, f"a{seed}", value, seed) for seed, value in enumerate(accuracies)]
    paths += [write(tmp_path, "b", 0.5, 0, memory=500), write(tmp_path, "c", 0.2, 0, strategy="sgd")]
    main(Options(paths, markdown=True))
    header, _, *lines = rows(capsys.readouterr().out)
    table = [dict(zip(header, line, strict=True)) for line in lines]
    (three,) = [line for line in table if line["seeds"] == "3"]
    assert stdev(accuracies) == pytest.approx(0.02)
    assert three["accuracy"] == "82.00 ± 2.00" and three["forgetting"] == "25.00 ± 0.00"
    assert three["seconds"] == "11.0 ± 1.0" and three["AAA"] == "-"
    assert sorted((line["strategy"], line["memory"], line["accuracy"]) for line in table) == [
        ("er", "200", "82.00 ± 2.00"),
        ("er", "500", "50.00"),
        ("sgd", "0", "20.00"),
    ]


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path, capsys):
    paths = [write(tmp_path, "a", 0.8, 0), write(tmp_path, "b", 0.4, 1, lr=0.5)]
    main(Options(paths, markdown=True))
    assert len(rows(capsys.readouterr().out)) == 4


def test_the_same_seed_twice_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="2 results but 1 seeds"):
        main(Options([write(tmp_path, "a", 0.8, 0), write(tmp_path, "b", 0.8, 0)]))


@pytest.mark.parametrize("text", ["nonsense", "{}", "[]", '{"config": 3}', '{"config": {}}', NO_RUN])
def test_a_file_that_is_no_result_is_named(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match=r"other\.json is not the result of a run"):
        main(Options([path]))
