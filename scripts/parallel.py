"""Child processes, a few at a time."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Job:
    """A command line, and the file that gets what it says; text of earlier attempts stays in it."""

    name: str
    command: tuple[str, ...]
    log: Path
    threads: int = 1


class Process(Protocol):
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def run(jobs: Iterable[Job], most: int, watch: Callable[[Sequence[Job], dict[Job, int]], None]) -> None:
    """Run jobs in their order, at most `most` at a time; when this is left, none runs any more.

    Args:
        jobs: asked for the next one when there is room for it.
        watch: called several times a second with the jobs that run, and the exit codes of those that have
            ended since the last call.
    """
    waiting, running = iter(jobs), dict[Job, Process]()
    try:
        while True:
            while len(running) < most and (job := next(waiting, None)) is not None:
                running[job] = start(job)
            if not running:
                return
            codes = {job: process.poll() for job, process in running.items()}
            ended = {job: code for job, code in codes.items() if code is not None}
            for job in ended:
                del running[job]
            watch(list(running), ended)
            if not ended:
                time.sleep(0.1)
    finally:
        stop(list(running.values()))


def start(job: Job) -> Process:
    # NumPy's threads are set by the environment alone, and one pool a core for every child would be too many.
    env = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        return subprocess.Popen(job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)


def stop(processes: Sequence[Process], patience: float = 10.0) -> None:
    """End processes, those that do not listen by force after some seconds."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + patience
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def last_line(log: Path) -> str:
    """The last line of a file that says something."""
    if not log.exists():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
