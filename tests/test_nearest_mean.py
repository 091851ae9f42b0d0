"""The nearest-mean classifier against brute force, and the features it is given."""

import pytest
import torch
from torch import nn

from replaykit.embedding import Embedding, last_layer
from replaykit.nearest_mean import NearestMean
from replaykit.probe import Probe

CLASSES, DIM = 5, 3


def data(n: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, DIM, dtype=torch.float64, generator=g), torch.randint(CLASSES - 2, (n,), generator=g)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(DIM, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 4)
    ).double()


def literal(z: torch.Tensor, y: torch.Tensor, query: torch.Tensor, normalise: bool) -> torch.Tensor:
    """iCaRL's algorithm 1, row by row: squared distances to the mean of every class that has rows."""
    unit = (lambda v: v / v.norm()) if normalise else (lambda v: v)
    distances = torch.full((len(query), CLASSES), float("inf"), dtype=z.dtype)
    for label in range(CLASSES):
        members = [unit(row) for row, held in zip(z, y, strict=True) if held == label]
        if members:
            mean = unit(torch.stack(members).mean(0))
            for i, row in enumerate(query):
                distances[i, label] = (unit(row) - mean).square().sum()
    return distances


@pytest.mark.parametrize("chunk", [512, 7, 1])
@pytest.mark.parametrize("normalise", [True, False])
def test_it_is_brute_force(normalise: bool, chunk: int) -> None:
    (x, y), (query, _) = data(), data(9, 1)
    made = NearestMean(lambda x: x * 2 + 1, normalise).fit(x, y, CLASSES, chunk)
    expected = literal(x * 2 + 1, y, query * 2 + 1, normalise)
    torch.testing.assert_close(made(query), -expected, atol=1e-12, rtol=1e-9)
    assert torch.equal(made(query).argmax(1), expected.argmin(1))


def test_classes_without_rows_are_never_chosen() -> None:
    x, y = data()
    logits = NearestMean(nn.Identity()).fit(x, y, CLASSES)(x)
    assert logits.shape == (40, CLASSES) and bool((logits[:, 3:] == -torch.inf).all())
    assert bool(logits[:, :3].isfinite().all())
    assert NearestMean(nn.Identity()).fit(x, y)(x).shape == (40, 3)  # by default up to the largest label


def test_lengths_do_not_matter_when_normalised() -> None:
    x, y = data()
    scaled = x * torch.linspace(0.5, 9, len(x), dtype=x.dtype)[:, None]
    one, other = (NearestMean(nn.Identity()).fit(rows, y)(x) for rows in (x, scaled))
    torch.testing.assert_close(one, other)
    plain = [NearestMean(nn.Identity(), normalise=False).fit(rows, y)(x) for rows in (x, scaled)]
    assert not torch.allclose(*plain)


def test_means_are_those_of_the_evaluation_mode_and_modes_are_put_back() -> None:
    model = network()
    x, y = data()
    model.train()
    model[1].eval()
    before = [module.training for module in model.modules()]
    statistics, state = model[1].running_mean.clone(), torch.get_rng_state()
    made = NearestMean(Embedding(model)).fit(x, y)
    assert [module.training for module in model.modules()] == before
    assert torch.equal(model[1].running_mean, statistics) and torch.equal(torch.get_rng_state(), state)
    assert made.training and made.eval() and not model.training
    expected = literal(model[:4](x), y, model[:4](x), True)
    torch.testing.assert_close(made(x), -expected[:, :3], atol=1e-12, rtol=1e-9)
    assert not list(made.buffers(recurse=False)) and all(p.requires_grad for p in made.parameters())


def test_what_cannot_be_classified() -> None:
    with pytest.raises(ValueError, match="means of no rows"):
        NearestMean(nn.Identity()).fit(torch.zeros(0, DIM), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="no means yet; call fit"):
        NearestMean(nn.Identity())(torch.zeros(2, DIM))


# -- features ---------------------------------------------------------------------------------------


def test_the_embedding_is_what_the_last_layer_sees() -> None:
    model = network().eval()
    x, y = data()
    embedding = Embedding(model)
    assert torch.equal(embedding(x), model[:4](x))
    torch.testing.assert_close(embedding(x).detach(), Probe(model).features({"x": x, "y": y}))
    assert last_layer(model, x) is model[4]
    loss = embedding(x).sum()
    loss.backward()
    assert model[0].weight.grad is not None and model[4].weight.grad is None


def test_the_embedding_follows_a_head_that_is_replaced() -> None:
    model = network().eval()
    x, _ = data()
    embedding = Embedding(model)
    embedding(x)
    model[4] = nn.Sequential(nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 4)).double()
    assert torch.equal(embedding(x), model[4][:2](model[:4](x)))
    assert [name for name, _ in embedding.named_parameters()] == [
        f"model.{n}" for n, _ in model.named_parameters()
    ]


def test_finding_the_last_layer_leaves_no_trace() -> None:
    model = network().train()
    count, state = int(model[1].num_batches_tracked), torch.get_rng_state()
    assert last_layer(model, data()[0]) is model[4]
    assert int(model[1].num_batches_tracked) == count and torch.equal(torch.get_rng_state(), state)
    assert model.training and model[3].training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_many_rows_in_half_precision_are_those_of_single_precision(dtype: torch.dtype) -> None:
    x = (torch.randn(6000, DIM, generator=torch.Generator().manual_seed(0)) + 2).to(dtype)
    y = torch.zeros(6000, dtype=torch.int64)
    half, single = (NearestMean(nn.Identity(), normalise=False).fit(rows, y) for rows in (x, x.float()))
    torch.testing.assert_close(half.means, single.means)
    torch.testing.assert_close(half(x[:9]), single(x[:9].float()))
