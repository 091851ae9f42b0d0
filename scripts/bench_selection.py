"""What choosing by gradients costs: parts of scripts/bench.py, as ratios measured in one run."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from avalanche.training.plugins import EvaluationPlugin
from rich.console import Console
from rich.table import Table
from stopwatch import alternate, peak_bytes
from torch import Tensor, nn

import replaykit as rk
from replaykit import policies, retrieval
from replaykit.augment import views
from replaykit.benchmarks import Data, mlp, slim_resnet18, split
from replaykit.gradients import per_sample_gradients
from replaykit.probe import Probe
from replaykit.selectors.ocs_scores import of_gram
from replaykit.strategies import ER, OCS

BATCH = 10
STREAM = {"ocs": 20}  # rows of the stream a step, of which OCS trains on 10


# -- a training step ----------------------------------------------------------------------------------


def steps(console: Console, repeats: int, seed: int) -> None:
    """Online ER with each choice against plain ER: whole training steps in Avalanche's template."""
    table = Table(title="a step of online ER, 10 new + 10 replayed rows, memory full; ratio to plain ER")
    for name in ("network", "gradients of", "choice", "ms", "plain ER, ms", "ratio", "goal", ""):
        table.add_column(name, justify="left" if name in ("network", "gradients of", "choice") else "right")
    for network, layers, goal in (("mlp", "all", 2.0), ("mlp", "last", 1.5), ("slim_resnet18", "last", 1.5)):
        n = 1_000 if network == "mlp" else 200
        data = _random_data((1, 28, 28) if network == "mlp" else (3, 32, 32), n, seed)
        for choice in ("gss_greedy", "ocs", "mir"):
            times: dict[str, list[float]] = {"ours": [], "plain": []}
            for repeat in range(1 + max(3, repeats // 4)):
                for name, what in (("ours", choice), ("plain", "reservoir")):
                    seconds = _train(network, data, what, layers, seed)
                    if repeat:
                        times[name].append(seconds * 1e3)
            ours, plain = (float(np.median(values)) for values in times.values())
            verdict = "[green]met" if ours <= goal * plain else "[red]missed"
            cells = (network, layers, choice, f"{ours:.2f}", f"{plain:.2f}", f"{ours / plain:.2f}")
            table.add_row(*cells, f"≤ {goal:g} ×", verdict)
    console.print(table)


def _random_data(shape: tuple[int, ...], n: int, seed: int) -> Data:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)
    y = torch.randint(0, 10, (n,), generator=generator)
    channels = shape[0]
    return Data("random", x, y, x[:10], y[:10], classes=10, mean=[0.5] * channels, std=[0.25] * channels)


def _network(name: str, seed: int) -> nn.Module:
    return mlp(seed=seed) if name == "mlp" else slim_resnet18(10, channels=3, seed=seed)


def _train(network: str, data: Data, choice: str, layers: str, seed: int) -> float:
    """Seconds a step, with a memory that was filled before."""
    model, prepare = _network(network, seed), views()
    policy = policies.GSSGreedy() if choice == "gss_greedy" else policies.Reservoir()
    buffer = rk.Buffer(300, policy, seed=seed)
    rows = {"x": data.x_train[:300], "y": data.y_train[:300], "t": torch.zeros_like(data.y_train[:300])}
    buffer.add(rows, Probe(model, prepare=prepare.eval, layers="last"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no loggers: that is the point
        evaluator = EvaluationPlugin()
    shared: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
        "criterion": nn.CrossEntropyLoss(),
        "buffer": buffer,
        "views": prepare,
        "probe": lambda strategy: Probe(strategy.model, prepare=prepare.eval, layers=layers),
        "batch_size_mem": BATCH,
        "evaluator": evaluator,
        "train_mb_size": STREAM.get(choice, BATCH),
    }
    if choice == "ocs":
        strategy: Any = OCS(kappa=BATCH, **shared)
    else:
        strategy = ER(retrieval=retrieval.MIR(0.01) if choice == "mir" else None, **shared)
    (experience,) = split(data, tasks=1).train_stream
    start = time.perf_counter()
    strategy.train(experience)
    return (time.perf_counter() - start) / (len(data.x_train) // shared["train_mb_size"])


# -- against the literal loops ------------------------------------------------------------------------


def loops(console: Console, repeats: int, seed: int) -> None:
    """One choice, ours against the loop of the paper: a backward pass of one row at a time."""
    table = Table(title="one choice on the MLP, exact gradients of all layers, against one backward pass a row")
    for name in ("choice", "ms", "loop, ms", "speed-up", "goal", ""):
        table.add_column(name, justify="left" if name == "choice" else "right")
    data = _random_data((1, 28, 28), 400, seed)
    model, prepare = mlp(seed=seed), views().eval
    probe = Probe(model, prepare=prepare)
    rows = {"x": data.x_train, "y": data.y_train}
    arrivals, stored = _rows(rows, slice(0, 20)), _rows(rows, slice(20, 120))
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "cosines of 10 rows with 100 (GSS, per sample)": (
            lambda: probe.gradients(_rows(rows, slice(0, 10))).cosine(probe.gradients(stored)),
            lambda: _cosines(_looped(model, prepare, _rows(rows, slice(0, 110)))),
        ),
        "similarity and diversity of 20 rows (OCS)": (
            lambda: _ocs(probe, arrivals),
            lambda: _cosines(_looped(model, prepare, arrivals)),
        ),
        "cosines of 400 rows (GSS-IQP)": (
            lambda: probe.gradients(rows).cosine(probe.gradients(rows)),
            lambda: _cosines(_looped(model, prepare, rows)),
        ),
    }
    for name, (ours, loop) in pairs.items():
        mine, other = (seconds * 1e3 for seconds in alternate(repeats, ours, loop)[1])
        verdict = "[green]met" if other >= 10 * mine else "[red]missed"
        table.add_row(name, f"{mine:.2f}", f"{other:.2f}", f"{other / mine:.1f} ×", "≥ 10 ×", verdict)
    console.print(table)


def _ocs(probe: Probe, rows: dict[str, Tensor]) -> object:
    """As `replaykit.strategies.OCS` scores a mini-batch."""
    gradients = probe.gradients(rows)
    return of_gram(gradients.gram(torch.float64).numpy(), len(rows["y"]))


def _rows(columns: dict[str, Tensor], which: slice) -> dict[str, Tensor]:
    return {name: column[which] for name, column in columns.items()}


def _looped(model: nn.Module, prepare: Callable[[Tensor], Tensor], rows: dict[str, Tensor]) -> Tensor:
    """Gradients [n, p] as the papers' codes take them."""
    gradients = []
    for i in range(len(rows["y"])):
        model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(prepare(rows["x"][i : i + 1])), rows["y"][i : i + 1]).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    return torch.stack(gradients)


def _cosines(gradients: Tensor) -> Tensor:
    unit = nn.functional.normalize(gradients)
    return unit @ unit.T


# -- the Gram matrix, and peak memory -----------------------------------------------------------------


def gram(console: Console, repeats: int, seed: int, n: int = 1_000) -> None:
    data = _random_data((1, 28, 28), n, seed)
    model, prepare = mlp(seed=seed), views().eval
    rows = {"x": prepare(data.x_train), "y": data.y_train}

    def factored() -> Tensor:
        return per_sample_gradients(model, rows).gram()

    def explicit() -> Tensor:
        formed = per_sample_gradients(model, rows, route="func").explicit()
        return formed @ formed.T

    mine, other = (seconds * 1e3 for seconds in alternate(max(3, repeats // 3), factored, explicit)[1])
    exact = copy.deepcopy(model).double()
    true = per_sample_gradients(exact, {"x": rows["x"].double(), "y": data.y_train}).gram()
    scale = true.diagonal().sqrt()
    error = ((factored() - true).abs() / (scale[:, None] * scale)).max()
    console.print(
        f"Gram matrix of {n:,} rows on the MLP: factored {mine:.0f} ms, formed by vmap {other:.0f} ms, "
        f"{other / mine:.1f} × faster; largest difference from float64 {error:.1e} of the norms' product"
    )
    for budget in (4 << 20, 16 << 20, 64 << 20):
        _, _, limited = peak_bytes(lambda budget=budget: per_sample_gradients(model, rows, budget=budget).gram())  # type: ignore[misc]
        result = n * n * 4
        fits = "[green]met" if limited - result <= budget else "[red]missed"
        console.print(
            f"  peak above the result with a budget of {budget / 2**20:.0f} MiB: "
            f"{(limited - result) / 2**20:.1f} MiB {fits}"
        )
    _, _, whole = peak_bytes(explicit)
    console.print(f"  peak of the formed gradients: {whole / 2**20:.0f} MiB")
