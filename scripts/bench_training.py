"""What the strategies cost beside plain training: parts of scripts/bench.py, as ratios measured in one run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from rich.console import Console
from rich.table import Table
from stopwatch import alternate
from torch import Tensor, nn

import replaykit as rk
from replaykit import policies
from replaykit.augment import views
from replaykit.benchmarks import Data, mlp, slim_resnet18, split
from replaykit.strategies import ER, MER, DERpp

LR = 0.01


# -- MER against a loop of steps on single rows -------------------------------------------------------


def mer(console: Console, repeats: int, seed: int) -> None:
    """Algorithm 6 in Avalanche's template, memory full, draws and storage included."""
    table = Table(title="MER's algorithm 6, MLP 784-100-100-10, µs a step on one row; bare = a loop of such steps")
    for name in ("k", "MER", "bare, p.sub_", "ratio", "goal", "", "bare, torch.optim.SGD", "ratio"):
        table.add_column(name, justify="right")
    for k, n in ((10, 100), (100, 10)):
        data = _random_data((1, 28, 28), n, seed)
        rows = n * (k + 1)
        x = (data.x_train.float() / 255).repeat(k + 1, 1, 1, 1).split(1)
        y = data.y_train.repeat(k + 1).split(1)
        _, (ours, by_hand, by_optimiser) = alternate(
            repeats, _mer(data, k, seed), _by_hand(x, y, seed), _by_optimiser(x, y, seed)
        )
        ours, by_hand, by_optimiser = (seconds / rows * 1e6 for seconds in (ours, by_hand, by_optimiser))
        verdict = "[green]met" if ours <= 1.3 * by_hand else "[red]missed"
        cells = (f"{k}", f"{ours:.0f}", f"{by_hand:.0f}", f"{ours / by_hand:.2f}", "≤ 1.3 ×", verdict)
        table.add_row(*cells, f"{by_optimiser:.0f}", f"{ours / by_optimiser:.2f}")
    console.print(table)


def _mer(data: Data, k: int, seed: int) -> Callable[[], object]:
    strategy = _strategy(MER, mlp(seed=seed), data, 500, seed, algorithm=6, gamma=0.1, batch_size_mem=k)
    (experience,) = split(data, tasks=1).train_stream
    return lambda: strategy.train(experience, eval_streams=[])


def _by_hand(x: tuple[Tensor, ...], y: tuple[Tensor, ...], seed: int) -> Callable[[], object]:
    model, criterion = mlp(seed=seed), nn.CrossEntropyLoss()
    parameters = list(model.parameters())

    def run() -> None:
        for row, label in zip(x, y, strict=True):
            for parameter in parameters:
                parameter.grad = None
            criterion(model(row), label).backward()
            with torch.no_grad():
                for parameter in parameters:
                    parameter.sub_(parameter.grad, alpha=LR)  # type: ignore[arg-type]

    return run


def _by_optimiser(x: tuple[Tensor, ...], y: tuple[Tensor, ...], seed: int) -> Callable[[], object]:
    model, criterion = mlp(seed=seed), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    def run() -> None:
        for row, label in zip(x, y, strict=True):
            optimizer.zero_grad()
            criterion(model(row), label).backward()
            optimizer.step()

    return run


# -- DER++ against ER ---------------------------------------------------------------------------------


def derpp(console: Console, repeats: int, seed: int) -> None:
    """Whole steps in Avalanche's template, ten new rows and ten in every memory batch, memory full."""
    table = Table(
        title="a step of DER++, 10 new rows and 10 in each memory batch; ratio to a step of ER (10 + 10)"
    )
    for name in ("network", "ER, ms", "DER++, ms", "ratio", "goal", "", "fused, ms", "ratio"):
        table.add_column(name, justify="left" if name == "network" else "right")
    for network, shape, n in (("mlp", (1, 28, 28), 500), ("slim_resnet18", (3, 32, 32), 60)):
        data = _random_data(shape, n, seed)
        (experience,) = split(data, tasks=1).train_stream

        def training(make: Any, **options: Any) -> Callable[[], object]:
            model = mlp(seed=seed) if network == "mlp" else slim_resnet18(10, channels=3, seed=seed)  # noqa: B023
            strategy = _strategy(make, model, data, 200, seed, batch_size_mem=10, **options)  # noqa: B023
            return lambda: strategy.train(experience, eval_streams=[])  # noqa: B023

        forms = training(ER), training(DERpp), training(DERpp, fuse_replay=True)
        er, three, fused = (seconds / (n // 10) * 1e3 for seconds in alternate(max(3, repeats // 3), *forms)[1])
        verdict = "[green]met" if three <= 2.2 * er else "[red]missed"
        cells = (network, f"{er:.2f}", f"{three:.2f}", f"{three / er:.2f}", "≤ 2.2 ×", verdict)
        table.add_row(*cells, f"{fused:.2f}", f"{fused / er:.2f}")
    console.print(table)


# -- shared ---------------------------------------------------------------------------------------------


def _random_data(shape: tuple[int, ...], n: int, seed: int) -> Data:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)
    y = torch.randint(0, 10, (n,), generator=generator)
    return Data("random", x, y, x[:10], y[:10], classes=10, mean=[0.5] * shape[0], std=[0.25] * shape[0])


def _strategy(make: Any, model: nn.Module, data: Data, slots: int, seed: int, **options: Any) -> Any:
    """With a memory that was filled before."""
    buffer = rk.Buffer(slots, policies.Reservoir(), seed=seed)
    source = torch.arange(slots) % len(data.x_train)
    filling = {"x": data.x_train[source], "y": data.y_train[source], "t": torch.zeros(slots, dtype=torch.long)}
    if make is DERpp:
        filling["logits"] = torch.zeros(slots, 10)
    buffer.add(filling)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no loggers: that is the point
        evaluator = EvaluationPlugin()
    return make(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LR),
        criterion=nn.CrossEntropyLoss(),
        buffer=buffer,
        views=views(),
        train_mb_size=10,
        evaluator=evaluator,
        **options,
    )
