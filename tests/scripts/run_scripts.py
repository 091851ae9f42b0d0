"""Runs command lines one after the other, each in a fork of a process that has imported everything once.

Reads a list of jobs from standard input and prints what became of each. A job is ``{"argv": [...]}``, the
script's path first, and may say ``"kill": n``: the process kills itself with SIGKILL at the moment when its
n-th checkpoint would take the place of the one before, after a second in which its helpers may write.
"""

import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import experiment  # noqa: E402, F401 (the children start with it)


def kill_at(number: int) -> None:
    replace, left = os.replace, number

    def replace_or_die(source, target, **options):
        nonlocal left
        left -= Path(target).name == "checkpoint.pt"
        if left == 0:
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target, **options)

    os.replace = replace_or_die


def child(job: dict, log: Path) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if job.get("kill"):
        kill_at(job["kill"])
    sys.argv = job["argv"]
    try:
        runpy.run_path(job["argv"][0], run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr, flush=True)
        status = stop.code if isinstance(stop.code, int) else bool(stop.code)
    else:
        status = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(status or 0))


def main() -> None:
    folder = Path(sys.argv[1])
    results = []
    for number, job in enumerate(json.load(sys.stdin)):
        log = folder / f"{number}.log"
        pid = os.fork()
        if pid == 0:
            try:
                child(job, log)
            except BaseException:
                import traceback

                traceback.print_exc()
                sys.stderr.flush()
                os._exit(70)
        _, status = os.waitpid(pid, 0)
        results.append({"code": os.waitstatus_to_exitcode(status), "output": log.read_text()})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
