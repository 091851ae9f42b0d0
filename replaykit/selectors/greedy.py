"""Greedy maximisation of a set function: naive, lazy and stochastic.

For a monotone submodular function f with f(∅) = 0, naive and lazy greedy reach 1 - (1 - 1/k)^k >= 1 - 1/e of
the optimum over sets of k, stochastic greedy 1 - 1/e - eps of it on average.

An engine is a function ``(f, k, rng) -> (rows, gains)``: k distinct rows in the order of selection, int64
[k], and what each added to f [k]. Ties go to the smallest row.

Source: Nemhauser, Wolsey and Fisher 1978 (naive); Minoux 1978 (lazy); Mirzasoleiman et al., Lazier Than Lazy
Greedy, AAAI 2015 (stochastic).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replaykit.draws import distinct
from replaykit.selectors.ties import first_max, rounding
from replaykit.store import IntArray


class SetFunction(Protocol):
    """f(S) of a set S that grows by one row at a time."""

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int:
        """Number of rows to choose from."""
        ...

    def gains(self, index: Tensor) -> Tensor:
        """f(S + j) - f(S) for each row j of `index` [m]."""
        ...

    def add(self, row: Tensor) -> None:
        """Put a row [] into S."""
        ...


Greedy: TypeAlias = tuple[Tensor, Tensor]
Engine: TypeAlias = Callable[[SetFunction, int, np.random.Generator | None], Greedy]


def naive(f: SetFunction, k: int, rng: np.random.Generator | None = None) -> Greedy:
    """Every gain at every step: n·k gains."""
    everything = torch.arange(len(f), device=f.device)
    rows: list[Tensor] = []
    gains: list[Tensor] = []
    for step in range(k):
        gain = f.gains(everything)
        if step == 0:
            tolerance = rounding(gain)
            taken = torch.zeros_like(gain, dtype=torch.bool)
        best = first_max(gain.masked_fill(taken, -math.inf), tolerance)
        taken[best] = True
        rows.append(best)
        gains.append(gain[best])
        f.add(best)
    return _stacked(rows, gains, f.device)


def lazy(f: SetFunction, k: int, rng: np.random.Generator | None = None, beta: float = 1.0) -> Greedy:
    """The rows of `naive`, most gains never computed: gains of a submodular function only shrink.

    Args:
        beta: accept a row whose gain is at least beta times what any other could still have. Below 1 the
            guarantee is 1 - exp(-beta) ("approximate lazy").
    """
    if not 0 < beta <= 1:
        raise ValueError(f"lazy: beta must be in (0, 1], got {beta}")
    if k == 0:
        return _stacked([], [], f.device)
    bound = f.gains(torch.arange(len(f), device=f.device))
    tolerance = rounding(bound)
    fresh = torch.ones_like(bound, dtype=torch.bool)
    rows, gains = [], []
    for _ in range(k):
        best = _best(f, bound, fresh, tolerance, beta)
        rows.append(best)
        gains.append(bound[best].clone())
        f.add(best)
        bound[best] = -math.inf
        fresh.zero_()
    return _stacked(rows, gains, f.device)


def stochastic(f: SetFunction, k: int, rng: np.random.Generator | None, eps: float = 0.01) -> Greedy:
    """The best of a uniform sample of ceil(n/k · ln(1/eps)) of the rest at each step.

    At most n ln(1/eps) gains: those are not computed that an earlier gain of the row rules out.
    """
    if not 0 < eps < 1:
        raise ValueError(f"stochastic: eps must be in (0, 1), got {eps}")
    if rng is None:
        raise ValueError("stochastic: needs a generator, pass rng=numpy.random.default_rng(seed)")
    size = math.ceil(len(f) / max(k, 1) * math.log(1 / eps))
    rest = np.arange(len(f))
    bound, tolerance = np.full(len(f), np.inf), 0.0
    rows: list[Tensor] = []
    gains: list[Tensor] = []
    for step in range(k):
        places = np.sort(distinct(len(rest), min(size, len(rest)), rng))
        sample = rest[places]
        gain = _sampled(f, sample, bound, tolerance)
        if step == 0:
            tolerance = float(rounding(gain))
        best = int(first_max(gain, tolerance))
        rows.append(torch.tensor(sample[best], device=f.device))
        gains.append(gain[best])
        f.add(rows[-1])
        rest = np.delete(rest, places[best])
    return _stacked(rows, gains, f.device)


def _sampled(f: SetFunction, sample: IntArray, bound: NDArray[np.float64], tolerance: float) -> Tensor:
    """Gains of a sample [m], on the host; -inf for rows that cannot have the largest. Updates `bound`."""
    gain = np.full(len(sample), -np.inf)
    order = np.argsort(-bound[sample], kind="stable")
    first = max(8, int(np.isinf(bound[sample]).sum()))
    for part in (order[:first], order[first:]):
        part = part[bound[sample[part]] >= gain.max() - tolerance]
        if len(part):
            index = torch.from_numpy(sample[part]).to(f.device)
            values = f.gains(index).cpu()
            gain[part] = bound[sample[part]] = values.numpy()
    return torch.from_numpy(gain).to(values.dtype)


def _best(f: SetFunction, bound: Tensor, fresh: Tensor, tolerance: Tensor, beta: float) -> Tensor:
    """The row of the largest gain, of which `bound` [n] is an upper bound, and the value where `fresh`.

    Both are brought up to date where it matters.
    """
    refresh = 8
    while True:
        best = first_max(bound, tolerance)
        if fresh[best] and fresh[bound.argmax()]:
            return best
        if beta < 1:
            known = bound.masked_fill(~fresh, -math.inf)
            if known.max() >= beta * bound.max() and known.max() >= 0:
                return first_max(known, tolerance)
        # Twice as many each time: one look at many is cheaper than many looks.
        stale = bound.masked_fill(fresh, -math.inf)
        index = torch.cat([stale.topk(min(refresh, len(stale))).indices, best.reshape(1)])
        index = index[stale[index] > -math.inf]
        bound[index] = f.gains(index)
        fresh[index] = True
        refresh *= 2


def _stacked(rows: list[Tensor], gains: list[Tensor], device: torch.device) -> Greedy:
    if not rows:
        return torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, dtype=torch.float64, device=device)
    return torch.stack(rows), torch.stack(gains).double()
