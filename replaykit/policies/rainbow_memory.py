"""Rainbow Memory: rows spread over the whole range from easy to fragile, equally many of each class.

Source: Bang, Kim, Yoo, Ha and Choi, Rainbow Memory: Continual Learning with a Memory of Diverse Samples, CVPR
2021, section 4.1, and its released code. The selection is told in `replaykit.selectors.rainbow`, the columns and
the frame (candidates, recent) in `replaykit.policies.coreset`.
Keeps: of each class capacity / classes rows, spaced evenly over their ranks by uncertainty, and random ones in
what is left; all weights are 1. Probe: how often each class wins over perturbed copies (`Probe.votes`).
Cost per add of B rows: 12 forward passes of memory and candidates, and the perturbations.
Departures:
- The perturbations are batched (`replaykit.perturb`), with parameters of their own for each row.
- Ties of the 13 possible uncertainties are decided by the mean probability of the winning class, then by row.
- The spacing takes both ends; `paper_ranks` and `release_ranks` of `replaykit.selectors` are the two others.
- ``compat=True``: the release's spacing, and a random choice as long as nothing is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from replaykit import selectors
from replaykit.policies.coreset import Coreset, View, pool_of
from replaykit.selectors.pool import Selection
from replaykit.selectors.rainbow import Spacing, linspace_ranks
from replaykit.store import Batch

if TYPE_CHECKING:
    from replaykit.probe import Probe


class RainbowMemory(Coreset):
    """Rows spaced evenly by uncertainty under perturbations.

    Args:
        spacing: ranks of a class to keep: `linspace_ranks`, `paper_ranks` or `release_ranks`.
        perturbations: ``"vr_randaug"`` (12 draws of RandAugment, of the published scripts) or ``"vr"`` (cutout,
            flips, rotations, inversion, solarisation), for images [n, c, h, w].
        views: functions of raw ``x`` [n, ...] instead, each used once, or one random function, used 12 times.
        compat: the release.
        candidates, recent: of `Coreset`.

    Raises:
        ValueError: on `add`, rows that are no images and no views.

    Published: memory 200, 500 or 1000 on CIFAR-10; a selection at the end of each task.
    """

    def __init__(
        self,
        spacing: Spacing = linspace_ranks,
        perturbations: Literal["vr", "vr_randaug"] = "vr_randaug",
        views: Sequence[View] | View | None = None,
        compat: bool = False,
        *,
        candidates: int | None = None,
        recent: int = 0,
    ) -> None:
        if perturbations not in ("vr", "vr_randaug"):
            raise ValueError(f"perturbations is 'vr' or 'vr_randaug', got {perturbations!r}")
        super().__init__(selectors.Rainbow(spacing, compat=compat), "global", candidates, recent)
        self.perturbations, self.views = perturbations, views

    def select(
        self,
        rows: Batch,
        weight: Tensor,
        stored: int,
        k: int,
        rng: np.random.Generator,
        probe: Probe | None,
    ) -> Selection:
        views = self.views
        if views is None:
            views = _perturbations(rows["x"], self.perturbations, int(rng.integers(2**31)))
        return self.selector.select(pool_of(rows, weight, stored, probe, views=views), k, rng)


def _perturbations(x: Tensor, kind: Literal["vr", "vr_randaug"], seed: int) -> Sequence[View]:
    if x.ndim != 4 or x.shape[2] != x.shape[3]:
        raise ValueError(
            f"the perturbations {kind!r} are of square images [n, c, h, h], these rows are {list(x.shape[1:])}; "
            "pass views=, functions of x that make perturbed copies"
        )
    from replaykit.perturb import rainbow_views

    return rainbow_views(x.shape[2], kind, seed)
