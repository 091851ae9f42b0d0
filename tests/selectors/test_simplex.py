"""Projection onto the simplex: hand-worked cases and the conditions of optimality."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit.selectors.simplex import project_simplex


@pytest.mark.parametrize(
    ("v", "w"),
    [
        ((0.6, 0.5, 0.1, -0.2), (0.53333, 0.43333, 0.03333, 0)),
        ((0.9, 0.9, 0.2), (0.5, 0.5, 0)),
        ((2, 0, 0), (1, 0, 0)),
        ((-7.0,), (1.0,)),
        ((0.3, 0.7), (0.3, 0.7)),
    ],
)
def test_by_hand(v, w, device):
    projected = project_simplex(torch.tensor(v, dtype=torch.float64, device=device)).cpu()
    torch.testing.assert_close(projected, torch.tensor(w, dtype=torch.float64), atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_conditions_of_optimality(values):
    v = torch.tensor(values, dtype=torch.float64)
    w = project_simplex(v)
    assert abs(float(w.sum()) - 1) < 1e-12 and (w >= 0).all()
    tau = (v - w)[w > 0]
    assert float(tau.max() - tau.min()) < 1e-9
    assert (v[w == 0] <= tau.max() + 1e-9).all()
    torch.testing.assert_close(project_simplex(w), w, atol=1e-12, rtol=0)


def test_nearest_of_many_points():
    g = torch.Generator().manual_seed(0)
    v = torch.randn(5, dtype=torch.float64, generator=g)
    others = torch.distributions.Dirichlet(torch.ones(5, dtype=torch.float64)).sample((2000,))
    assert ((others - v).norm(dim=1) >= (project_simplex(v) - v).norm() - 1e-12).all()


@pytest.mark.parametrize("v", [torch.empty(0), torch.ones(2, 2), torch.tensor([1.0, torch.nan])])
def test_bad_values(v):
    with pytest.raises(ValueError, match="finite values"):
        project_simplex(v)
