"""Whether a memory, a retrieval, a loss and a way of offering rows fit each other, told before any training."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from avalanche.models.utils import is_multi_task_module

from replaykit.buffer import AnyRetrieval, Buffer
from replaykit.losses import Features, ReplayLoss, columns_of
from replaykit.store import LOSS, REPLAYED

# Columns that policies and retrievals write; other names may come with the data.
_NOT_OF_THE_DATA = ("weight", "rank", "score", "key", "importance")


def check_whole_tasks(buffer: Buffer, update: str | None, chunk: int | None) -> str:
    """How rows are offered; default: as the policy takes them.

    Raises:
        ValueError: an unknown `update`, or parts of a task for a policy that takes every add as a whole one.
    """
    per_task = buffer.policy.per_task
    update = update or ("experience" if per_task else "iteration")
    if update not in ("iteration", "experience"):
        raise ValueError(f"update is 'iteration' or 'experience', got {update!r}")
    if per_task and (update == "iteration" or chunk is not None):
        raise ValueError(
            f"{type(buffer.policy).__name__} takes every add as a whole task; use update='experience' and no chunk"
        )
    return update


def columns_looked_at(retrieval: AnyRetrieval) -> tuple[str, ...]:
    return tuple(getattr(retrieval, "columns", ()))


def reader_of_steps(*parts: object) -> str:
    """Name of the first loss or retrieval that reads logits or losses of a training step, empty without one."""
    reading = (part for part in parts if {"logits", LOSS} & {*(getattr(part, "columns", None) or ())})
    return next(map(_name, reading), "")


def check_retrieval(buffer: Buffer, retrieval: AnyRetrieval, given: Collection[str] | None = None) -> None:
    """Refuse a retrieval by a column that is not there and cannot come.

    Args:
        given: the columns that the rows of the stream have; None while there is no stream yet.

    Raises:
        ValueError: names the retrieval, the policy, the column and the cure.
    """
    _check_columns(buffer, type(retrieval).__name__, "retrieval", columns_looked_at(retrieval), given)


def check_loss(
    buffer: Buffer, loss: ReplayLoss | None, retrieval: AnyRetrieval, given: Collection[str] | None = None
) -> None:
    """Refuse a replay loss that reads a column which is not there and cannot come.

    Logits and losses of a step are stored for whoever names them, and a retrieval may add columns (``gives``).

    Args:
        given: as of `check_retrieval`.

    Raises:
        ValueError: names the loss, the policy, the column and the cure.
    """
    supplied = {"logits", LOSS, *getattr(retrieval, "gives", ())}
    read = () if loss is None else [name for name in columns_of(loss) or () if name not in supplied]
    _check_columns(buffer, _name(loss), "loss", read, given)


def check_features(model: Any, loss: ReplayLoss) -> None:
    """Refuse a loss, or a part of a sum, that looks for features in a model that takes task labels.

    Raises:
        ValueError: names the loss, the model and the cure.
    """
    if not is_multi_task_module(model):
        return
    for part in getattr(loss, "losses", (loss,)):
        embedding = getattr(part, "embedding", None)
        if isinstance(embedding, Features) and not callable(embedding.source):
            raise ValueError(
                f"{_name(part)} compares features of all classes in one space, and {type(model).__name__} takes "
                "task labels, so that they cannot be found in it; give the loss features=, a function of x, or "
                "choose a model without task labels"
            )


def _name(part: object) -> str:
    return str(getattr(part, "__name__", type(part).__name__))


def _check_columns(
    buffer: Buffer, name: str, kind: str, columns: Collection[str], given: Collection[str] | None
) -> None:
    policy, store = buffer.policy, buffer.store
    there = {*store.columns, *store.notes, *policy.columns, *(policy.writes or ()), *(given or ())}
    for column in columns:
        if column in there:
            continue
        if column == REPLAYED:
            raise ValueError(f"{name} looks at how often rows were replayed; use Buffer(..., count_replays=True)")
        if policy.writes is None and column not in ("x", "y", "t"):
            continue  # it may write it; what it does not say is seen at the first draw
        if given is None and len(store) == 0 and column not in _NOT_OF_THE_DATA:
            continue  # the stream may bring it
        who = type(policy).__name__
        held = sorted(given or store.columns)
        has = f"the rows have {held}" if held else f"{who} does not write it"
        raise ValueError(
            f"{name} looks at a column {column!r} that a memory of {who} does not have: {has}. Use another "
            f"{kind} or a policy that writes the column, or add rows that have it to the memory first"
        )


def check_training_step(buffer: Buffer, logits: bool, loss: bool, steps: bool, reader: str = "") -> None:
    """Refuse columns of a training step for rows that are offered apart from one (``update="experience"``).

    Args:
        reader: name of the loss or the retrieval that wants them.
    """
    wanted = ["logits"] * logits + [LOSS] * loss
    if wanted and not steps:
        name = type(buffer.policy).__name__
        other = (
            f", and another policy than {name}, or keep candidates: strategies.Rehearsal(candidates=Buffer(...))"
            if buffer.policy.per_task
            else ""
        )
        raise ValueError(
            f"{' and '.join(wanted)} belong to a training step, update='experience' has none"
            f"{reader and f', and {reader} reads them'}; use update='iteration'{other}"
        )
