"""Mean and deviation over seeds of finished runs.

python scripts/table.py runs/*/result.json
python scripts/table.py --markdown runs/*/result.json
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import tyro
from config import CIRCUMSTANCES
from grid import WITHOUT_MEMORY
from rich.console import Console
from rich.table import Table

RUN = ("stream", "strategy", "policy", "retrieval", "memory")
COLUMNS = (*RUN, "seeds", "accuracy", "forgetting", "AAA", "WC-ACC", "seconds")


@dataclass
class Options:
    results: Annotated[list[Path], tyro.conf.Positional]
    """result.json files."""
    markdown: bool = False
    """Print a Markdown table."""


def main(options: Options) -> None:
    if not options.results:
        sys.exit("no results; give files runs/<name>/result.json")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for path in options.results:
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            group = _group(result["config"])
            if "average_accuracy" not in result:
                raise ValueError("it has no accuracy")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            sys.exit(
                f"{path} is not the result of a run ({type(error).__name__}: {error}); give files "
                "runs/<name>/result.json"
            )
        groups[group].append(result)
    lines = [_line(group, results) for group, results in sorted(groups.items(), key=lambda item: str(item[0]))]
    if options.markdown:
        print(markdown(COLUMNS, lines), end="")
        return
    table = Table(*COLUMNS, title="mean ± deviation over seeds, in %, last epoch")
    for line in lines:
        table.add_row(*line)
    Console(width=150).print(table)


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [" | ".join(columns), " | ".join(["---"] * len(columns)), *map(" | ".join, lines)]
    return "".join(f"| {row} |\n" for row in rows)


def mean_and_deviation(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean, None without values, and deviation (with n - 1), None below two values."""
    return mean(values) if values else None, stdev(values) if len(values) > 1 else None


def spread(values: Sequence[float], scale: float = 100, digits: int = 2) -> str:
    """Mean ± deviation of values times `scale`, as text."""
    middle, deviation = mean_and_deviation([scale * value for value in values])
    if middle is None:
        return "-"
    return f"{middle:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _group(config: dict[str, Any]) -> tuple[Any, ...]:
    """What is shown of a run, and everything else but the seed: runs that differ there are not averaged."""
    shown = tuple(config[name] for name in RUN)
    if config["strategy"] in WITHOUT_MEMORY:
        shown = (config["stream"], config["strategy"], "-", "-", 0)
    hidden = CIRCUMSTANCES | {"seed", *RUN}
    rest = {name: value for name, value in config.items() if name not in hidden}
    return (*shown, json.dumps(rest, sort_keys=True))


def _line(group: tuple[Any, ...], results: list[dict[str, Any]]) -> list[str]:
    def shown(name: str, scale: float = 100, digits: int = 2) -> str:
        return spread([result[name] for result in results if name in result], scale, digits)

    names = ("average_accuracy", "forgetting", "average_anytime_accuracy", "worst_case_accuracy")
    seeds = {result["config"]["seed"] for result in results}
    if len(seeds) < len(results):
        sys.exit(f"{group[:5]}: {len(results)} results but {len(seeds)} seeds; give each run once")
    return [*map(str, group[:5]), str(len(results)), *map(shown, names), shown("seconds", 1, 1)]


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
