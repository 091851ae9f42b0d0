"""A file with one JSON object a line, one line an evaluation."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from replaykit.loggers.values import Counts, Images, Matrix, Value


class JsonLines:
    """Appends ``{"step": ..., name: value, ...}`` to a file; matrices are lists of rows, images are left out.

    A line is written in one piece. NaN becomes null, so that every JSON reader accepts the file.

    Args:
        path: the file; its folder exists.
        resume: the step of the checkpoint that the run goes on from. What the file says of later steps, and a
            line that a killed run left unfinished, is dropped, since it will be said again. Without it the
            file starts anew.
    """

    def __init__(self, path: str | os.PathLike[str], resume: int | None = None) -> None:
        self.path = Path(path)
        kept = [] if resume is None else [line for line in _lines(self.path) if line["step"] <= resume]
        temporary = self.path.with_name(self.path.name + ".part")
        temporary.write_text("".join(_text(line) for line in kept), encoding="utf-8")
        os.replace(temporary, self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        shown = {name: _plain(value) for name, value in values.items() if not isinstance(value, Images)}
        self._file.write(_text({"step": step, **shown}))
        self._file.flush()

    def summary(self, values: Mapping[str, Any]) -> None:
        """Nothing: a line is an evaluation."""

    def close(self) -> None:
        self._file.close()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file that may not exist, or end in the middle of a line."""
    if not path.exists():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            return
        try:
            record = json.loads(line)
            record["step"] + 0
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}, line {number} is not an evaluation ({error}); remove the line, or the file"
            ) from error
        yield record


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _plain(value: Value) -> Any:
    if isinstance(value, Matrix):
        return [[_plain(entry) for entry in row] for row in value.values]
    if isinstance(value, Counts):
        return {str(label): number for label, number in value.numbers.items()}
    return value if not isinstance(value, float) or math.isfinite(value) else None
