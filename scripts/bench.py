"""Speed of the memory and of a training step, as ratios to bare PyTorch measured in the same run.

    python scripts/bench.py                    # everything
    python scripts/bench.py --parts memory     # one part
    python scripts/bench.py --sizes 500 5000   # other capacities

Ours and the bare form are timed in turn, block by block, and medians are compared, so that a machine
whose speed drifts moves both. Goals come from the project's design; a missed one is marked and explained.
"""

from __future__ import annotations

import gc
import math
import time
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import bench_selection
import bench_training
import numpy as np
import stopwatch
import torch
import tyro
from avalanche.training.plugins import EvaluationPlugin
from rich.console import Console
from rich.table import Table
from torch import Tensor

import replaykit as rk
from replaykit import policies
from replaykit.augment import views
from replaykit.benchmarks import Data, mlp, split
from replaykit.strategies import ER

console = Console(width=120)
Part = Literal["memory", "bytes", "training", "selection", "loops", "gram", "mer", "derpp"]


@dataclass
class Options:
    parts: list[Part] = field(default_factory=lambda: list(get_args(Part)))
    """What to measure."""
    sizes: list[int] = field(default_factory=lambda: [500, 5_000, 100_000, 1_000_000])
    """Capacities of the memory part; a million rows take 3.2 GB."""
    threads: int = 1
    """CPU threads of torch."""
    repeats: int = 15
    """Timed blocks of each form; medians are compared."""
    seed: int = 0


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, numpy {np.__version__}, {options.threads} thread(s), CPU")
    if "memory" in options.parts:
        memory(options)
    if "bytes" in options.parts:
        held_bytes(options)
    if "training" in options.parts:
        training(options)
    for part, measure in (
        ("selection", bench_selection.steps),
        ("loops", bench_selection.loops),
        ("gram", bench_selection.gram),
        ("mer", bench_training.mer),
        ("derpp", bench_training.derpp),
    ):
        if part in options.parts:
            measure(console, options.repeats, options.seed)


# -- the memory against bare reads and writes -------------------------------------------------------


