"""What selectors cost, how that grows with the pool, and the bytes they hold, beside loops timed in the same run.

    python scripts/bench_selectors.py                       # 1,000, 5,000 and 10,000 candidates, two threads
    python scripts/bench_selectors.py --sizes 1000 2000     # other pools

Pools are gradients of a last layer of 10 classes × 512 features, n / 20 rows are kept, and every form sees the
same pool. References are scikit-learn where it has the algorithm, else a straightforward NumPy loop over explicit
gradients; one that would take longer than `--patience` by its growth is left out. Times are minima; the
objective beside them says that both found the same thing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import selector_references as plain
import torch
import tyro
from rich.console import Console
from rich.table import Table
from stopwatch import alternate, peak_bytes
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from replaykit.gradients import PerSampleGradients, last_layer_gradients
from replaykit.selectors import CRAIG, FacilityLocation, GradMatch, Herding, KCenter, Pool, Selector, stochastic
from replaykit.selectors.gram import pool_gram
from replaykit.selectors.proxy import Representer
from replaykit.selectors.proxy_loss import CrossEntropy

CLASSES, FEATURES = 10, 512
#: Seconds at 10,000 candidates on two threads.
GOALS = {"facility location, stochastic": 0.5, "k-center": 1.0, "OMP": 1.0}


@dataclass
class Options:
    sizes: list[int] = field(default_factory=lambda: [1_000, 5_000, 10_000])
    """Candidates; a twentieth of them is kept."""
    threads: int = 2
    """CPU threads of torch and of the references."""
    repeats: int = 3
    """Timed runs of each form; minima are compared."""
    patience: float = 20.0
    """Seconds that a reference may take."""
    budget: int = 64
    """MiB that selectors may hold in the table of bytes."""
    seed: int = 0


class Case(NamedTuple):
    """A selector, what it is compared with, and what both maximise or minimise."""

    ours: Callable[[], Tensor]
    reference: Callable[[], Tensor]
    by: str
    power: int
    """The reference's time grows with this power of n."""
    objective: Callable[[Tensor], float]
    what: str


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    console = Console(width=150)
    console.print(f"torch {torch.__version__}, numpy {np.__version__}, {options.threads} thread(s), CPU")
    with threadpool_limits(options.threads, user_api="blas"):
        measured = times(console, options)
        growth(console, options, measured)
        held(console, options)


# -- the pool --------------------------------------------------------------------------------------


