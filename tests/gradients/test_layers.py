"""Layers of any shape: the products from factors are those of the formed gradients."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.per_sample_gradients import flat, one_by_one
from torch import Tensor, nn

from replaykit.gradients import per_sample_gradients

Batch = dict[str, Tensor]
small = st.integers(1, 3)


def squares(outputs: Tensor, batch: Batch) -> Tensor:
    """A loss that needs no labels and whose curvature differs from entry to entry."""
    scale = torch.linspace(1, 2, outputs[0].numel(), dtype=outputs.dtype).view_as(outputs[0])
    return (outputs * scale).sin().flatten(1).sum(1)


def agree(model: nn.Module, x: Tensor) -> None:
    batch = {"x": x}
    g = flat(one_by_one(model, batch, squares))
    found = per_sample_gradients(model, batch, squares, route="ghost")
    weights = torch.linspace(-1, 1, len(x), dtype=torch.float64)
    direction = torch.linspace(-1, 2, g.shape[1], dtype=torch.float64)
    for answer, expected in (
        (found.explicit(), g),
        (found.norms(), g.norm(dim=1)),
        (found.gram(), g @ g.T),
        (found.inner([direction, -direction]), torch.stack([g @ direction, -g @ direction], 1)),
        (found.weighted_sum(weights), weights @ g),
        (found.rows([len(x) - 1]).inner(found), g[-1:] @ g.T),
    ):
        torch.testing.assert_close(answer, expected, rtol=1e-10, atol=1e-10)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    axes, groups = draw(st.integers(1, 3)), draw(small)
    pick = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(axes))  # noqa: E731
    kernel, stride, dilation, padding = pick(1, 3), pick(1, 3), pick(1, 2), pick(0, 2)
    mode = draw(st.sampled_from(["zeros", "replicate", "circular"]))
    if draw(st.booleans()) and all(s == 1 for s in stride):
        padding = draw(st.sampled_from(["same", "valid"]))
    size = tuple((k - 1) * d + 1 + draw(st.integers(0, 2)) for k, d in zip(kernel, dilation, strict=True))
    i, o = groups * draw(small), groups * draw(small)
    torch.manual_seed(draw(st.integers(0, 99)))
    layer = getattr(nn, f"Conv{axes}d")(
        i, o, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()), padding_mode=mode
    )
    return layer.double(), torch.randn(draw(small), i, *(max(s, 2) for s in size), dtype=torch.float64)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(convolutions())
def test_convolutions(case: tuple[nn.Module, Tensor]) -> None:
    agree(*case)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), small, small, small, st.booleans())
def test_linear_layers_with_any_number_of_token_axes(
    tokens: list[int], n: int, i: int, o: int, bias: bool
) -> None:
    torch.manual_seed(i)
    agree(nn.Linear(i, o, bias=bias).double(), torch.randn(n, *tokens[1:], i, dtype=torch.float64))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 5), small, st.sampled_from([None, 0, 2]), st.booleans())
def test_embeddings(n: int, tokens: int, width: int, padding: int | None, sparse: bool) -> None:
    torch.manual_seed(n)
    layer = nn.Embedding(4, width, padding_idx=padding, sparse=sparse).double()
    agree(layer, torch.randint(4, (n, tokens)))  # few words: they repeat within and across rows


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.sampled_from(["batch", "group", "layer", "rms"]), small, small, small)
def test_normalisation_layers(kind: str, n: int, channels: int, size: int) -> None:
    torch.manual_seed(n)
    c = 2 * channels
    layer = {
        "batch": nn.BatchNorm2d(c), "group": nn.GroupNorm(2, c), "layer": nn.LayerNorm((size, 3)),
        "rms": nn.RMSNorm(3),
    }[kind].double().eval()  # fmt: skip
    for value in layer.parameters():
        nn.init.normal_(value)
    agree(layer, torch.randn(n, c, size, 3, dtype=torch.float64))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12))
def test_either_way_to_a_product_gives_the_same(n: int, tokens: int, i: int, o: int) -> None:
    """Few wide tokens go by factors and many narrow ones by gradients; both must be right for all."""
    torch.manual_seed(o)
    model = nn.Sequential(nn.Linear(i, o), nn.Tanh(), nn.Linear(o, 2)).double()
    agree(model, torch.randn(n, tokens**2, i, dtype=torch.float64))
