"""What every selector promises, whatever it selects by."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from reference.factored import Factored
from torch import Tensor

from replaykit.selectors import (
    BADGE,
    BCSR,
    CRAIG,
    EL2N,
    GCR,
    Bilevel,
    Entropy,
    FacilityLocation,
    Forgetting,
    GradMatch,
    GraNd,
    GraphCut,
    Herding,
    Importance,
    KCenter,
    LeastConfidence,
    LogDeterminant,
    Margin,
    Moderate,
    Nystrom,
    PerClass,
    Pool,
    Rainbow,
    Selector,
    middle,
    naive,
    stochastic,
)

DETERMINISTIC: dict[str, Callable[[], Selector]] = {
    "CRAIG": CRAIG,
    "EL2N": EL2N,
    "Entropy": Entropy,
    "FacilityLocation": FacilityLocation,
    "FacilityLocation naive": partial(FacilityLocation, engine=naive),
    "Forgetting": Forgetting,
    "GCR": GCR,
    "GradMatch": GradMatch,
    "GraNd": GraNd,
    "GraNd middle": partial(GraNd, order=middle),
    "GraphCut": GraphCut,
    "Herding": Herding,
    "KCenter": KCenter,
    "LeastConfidence": LeastConfidence,
    "LogDeterminant": LogDeterminant,
    "LogDeterminant linear": partial(LogDeterminant, similarity=lambda vectors: vectors.gram_rows),
    "Margin": Margin,
    "Moderate": Moderate,
    "PerClass": lambda: PerClass(KCenter("gradients")),
}
RANDOM: dict[str, Callable[[], Selector]] = {
    "BADGE": BADGE,
    "BADGE gradients": partial(BADGE, "gradients"),
    "BCSR": partial(BCSR, outer_steps=4, sparsity=3.0, noise_draws=1),
    "BCSR drawn": partial(BCSR, outer_steps=2, draw=True),
    "Bilevel": partial(Bilevel, quantity="features"),
    "Bilevel weighted": partial(Bilevel, None, "gradients", ridge=0.1, max_outer=2),
    "FacilityLocation stochastic": partial(FacilityLocation, engine=stochastic),
    "Importance": Importance,
    "Nystrom": partial(Nystrom, quantity="features", landmarks=9),
    "Rainbow": Rainbow,
}
EVERY = {**DETERMINISTIC, **RANDOM}


def columns(n: int, seed: int = 0) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    return {
        "y": torch.from_numpy(rng.integers(0, 3, n)),
        "weight": torch.from_numpy(rng.random(n) + 0.5),
        "features": torch.from_numpy(rng.normal(size=(n, 6))),
        "logits": torch.from_numpy(rng.normal(size=(n, 3))),
        "forgetting": torch.from_numpy(rng.permutation(n)),
        "uncertainty": torch.from_numpy(rng.integers(0, 12, n) / 12),
    }


def pool(values: dict[str, Tensor], index: Tensor | None = None, device: str = "cpu") -> Pool:
    n = len(values["y"])
    index = torch.arange(n) if index is None else index
    taken = {name: value[index].to(device) for name, value in values.items()}
    error = taken["logits"].softmax(1) - torch.nn.functional.one_hot(taken["y"], 3)
    return Pool(len(index), gradients=Factored(error, taken["features"]), **taken)


def check(rows: Tensor, weights: Tensor, n: int, k: int) -> None:
    assert rows.dtype == torch.int64 and weights.dtype == torch.float64
    assert rows.shape == weights.shape == (min(k, n),)
    assert len(set(rows.tolist())) == min(k, n)
    assert all(0 <= row < n for row in rows.tolist())
    assert weights.isfinite().all() and (weights >= 0).all()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("n", [0, 1, 2, 30])
def test_exactly_min_k_n_distinct_rows(name: str, n: int, device: str) -> None:
    values = columns(n)
    for k in (0, 1, 2, 7, n, n + 5):
        rows, weights = EVERY[name]().select(pool(values, device=device), k, np.random.default_rng(0))
        check(rows, weights, n, k)
        assert rows.device.type == torch.device(device).type or n * k == 0
    with pytest.raises(ValueError, match="k is a number of rows, at least 0, got -1"):
        EVERY[name]().select(pool(values), -1, np.random.default_rng(0))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("what", ["duplicates", "zeros", "two kinds"])
def test_degenerate_pools(name: str, what: str) -> None:
    n = 12
    if what == "two kinds":
        values = columns(n)
        values = {key: value[torch.arange(n) % 2] for key, value in values.items()}
    else:
        values = {key: value[:1].expand(n, *value.shape[1:]).clone() for key, value in columns(n).items()}
    given = pool(values)
    if what == "zeros":
        zero = torch.zeros(n, 3, dtype=torch.float64)
        values = {**values, "features": zero, "logits": zero}
        given = Pool(n, gradients=Factored(zero, zero), **values)
    for k in (1, 5, n):
        rows, weights = EVERY[name]().select(given, k, np.random.default_rng(0))
        check(rows, weights, n, k)
        if name in DETERMINISTIC and what != "two kinds" and "middle" not in name and name != "Moderate":
            assert rows.tolist() == list(range(k))  # ties go to the smallest index


@pytest.mark.parametrize("name", EVERY)
def test_labels_may_be_one_class_or_one_each(name: str) -> None:
    for y in (torch.zeros(9, dtype=torch.int64), torch.arange(9)):
        values = columns(9)
        given = Pool(
            9,
            y,
            gradients=Factored(values["logits"], values["features"]),
            features=values["features"],
            logits=torch.cat([values["logits"]] * 3, 1),
            forgetting=values["forgetting"],
            uncertainty=values["uncertainty"],
        )
        check(*EVERY[name]().select(given, 5, np.random.default_rng(0)), 9, 5)


@pytest.mark.parametrize("name", EVERY)
def test_same_generator_same_rows_and_nothing_else_changes(name: str) -> None:
    values = columns(40)
    before = {key: value.clone() for key, value in values.items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (EVERY[name]().select(pool(values), 9, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert all(torch.equal(values[key], before[key]) for key in values)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002


# Every row has the cosine 1 with itself, so the first volume is a tie of all rows.
@pytest.mark.parametrize("name", sorted(DETERMINISTIC.keys() - {"LogDeterminant"}))
def test_deterministic_selectors_draw_nothing_and_follow_a_permutation(name: str) -> None:
    for seed in range(3):
        values = columns(40, seed)
        rng = np.random.default_rng(0)
        state = rng.bit_generator.state
        rows, weights = DETERMINISTIC[name]().select(pool(values), 9, rng)
        assert rng.bit_generator.state == state
        order = torch.from_numpy(np.random.default_rng(seed).permutation(40))
        moved, moved_weights = DETERMINISTIC[name]().select(pool(values, order), 9, rng)
        assert order[moved].tolist() == rows.tolist()
        assert torch.allclose(moved_weights, weights)


@pytest.mark.parametrize("name", RANDOM)
def test_random_selectors_draw_from_the_generator_given(name: str) -> None:
    given = pool(columns(40))
    results = {tuple(RANDOM[name]().select(given, 10, np.random.default_rng(s))[0].tolist()) for s in range(5)}
    assert len(results) > 1


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_is_refused_by_name(name: str, value: float) -> None:
    selector = EVERY[name]()
    values = columns(12)
    for quantity in selector.needs:
        bad = {**values, "forgetting": values["forgetting"].double()}
        given = {key: bad[key] for key in ("features", "logits", "forgetting", "uncertainty")}
        given["gradients"] = Factored(bad["logits"].clone(), bad["features"])
        if quantity == "gradients":
            given["gradients"].r[7] = value
        else:
            given[quantity] = bad[quantity].clone()
            given[quantity].reshape(12, -1)[7, 0] = value
        owner = type(getattr(selector, "selector", selector)).__name__
        with pytest.raises(ValueError, match=rf"{owner}: .*{quantity} of row \d+ holds NaN or infinity"):
            selector.select(Pool(12, bad["y"], **given), 4, np.random.default_rng(0))


@pytest.mark.parametrize("name", EVERY)
def test_what_is_needed_is_declared(name: str) -> None:
    selector = EVERY[name]()
    given = pool(columns(12))
    asked = []

    class Watched(Pool):
        def _get(self, quantity: str):
            asked.append(quantity)
            return super()._get(quantity)

    everything = {q: given._get(q) for q in ("features", "logits", "forgetting", "uncertainty", "gradients")}
    selector.select(Watched(12, given.y, **everything), 4, np.random.default_rng(0))
    assert set(asked) == set(selector.needs)
    with pytest.raises(KeyError, match="the pool has no"):
        selector.select(Pool(12, given.y), 4, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["CRAIG", "GCR"])
def test_weights_that_stand_for_others_change_with_the_weights_of_the_pool(name: str) -> None:
    values = columns(40)
    plain = EVERY[name]().select(pool({**values, "weight": torch.ones(40)}), 9, np.random.default_rng(0))
    tripled = EVERY[name]().select(pool({**values, "weight": torch.full((40,), 3.0)}), 9, np.random.default_rng(0))
    assert tripled[0].tolist() == plain[0].tolist()
    assert torch.allclose(tripled[1], 3 * plain[1])
