"""Laws of random programs: exact ones, by walking through every draw, and tests against them.

A reference loop draws from a `Chance`. Given `Dice` it is a simulation; given to `exact_law` it is run once for
every sequence of draws, and its outcomes come back with their probabilities.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Protocol

import numpy as np
from scipy import stats


class Chance(Protocol):
    def weighted(self, weights: Sequence[float]) -> int:
        """A position, with probability proportional to its weight."""
        ...


class Dice:
    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def weighted(self, weights: Sequence[float]) -> int:
        w = np.asarray(weights, np.float64)
        return int(self.rng.choice(len(w), p=w / w.sum()))


def flip(chance: Chance, p: float) -> bool:
    """True with probability p."""
    return chance.weighted([p, 1 - p]) == 0


def pick(chance: Chance, n: int) -> int:
    """One of n positions."""
    return chance.weighted([1.0] * n)


class _Path:
    def __init__(self, script: list[int]) -> None:
        self.script, self.step, self.probability = script, 0, 1.0
        self.options: list[list[int]] = []

    def weighted(self, weights: Sequence[float]) -> int:
        possible = [i for i, w in enumerate(weights) if w > 0]
        if self.step == len(self.script):
            self.script.append(0)
        chosen = possible[self.script[self.step]]
        self.options.append(possible)
        self.step += 1
        self.probability *= weights[chosen] / sum(weights)
        return chosen


def exact_law(run: Callable[[Chance], Hashable]) -> dict[Hashable, float]:
    """Every outcome of a random program with its probability."""
    law: Counter[Hashable] = Counter()
    script: list[int] = []
    while True:
        path = _Path(script)
        outcome = run(path)
        law[outcome] += path.probability
        script = path.script
        while script and script[-1] + 1 == len(path.options[len(script) - 1]):
            script.pop()
        if not script:
            assert abs(sum(law.values()) - 1) < 1e-9
            return dict(law)
        script[-1] += 1


def p_value(observed: Mapping[Hashable, int], law: Mapping[Hashable, float]) -> float:
    """Of a chi-square test of outcomes against their law; outcomes expected fewer than 5 times are pooled."""
    if not {outcome for outcome, n in observed.items() if n} <= {outcome for outcome, p in law.items() if p > 0}:
        return 0.0
    runs = sum(observed.values())
    pairs = sorted((p * runs, observed.get(outcome, 0)) for outcome, p in law.items())
    expected, found = [0.0], [0]
    for e, o in pairs:
        if expected[-1] >= 5:
            expected.append(0.0)
            found.append(0)
        expected[-1] += e
        found[-1] += o
    if len(expected) == 1:
        return 1.0
    if expected[-1] < 5:
        expected[-2] += expected.pop()
        found[-2] += found.pop()
    scale = runs / sum(expected)
    return float(stats.chisquare(found, [e * scale for e in expected]).pvalue) if len(found) > 1 else 1.0


def uniform_subset_p_value(kept: Sequence[int], runs: int, size: int) -> float:
    """Of the test that `size` of the n items are a uniform subset, from how often each was kept in `runs`."""
    n = len(kept)
    deviation = np.asarray(kept, np.float64) - runs * size / n
    statistic = (deviation**2).sum() / (runs * size * (n - size) / (n * (n - 1)))
    return float(stats.chi2.sf(statistic, n - 1))


def mean_p_value(values: Sequence[float], mean: float) -> float:
    """Of the test that independent values have this mean (large samples)."""
    v = np.asarray(values, np.float64)
    return float(2 * stats.norm.sf(abs(v.mean() - mean) / (v.std(ddof=1) / np.sqrt(len(v)))))
