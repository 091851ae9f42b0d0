"""BADGE: the law of the seeding, gradients of the predicted label, and pools without distances."""

import numpy as np
import pytest
import torch
from reference.factored import Factored
from scipy.stats import chisquare

from replaykit.selectors import BADGE, Pool
from replaykit.selectors.badge import kmeans_plus_plus, seeding_probabilities


def test_seeding_probabilities_by_hand() -> None:
    taken = -torch.inf
    assert seeding_probabilities(torch.tensor([taken, 1.0, 9.0])).tolist() == pytest.approx([0, 0.1, 0.9])
    assert seeding_probabilities(torch.tensor([taken, 0.0, 0.0])).tolist() == pytest.approx([0, 0.5, 0.5])


def test_draws_follow_the_squared_distances(device: str) -> None:
    points = torch.tensor([[0.0], [1], [3]], dtype=torch.float64, device=device)
    rng = np.random.default_rng(0)
    second = [int(kmeans_plus_plus(points, 2, rng, first=0)[0][1]) for _ in range(1000)]
    assert 0 not in second
    assert chisquare(np.bincount(second)[1:], [100, 900]).pvalue > 1e-3
    # The third: 4 points 0, 1, 3, 7 after 0 and 7 leave squared distances 1 and 9.
    points = torch.tensor([[0.0], [1], [3], [7]], dtype=torch.float64, device=device)
    third = []
    for _ in range(1000):
        rows = kmeans_plus_plus(points, 3, rng, first=0)[0].tolist()
        if rows[1] == 3:
            third.append(rows[2])
    assert 1 < len(third) < 1000
    assert chisquare(np.bincount(third, minlength=3)[1:], np.array([0.1, 0.9]) * len(third)).pvalue > 1e-3


def test_first_is_the_largest_and_the_potential_never_grows() -> None:
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(60, 4)))
    rows, potential = kmeans_plus_plus(points, 60, np.random.default_rng(1))
    assert rows[0] == points.norm(dim=1).argmax()
    assert sorted(rows.tolist()) == list(range(60))
    assert (potential.diff() <= 1e-12).all()
    assert potential[-1] == 0
    assert float(potential[0]) == pytest.approx(float((points - points[rows[0]]).square().sum()))


def test_the_gradient_is_that_of_the_predicted_label_without_a_bias() -> None:
    rng = np.random.default_rng(0)
    logits, features = (torch.from_numpy(rng.normal(size=(40, d))) for d in (3, 5))
    p = logits.softmax(1)
    error = p - torch.nn.functional.one_hot(p.argmax(1), 3)
    dense = (error[:, :, None] * features[:, None]).flatten(1)
    expected, _ = kmeans_plus_plus(dense, 9, np.random.default_rng(7))
    pool = Pool(40, logits=logits, features=features)
    assert BADGE().needs == ("logits", "features")
    assert BADGE().select(pool, 9, np.random.default_rng(7))[0].tolist() == expected.tolist()
    assert logits.softmax(1).equal(p)  # the pool was not changed


def test_gradients_of_the_true_label_can_be_taken() -> None:
    rng = np.random.default_rng(0)
    g = Factored(torch.from_numpy(rng.normal(size=(40, 3))), torch.from_numpy(rng.normal(size=(40, 5))))
    expected, _ = kmeans_plus_plus(g.dense(), 9, np.random.default_rng(7))
    rows, weights = BADGE("gradients").select(Pool(40, gradients=g), 9, np.random.default_rng(7))
    assert rows.tolist() == expected.tolist()
    assert weights.tolist() == [1] * 9


def test_without_distances_rows_are_drawn_uniformly() -> None:
    points = torch.full((6, 3), 0.1)
    rng = np.random.default_rng(0)
    second = [kmeans_plus_plus(points, 2, rng)[0].tolist() for _ in range(1000)]
    assert {first for first, _ in second} == {0}
    assert chisquare(np.bincount([s for _, s in second], minlength=6)[1:]).pvalue > 1e-3


def test_bad_input_is_refused() -> None:
    features = torch.ones(3, 2)
    features[2, 0] = torch.nan
    with pytest.raises(ValueError, match="BADGE: features of row 2"):
        BADGE().select(Pool(3, logits=torch.ones(3, 2), features=features), 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="first row must be in"):
        kmeans_plus_plus(torch.ones(3, 2), 2, np.random.default_rng(0), first=3)
