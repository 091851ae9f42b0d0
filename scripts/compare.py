"""Run a grid of strategies, policies, retrievals, losses and seeds on one stream, and compare.

    python scripts/compare.py --policies reservoir k_means "gss_greedy gate=sample" --seeds 0 1 2 3 4
    python scripts/compare.py --strategies er "derpp --alpha 0.2" --retrievals uniform "mir lr=0.05"
    python scripts/compare.py --strategies rehearsal --losses cross_entropy "derpp --alpha 0.2" sup_con
    python scripts/compare.py --out runs/mine ... --table-only      # what there is so far

A value of an axis is a name, then its settings (name=value), then options of scripts/train.py for its cells
alone; all other options go to every run. Each cell is a run of scripts/train.py in a folder of its own. A second
call skips the cells that are finished and resumes those that were cut. Writes table.md, table.json and
comparison.png into the folder of the comparison.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from config import Config
from grid import NONE, Cell, Method, cells
from parallel import Job, last_line, run
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from table import markdown, mean_and_deviation, spread

console = Console(highlight=False)
COLUMNS = (*Method._fields, "seeds", "accuracy", "forgetting", "AAA", "seconds", "selection, s", "memory, bytes")
MEASURES = {
    "accuracy": "average_accuracy",
    "forgetting": "forgetting",
    "AAA": "average_anytime_accuracy",
    "seconds": "seconds",
    "selection_seconds": "selection_seconds",
    "memory_bytes": "memory_bytes",
}


@dataclass
class Options:
    run: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=lambda: Config(out="runs/compare"))
    """Of every run, as scripts/train.py takes them; --out is the folder of the comparison."""
    policies: tuple[str, ...] = ("reservoir",)
    """What the memory keeps."""
    strategies: tuple[str, ...] = ("er",)
    """How the memory is used; sgd and joint have one cell a seed."""
    retrievals: tuple[str, ...] = ("uniform",)
    """What is replayed."""
    losses: tuple[str, ...] = ("cross_entropy",)
    """What replayed rows add to the loss, for the strategy rehearsal; all others have one cell."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of each method."""
    jobs: int | None = None
    """Runs at a time; default: the cores, divided by --threads."""
    table_only: bool = False
    """Run nothing, show what is finished."""


