"""Random maps: unbiased, of the stated variance, fixed by the seed."""

import pytest
import torch
from reference import small_networks as nets
from torch import nn

from replaykit.gradients import last_layer_gradients, per_sample_gradients
from replaykit.gradients.sketch import KINDS, add_sketch

P, K, SEEDS = 60, 16, 600


def sketches(vectors: torch.Tensor, kind: str) -> torch.Tensor:
    """[seeds, n, k], the entries split over two parameters."""
    out = torch.zeros(SEEDS, len(vectors), K, dtype=torch.float64)
    for seed in range(SEEDS):
        for place in (slice(0, 23), slice(23, P)):
            add_sketch(vectors[:, place], place, out[seed], seed, kind)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_are_kept_on_average(kind: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, P, dtype=torch.float64)
    a, b = sketches(torch.stack([x, y]), kind).unbind(1)
    found = (a * b).sum(1)
    true, squares = float(x @ y), float((x * y).square().sum())
    variance = (float(x @ x) * float(y @ y) + true**2 - (0 if kind == "gaussian" else 2 * squares)) / K
    error = (variance / SEEDS) ** 0.5
    assert abs(float(found.mean()) - true) < 3 * error
    # The variance of a variance of 600 nearly normal numbers is about 2 / 600 of its square.
    assert 0.7 < float(found.var()) / variance < 1.3


@pytest.mark.parametrize("kind", KINDS)
def test_the_map_is_fixed_and_linear(kind: str) -> None:
    torch.manual_seed(0)
    model, batch = nets.convnet().double(), nets.rows(6, 3, 8, 8)
    found = per_sample_gradients(model, batch)
    g, sketch = found.explicit(), found.project(9, 3, kind)
    torch.testing.assert_close(found.project(9, 3, kind), sketch, rtol=0, atol=0)
    torch.testing.assert_close(per_sample_gradients(model, batch, route="func").project(9, 3, kind), sketch)
    assert not torch.allclose(found.project(9, 4, kind), sketch)
    halves = [{k: v[part] for k, v in batch.items()} for part in (slice(0, 2), slice(2, 6))]
    parts = [per_sample_gradients(model, half).project(9, 3, kind) for half in halves]
    torch.testing.assert_close(torch.cat(parts), sketch)
    # The same map applied to the gradients themselves.
    out = torch.zeros(6, 9, dtype=torch.float64)
    for name, place in found.layout.places().items():
        assert name
        add_sketch(g[:, place], place, out, 3, kind)
    torch.testing.assert_close(out, sketch)


def test_a_wide_sketch_of_the_last_layer_has_nearly_its_products() -> None:
    torch.manual_seed(0)
    last = last_layer_gradients(nets.mlp().double(), nets.rows(6, 12))
    wide = last.project(4000, 0)
    assert float((wide @ wide.T - last.gram()).abs().max()) < 0.1 * float(last.norms().max()) ** 2


def test_the_map_does_not_depend_on_the_budget() -> None:
    torch.manual_seed(0)
    model = nn.Linear(50, 30).double()
    batch = {"x": torch.randn(5, 50, dtype=torch.float64), "y": torch.zeros(5).long()}
    whole = per_sample_gradients(model, batch).project(300, 0)  # of several pieces
    cut = per_sample_gradients(model, batch, budget=200_000).project(300, 0)
    torch.testing.assert_close(cut, whole)
