"""Label noise: rates exact, wrong labels wrong, true labels untouched."""

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit.benchmarks import CIFAR10_FLIPS, MNIST_FLIPS, noisy_labels

seeds = st.integers(0, 2**32 - 1)


@given(
    st.lists(st.integers(0, 40), min_size=2, max_size=6).filter(lambda counts: counts[-1] > 0),
    st.floats(0, 1),
    st.sampled_from(["symmetric", "asymmetric"]),
    seeds,
)
def test_rate_is_exact_in_every_class(
    counts: list[int], rate: float, kind: Literal["symmetric", "asymmetric"], seed: int
) -> None:
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    true = y.copy()
    noisy = noisy_labels(y, rate, kind, seed)
    assert np.array_equal(y, true)
    assert noisy.min() >= 0
    assert noisy.max() < len(counts)
    for label, n in enumerate(counts):
        wrong = int((noisy[y == label] != label).sum())
        assert wrong == round(rate * n)
    assert np.array_equal(noisy, noisy_labels(y, rate, kind, seed))


def test_symmetric_noise_is_uniform_over_the_other_classes() -> None:
    y = np.repeat(np.arange(5), 4000)
    noisy = noisy_labels(y, 0.5, seed=3)
    for label in range(5):
        counts = np.bincount(noisy[y == label], minlength=5)
        assert counts[label] == 2000
        others = np.delete(counts, label)
        assert ((others - 500) ** 2 / 500).sum() < 16.3  # chi-square, 3 degrees of freedom, 0.1 %


def test_asymmetric_noise_follows_the_flips() -> None:
    y = np.repeat(np.arange(10), 100)
    noisy = noisy_labels(y, 0.4, "asymmetric", flips=CIFAR10_FLIPS)
    for label in range(10):
        counts = np.bincount(noisy[y == label], minlength=10)
        assert counts[label] == (60 if label in CIFAR10_FLIPS else 100)
        if label in CIFAR10_FLIPS:
            assert counts[CIFAR10_FLIPS[label]] == 40
    circle = noisy_labels([0, 1, 2], 1.0, "asymmetric")
    assert circle.tolist() == [1, 2, 0]


def test_the_published_flips_are_classes() -> None:
    for flips in (CIFAR10_FLIPS, MNIST_FLIPS):
        assert all(label != other and {label, other} <= set(range(10)) for label, other in flips.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 40}, "fraction in .*got 40"),
        ({"rate": -0.1}, "fraction in"),
        ({"rate": 0.1, "kind": "pair"}, "got 'pair'"),
        ({"rate": 0.1, "flips": {0: 1}}, "kind='asymmetric'"),
        ({"rate": 0.1, "kind": "asymmetric", "flips": {0: 0}}, "flip 0 -> 0"),
        ({"rate": 0.1, "kind": "asymmetric", "flips": {0: 5}}, "flip 0 -> 5"),
    ],
)
def test_noise_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noisy_labels([0, 1, 2], **arguments)


def test_one_class_has_no_wrong_label() -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        noisy_labels([0, 0], 0.5)
    assert noisy_labels([0, 0], 0.0).tolist() == [0, 0]
