"""Attenuation and implants: the hand-worked cases, and what no row may lose."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import xder as reference
from scipy import stats

from replaykit.xder import attenuate, first_of_each, implant, visit


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def lowered(u: torch.Tensor, g: float, rule: str = "code", nonpositive: str = "compat") -> list[float]:
    return attenuate(u, torch.tensor([g], dtype=torch.float64), 0.85, rule, nonpositive)[0].tolist()


def test_between_gamma_g_and_g_paper_and_code_differ() -> None:
    u = row(3.6, 1.8)
    assert lowered(u, 4.0) == [3.6, 1.8]
    assert lowered(u, 4.0, "paper") == pytest.approx([3.4, 1.7])
    for rule in ("code", "paper"):
        assert lowered(row(8.0, 2.0), 4.0, rule) == pytest.approx([3.4, 0.85])
        assert lowered(row(3.0, 2.0), 4.0, rule) == [3.0, 2.0]


def test_a_factor_makes_logits_above_a_negative_truth_worse() -> None:
    """The fault of all published versions: signs and order flip, or the logits fall and stay too high, or NaN."""
    assert lowered(row(2.0, 1.0), -1.0) == pytest.approx([-0.85, -0.425])
    assert lowered(row(-2.0, -3.0), -4.0) == pytest.approx([-3.4, -5.1])
    assert np.isnan(lowered(row(0.0, -1.0), -1.0)).any()


def test_safe_shifts_them_below_the_truth() -> None:
    assert lowered(row(2.0, 1.0), -1.0, nonpositive="safe") == pytest.approx([-1.15, -2.15])
    assert lowered(row(-2.0, -3.0), -4.0, nonpositive="safe") == pytest.approx([-4.6, -5.6])
    assert lowered(row(0.0, -1.0), -1.0, nonpositive="safe") == pytest.approx([-1.15, -2.15])
    assert lowered(row(1.0, -1.0), 0.0, nonpositive="safe") == [0.0, -2.0]
    # What is small enough stays, where the paper's formula turns signs around.
    assert lowered(row(-1.0, -2.0), 4.0, "paper", "safe") == [-1.0, -2.0]
    assert lowered(row(-1.0, -2.0), 4.0, "paper") == pytest.approx([3.4, 6.8])


logits = st.lists(st.floats(-9, 9).filter(lambda v: abs(v) > 1e-3), min_size=1, max_size=5)


@settings(max_examples=200, deadline=None)
@given(logits, st.floats(-9, 9, allow_subnormal=False), st.sampled_from(["code", "paper"]))
def test_compat_is_the_formula_and_safe_is_what_it_promises(u: list[float], g: float, rule: str) -> None:
    assert lowered(row(*u), g, rule) == pytest.approx(reference.attenuate(u, g, 0.85, rule))
    safe = lowered(row(*u), g, rule, "safe")
    bound = g - 0.15 * abs(g)
    assert max(safe) <= (max(g, bound) if rule == "code" else bound) + 1e-9
    assert safe == u if max(u) <= bound else max(safe) <= max(u) + 1e-9
    pairs = list(zip(u, safe, strict=True))
    assert all(new <= other for old, new in pairs for before, other in pairs if old < before)  # order stays
    if g > 0 and max(u) > 0:
        assert safe == pytest.approx(lowered(row(*u), g, rule))


def test_rows_are_attenuated_by_themselves_and_no_head_is_no_work() -> None:
    u, g = torch.randn(7, 3, dtype=torch.float64), torch.rand(7, dtype=torch.float64)
    together = attenuate(u, g)
    for i in range(7):
        assert torch.equal(together[i : i + 1], attenuate(u[i : i + 1], g[i : i + 1]))
    assert attenuate(u[:, :0], g).shape == (7, 0)


def test_an_implant_writes_the_named_heads_alone() -> None:
    torch.manual_seed(0)
    stored, z, y = torch.rand(5, 6) + 1, 4 * torch.randn(5, 6), torch.tensor([0, 1, 0, 1, 1])
    heads = torch.tensor([False, False, True, False, True, True])
    kept, fresh = stored.clone(), z.clone()
    new = implant(stored, z, y, heads)
    assert torch.equal(stored, kept) and torch.equal(z, fresh)
    assert torch.equal(new[:, ~heads], stored[:, ~heads])
    for i in range(5):
        wanted = reference.implanted(stored[i], z[i], int(y[i]), [2, 4, 5], 0.85, "code")
        torch.testing.assert_close(new[i], wanted)
        truth = stored[i, y[i]]
        assert new[i, heads].max() <= truth


# -- visits ---------------------------------------------------------------------------------------


def test_first_of_each() -> None:
    assert first_of_each(np.array([4, 2, 4, 9, 2, 0])).tolist() == [0, 1, 3, 5]
    assert first_of_each(np.array([], np.int64)).tolist() == []


def test_the_implant_that_survives_is_that_of_a_uniform_visit() -> None:
    runs, rng = 3000, np.random.default_rng(0)
    visits, survivor = np.zeros(runs), np.full(runs, -1)
    for number in range(6):
        chosen = visit(visits, np.arange(runs), rng)
        survivor[chosen] = number
    assert (visits == 6).all() and (survivor >= 0).all()
    assert stats.chisquare(np.bincount(survivor, minlength=6)).pvalue > 1e-3


def test_only_visited_slots_count() -> None:
    visits = np.zeros(5)
    assert visit(visits, np.array([3, 1]), np.random.default_rng(0)).all()  # the first visit is always taken
    assert visits.tolist() == [0, 1, 0, 1, 0]
