"""A selection does not depend on how much of what it reads is held at a time."""

import inspect
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from reference.factored import Factored
from torch import nn

from replaykit import selectors
from replaykit.gradients import per_sample_gradients
from replaykit.selectors import Pool, Selector, stochastic
from replaykit.selectors.kernels import RBF

#: Selectors that hold a matrix, rows of one, or blocks of a kernel unless their budget is smaller.
BUDGETED = {
    "Bilevel": partial(selectors.Bilevel, quantity="features"),
    "Bilevel of inner products": partial(selectors.Bilevel, None, "gradients", ridge=0.1),
    "CRAIG": selectors.CRAIG,
    "FacilityLocation": selectors.FacilityLocation,
    "FacilityLocation stochastic": partial(selectors.FacilityLocation, engine=stochastic),
    "GCR": selectors.GCR,
    "GradMatch": selectors.GradMatch,
    "GraphCut": selectors.GraphCut,
    "KCenter": selectors.KCenter,
    "LogDeterminant": partial(selectors.LogDeterminant, similarity=selectors.gaussian),
    "Nystrom": partial(selectors.Nystrom, RBF(), "features", landmarks=20),
}
#: Those that hold a few numbers a row, whatever they read.
SMALL = {
    selectors.BADGE,
    selectors.BCSR,
    selectors.EL2N,
    selectors.Entropy,
    selectors.Forgetting,
    selectors.GraNd,
    selectors.Herding,
    selectors.Importance,
    selectors.LeastConfidence,
    selectors.Margin,
    selectors.Moderate,
    selectors.PerClass,
    selectors.Rainbow,
}
OF_GRADIENTS = {
    "BADGE": partial(selectors.BADGE, "gradients"),
    "Bilevel": partial(selectors.Bilevel, None, "gradients", ridge=0.1),
    "CRAIG": selectors.CRAIG,
    "FacilityLocation": partial(selectors.FacilityLocation, "gradients"),
    "FacilityLocation stochastic": partial(selectors.FacilityLocation, "gradients", engine=stochastic),
    "GCR": selectors.GCR,
    "GradMatch": selectors.GradMatch,
    "GraNd": selectors.GraNd,
    "GraphCut": partial(selectors.GraphCut, "gradients"),
    "Herding": partial(selectors.Herding, "gradients"),
    "Importance": selectors.Importance,
    "KCenter": partial(selectors.KCenter, "gradients"),
    "LogDeterminant": partial(selectors.LogDeterminant, "gradients", selectors.gaussian),
    "Moderate": partial(selectors.Moderate, "gradients"),
}


def test_every_selector_has_a_budget_or_needs_none() -> None:
    every = {value for value in vars(selectors).values() if isinstance(value, type) and hasattr(value, "select")}
    with_budget = {s for s in every if "max_bytes" in inspect.signature(s).parameters}
    assert every - {selectors.Selector} - with_budget == SMALL
    assert with_budget == {getattr(make, "func", make) for make in BUDGETED.values()}


def columns(n: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    y = torch.from_numpy(rng.integers(0, 3, n))
    features = torch.from_numpy(rng.normal(size=(n, 6))) + y[:, None]
    error = torch.from_numpy(rng.normal(size=(n, 3))).softmax(1) - nn.functional.one_hot(y, 3)
    return {"y": y, "features": features, "gradients": Factored(error, features)}


@pytest.mark.parametrize("name", BUDGETED)
@pytest.mark.parametrize("labelled", [True, False])
def test_a_byte_budget_changes_nothing(name: str, labelled: bool) -> None:
    values = columns(60)
    if not labelled and ("Bilevel" in name or name == "Nystrom"):
        values["y"] = torch.arange(60) % 3  # they need labels; other ones
    elif not labelled:
        values["y"] = None
    whole, *others = (
        BUDGETED[name](max_bytes=b).select(Pool(60, **values), 14, np.random.default_rng(3))
        for b in (2**31, 60 * 8 * 7, 1)
    )
    for rows, weights in others:
        assert rows.tolist() == whole[0].tolist()
        torch.testing.assert_close(weights, whole[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", OF_GRADIENTS)
def test_gradients_may_come_in_chunks(name: str) -> None:
    """Of all layers of a model, once at once and once a few rows at a time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    g = torch.Generator().manual_seed(1)
    batch = {"x": torch.randn(50, 5, dtype=torch.float64, generator=g), "y": torch.arange(50) % 3}

    def selected(budget: int) -> tuple[list[int], torch.Tensor]:
        gradients = per_sample_gradients(model, batch, budget=budget)
        selector: Selector = OF_GRADIENTS[name]()
        rows, weights = selector.select(Pool(50, batch["y"], gradients=gradients), 12, np.random.default_rng(0))
        return rows.tolist(), weights

    (whole, weights), (cut, others) = selected(1 << 30), selected(4096)
    assert cut == whole
    torch.testing.assert_close(others, weights, rtol=1e-8, atol=1e-10)
    assert len(per_sample_gradients(model, batch, budget=4096)._chunks()) > 2
