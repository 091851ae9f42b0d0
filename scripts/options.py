"""Settings of a policy, a retrieval or a strategy that the command line gives as name=value."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def build(make: Callable[..., T], given: Sequence[str], what: str, **fixed: Any) -> T:
    """Call `make` with the settings, values read as Python literals, or as words.

    Raises:
        ValueError: a setting without a value, one that `make` does not have, or one that it refuses.
    """
    parameters = inspect.signature(make).parameters.values()
    known = [p.name for p in parameters if p.name not in fixed and p.kind is not p.VAR_KEYWORD]
    settings: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise ValueError(f"{what} takes {'=..., '.join([*known, ''])[:-2] or 'no settings'}; got {text!r}")
        settings[name] = _literal(value)
    try:
        return make(**fixed, **settings)
    except TypeError as error:
        raise ValueError(f"{what} with {settings}: {error}") from error


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
