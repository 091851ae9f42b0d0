import io
import math

import torch

from replaykit.loggers import Console, Counts, Images, Matrix


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_text_where_there_is_no_terminal():
    out = io.StringIO()
    console = Console(total=2000, done=500, file=out)
    console.describe("task 1")
    console.advance(250)
    console.log(
        25,
        {
            "average [accuracy]": 0.7512,
            "rows": 12345,
            "memory/bytes": 99,
            "matrix": Matrix([[0.5, math.nan], [0.25, 1.0]]),
            "classes": Counts({0: 3, 7: 1}),
            "images": Images(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), ["zero"]),
        },
    )
    console.summary({"forgetting": 0.125, "seed": 3})
    console.close()
    text = out.getvalue()
    assert text.replace("\n", "").isprintable()
    assert "iteration 25, 750 of 2,000 samples" in text and "average [accuracy] 0.7512, rows 12,345\n" in text
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "|" in line]
    assert ["", "after task \\ on task", "1", "2", ""] in rows
    assert ["", "1", "50.0", "-", ""] in rows and ["", "2", "25.0", "100.0", ""] in rows
    assert ["", "forgetting", "0.125", ""] in rows and ["", "seed", "3", ""] in rows
    assert "classes: 0 × 3, 7 × 1" in text and "images" not in text


def test_many_classes_are_summed_up():
    out = io.StringIO()
    Console(total=1, file=out).log(1, {"classes": Counts({label: 3 + label % 5 for label in range(100)})})
    assert "classes: 100 labels, 3 to 7 rows each" in out.getvalue()


def test_a_wide_table_keeps_its_columns_in_a_file():
    out = io.StringIO()
    Console(total=1, file=out).log(1, {"a": Matrix([[i / 100 for i in range(20)]])})
    assert all(f" {i}.0 " in out.getvalue() for i in range(20))


def test_the_rate_counts_training_and_not_evaluation(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("replaykit.loggers.console.time.perf_counter", lambda: clock[0])
    console = Console(total=100, file=io.StringIO())
    assert console.rate == 0.0
    clock[0] = 7.0  # loading data
    console.describe("task 1")
    for _ in range(4):
        clock[0] += 0.5
        console.advance(10)
    clock[0] += 100.0  # an evaluation
    console.start()
    clock[0] += 2.0
    console.advance(40)
    assert console.seconds == 4.0 and console.rate == 20.0
    console.close()


def test_a_terminal_gets_a_bar_with_samples_a_second(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    clock = [0.0]
    monkeypatch.setattr("replaykit.loggers.console.time.perf_counter", lambda: clock[0])
    out = Tty()
    console = Console(total=100, file=out)
    console.describe("task 1 of 2")
    clock[0] = 2.0
    console.advance(50)
    console.log(5, {"accuracy": 0.5})
    console.close()
    text = out.getvalue()
    assert "task 1 of 2" in text and "50/100" in text and "25 samples/s" in text and "\x1b" in text
