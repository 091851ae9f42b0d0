"""The cells of a comparison: one run for each strategy, policy, retrieval, loss and seed."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from config import Config, differences

#: Strategies without a memory: one cell a seed, whatever the policies and retrievals.
WITHOUT_MEMORY = ("sgd", "joint")
#: Strategies that take any loss: with others there is one cell, whatever the losses.
WITH_LOSSES = ("rehearsal",)
#: What a method shows on an axis that it does not have.
NONE = "-"

_AXES = ("strategy", "policy", "retrieval", "loss")
#: Names that are not worth a word in the name of a folder.
_USUAL = {"retrieval": "uniform", "loss": "cross_entropy"}
#: What the grid decides in every cell.
DECIDED = {*_AXES, *(f"{axis}_options" for axis in _AXES), "seed", "name", "out", "resume", "replace"}


class Choice(NamedTuple):
    """One value of an axis, as in "gss_greedy gate=sample --beta 10"."""

    text: str
    name: str
    options: tuple[str, ...]
    """Settings of its own, name=value."""
    fields: tuple[str, ...]
    """Options of scripts/train.py for the cells of this value."""

    @classmethod
    def of(cls, text: str) -> Choice:
        try:
            name, *words = shlex.split(text) or [""]
        except ValueError as error:
            raise ValueError(f"{text!r} cannot be read: {error}; close or remove the quotation mark") from error
        first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
        if not name or name.startswith("-"):
            raise ValueError(f"a name was expected, then name=value settings and --options; got {text!r}")
        return cls(" ".join([name, *words]), name, tuple(words[:first]), tuple(words[first:]))

    @property
    def slug(self) -> str:
        """For the name of a folder, as in "gss_greedy,gate=sample,beta=10"."""
        words = [f",{word[2:]}" if word.startswith("--") else f"={word}" for word in self.fields]
        return ",".join([self.name, *self.options]) + "".join(words)


class Method(NamedTuple):
    """What is compared: the text of each choice."""

    strategy: str
    policy: str
    retrieval: str
    loss: str = NONE


@dataclass(frozen=True)
class Cell:
    method: Method
    config: Config

    @property
    def name(self) -> str:
        return self.config.run_name

    @property
    def folder(self) -> Path:
        return Path(self.config.out) / self.name

    def result(self) -> dict[str, Any] | None:
        """What result.json says, None while the run is not finished."""
        return _read(self.folder / "result.json")

    def changes(self) -> list[str]:
        """How the configuration differs from that of the run in the cell's folder."""
        saved = _read(self.folder / "config.json")
        if saved is None:
            return []
        saved = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
        # An option that was added since has its default in runs from before.
        return differences(self.config.completed(), {**asdict(Config()), **saved})

    def command(self) -> tuple[str, ...]:
        """The command line of its run, which goes on where an earlier one was cut."""
        resume = self.result() is None and (self.folder / "checkpoint.pt").exists()
        script = Path(__file__).with_name("train.py")
        return sys.executable, str(script), *arguments(replace(self.config, resume=resume))


def cells(
    base: Config,
    strategies: Sequence[str],
    policies: Sequence[str],
    retrievals: Sequence[str],
    seeds: Sequence[int],
    losses: Sequence[str] = ("cross_entropy",),
) -> list[Cell]:
    """All combinations, seed by seed, so that every method has its first result early.

    Raises:
        ValueError: an option that the grid decides itself, an empty axis, losses that no strategy takes, or the
            same run twice.
    """
    refuse_decided(base, Config(out=base.out), "every cell")
    axes = [[Choice.of(text) for text in texts] for texts in (strategies, policies, retrievals, losses)]
    if not seeds or not all(axes):
        raise ValueError("give at least one strategy, policy, retrieval, loss and seed")
    if list(losses) != ["cross_entropy"] and not any(strategy.name in WITH_LOSSES for strategy in axes[0]):
        raise ValueError(f"--losses is for --strategies {', '.join(WITH_LOSSES)}; all others have their own")
    made: dict[str, Cell] = {}
    for seed in seeds:
        for choices in _combinations(*axes):
            cell = _cell(base, choices, seed)
            if cell.name in made:
                raise ValueError(f"the run {cell.name!r} is asked for twice")
            made[cell.name] = cell
    return list(made.values())


def refuse_decided(config: Config, base: Config, where: str) -> None:
    given = [name for name in sorted(DECIDED) if getattr(config, name) != getattr(base, name)]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(
            f"{options} in {where}: the grid decides that; use --strategies, --policies, --retrievals, --losses "
            "and --seeds"
        )


def arguments(config: Config) -> list[str]:
    """The command line of scripts/train.py that means this configuration."""
    words: list[str] = []
    default = Config()
    for field in fields(config):
        value, name = getattr(config, field.name), field.name.replace("_", "-")
        if value == getattr(default, field.name):
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else [value])]
    return words


def _combinations(strategies: list[Choice], *others: list[Choice]) -> list[tuple[Choice | None, ...]]:
    """A choice on every axis, None where the strategy does not have it."""
    found: list[tuple[Choice | None, ...]] = []
    for strategy in strategies:
        axes: list[Sequence[Choice | None]] = list(others)
        if strategy.name in WITHOUT_MEMORY:
            axes = [[None]] * len(others)
        elif strategy.name not in WITH_LOSSES:
            axes[-1] = [None]
        found += [(strategy, *rest) for rest in product(*axes)]
    return found


def _cell(base: Config, choices: tuple[Choice | None, ...], seed: int) -> Cell:
    config = replace(base, seed=seed)
    for axis, choice in zip(_AXES, choices, strict=True):
        if choice is not None:
            decided = {axis: choice.name, f"{axis}_options": choice.options}
            config = replace(_overridden(config, choice), **decided)  # type: ignore[arg-type]
    parts = [
        choice.slug.replace(os.sep, "_")
        for axis, choice in zip(_AXES, choices, strict=True)
        if choice is not None and choice.text != _USUAL.get(axis)
    ]
    method = Method(*(NONE if choice is None else choice.text for choice in choices))
    return Cell(method, replace(config, name="-".join([*parts, str(seed)])))


def _overridden(config: Config, choice: Choice) -> Config:
    if not choice.fields:
        return config
    changed = tyro.cli(Config, prog=repr(choice.text), args=choice.fields, default=config)
    refuse_decided(changed, config, repr(choice.text))
    return changed


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); remove it to run that cell anew") from error
    return found
