"""The last layer of a model: where the features end."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from replaykit.gradients.functional import row_of
from replaykit.gradients.structure import Structure

_found: WeakKeyDictionary[nn.Module, dict[Hashable, str]] = WeakKeyDictionary()


def find_head(structure: Structure, args: tuple[Any, ...], n: int) -> str:
    """Name of the module with parameters that a forward pass of these arguments enters last.

    One pass of a single row, the first time for a model and again when its modules change. Call it while
    scoring, without gradients.

    Raises:
        ValueError: no module with parameters is entered.
    """
    owners = {name: module for name, module in structure.modules.items() if _owns_parameters(module)}
    other = tuple(arg for arg in args if not isinstance(arg, Tensor))
    form = (tuple((name, id(module)) for name, module in owners.items()), other)
    known = _found.setdefault(structure.model, {})
    if form not in known:
        entered: list[str] = []
        handles = [
            module.register_forward_pre_hook(lambda *_, name=name: entered.append(name))
            for name, module in owners.items()
        ]
        with _removing(handles):
            structure.model(*row_of(args, 0, n))
        if not entered:
            raise ValueError("no module with parameters takes part in a forward pass, so there is no last layer")
        known.clear()
        known[form] = entered[-1]
    return known[form]


@contextmanager
def entering(module: nn.Module, seen: Callable[[Tensor], None]) -> Iterator[None]:
    """While the body runs, show the first input of every call of a module."""
    handle = module.register_forward_pre_hook(lambda _, args: seen(args[0]) if args else None)
    with _removing([handle]):
        yield


@contextmanager
def cut_at(module: nn.Module, calls: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Let the graph of the body begin at the output of a module; collects its (input, output) leaves.

    Enter it without gradients: they are switched on behind the module.
    """

    def cut(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        calls.append((args[0].detach(), leaf))
        torch.set_grad_enabled(True)
        return leaf.clone()  # a leaf may not be written to in place, as masked heads do

    with _removing([module.register_forward_hook(cut)]):
        yield


@contextmanager
def _removing(handles: list[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _owns_parameters(module: nn.Module) -> bool:
    return any(value is not None for value in module._parameters.values())
