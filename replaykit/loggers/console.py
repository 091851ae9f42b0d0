"""The terminal: a progress bar while a run trains, a table after each evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import IO, Any

from rich import box
from rich.console import Console as Terminal
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from replaykit.loggers.values import Counts, Matrix, Value

_EVERY = 0.2  # seconds between two updates of the bar
_LISTED = 20  # labels that one line has room for


class Console:
    """A live bar with samples a second, accuracies as tables; plain lines where the output is no terminal.

    Args:
        total: training samples of the whole run.
        done: of those, samples that an earlier process trained on.
        file: where to write, by default standard output.
    """

    def __init__(self, total: int, done: int = 0, file: IO[str] | None = None) -> None:
        self.terminal = Terminal(file=file, highlight=False)
        if not self.terminal.is_terminal:
            # Nobody's window limits a log file: a table of twenty tasks keeps all its columns.
            self.terminal = Terminal(file=file, highlight=False, width=240)
        self._total, self._done, self._trained, self._spent = total, done, 0, 0.0
        self._shown = self._since = time.perf_counter()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:,.0f} samples/s"),
            TimeRemainingColumn(),
            console=self.terminal,
            auto_refresh=False,
            disable=not self.terminal.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total, completed=done, rate=0.0)
        self._bar.start()

    @property
    def rate(self) -> float:
        """Training samples a second of this process, between `start` and `stop`."""
        return self._trained / self.seconds if self._trained else 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training in this process."""
        return self._spent

    def describe(self, text: str) -> None:
        """Name what is going on, and count the time from here on as training."""
        self._bar.update(self._task, description=escape(text))
        self.start()

    def start(self) -> None:
        self._since = time.perf_counter()

    def advance(self, samples: int) -> None:
        """Another batch was trained on; cheap enough for every iteration."""
        now = time.perf_counter()
        self._trained += samples
        self._spent += now - self._since
        self._since = now
        if now - self._shown > _EVERY:
            self._shown = now
            self._bar.update(self._task, completed=self._done + self._trained, rate=self.rate, refresh=True)

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        trained = self._done + self._trained
        parts = [f"iteration {step:,}", f"{trained:,} of {self._total:,} samples", f"{self.rate:,.0f} samples/s"]
        # A name with a slash is a detail, for the loggers that have room for it.
        shown = {name: value for name, value in values.items() if "/" not in name}
        parts += [f"{name} {_number(value)}" for name, value in shown.items() if isinstance(value, (int, float))]
        self.say(", ".join(parts))
        for name, value in values.items():
            if isinstance(value, Matrix):
                self.terminal.print(self._table(name, value))
            elif isinstance(value, Counts):
                self.say(f"{name}: {_listed(value.numbers)}")

    def summary(self, values: Mapping[str, Any]) -> None:
        table = self._grid("summary")
        table.add_column()
        table.add_column(justify="right")
        for name, value in values.items():
            table.add_row(escape(name), _number(value) if isinstance(value, (int, float)) else str(value))
        self.terminal.print(table)

    def say(self, text: str) -> None:
        self.terminal.print(escape(text), soft_wrap=True)

    def close(self) -> None:
        self._bar.update(self._task, completed=self._done + self._trained, rate=self.rate)
        self._bar.stop()

    def _grid(self, title: str) -> Table:
        style = box.SIMPLE_HEAD if self.terminal.is_terminal else box.ASCII
        return Table(title=escape(title), box=style, title_justify="left")

    def _table(self, name: str, matrix: Matrix) -> Table:
        table = self._grid(f"{name} (%)")
        table.add_column(f"{matrix.rows} \\ {matrix.columns}", justify="right")
        for column in range(len(matrix.values[0])):
            table.add_column(str(column + 1), justify="right")
        for number, row in enumerate(matrix.values, 1):
            table.add_row(str(number), *("-" if math.isnan(v) else f"{100 * v:.1f}" for v in row))
        return table


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _listed(numbers: Mapping[int, int]) -> str:
    if len(numbers) > _LISTED:
        return f"{len(numbers)} labels, {min(numbers.values())} to {max(numbers.values())} rows each"
    return ", ".join(f"{label} × {number}" for label, number in numbers.items())
