"""How many rows may be worked on at a time within a number of bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEFAULT = 256 * 2**20


class Budget:
    """Shares of the working memory of a scoring, in bytes.

    It covers what grows with the number of rows: activations, factors, chunks of gradients. Results that
    were asked for and a few vectors of the size of the parameters come on top.
    """

    def __init__(self, total: int) -> None:
        if total < 1:
            raise ValueError(f"a budget is a number of bytes, at least 1, got {total}")
        self.total = int(total)
        self.pass_ = self.total * 3 // 8
        """Share of one forward and backward pass."""
        self.held = self.total * 3 // 8
        """Share of the factors kept from one pass to the next."""
        self.product = self.total // 4
        """Share of the temporaries of one product."""

    def rows_per_pass(self, row_bytes: int) -> int:
        """Rows of a pass of which each takes `row_bytes`; raises `ValueError` if not even one fits."""
        if row_bytes > self.pass_:
            raise ValueError(_too_small(self.total, row_bytes * 8 // 3 + 3, "one row's pass through the model"))
        return self.pass_ // max(1, row_bytes)

    def pieces(self, n: int, row_bytes: int) -> Iterator[slice]:
        """Cut n rows of `row_bytes` each into slices that fit into the product's share."""
        if row_bytes > self.product:
            raise ValueError(_too_small(self.total, 4 * row_bytes + 4, "one row of a layer"))
        yield from _slices(n, self.product // max(1, row_bytes))

    def tiles(self, n: int, m: int, left: int, right: int, pair: int) -> tuple[list[slice], list[slice]]:
        """Cut n rows times m rows into tiles that fit into the product's share.

        A tile of r by s takes r·left + s·right + r·s·pair bytes.
        """
        if n * left + m * right + n * m * pair <= self.product // 2:
            return [slice(0, n)], [slice(0, m)]
        quarter = self.product // 4
        needed = max(4 * left, 4 * right, 2 * pair)
        if needed > self.product:
            raise ValueError(_too_small(self.total, 4 * needed + 16, "a product of two rows of a layer"))
        r, s, pairs = quarter // max(1, left), quarter // max(1, right), 2 * quarter // max(1, pair)
        r, s = min(n, max(1, r)), min(m, max(1, s))
        if r * s > pairs:
            r = min(r, max(1, math.isqrt(pairs), pairs // s))
            s = min(s, max(1, pairs // r))
        return list(_slices(n, r)), list(_slices(m, s))


def _slices(n: int, step: int) -> Iterator[slice]:
    for start in range(0, n, max(1, step)):
        yield slice(start, min(n, start + step))


def _too_small(total: int, needed: int, what: str) -> str:
    return (
        f"a budget of {total:,} bytes is too small: {what} needs a budget of at least {needed:,} bytes; "
        "raise it, or score the last layer only"
    )


UNLIMITED = Budget(2**62)


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all tensors that operations make while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nbytes = 0
        # Kept, so that no address is used twice.
        self._made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_address(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                address = _address(value)
                if address not in given and address not in self._made:
                    self._made[address] = value
                    self.nbytes += value.untyped_storage().nbytes()
        return result


def _address(value: Tensor) -> int:
    return value.untyped_storage().data_ptr() if value.layout == torch.strided else -1


# What was measured, by model and form of its input.
_measured: WeakKeyDictionary[nn.Module, dict[Hashable, int]] = WeakKeyDictionary()


def row_bytes(model: nn.Module, form: Hashable, measure: Callable[[], int]) -> int:
    """Bytes that one row of this form takes in a pass; measured once."""
    known = _measured.setdefault(model, {})
    if form not in known:
        known[form] = measure()
    return known[form]


def tensor_bytes(*values: Any) -> int:
    """Bytes of those values that are tensors."""
    return sum(value.nbytes for value in values if isinstance(value, Tensor))
