"""Runs command lines of scripts/compare.py one after the other; their cells are forks of this process.

Reads a list of jobs from standard input and prints exit code and output of each. A job is ``{"argv": [...]}``
without the script, and may say ``"stop": name``: once the cell of that name has a checkpoint and no result, the
comparison gets what Ctrl-C sends. (The cells of such a job wait for it after their first checkpoint.)
"""

import contextlib
import io
import json
import os
import runpy
import signal
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import compare  # noqa: E402
import experiment  # noqa: E402, F401 (the children start with it)
import parallel  # noqa: E402
import tyro  # noqa: E402


class Fork:
    """What `parallel.start` returns, for the command line of a script."""

    def __init__(self, job: parallel.Job, waits: bool) -> None:
        self.code: int | None = None
        job.log.parent.mkdir(parents=True, exist_ok=True)
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                status = self._child(job, waits)
            finally:
                sys.stderr.flush()
                os._exit(status)

    def _child(self, job: parallel.Job, waits: bool) -> int:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        if waits:
            replace = os.replace

            def replace_and_wait(source, target, **options):
                replace(source, target, **options)
                if Path(target).name == "checkpoint.pt":
                    signal.pause()

            os.replace = replace_and_wait
        sys.argv = list(job.command[1:])
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stop:
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
                return 1
            return stop.code or 0
        finally:
            sys.stdout.flush()
        return 0

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def terminate(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGTERM)


started: list[str] = []


def main(job: dict) -> int:
    waits = "stop" in job
    started.clear()

    def start(found: parallel.Job) -> Fork:
        started.append(found.name)
        return Fork(found, waits)

    parallel.start = start
    if waits:
        progress = compare._progress

        def progress_or_stop(folder: Path) -> str:
            if folder.name == job["stop"] and (folder / "checkpoint.pt").exists():
                raise KeyboardInterrupt
            return progress(folder)

        compare._progress = progress_or_stop
    try:
        compare.main(tyro.cli(compare.Options, args=job["argv"]))
    except SystemExit as stop:
        print(stop.code if isinstance(stop.code, str) else "")
        return 1 if isinstance(stop.code, str) else stop.code or 0
    finally:
        if waits:
            compare._progress = progress
    return 0


if __name__ == "__main__":
    done = []
    for job in json.load(sys.stdin):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            compare.console = compare.Console(file=output, width=240, highlight=False)
            code = main(job)
        done.append({"code": code, "output": output.getvalue(), "started": list(started)})
    print(json.dumps(done))
