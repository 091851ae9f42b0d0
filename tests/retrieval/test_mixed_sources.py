"""Fixed shares of the memory batch for each source, and how shares become numbers of rows."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference.laws import RARE
from reference.retrievals import largest_remainders as literal
from reference.retrievals import shared_out, tallied
from scipy import stats

from replaykit import Buffer
from replaykit.policies import Reservoir
from replaykit.retrieval import MixedSources
from replaykit.shares import largest_remainders, systematic


def memory(stored: dict[int, int], retrieval: MixedSources | None = None, column: str = "t") -> Buffer:
    sources = torch.tensor([source for source, n in stored.items() for _ in range(n)])
    shuffled = torch.randperm(len(sources), generator=torch.Generator().manual_seed(0))
    buffer = Buffer(len(sources), Reservoir(), retrieval or MixedSources(), seed=0)
    buffer.add({"id": torch.arange(len(sources)), column: sources[shuffled]})
    return buffer


def numbers(buffer: Buffer, n: int) -> dict[int, int]:
    slots = buffer.draw(n)
    assert len(set(slots.tolist())) == len(slots)
    return tallied(buffer["t"].numpy()[slots])


# -- numbers of rows ----------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(weights=st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(any), n=st.integers(0, 200))
@example(weights=[7, 12, 12, 1, 12], n=200)  # equal remainders of unequal shares
def test_largest_remainders_in_exact_arithmetic(weights: list[int], n: int) -> None:
    rows = largest_remainders(np.array(weights), n)
    assert rows.tolist() == literal(weights, n) and rows.sum() == n
    assert (abs(rows - n * np.array(weights) / sum(weights)) < 1).all()
    # The same ratios in other numbers, among them some whose share of n a float cannot hold.
    assert largest_remainders(np.array(weights) * 0.375, n).tolist() == rows.tolist()


def test_shares_that_are_whole_are_exact_whatever_their_rounding() -> None:
    for parts in range(1, 60):
        assert largest_remainders(np.full(parts, 1 / parts), 7 * parts).tolist() == [7] * parts


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(any),
    n=st.integers(0, 200),
    u=st.floats(0, 1, exclude_max=True),
)
def test_systematic_numbers_are_within_one_of_the_share(weights: list[int], n: int, u: float) -> None:
    shares = np.array(weights) / sum(weights)
    rows = systematic(shares, n, u)
    assert rows.sum() == n and (rows >= 0).all()
    assert (abs(rows - n * shares) < 1 + 1e-9).all()


@pytest.mark.parametrize("n", [1, 3, 10])
def test_systematic_numbers_have_the_right_mean(n: int) -> None:
    """Over a fine grid of u the mean is the integral."""
    shares = np.array([0.05, 0.25, 0.0, 0.7])
    mean = np.mean([systematic(shares, n, (i + 0.5) / 1000) for i in range(1000)], axis=0)
    assert mean.tolist() == pytest.approx((n * shares).tolist(), abs=1e-3)


# -- the law ------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12)), min_size=1, max_size=6),
    n=st.integers(1, 40),
)
def test_batches_are_shared_out_like_the_literal_loop(pairs: list[tuple[int, int]], n: int) -> None:
    """Sources with and without ratio, too few rows, none at all."""
    ratios, stored = [r for r, _ in pairs], [k for _, k in pairs]
    if not any(r and k for r, k in pairs):
        return
    # Sources that are not stored do not count: the loop gets those that are.
    there = [i for i, k in enumerate(stored) if k]
    retrieval = MixedSources({i: float(r) for i, r in enumerate(ratios)})
    found = numbers(memory(dict(enumerate(stored)), retrieval), n)
    wanted = shared_out([ratios[i] for i in there], [stored[i] for i in there], n)
    assert found == {i: k for i, k in zip(there, wanted, strict=True) if k}
    assert sum(found.values()) == min(n, sum(k for r, k in pairs if r))


def test_shares_by_hand() -> None:
    buffer = memory({0: 40, 1: 40, 2: 40, 7: 40})
    assert numbers(buffer, 8) == {0: 2, 1: 2, 2: 2, 7: 2}  # by default equal shares of all that is stored
    buffer.retrieval = MixedSources({0: 0.9, 1: 0.05, 2: 0.05})
    assert numbers(buffer, 10) == {0: 9, 1: 1}  # 9, 0.5, 0.5: the lower source
    assert numbers(buffer, 40) == {0: 36, 1: 2, 2: 2}
    buffer.retrieval = MixedSources({0: 3, 7: 1, 2: 0})
    assert numbers(buffer, 8) == {0: 6, 7: 2}


def test_a_source_that_runs_out_leaves_its_share_to_the_others() -> None:
    buffer = memory({0: 2, 1: 50, 2: 50}, MixedSources({0: 2, 1: 1, 2: 1, 5: 4}))
    assert numbers(buffer, 8) == {0: 2, 1: 3, 2: 3}  # source 5 has no rows, source 0 two of four
    assert numbers(buffer, 4) == {0: 2, 1: 1, 2: 1}
    assert sum(numbers(buffer, 500).values()) == 102


def test_rows_of_a_source_are_uniform() -> None:
    buffer = memory({0: 6, 1: 6}, MixedSources({0: 2, 1: 1}))
    hits = np.bincount([row for _ in range(1200) for row in buffer.draw(3)], minlength=12)
    t = buffer["t"].numpy()
    for source, k in ((0, 2), (1, 1)):
        share = 1200 * k / 6
        statistic = ((hits[t == source] - share) ** 2).sum() / (share * (1 - k / 6) * 6 / 5)
        assert stats.chi2.sf(statistic, 5) > RARE


def test_small_shares_are_not_lost_with_random_rounding() -> None:
    buffer = memory({0: 50, 1: 50}, MixedSources({0: 0.95, 1: 0.05}, rounding="random"))
    found = [numbers(buffer, 4).get(1, 0) for _ in range(1500)]
    assert set(found) == {0, 1} and stats.binomtest(sum(found), 1500, 0.2).pvalue > RARE
    buffer.retrieval = MixedSources({0: 0.95, 1: 0.05})
    assert {numbers(buffer, 4).get(1, 0) for _ in range(20)} == {0}


def test_only_filled_slots_and_another_column() -> None:
    buffer = memory({0: 3, 4: 3}, MixedSources({4: 1.0}, column="source"), "source")
    gone = np.flatnonzero(buffer["source"].numpy() == 4)[:1]
    buffer.store.release(gone)
    for _ in range(20):
        assert not set(gone.tolist()) & set(buffer.draw(2).tolist())
    assert (buffer.sample(10)["source"] == 4).all() and len(buffer.draw(10)) == 2


# -- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratios", [{}, {0: 0.0}, {0: -1.0, 1: 2.0}, {0: math.nan}, {0: math.inf, 1: 1.0}])
def test_ratios_that_are_none(ratios: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="ratios are numbers >= 0 by source, at least one above 0, got"):
        MixedSources(ratios)


def test_roundings_that_are_none() -> None:
    with pytest.raises(ValueError, match="rounding is 'largest' or 'random', got 'up'"):
        MixedSources(rounding="up")  # type: ignore[arg-type]


def test_sources_that_are_not_stored() -> None:
    buffer = memory({0: 3, 1: 2}, MixedSources({5: 1.0, 6: 1.0}))
    with pytest.raises(
        ValueError, match=r"none of the sources \[5, 6\] is in the memory, whose column 't' holds \[0"
    ):
        buffer.draw(2)


def test_a_memory_that_does_not_know_where_rows_come_from() -> None:
    buffer = Buffer(3, Reservoir(), MixedSources())
    buffer.add({"x": torch.zeros(3)})
    with pytest.raises(KeyError, match=r"MixedSources: no column 't'; the memory holds \['x'\]; add batches that"):
        buffer.draw(2)