def rows(n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Three columns: an image, a label, logits."""
    return {
        "x": torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator),
        "y": torch.randint(0, 10, (n,), generator=generator),
        "logits": torch.randn(n, 10, generator=generator),
    }


def memory(options: Options) -> None:
    table = Table(title="µs a call, three columns (x uint8 3×32×32, y, logits); bare = index_copy_ / index_select")
    for name in ("slots", "operation", "ours", "bare", "ratio", "goal", ""):
        table.add_column(name, justify="left" if name == "operation" else "right")
    for size in options.sizes:
        for line in memory_lines(size, options):
            table.add_row(f"{size:,}", *line)
    console.print(table)


def memory_lines(size: int, options: Options) -> list[list[str]]:
    generator = torch.Generator().manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    buffer = rk.Buffer(size, policies.Reservoir(), seed=options.seed)
    while len(buffer) < size:
        buffer.add(rows(min(10_000, size - len(buffer)), generator))
    ten = rows(10, generator)
    columns = {name: column.tensor for name, column in buffer.store.columns.items()}
    # index_copy_ moves 64-bit words several times faster than bytes; few who write it by hand know.
    words = columns["x"].view(size, -1).view(torch.int64)
    ten_words = ten["x"].view(10, -1).view(torch.int64)
    tens = [torch.from_numpy(rng.choice(size, 10, replace=False)) for _ in range(512)]
    many = [torch.from_numpy(rng.choice(size, 64, replace=False)) for _ in range(512)]
    turn = iter(range(10**12))

    def add_all() -> None:
        # With exactly `size` rows seen, each arrival is accepted with probability above 1 - 10 / size.
        buffer.store.seen = size
        buffer.add(ten)

    def add_none() -> None:
        buffer.store.seen = 10**15
        buffer.add(ten)

    def bare_write() -> None:
        slots = tens[next(turn) % 512]
        for name, column in columns.items():
            column.index_copy_(0, slots, ten[name])

    def bare_words() -> None:
        slots = tens[next(turn) % 512]
        words.index_copy_(0, slots, ten_words)
        columns["y"].index_copy_(0, slots, ten["y"])
        columns["logits"].index_copy_(0, slots, ten["logits"])

    def bare_read() -> None:
        slots = many[next(turn) % 512]
        for column in columns.values():
            column.index_select(0, slots)

    lines = []
    for name, ours, bare, micros in (
        ("add 10, all accepted", add_all, bare_write, 40.0 if size == 5_000 else math.inf),
        ("  against 64-bit words", add_all, bare_words, math.inf),
        ("add 10, none accepted", add_none, None, 10.0),
        ("sample 64", lambda: buffer.sample(64), bare_read, 25.0 if size == 5_000 else math.inf),
    ):
        mine, other = alternate(ours, bare, options.repeats)
        goal = ([] if micros == math.inf else [f"≤ {micros:g} µs"]) + ([] if bare is None else ["≤ 2 ×"])
        met = mine <= micros and mine <= 2 * other
        ratio = ["–", "–"] if bare is None else [f"{other:.1f}", f"{mine / other:.2f}"]
        lines.append([name, f"{mine:.1f}", *ratio, ", ".join(goal), "[green]met" if met else "[red]missed"])
    return lines


def alternate(
    ours: Callable[[], object], bare: Callable[[], object] | None, repeats: int, calls: int = 300
) -> tuple[float, float]:
    """Median µs a call of both, timed in alternating blocks after a warm-up."""
    _, seconds = stopwatch.alternate(repeats, *([ours] if bare is None else [ours, bare]), calls=calls)
    return seconds[0] * 1e6, math.inf if bare is None else seconds[1] * 1e6


# -- bytes held after a long stream -----------------------------------------------------------------


def held_bytes(options: Options, slots: int = 5_000, stream: int = 1_000_000) -> None:
    """What a memory holds after a million rows, by the allocator's own account, against `nbytes`."""
    batch = rows(1_000, torch.Generator().manual_seed(options.seed))
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    buffer = rk.Buffer(slots, policies.Reservoir(), seed=options.seed)
    while buffer.seen < stream:
        buffer.add(batch)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    held, claimed = after - before, buffer.nbytes
    verdict = "[green]met" if abs(held / claimed - 1) <= 0.05 else "[red]missed"
    console.print(
        f"bytes after {buffer.seen:,} rows in {slots:,} slots: held {held:,}, nbytes {claimed:,}, "
        f"ratio {held / claimed:.4f} (goal within 5 %) {verdict}"
    )


# -- a training step in Avalanche against a bare loop -------------------------------------------------


def training(options: Options, n: int = 10_000, batch: int = 10) -> None:
    """Online ER on the MLP: one pass over n rows, ten new and ten replayed rows a step."""
    generator = torch.Generator().manual_seed(options.seed)
    x = torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8, generator=generator)
    y = torch.randint(0, 10, (n,), generator=generator)
    table = Table(title="µs a step of online ER, MLP 784-100-100-10, 10 new + 10 replayed rows, no evaluation")
    for name in ("memory", "in Avalanche's template", "bare loop", "ratio", "goal", ""):
        table.add_column(name, justify="right")
    for size in (200, 1_000, 5_000):
        times: dict[str, list[float]] = {"ours": [], "bare": []}
        for repeat in range(1 + max(3, options.repeats // 3)):
            for name, run in (("ours", er_in_avalanche), ("bare", er_bare)):
                seconds = run(x, y, size, batch, options.seed)
                if repeat:
                    times[name].append(seconds / (n // batch) * 1e6)
        ours, bare = (float(np.median(times[name])) for name in ("ours", "bare"))
        verdict = "[green]met" if ours <= 1.3 * bare else "[red]missed"
        table.add_row(f"{size:,}", f"{ours:.0f}", f"{bare:.0f}", f"{ours / bare:.2f}", "≤ 1.3 ×", verdict)
    console.print(table)


def er_in_avalanche(x: Tensor, y: Tensor, size: int, batch: int, seed: int) -> float:
    model = mlp(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no loggers: that is the point
        evaluator = EvaluationPlugin()
    strategy = ER(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=torch.nn.CrossEntropyLoss(),
        buffer=rk.Buffer(size, policies.Reservoir(), seed=seed),
        views=views(),
        train_mb_size=batch,
        evaluator=evaluator,
    )
    data = Data("random", x, y, x[:10], y[:10], classes=10, mean=[0.5], std=[0.25])
    (experience,) = split(data, tasks=1).train_stream
    start = time.perf_counter()
    strategy.train(experience)
    return time.perf_counter() - start


def er_bare(x: Tensor, y: Tensor, size: int, batch: int, seed: int) -> float:
    """The same mathematics with nothing around it: no checks, no columns, no callbacks."""
    model, rng = mlp(seed=seed), np.random.default_rng(seed)
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.01), torch.nn.CrossEntropyLoss()
    memory_x, memory_y, seen = x.new_zeros(size, *x.shape[1:]), y.new_zeros(size), 0
    start = time.perf_counter()
    model.train()
    order = torch.randperm(len(x))
    for first in range(0, len(x), batch):
        rows = order[first : first + batch]
        new_x, new_y = x.index_select(0, rows), y.index_select(0, rows)
        inputs, targets = new_x, new_y
        held = min(seen, size)
        if held:
            drawn = torch.from_numpy(rng.permutation(held)[:batch] if held < 160 else rng.integers(0, held, batch))
            inputs = torch.cat([inputs, memory_x.index_select(0, drawn)])
            targets = torch.cat([targets, memory_y.index_select(0, drawn)])
        optimizer.zero_grad()
        loss = criterion(model(inputs.float() / 255), targets)
        loss.backward()
        optimizer.step()
        numbers = np.arange(seen, seen + batch)
        slots = np.where(numbers < size, numbers, (rng.random(batch) * (numbers + 1)).astype(np.int64))
        kept = np.flatnonzero(slots < size)
        if len(kept):
            where, source = torch.from_numpy(slots[kept]), torch.from_numpy(kept)
            memory_x.index_copy_(0, where, new_x.index_select(0, source))
            memory_y.index_copy_(0, where, new_y.index_select(0, source))
        seen += batch
    return time.perf_counter() - start


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