def main(options: Options) -> None:
    try:
        axes = options.strategies, options.policies, options.retrievals
        grid = cells(options.run, *axes, options.seeds, options.losses)
        jobs = max(1, (os.cpu_count() or 1) // options.run.threads) if options.jobs is None else options.jobs
        if jobs < 1:
            raise ValueError(f"--jobs must be at least 1, got {jobs}")
        refuse_changes(grid)
        failed = {} if options.table_only else run_cells(grid, jobs)
        results = {cell: result for cell in grid if (result := cell.result()) is not None}
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if results:
        write(Path(options.run.out), methods(grid, results), options.run)
    for cell, reason in failed.items():
        console.print(f"[red]failed[/] {escape(cell.name)}: {escape(reason)}", soft_wrap=True)
    if missing := len(grid) - len(results) - len(failed):
        console.print(f"{missing} of {len(grid)} cells are not finished")
    if failed or not results:
        sys.exit(1)


def refuse_changes(grid: Sequence[Cell]) -> None:
    """A cell keeps the configuration it was started with."""
    changed = {cell: changes for cell in grid if (changes := cell.changes())}
    if changed:
        lines = [f"  {cell.folder}: {'; '.join(changes)}" for cell, changes in changed.items()]
        raise ValueError(
            f"{len(changed)} of {len(grid)} cells were run with another configuration; give another --out, or "
            "remove their folders to run them anew\n" + "\n".join(lines)
        )


# -- running ------------------------------------------------------------------------------------------


def run_cells(grid: Sequence[Cell], most: int) -> dict[Cell, str]:
    """Run what is not finished; the cells that failed, and why."""
    done = {cell for cell in grid if cell.result() is not None}
    todo: dict[Job, Cell] = {}
    failed: dict[Cell, str] = {}
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    whole = bar.add_task("cells", total=len(grid), completed=len(done))
    shown: dict[Job, TaskID] = {}

    def jobs() -> Iterator[Job]:
        for cell in grid:
            # Asked anew before each, since another comparison may have come to it.
            if cell.result() is None:
                job = Job(cell.name, cell.command(), cell.folder / "log.txt", cell.config.threads)
                todo[job] = cell
                yield job
            elif cell not in done:
                bar.advance(whole)

    def watch(running: Sequence[Job], ended: dict[Job, int]) -> None:
        for job, code in ended.items():
            bar.advance(whole)
            if job in shown:
                bar.remove_task(shown.pop(job))
            if reason := _failure(todo[job], job, code):
                failed[todo[job]] = reason
            console.print(_outcome(todo[job], reason), soft_wrap=True)
        for job in running:
            if job not in shown:
                shown[job] = bar.add_task("", total=None)
            bar.update(shown[job], description=f"{escape(job.name)} {_progress(todo[job].folder)}")

    try:
        with bar:
            run(jobs(), most, watch)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from the last checkpoints")
        sys.exit(130)
    return failed


def _failure(cell: Cell, job: Job, code: int) -> str:
    """Why a run that ended has no result, empty if it has one."""
    if code == 0 and cell.result() is not None:
        return ""
    ended = f"signal {-code}" if code < 0 else f"exit status {code}"
    return f"{last_line(job.log) or 'no output'} ({ended}, {job.log})"


def _outcome(cell: Cell, reason: str) -> str:
    if reason:
        return f"[red]failed[/] {escape(cell.name)}"
    result = cell.result() or {}
    return (
        f"[green]done[/] {escape(cell.name)}: {100 * result['average_accuracy']:.2f} %, {result['seconds']:.0f} s"
    )


def _progress(folder: Path) -> str:
    """What the last evaluation of a run said."""
    try:
        said = json.loads(last_line(folder / "metrics.jsonl"))
        return f"task {said['task']}: {100 * said['average_accuracy']:.1f} %"
    except (ValueError, KeyError, TypeError):
        return ""


# -- what came out ------------------------------------------------------------------------------------


def methods(grid: Sequence[Cell], results: dict[Cell, dict[str, Any]]) -> list[dict[str, Any]]:
    """A record for each method with a result, by falling accuracy: its choices, seeds and measures."""
    grouped: dict[Method, list[dict[str, Any]]] = {}
    for cell in grid:
        if cell in results:
            grouped.setdefault(cell.method, []).append(results[cell])
    records = []
    for method, found in grouped.items():
        record: dict[str, Any] = {**method._asdict(), "seeds": [result["config"]["seed"] for result in found]}
        for name, key in MEASURES.items():
            values = [result[key] for result in found if key in result]
            record[name] = dict(zip(("mean", "deviation"), mean_and_deviation(values), strict=True))
            record[name]["values"] = values
        records.append(record)
    return sorted(records, key=lambda record: -record["accuracy"]["mean"])


def write(folder: Path, records: list[dict[str, Any]], config: Config) -> None:
    """The table on the screen, table.md, table.json and comparison.png."""
    import plots

    title = f"{config.stream}, memory {config.memory}, mean ± deviation over seeds"
    # Most comparisons have no losses to compare.
    without = [COLUMNS.index("loss")] if all(record["loss"] == NONE for record in records) else []
    columns, *lines = (
        [word for place, word in enumerate(row) if place not in without] for row in (COLUMNS, *map(_line, records))
    )
    shown = Table(title=title)
    for column in columns:
        shown.add_column(column, justify="left" if column in Method._fields else "right")
    for line in lines:
        shown.add_row(*map(escape, line))
    # Nobody's window limits a file.
    (console if console.is_terminal else Console(width=200)).print(shown)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(f"{title} (in %, seconds and bytes)\n\n{markdown(columns, lines)}", "utf-8")
    text = json.dumps({"config": asdict(config), "methods": records}, indent=2)
    (folder / "table.json").write_text(text + "\n", "utf-8")
    plots.comparison(folder / "comparison.png", records, f"{config.stream}, memory {config.memory}")
    console.print(f"table.md, table.json and comparison.png are in {folder}", soft_wrap=True)


def _line(record: dict[str, Any]) -> list[str]:
    percent = [spread(record[name]["values"], 100, 2) for name in ("accuracy", "forgetting", "AAA")]
    seconds = [spread(record[name]["values"], 1, 1) for name in ("seconds", "selection_seconds")]
    memory = record["memory_bytes"]["values"]
    held = f"{memory[0]:,}" if len(set(memory)) == 1 else spread(memory, 1, 0)
    return [*(record[name] for name in Method._fields), str(len(record["seeds"])), *percent, *seconds, held]


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