def gradients(n: int, seed: int) -> tuple[PerSampleGradients, Tensor]:
    """Gradients of a half-trained last layer over clustered features, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    features = (centres[y] + 1.5 * torch.randn(n, FEATURES, generator=generator)).relu()
    head = nn.Linear(FEATURES, CLASSES)
    with torch.no_grad():
        head.weight.copy_(centres / FEATURES)
        head.bias.zero_()
    return last_layer_gradients(head, {"x": features, "y": y}), y


def pool_of(found: PerSampleGradients) -> Pool:
    """Without labels: one pool of all rows is the hardest case."""
    return Pool(len(found), gradients=found)


# -- seconds ---------------------------------------------------------------------------------------


def times(console: Console, options: Options) -> dict[str, list[float]]:
    """A table for each size; the minima of ours by name, one for each size."""
    ours: dict[str, list[float]] = {}
    other: dict[str, tuple[int, float]] = {}
    for n in options.sizes:
        table = Table(
            title=f"seconds to keep {n // 20:,} of {n:,} rows, gradients of 10 classes × 512 features; minima"
        )
        for name in ("selector", "s", "reference", "s", "speed-up", "objective", "ours", "reference", "goal", ""):
            table.add_column(name, justify="left" if name in ("selector", "reference", "objective") else "right")
        for name, case in cases(n, options.seed).items():
            before = other.get(name)
            expected = before[1] * (n / before[0]) ** case.power if before else 0.0
            if expected > options.patience:
                found, seconds = alternate(options.repeats, case.ours, best=True)
            elif expected > 2:
                found, seconds = alternate(options.repeats, case.ours, best=True)
                more, slow = alternate(1, case.reference, best=True)
                found, seconds = [*found, *more], [*seconds, *slow]
            else:
                found, seconds = alternate(options.repeats, case.ours, case.reference, best=True)
            ours.setdefault(name, []).append(seconds[0])
            mine, theirs = case.objective(found[0]), "–"
            cells = [f"> {options.patience:g}, left out", ""]
            if len(found) == 2:
                other[name] = n, seconds[1]
                cells = [f"{seconds[1]:.3f}", f"{seconds[1] / seconds[0]:.1f} ×"]
                theirs = f"{case.objective(found[1]):.6g}"
            goal = GOALS.get(name, math.inf) if n == 10_000 else math.inf
            verdict = "" if goal == math.inf else "[green]met" if seconds[0] <= goal else "[red]missed"
            last = ["" if goal == math.inf else f"≤ {goal:g} s", verdict]
            table.add_row(name, f"{seconds[0]:.3f}", case.by, *cells, case.what, f"{mine:.6g}", theirs, *last)
        console.print(table)
    return ours


def cases(n: int, seed: int) -> dict[str, Case]:
    found, y = gradients(n, seed)
    k = n // 20
    explicit = found.explicit().numpy()
    cover = plain.Cover(explicit)

    def chosen(selector: Selector) -> Callable[[], Tensor]:
        return lambda: selector.select(pool_of(found), k, np.random.default_rng(seed))[0]

    matched = GradMatch(lam=0.0)
    unit = explicit / np.linalg.norm(explicit, axis=1, keepdims=True)
    return {
        "facility location, lazy": Case(
            chosen(FacilityLocation("gradients")),
            lambda: cover.greedy(k),
            "NumPy, naive",
            3,
            cover.value,
            "coverage",
        ),
        "facility location, stochastic": Case(
            chosen(FacilityLocation("gradients", engine=stochastic)),
            lambda: cover.stochastic(k, seed),
            "NumPy, stochastic",
            2,
            cover.value,
            "coverage",
        ),
        "k-center": Case(
            chosen(KCenter("gradients")),
            lambda: plain.k_center(explicit, k),
            "NumPy",
            2,
            lambda rows: plain.radius(explicit, rows),
            "radius",
        ),
        "OMP": Case(
            chosen(matched),
            lambda: plain.orthogonal_matching_pursuit(explicit, k),
            "scikit-learn, signed",
            2,
            lambda rows: plain.residual(explicit, rows),
            "residual, NNLS",
        ),
        "herding": Case(
            chosen(Herding("gradients")),
            lambda: plain.herding(unit, k),
            "NumPy",
            2,
            lambda rows: plain.distance_of_means(unit, rows),
            "distance of means",
        ),
        "bilevel scoring": scoring(found, y, k),
    }


def scoring(found: PerSampleGradients, y: Tensor, k: int) -> Case:
    """One round of greedy bilevel selection: implicit scores of all rows, for a support of k rows."""
    gram = pool_gram(Pool(len(found), gradients=found), "gradients", None, 1 << 31, "bench")
    loss, ridge = CrossEntropy(), 1e-2
    targets = loss.targets(y, None)
    model = Representer(gram, targets, torch.ones(len(found)), ridge, loss, k)
    for row in range(k):
        model.add(row)
    weight = torch.ones(k, dtype=torch.float64)
    model.fit(weight)
    exact = plain.bilevel_scores(model, weight, ridge)

    def error(scores: Tensor) -> float:
        return float((scores.double() - exact).abs().max() / exact.abs().max())

    return Case(
        lambda: model.scores(weight),
        lambda: plain.bilevel_scores(model, weight, ridge),
        "NumPy, dense Hessian",
        3,
        error,
        "largest error",
    )


# -- growth ----------------------------------------------------------------------------------------


def growth(console: Console, options: Options, measured: dict[str, list[float]]) -> None:
    """The exponent p of seconds ~ n^p between neighbouring sizes; k grows with n, so n² k is an exponent of 3."""
    if len(options.sizes) < 2:
        return
    table = Table(title="growth: p of seconds ~ n^p, with k = n / 20")
    table.add_column("selector")
    steps = list(zip(options.sizes, options.sizes[1:], strict=False))
    for a, b in steps:
        table.add_column(f"{a:,} to {b:,}", justify="right")
    for name, seconds in measured.items():
        pairs = zip(steps, seconds, seconds[1:], strict=False)
        table.add_row(name, *(f"{math.log(t / s) / math.log(b / a):.2f}" for (a, b), s, t in pairs))
    console.print(table)


# -- bytes -----------------------------------------------------------------------------------------


def held(console: Console, options: Options) -> None:
    """Bytes at the peak of a selection, without a budget that binds and with one."""
    n, budget = min(options.sizes[-1], 5_000), options.budget << 20  # without a budget 100 MB, with one minutes
    found, _ = gradients(n, options.seed)
    table = Table(title=f"peak MiB of a selection from {n:,} rows, and its seconds, by budget")
    for name in ("selector", "2 GiB", "s", f"{options.budget} MiB", "s", "same rows", ""):
        table.add_column(name, justify="left" if name == "selector" else "right")
    selectors: dict[str, Callable[[int], Selector]] = {
        "facility location, lazy": lambda b: FacilityLocation("gradients", max_bytes=b),
        "facility location, stochastic": lambda b: FacilityLocation("gradients", engine=stochastic, max_bytes=b),
        "CRAIG": lambda b: CRAIG(max_bytes=b),
        "k-center": lambda b: KCenter("gradients", max_bytes=b),
        "OMP": lambda b: GradMatch(max_bytes=b),
        "herding": lambda b: Herding("gradients"),
    }
    for name, make in selectors.items():
        cells, rows = [name], []
        for limit in (2 << 30, budget):
            chosen, seconds, peak = peak_bytes(
                lambda limit=limit: make(limit).select(  # type: ignore[misc]  # noqa: B023
                    pool_of(found), n // 20, np.random.default_rng(options.seed)
                )[0]
            )
            rows.append(chosen)
            cells += [f"{peak / 2**20:.0f}", f"{seconds:.2f}"]
        same = "yes" if torch.equal(*rows) else f"{np.intersect1d(*rows).size / len(rows[0]):.1%}"
        table.add_row(*cells, same, "[green]met" if peak <= budget else "[red]missed")
    console.print(table)


if __name__ == "__main__":
    main(tyro.cli(Options))
