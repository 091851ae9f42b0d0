"""Selectors by a score: GraNd, EL2N, forgetting, uncertainty, moderate, and the ranking they share."""

from functools import partial
from math import log

import numpy as np
import pytest
import torch
from reference import coresets
from reference.factored import Factored

from replaykit.selectors import (
    EL2N,
    Entropy,
    Forgetting,
    ForgettingCounts,
    GraNd,
    LeastConfidence,
    Margin,
    Moderate,
    Pool,
    highest,
    lowest,
    middle,
)
from replaykit.selectors.forgetting import forgetting_events
from replaykit.selectors.grand import el2n, grand_last_layer
from replaykit.selectors.moderate import centre_distances, moderate, nearest_to_median
from replaykit.selectors.pool import as_vectors
from replaykit.selectors.uncertainty import entropy, least_confidence, margin

RNG = np.random.default_rng(0)
P = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)


# -- ranking --------------------------------------------------------------------------------------


def test_orders_break_ties_by_index_and_skip() -> None:
    scores = torch.tensor([1.0, 3, 2, 3, 0])
    assert highest(scores, 3).tolist() == [1, 3, 2]
    assert lowest(scores, 3).tolist() == [4, 0, 2]
    assert highest(scores, 2, skip=1).tolist() == [3, 2]
    assert highest(scores, 4, skip=3).tolist() == [3, 2, 0, 4]  # exactly 4 rows, so only 1 is skipped
    assert highest(scores, 9).tolist() == [1, 3, 2, 0, 4]


def test_the_middle_starts_from_the_centre() -> None:
    scores = torch.arange(1.0, 10)
    assert (scores[middle(scores, 3)]).tolist() == [5, 4, 6]
    for n in range(1, 9):
        for k in range(n + 1):
            start = round(n / 2 - k / 2)
            assert sorted(middle(torch.arange(float(n)), k).tolist()) == list(range(start, start + k))


# -- GraNd and EL2N -------------------------------------------------------------------------------


def test_el2n_and_grand_by_hand() -> None:
    error = float(el2n(P, torch.tensor([0])))
    assert error == pytest.approx(0.61644, abs=1e-5)
    h = torch.tensor([[3.0, 4]], dtype=torch.float64)
    e = P - torch.tensor([1.0, 0, 0])
    assert float(grand_last_layer(e, h, bias=False)) == pytest.approx(3.08221, abs=1e-5)
    assert float(grand_last_layer(e, h)) == pytest.approx(3.14325, abs=1e-5)


def test_grand_selects_by_the_norm_of_gradients_over_runs() -> None:
    runs = [
        Factored(torch.from_numpy(RNG.normal(size=(30, 3))), torch.from_numpy(RNG.normal(size=(30, 4))))
        for _ in range(2)
    ]
    first, second = (run.dense().norm(dim=1) for run in runs)
    assert torch.allclose(grand_last_layer(runs[0].r, runs[0].h), first)
    pool = Pool(30, gradients=runs[0], later=runs[1])
    assert GraNd().select(pool, 7, RNG)[0].tolist() == first.argsort(descending=True)[:7].tolist()
    both = GraNd(("gradients", "later"))
    assert both.needs == ("gradients", "later")
    assert both.select(pool, 7, RNG)[0].tolist() == (first + second).argsort(descending=True)[:7].tolist()
    assert GraNd(order=lowest).select(pool, 30, RNG)[0].tolist() == first.argsort().tolist()


def test_el2n_selects_by_the_error() -> None:
    logits = torch.from_numpy(RNG.normal(size=(30, 4)))
    y = torch.from_numpy(RNG.integers(0, 4, 30))
    expected = (logits.softmax(1) - torch.nn.functional.one_hot(y, 4)).norm(dim=1)
    pool = Pool(30, y, logits=logits)
    rows, weights = EL2N().select(pool, 5, RNG)
    assert rows.tolist() == expected.argsort(descending=True)[:5].tolist()
    assert weights.tolist() == [1] * 5
    with pytest.raises(ValueError, match="EL2N: the pool has no labels"):
        EL2N().select(Pool(30, logits=logits), 5, RNG)
    for wrong in (-1, 4):  # -1 would be the last class
        with pytest.raises(ValueError, match=rf"EL2N: .*got \[30, 4\] for labels .*{wrong}.*an output for every"):
            EL2N().select(Pool(30, y.index_fill(0, torch.tensor([7]), wrong), logits=logits), 5, RNG)


# -- forgetting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "events"), [([0, 1, 0, 1, 1, 0], 2), ([0, 0, 0], 3), ([1, 1, 1], 0), ([0, 1], 0)]
)
def test_forgetting_by_hand(history: list[int], events: int) -> None:
    assert forgetting_events(torch.tensor(history)[:, None]).tolist() == [events]


def test_counts_while_training_are_the_counts_of_the_history() -> None:
    rng = np.random.default_rng(1)
    history = rng.integers(0, 2, (9, 50)) * (rng.random(50) < 0.8)  # some are never learned
    expected = coresets.forgetting_events(history.tolist())
    assert forgetting_events(torch.from_numpy(history)).tolist() == expected
    counts = ForgettingCounts(50)
    for epoch in history:
        for batch in np.split(rng.permutation(50), [20, 33]):
            counts.update(torch.from_numpy(batch), torch.from_numpy(epoch[batch]))
    assert counts.scores().tolist() == expected
    resumed = ForgettingCounts(50)
    resumed.load_state_dict(counts.state_dict())
    assert resumed.scores().tolist() == expected
    rows, _ = Forgetting().select(Pool(50, forgetting=counts.scores()), 10, rng)
    assert rows.tolist() == sorted(range(50), key=lambda i: (-expected[i], i))[:10]


