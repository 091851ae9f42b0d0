"""Rainbow Memory: votes, the three spacings, quotas, filling and the first task."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from replaykit.selectors import (
    Pool,
    Rainbow,
    linspace_ranks,
    paper_ranks,
    release_ranks,
    uncertainty_from_votes,
    vote_uncertainty,
)

RULES = (linspace_ranks, paper_ranks, release_ranks)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_uncertainty_of_votes():
    votes = torch.zeros(3, 12, dtype=torch.int16)
    votes[0, :3] = torch.tensor([7, 3, 2])
    votes[1, 5] = 12
    votes[2] = 1
    torch.testing.assert_close(vote_uncertainty(votes), torch.tensor([5 / 12, 0, 11 / 12]).double())


@pytest.mark.parametrize(
    ("n", "k", "linspace", "paper", "release"),
    [
        (10, 4, [0, 3, 6, 9], [1, 4, 6, 9], [0, 2, 4, 6]),
        (7, 4, [0, 2, 4, 6], [0, 2, 4, 6], [0, 1, 2, 3]),
        (5, 1, [0], [4], [0]),
        (6, 6, list(range(6)), list(range(6)), list(range(6))),
    ],
)
def test_spacing_table(n, k, linspace, paper, release):
    assert [rule(n, k).tolist() for rule in RULES] == [linspace, paper, release]


@settings(deadline=None)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_ranks_increase_and_stay_inside(size):
    n, k = size
    for rule in RULES:
        ranks = rule(n, k)
        assert len(ranks) == k and (np.diff(ranks) > 0).all() and ranks[0] >= 0 and ranks[-1] < n
    assert linspace_ranks(n, k)[-1] == (n - 1 if k > 1 else 0)
    assert paper_ranks(n, k)[-1] == n - 1


def pool(counts=(40, 25, 30), seed=0, **more) -> Pool:
    y = torch.repeat_interleave(torch.arange(len(counts)) * 3, torch.tensor(counts))
    g = torch.Generator().manual_seed(seed)
    y = y[torch.randperm(len(y), generator=g)]
    u = torch.randint(12, (len(y),), generator=g) / 12
    return Pool(len(y), y, uncertainty=u, **more)


@pytest.mark.parametrize("rule", RULES)
def test_rows_of_a_class_are_spaced_over_its_uncertainty(rule):
    candidates = pool()
    u = candidates.tensor("uncertainty").numpy()
    rows, weights = Rainbow(rule).select(candidates, 30, rng())
    assert torch.equal(weights, torch.ones(30).double())
    for place, label in enumerate((0, 3, 6)):
        members = np.flatnonzero(candidates.y.numpy() == label)
        ordered = members[np.argsort(u[members], kind="stable")]
        assert rows[10 * place : 10 * (place + 1)].tolist() == ordered[rule(len(members), 10)].tolist()


def test_equal_quotas_and_a_full_memory():
    for k in (0, 1, 2, 10, 31, 74, 75, 80, 95, 200):
        candidates = pool()
        rows, _ = Rainbow().select(candidates, k, rng())
        assert len(set(rows.tolist())) == len(rows) == min(k, 95)
        counts = [int((candidates.y[rows] == label).sum()) for label in (0, 3, 6)]
        assert min(counts) >= min(k // 3, 25)
        if k == 30:
            assert counts == [10, 10, 10]


def test_leftover_slots_are_filled_uniformly():
    candidates = pool((20, 20, 3))
    kept = np.zeros(43)
    fixed = None
    for seed in range(1500):
        rows, _ = Rainbow().select(candidates, 24, rng(seed))
        spaced = sorted(rows[:19].tolist())  # 8 + 8 + 3 rows do not depend on chance
        assert fixed in (None, spaced)
        fixed = spaced
        kept[rows[19:].numpy()] += 1
    rest = np.setdiff1d(np.arange(43), fixed)
    assert kept.sum() == kept[rest].sum() == 1500 * 5
    # Rows of one draw exclude each other, which makes the counts more even: the test is on the safe side.
    assert chisquare(kept[rest]).pvalue > 1e-3


def test_ties_go_to_the_confident_then_to_the_smaller_row():
    u = torch.tensor([0.5, 0.0, 0.0, 0.0, 0.5])
    confidence = torch.tensor([0.9, 0.6, 0.8, 0.6, 0.9])
    y = torch.zeros(5, dtype=torch.int64)
    rows, _ = Rainbow().select(Pool(5, y, uncertainty=torch.stack([u, confidence], 1)), 5, rng())
    assert rows.tolist() == [2, 1, 3, 0, 4]
    rows, _ = Rainbow().select(Pool(5, y, uncertainty=u), 5, rng())
    assert rows.tolist() == [1, 2, 3, 0, 4]


def test_the_first_task_of_the_release_is_random():
    stored = torch.zeros(95, dtype=torch.bool)
    firsts = [Rainbow(compat=True).select(pool(stored=stored), 30, rng(seed))[0].tolist() for seed in (0, 0, 1)]
    assert firsts[0] == firsts[1] != firsts[2]
    counts = np.zeros(95)
    labels = pool().y.numpy()
    for seed in range(1500):
        rows = Rainbow(random_first=True).select(pool(stored=stored), 30, rng(seed))[0].numpy()
        assert np.bincount(labels[rows] // 3).tolist() == [10, 10, 10]
        counts[rows] += 1
    for label in (0, 3, 6):
        assert chisquare(counts[labels == label]).pvalue > 1e-3
    stored[4] = True
    later = Rainbow(compat=True).select(pool(stored=stored), 30, rng())[0]
    assert later.tolist() == Rainbow(release_ranks).select(pool(), 30, rng())[0].tolist()
    assert later.tolist() != Rainbow().select(pool(), 30, rng())[0].tolist()
    with pytest.raises(KeyError, match="stored"):
        Rainbow(random_first=True).select(pool(), 30, rng())


def test_names_of_classes_do_not_matter():
    candidates = pool()
    renamed = Pool(95, candidates.y // 3 + 5, uncertainty=candidates.tensor("uncertainty"))
    assert Rainbow().select(renamed, 31, rng())[0].tolist() == Rainbow().select(candidates, 31, rng())[0].tolist()


def test_devices(device):
    candidates = pool()
    there = Pool(95, candidates.y.to(device), uncertainty=candidates.tensor("uncertainty").to(device))
    rows, _ = Rainbow().select(there, 31, rng())
    assert rows.device.type == device
    assert rows.tolist() == Rainbow().select(candidates, 31, rng())[0].tolist()


# -- votes -----------------------------------------------------------------------------------------


def predict(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x.sum(1), -x.sum(1), x[:, 0]], dim=1)


def test_votes_count_the_perturbed_copies():
    x = torch.tensor([[1.0, 1.0], [-1.0, 0.1], [3.0, -2.0]])
    shifts = (0.0, 5.0, -5.0, -0.5)
    perturbations = [lambda x, s=s: x + s for s in shifts]
    u, confidence, votes = uncertainty_from_votes(predict, x, perturbations, chunk=2)
    by_row = [[int(predict(x[i : i + 1] + s).argmax()) for s in shifts] for i in range(3)]
    assert votes.tolist() == [[row.count(c) for c in range(3)] for row in by_row]
    assert votes.dtype == torch.int16
    assert u.tolist() == [1 - max(row.count(c) for c in range(3)) / 4 for row in by_row]
    winner = [max(range(3), key=row.count) for row in by_row]
    means = torch.stack([predict(x + s).double().softmax(1) for s in shifts]).mean(0)
    torch.testing.assert_close(confidence, means[torch.arange(3), winner])


def test_votes_repeat_with_their_seed_and_do_not_depend_on_chunks():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))

    def noisy() -> list:
        g = torch.Generator().manual_seed(3)
        # Uniform draws come element by element; normal ones in blocks, which a chunk would cut.
        return [lambda x: x + 4 * torch.rand(x.shape, generator=g) - 2] * 6

    before = torch.get_rng_state()
    first = uncertainty_from_votes(predict, x, noisy(), chunk=1000)
    for chunk in (1000, 16):
        for a, b in zip(first, uncertainty_from_votes(predict, x, noisy(), chunk), strict=True):
            torch.testing.assert_close(a, b)
    assert torch.equal(before, torch.get_rng_state())
    assert first[0].max() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rainbow().select(Pool(3, uncertainty=torch.zeros(3)), 2, rng()), "Rainbow.*labels"),
        (
            lambda: Rainbow().select(
                Pool(2, torch.zeros(2).long(), uncertainty=torch.tensor([0, torch.nan])), 1, rng()
            ),
            "Rainbow.*uncertainty.*NaN",
        ),
        (
            lambda: Rainbow().select(Pool(2, torch.zeros(2).long(), uncertainty=torch.ones(2, 3)), 1, rng()),
            "Rainbow",
        ),
        (lambda: Rainbow().select(pool(), -1, rng()), "Rainbow.*k"),
        (lambda: uncertainty_from_votes(predict, torch.zeros(2, 2), []), "perturbations"),
        (lambda: uncertainty_from_votes(lambda x: x * torch.nan, torch.ones(2, 2), [lambda x: x]), "NaN"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
