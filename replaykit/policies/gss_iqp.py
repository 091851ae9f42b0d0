"""GSS-IQP: the rows whose gradients point in the most different directions.

Source: Aljundi, Lin, Goujaud and Bengio, Gradient based sample selection for online continual learning, NeurIPS
2019, section 3.3 (the integer quadratic programme of equation 7).
Keeps: a count. Columns written: ``recent``, bool: stored since the last selection.
Probe: gradients of all stored rows and of the arrivals, each time that a batch finds too few free slots.
Cost per add: O(batch); at a selection among n rows one pass and the n² inner products of their gradients, and
O(n²) for the solution with O(n²) for each exchange.
Law: of n candidates those m = capacity - recent stay that minimise Σ_ij cos(g_i, g_j) at the present weights.
Departures:
- The rows between two selections lie in the memory, are replayed and count in its bytes: a published memory of
  m slots with a recent buffer of T_r is one of m + T_r here. The authors keep the recent buffer outside and
  replay from the m only.
- A selection is made when a batch does not fit, with its rows as further candidates: after T_r to T_r + batch - 1
  new rows instead of T_r.
- The authors minimise by branch and bound within 1000 nodes, and keep all candidates when that finds nothing.
  Here the default is `least_similar`: exact for a few rows, otherwise a local minimum under exchanges, within
  about 1 % on average. There is no memory above its capacity.
- A gradient shorter than 1e-8 counts as orthogonal to all others; the authors' code divides by its length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from replaykit.gradients.cosines import Numbers, cosines
from replaykit.policies.least_similar import least_similar
from replaykit.policies.select_when_full import SelectWhenFull
from replaykit.store import Batch, IntArray

if TYPE_CHECKING:
    from replaykit.probe import Probe

Solver: TypeAlias = Callable[[Numbers, int], IntArray]


class GSSIQP(SelectWhenFull):
    """Stores rows until a batch finds no room, then keeps those with the smallest sum of pairwise cosines.

    Args:
        recent: slots that a selection leaves free for the rows that come next, fewer than the memory has; with 0
            each batch that comes to a full memory is a selection.
        solver: (cosines [n, n], k) -> k distinct numbers of rows.

    Attributes:
        degenerate: candidates of all selections so far whose gradient was shorter than 1e-8.

    Published: 100 recent rows; m = 300 for MNIST, 1,000 for CIFAR-10.
    """

    needs = ("gradients",)

    def __init__(self, recent: int = 100, *, solver: Solver = least_similar) -> None:
        self.solver = solver
        super().__init__(recent)

    def reset(self) -> None:
        self.degenerate = 0

    def choose(
        self, candidates: Batch, selected: int, room: int, rng: np.random.Generator, probe: Probe
    ) -> IntArray:
        table, degenerate = cosines(probe.gradients(candidates).gram().double().cpu().numpy())
        kept = np.asarray(self.solver(table, room))
        if kept.shape != (room,) or len(np.unique(kept)) != room or not 0 <= kept.min() <= kept.max() < len(table):
            raise ValueError(f"the solver must choose {room} distinct rows of {len(table)}, got {kept.tolist()}")
        self.degenerate += degenerate
        return kept

    def state_dict(self) -> dict[str, Any]:
        return {"degenerate": self.degenerate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        degenerate = state.get("degenerate")
        if state.keys() != {"degenerate"} or not isinstance(degenerate, int) or degenerate < 0:
            raise ValueError(f"not the state of GSSIQP: {dict(state)!r}")
        self.degenerate = degenerate
