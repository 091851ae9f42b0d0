import json
import math

import pytest
import torch

from replaykit.loggers import Counts, Images, JsonLines, Matrix

VALUES = {
    "accuracy": 0.1 + 0.2,
    "loss": math.nan,
    "matrix": Matrix([[0.5, math.nan], [0.25, 1.0]]),
    "classes": Counts({0: 3, 7: 1}),
    "images": Images(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), ["zero"]),
}


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_line_an_evaluation_with_every_digit(tmp_path):
    logger = JsonLines(tmp_path / "metrics.jsonl")
    logger.log(10, VALUES)
    # Whole lines reach the file at once: a killed run loses nothing that was logged.
    assert records(tmp_path / "metrics.jsonl") == [
        {
            "step": 10,
            "accuracy": 0.1 + 0.2,
            "loss": None,
            "matrix": [[0.5, None], [0.25, 1.0]],
            "classes": {"0": 3, "7": 1},
        }
    ]
    logger.log(20, {"accuracy": 1})
    logger.summary({"accuracy": 1})
    logger.close()
    assert [record["step"] for record in records(tmp_path / "metrics.jsonl")] == [10, 20]


def test_starts_anew_unless_told_to_resume(tmp_path):
    for accuracy in (0.1, 0.2):
        logger = JsonLines(tmp_path / "m.jsonl")
        logger.log(1, {"accuracy": accuracy})
        logger.close()
    assert records(tmp_path / "m.jsonl") == [{"step": 1, "accuracy": 0.2}]


def test_resuming_drops_what_comes_after_the_checkpoint_and_the_torn_line(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "a": 0}\n{"step": 2, "a": 1}\n{"step": 3, "a": 2}\n{"step": 4, "a"')
    logger = JsonLines(path, resume=2)
    logger.log(3, {"a": 5})
    logger.close()
    assert records(path) == [{"step": 1, "a": 0}, {"step": 2, "a": 1}, {"step": 3, "a": 5}]
    assert list(tmp_path.iterdir()) == [path]


def test_resuming_without_a_file_starts_one(tmp_path):
    JsonLines(tmp_path / "m.jsonl", resume=7).close()
    assert (tmp_path / "m.jsonl").read_text() == ""


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"loss": 1}', '{"step": "one"}'])
def test_a_damaged_file_is_named_with_its_line(tmp_path, line):
    path = tmp_path / "m.jsonl"
    text = f'{{"step": 1}}\n{line}\n{{"step": 2}}\n'
    path.write_text(text)
    with pytest.raises(ValueError, match=r"m\.jsonl, line 2 is not an evaluation"):
        JsonLines(path, resume=5)
    assert path.read_text() == text
