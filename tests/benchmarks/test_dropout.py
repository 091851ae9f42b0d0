"""Dropout from single bits: PyTorch's law, its gradient, and the original in every other case."""

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

from replaykit.benchmarks.dropout import Dropout


def test_units_are_dropped_independently_with_equal_chances() -> None:
    torch.manual_seed(0)
    kept = Dropout(0.5)(torch.ones(4000, 96)) == 2
    counts = kept.sum(0).double()  # every place of a word, and of the bytes that cross rows
    chi2 = float(((counts - 2000) ** 2 / 1000).sum())
    assert stats.chi2.sf(chi2, 96) > 1e-3
    pairs = kept[:, :-1].int() * 2 + kept[:, 1:].int()
    assert stats.chisquare(torch.bincount(pairs.flatten(), minlength=4).numpy()).pvalue > 1e-3
    far = kept[:, :32].int() * 2 + kept[:, 64:].int()
    assert stats.chisquare(torch.bincount(far.flatten(), minlength=4).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("n", [0, 1, 7, 8, 63, 64, 65, 200])
def test_any_number_of_units(n: int) -> None:
    x = torch.randn(n, requires_grad=True)
    z = Dropout(0.5)(x)
    factors = torch.where(z == 0, 0.0, 2.0)
    assert torch.equal(z, x * factors)
    z.sum().backward()
    assert torch.equal(x.grad, factors)


def test_strides_are_kept() -> None:
    x = torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last)
    z = Dropout(0.5)(x)
    assert z.is_contiguous(memory_format=torch.channels_last)
    assert set((z / x).flatten().tolist()) == {0.0, 2.0}
    sparse = torch.randn(6, 8)[:, ::2]
    assert set((Dropout(0.5)(sparse) / sparse).flatten().tolist()) == {0.0, 2.0}


def test_the_generator_decides() -> None:
    x, drop = torch.ones(500), Dropout(0.5)
    torch.manual_seed(3)
    first, second = drop(x), drop(x)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(drop(x), first) and torch.equal(drop(x), second)
    inplace = x.clone()
    torch.manual_seed(3)
    assert Dropout(0.5, inplace=True)(inplace) is inplace and torch.equal(inplace, first)


def test_everything_else_is_the_original() -> None:
    x = torch.randn(300)
    for p, given in ((0.3, x), (0.0, x), (1.0, x), (0.5, x.double())):
        torch.manual_seed(1)
        ours = Dropout(p)(given)
        torch.manual_seed(1)
        assert torch.equal(ours, functional.dropout(given, p))
    assert Dropout(0.5).eval()(x) is x
    assert isinstance(Dropout(0.5), nn.Dropout)