def test_counts_refuse_what_they_cannot_record() -> None:
    counts = ForgettingCounts(4)
    for rows in ([1, 1], [4, 0], [-1, 2]):
        with pytest.raises(ValueError, match="ForgettingCounts"):
            counts.update(torch.tensor(rows), torch.tensor([0, 0]))
    assert counts.scores().tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="not the counts of 4 rows"):
        counts.load_state_dict(ForgettingCounts(5).state_dict())


# -- uncertainty ----------------------------------------------------------------------------------


def test_uncertainties_by_hand() -> None:
    assert float(least_confidence(P)) == pytest.approx(0.5)
    assert float(margin(P)) == pytest.approx(0.2)
    assert float(entropy(P)) == pytest.approx(1.02965, abs=1e-5)
    sure = torch.tensor([[1.0, 0, 0]])
    assert (float(least_confidence(sure)), float(margin(sure)), float(entropy(sure))) == (0, 1, 0)
    assert float(entropy(torch.full((1, 8), 1 / 8))) == pytest.approx(log(8))
    assert float(margin(torch.ones(1, 1))) == 1


def test_with_two_classes_the_three_agree_and_take_the_most_uncertain_first() -> None:
    logits = torch.from_numpy(RNG.normal(size=(50, 2)))
    pool = Pool(50, logits=logits)
    orders = [selector.select(pool, 50, RNG)[0].tolist() for selector in (LeastConfidence(), Margin(), Entropy())]
    assert orders[0] == orders[1] == orders[2]
    assert orders[0] == (logits[:, 0] - logits[:, 1]).abs().argsort().tolist()


def test_with_more_classes_they_differ_and_masked_heads_count_as_zero() -> None:
    logits = torch.from_numpy(RNG.normal(size=(50, 5)))
    masked = torch.cat([logits, torch.full((50, 2), -torch.inf)], 1)
    orders = set()
    for selector in (LeastConfidence(), Margin(), Entropy()):
        rows = selector.select(Pool(50, logits=logits), 20, RNG)[0].tolist()
        assert rows == selector.select(Pool(50, logits=masked), 20, RNG)[0].tolist()
        orders.add(tuple(rows))
    assert len(orders) == 3


# -- moderate -------------------------------------------------------------------------------------


def test_moderate_by_hand(device: str) -> None:
    distances = torch.arange(1.0, 10, device=device)
    assert sorted(distances[moderate(distances, 3)].tolist()) == [4, 5, 6]
    skewed = torch.tensor([1.0, 1.1, 1.2, 2, 5, 2.1, 6, 9, 20], device=device)
    assert sorted(skewed[moderate(skewed, 3)].tolist()) == pytest.approx([2, 2.1, 5])
    # The median is 2.1; in value the nearest are not its neighbours in rank.
    assert skewed[nearest_to_median(skewed, 3)].tolist() == pytest.approx([2.1, 2, 1.2])


def test_moderate_measures_from_the_mean_of_each_class() -> None:
    y = torch.from_numpy(np.repeat([0, 1], [21, 9]))
    features = torch.from_numpy(RNG.normal(size=(30, 3))) + 100 * y[:, None]
    rows, _ = Moderate().select(Pool(30, y, features=features), 10, RNG)
    for c, k in ((0, 7), (1, 3)):
        members = (y == c).nonzero().flatten()
        distance = (features[members] - features[members].mean(0)).norm(dim=1)
        start = round((len(members) - k) / 2)
        window = members[distance.argsort()[start : start + k]]
        assert sorted(rows[y[rows] == c].tolist()) == sorted(window.tolist())
    other, _ = Moderate(rule=nearest_to_median).select(Pool(30, y, features=features**3), 10, RNG)
    assert other.tolist() != Moderate().select(Pool(30, y, features=features**3), 10, RNG)[0].tolist()


def test_centre_distances_need_only_inner_products() -> None:
    g = Factored(torch.from_numpy(RNG.normal(size=(20, 3))), torch.from_numpy(RNG.normal(size=(20, 4))))
    dense = g.dense()
    expected = (dense - dense.mean(0)).norm(dim=1)
    assert torch.allclose(centre_distances(g), expected)
    assert torch.allclose(centre_distances(as_vectors(dense)), expected)


@pytest.mark.parametrize(
    "select",
    [
        partial(GraNd().select, Pool(2, gradients=torch.tensor([[1.0], [torch.nan]]))),
        partial(Forgetting().select, Pool(2, forgetting=torch.tensor([1.0, torch.nan]))),
        partial(Margin().select, Pool(2, logits=torch.tensor([[1.0, 2], [torch.nan, 0]]))),
        partial(Entropy().select, Pool(2, logits=torch.tensor([[1.0, 2], [-torch.inf, -torch.inf]]))),
    ],
)
def test_nan_is_refused_by_row(select) -> None:
    with pytest.raises(ValueError, match=r"(GraNd|Forgetting|Margin|Entropy): \w+ of row 1 holds NaN"):
        select(1, RNG)
