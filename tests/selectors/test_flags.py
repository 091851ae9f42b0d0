"""Every setting of every selector reaches its result, and none of those that must not."""

import inspect
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from reference.factored import Factored

from replaykit import selectors
from replaykit.selectors import Pool, equal, lowest, middle, paper_ranks, proportional, stochastic
from replaykit.selectors.bilevel import Bilevel
from replaykit.selectors.k_center import first_row
from replaykit.selectors.moderate import nearest_to_median

#: Settings of time and memory: they leave the result as it is.
INERT = {"max_bytes", "tolerance"}
FAR = partial(selectors.gaussian, width=0.3)

#: By selector: the settings to start from, and one other value of each setting.
CHANGES: dict[type, tuple[dict[str, Any], dict[str, Any]]] = {
    selectors.BADGE: ({}, {"quantity": "gradients"}),
    selectors.BCSR: (
        {"sparsity": 2.0, "outer_steps": 10},
        {
            "problem": selectors.linear_problem("x"),
            "outer_steps": 1,
            "inner_steps": 30,
            "inner_rate": 0.5,
            "neumann": 0,
            "sparsity": 0.0,
            "penalty": 0.1,
            "outer_rate": 3.0,
            "smoothing": 1.0,
            "noise_draws": 1,
            "batch": 7,
            "draw": True,
            "compat": True,
            "shares": equal,
        },
    ),
    selectors.Bilevel: (
        {"max_outer": 2},
        {
            "kernel": selectors.Linear(1.0),
            "quantity": "features",
            "ridge": 1.0,
            "loss": selectors.SquaredError(),
            "classes": 10,
            "on_support": True,
            "max_outer": 0,
            "outer_rate": 0.5,
            "start": 3,
            "candidates": 2,
            "compat": True,
        },
    ),
    selectors.CRAIG: ({}, {"quantity": "x", "engine": partial(stochastic, eps=0.9), "shares": equal}),
    selectors.EL2N: ({}, {"runs": ("logits", "later"), "order": lowest, "skip": 2}),
    selectors.Entropy: ({}, {"quantity": "later", "skip": 2}),
    selectors.FacilityLocation: (
        {},
        {"quantity": "x", "similarity": FAR, "engine": partial(stochastic, eps=0.9)},
    ),
    selectors.Forgetting: ({}, {"quantity": "losses", "order": lowest, "skip": 2}),
    selectors.GCR: ({}, {"quantity": "x", "lam": 50.0, "eps": 30.0, "relative": False, "shares": equal}),
    selectors.GradMatch: (
        {},
        {"quantity": "x", "lam": 50.0, "eps": 30.0, "mean": True, "relative": False, "shares": equal},
    ),
    selectors.GraNd: ({}, {"runs": ("gradients", "x"), "order": middle, "skip": 2}),
    selectors.GraphCut: (
        {},
        {"quantity": "x", "similarity": FAR, "lam": 0.1, "engine": partial(stochastic, eps=0.9)},
    ),
    selectors.Herding: ({}, {"quantity": "x", "normalise": False, "shares": proportional}),
    selectors.Importance: ({}, {"quantity": "losses", "rho": 1.0}),
    selectors.KCenter: ({}, {"quantity": "x", "first": first_row}),
    selectors.LeastConfidence: ({}, {"quantity": "later", "skip": 2}),
    selectors.LogDeterminant: (
        {},
        {"quantity": "x", "similarity": FAR, "eps": 1e-9, "engine": partial(stochastic, eps=0.9)},
    ),
    selectors.Margin: ({}, {"quantity": "later", "skip": 2}),
    selectors.Moderate: ({}, {"quantity": "x", "rule": nearest_to_median, "shares": equal}),
    selectors.Nystrom: ({"landmarks": 8}, {"landmarks": 3, "floor": 3.0}),
    selectors.PerClass: (
        {"selector": selectors.KCenter()},
        {"selector": selectors.KCenter("x"), "shares": equal},
    ),
    selectors.Rainbow: (
        {},
        {"spacing": paper_ranks, "quantity": "losses", "random_first": True, "compat": True},
    ),
}


def pool(n: int = 60) -> Pool:
    rng = np.random.default_rng(1)
    y = torch.from_numpy(rng.choice(3, n, p=[0.6, 0.3, 0.1]))
    logits, features = (torch.from_numpy(rng.normal(size=(n, d))) for d in (3, 6))
    error = logits.softmax(1) - torch.nn.functional.one_hot(y, 3)
    return Pool(
        n,
        y,
        torch.from_numpy(rng.random(n) + 0.5),
        gradients=Factored(error, features),
        features=features,
        logits=logits,
        later=torch.from_numpy(rng.normal(size=(n, 3))),
        x=torch.from_numpy(rng.normal(size=(n, 4))) + 1.5 * y[:, None],
        losses=torch.from_numpy(rng.random(n)),
        uncertainty=torch.from_numpy(rng.random(n)),
        forgetting=torch.from_numpy(rng.permutation(n)),
        stored=torch.zeros(n, dtype=torch.bool),
    )


def settings(selector: type) -> set[str]:
    names = set(inspect.signature(selector).parameters)
    if issubclass(selector, Bilevel) and selector is not Bilevel:
        names -= set(inspect.signature(Bilevel).parameters)  # they reach the same lines
    # What a problem reads is declared, not chosen.
    return names - INERT - {"needs"}


EVERY = [value for value in vars(selectors).values() if isinstance(value, type) and hasattr(value, "select")]


@pytest.mark.parametrize("selector", [s for s in EVERY if s is not selectors.Selector], ids=lambda s: s.__name__)
def test_every_setting_has_its_case(selector: type) -> None:
    assert set(CHANGES[selector][1]) == settings(selector)


@pytest.mark.parametrize(
    ("selector", "name"),
    [(selector, name) for selector, (_, changes) in CHANGES.items() for name in changes],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_setting_changes_the_result(selector: type, name: str) -> None:
    base, changes = CHANGES[selector]

    def result(**options: Any) -> tuple[list[int], list[float]]:
        rows, weights = selector(**options).select(pool(), 15, np.random.default_rng(0))
        return rows.tolist(), weights.tolist()

    assert result(**base) == result(**base)
    assert result(**base) != result(**{**base, name: changes[name]})
