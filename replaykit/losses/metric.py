"""Asymmetric metric learning (ER-AML): rows of the stream are told from the classes that come with them only.

For V anchors a and their partners Q (a positive and a negative of each), all of length 1, with
P_i = {q in Q: same label as a_i},

    L = (T / T₀) · mean_i −(1/|P_i|) Σ_{q in P_i} [ ⟨a_i, q⟩ / T − log Σ_{q' in Q} exp(⟨a_i, q'⟩ / T) ]

Source: Caccia et al., New Insights on Reducing Abrupt Representation Change in Online Continual Learning, ICLR
2022, as in the authors' code: anchors contrast with everybody's partners, negatives come only from the classes of
the incoming batch.
Departures: none known.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from replaykit.losses.base import Draw, Model, check_temperature, coefficient
from replaykit.losses.features import Features, FeatureSource
from replaykit.store import IntArray


def asymmetric_metric(
    anchors: Tensor,
    y: Tensor,
    partners: Tensor,
    y_partners: Tensor,
    temperature: float = 0.2,
    base_temperature: float = 0.07,
) -> Tensor:
    """The loss above; 0, with a gradient of 0, without anchors.

    Args:
        anchors, y: features [v, d] and labels [v].
        partners, y_partners: features [q, d] and labels [q], of which at least one is a positive of each anchor.
        temperature, base_temperature: T and T₀.

    Raises:
        ValueError: an anchor without a positive.
    """
    if len(anchors) == 0:
        return anchors.sum() * 0
    similarity = functional.normalize(anchors, dim=1) @ functional.normalize(partners, dim=1).T / temperature
    positive = y[:, None] == y_partners
    count = positive.sum(1)
    if y.is_cpu and not bool(count.all()):
        raise ValueError("an anchor has no partner of its own label; leave out rows without one")
    log_share = similarity - similarity.logsumexp(1, keepdim=True)
    losses = -log_share.where(positive, 0.0).sum(1) / count
    return temperature / base_temperature * losses.mean()


def draw_partners(
    y: IntArray, pool: IntArray, first: int, rng: np.random.Generator
) -> tuple[IntArray, IntArray, IntArray]:
    """A uniform positive and a uniform negative for every row that has both.

    A positive has the row's label and is not the row itself; a negative has another label among those of `y`.

    Args:
        y: labels of the rows [b].
        pool: labels of all that may become partners [m]; row i of `y` is itself entry ``first + i``.
        rng: one number for each positive, then one for each negative.

    Returns:
        rows [v] of `y`, and the places in the pool of their positives [v] and negatives [v].
    """
    same = y[:, None] == pool
    positive = same.copy()
    positive[np.arange(len(y)), first + np.arange(len(y))] = False
    negative = ~same & np.isin(pool, y)
    rows = np.flatnonzero(positive.any(1) & negative.any(1))
    return rows, _one_of_each(positive[rows], rng), _one_of_each(negative[rows], rng)


def _one_of_each(allowed: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], rng: np.random.Generator) -> IntArray:
    """A uniform column of each row [v] among those that are True."""
    counts = allowed.sum(1)
    if len(counts) == 0:
        return np.empty(0, np.int64)
    columns = np.nonzero(allowed)[1]
    chosen: IntArray = columns[np.cumsum(counts) - counts + rng.integers(counts)]
    return chosen


class AML:
    """`weight` times the metric loss among the rows of one draw: each row against partners out of the others.

    `replaykit.strategies.ERAML` is the published method, in which the rows of the stream are the anchors. Partners
    are drawn with a seed from torch's global generator.

    Args:
        weight: coefficient of the term.
        temperature, base_temperature: T and T₀.
        features: see `replaykit.losses.Features`.
    """

    columns: tuple[str, ...] = ("x", "y")

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 0.2,
        base_temperature: float = 0.07,
        features: FeatureSource = None,
    ) -> None:
        self.weight, self.embedding = coefficient("weight", weight), Features(features)
        self.temperature = check_temperature("temperature", temperature)
        self.base_temperature = check_temperature("base_temperature", base_temperature)

    def __call__(self, model: Model, draw: Draw) -> Tensor:
        if self.weight == 0:
            return torch.zeros(())
        batch = draw()
        z, y = self.embedding(model, batch), batch["y"]
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        labels = y.cpu().numpy()
        rows, positive, negative = draw_partners(labels, labels, 0, rng)
        kept = torch.from_numpy(rows).to(y.device)
        chosen = torch.from_numpy(np.concatenate([positive, negative])).to(y.device)
        loss = asymmetric_metric(z[kept], y[kept], z[chosen], y[chosen], self.temperature, self.base_temperature)
        return self.weight * loss
