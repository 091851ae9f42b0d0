"""Every route, and every question, against one backward pass a row."""

from collections.abc import Callable

import pytest
import torch
from reference import small_networks as nets
from reference.per_sample_gradients import flat, one_by_one
from torch import Tensor, nn

from replaykit.gradients import cross_entropy, per_sample_gradients

Batch = dict[str, Tensor]
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batch]]] = {
    "mlp": (nets.mlp, lambda: nets.rows(6, 12)),
    "convnet": (nets.convnet, lambda: nets.rows(6, 3, 8, 8)),
    "slim resnet18": (nets.slim_resnet18, lambda: nets.rows(4, 3, 16, 16)),
    "transformer": (nets.Transformer, lambda: nets.tokens(5)),
    "transformer, rows second": (lambda: nets.Transformer(False), lambda: nets.tokens(6)),
    "growing head": (lambda: nets.GrowingHead(nets.CLASSES), lambda: nets.rows(6, 12)),
    "shared weights": (nets.Shared, lambda: nets.rows(6, 12)),
    "weights behind the back": (nets.WeightsBehindTheBack, lambda: nets.rows(6, 12)),
    "rows on the second axis": (nets.RowsOnTheSecondAxis, lambda: nets.rows(5, 5, 4)),
}


def made(name: str, device: str = "cpu") -> tuple[nn.Module, Batch, Tensor]:
    """A model in training mode, a batch, and the gradients [n, p] of its rows."""
    torch.manual_seed(0)
    build, data = MODELS[name]
    model, batch = build().double().to(device), {k: v.to(device) for k, v in data().items()}
    return model, batch, flat(one_by_one(model, batch, cross_entropy()))


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    scale = max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= 1e-10 * scale


@pytest.mark.parametrize("route", ["auto", "func", "loop"])
@pytest.mark.parametrize("name", MODELS)
def test_every_question_agrees_with_the_loop(name: str, route: str, device: str) -> None:
    model, batch, g = made(name, device)
    found = per_sample_gradients(model, batch, route=route)
    directions = torch.randn(3, g.shape[1], dtype=torch.float64, device=device)
    weights = torch.randn(len(g), dtype=torch.float64, device=device)
    assert (len(found), found.p) == tuple(g.shape)
    close(found.norms(), g.norm(dim=1))
    close(found.gram(), g @ g.T)
    close(found.inner(directions), g @ directions.T)
    close(per_sample_gradients(model, batch, route=route).inner(directions[0]), g @ directions[0])
    close(found.weighted_sum(weights), weights @ g)
    close(found.mean(), g.mean(0))
    close(found.explicit(), g)
    unit = g / g.norm(dim=1, keepdim=True)
    close(found.cosine(found), unit @ unit.T)
    close(found.cosine(directions[0]), unit @ directions[0] / directions[0].norm())
    close(found.rows([3, 0, 3]).gram(), g[[3, 0, 3]] @ g[[3, 0, 3]].T)


@pytest.mark.parametrize("name", ["mlp", "convnet", "slim resnet18", "growing head"])
def test_usual_networks_need_no_gradient_formed(name: str) -> None:
    model, batch, g = made(name)
    found = per_sample_gradients(model, batch, route="ghost")
    close(found.gram(), g @ g.T)


@pytest.mark.parametrize("name", ["transformer", "weights behind the back", "rows on the second axis"])
def test_ghost_route_names_what_it_cannot_do(name: str) -> None:
    model, batch, _ = made(name)
    with pytest.raises(ValueError, match=r"route 'ghost' has no factors for .*use route='auto'"):
        per_sample_gradients(model, batch, route="ghost").norms()


def test_a_check_that_passed_for_some_shapes_is_made_anew_for_others() -> None:
    torch.manual_seed(0)
    model = nets.RowsOnTheSecondAxis().double()
    for n in (1, 3, 5, 1, 5, 4):  # 5 tokens
        batch = nets.rows(n, 5, 4)
        close(per_sample_gradients(model, batch).explicit(), flat(one_by_one(model, batch, cross_entropy())))


def test_two_sets_of_rows() -> None:
    model, batch, g = made("convnet")
    left, right = ({k: v[s] for k, v in batch.items()} for s in (slice(0, 4), slice(3, 6)))
    a, b = per_sample_gradients(model, left), per_sample_gradients(model, right, route="func")
    close(a.inner(b), g[:4] @ g[3:].T)
    close(a.cosine(b)[3, :1], torch.ones(1, dtype=torch.float64))


def test_a_model_that_cannot_be_mapped_over_is_looped_over() -> None:
    torch.manual_seed(1)
    model, batch = nets.Branching().double(), nets.rows(6, 12)
    g = flat(one_by_one(model, batch, cross_entropy()))
    with pytest.raises(RuntimeError):
        per_sample_gradients(model, batch, route="func").norms()
    assert not torch.equal((batch["x"].sum(1) > 0).long(), torch.zeros(6).long())
    for _ in range(2):
        close(per_sample_gradients(model, batch, parameters=["scale"]).explicit(), g[:, :12])


def test_parameters_are_chosen_by_name_or_by_function() -> None:
    model, batch, _ = made("slim resnet18")
    single = one_by_one(model, batch, cross_entropy())
    without_norms = {k: v for k, v in single.items() if v.shape[1] not in (3, 6, 12, 24)}
    assert 0 < len(without_norms) < len(single)
    found = per_sample_gradients(model, batch, parameters=lambda name: name in without_norms)
    close(found.norms(), flat(without_norms).norm(dim=1))
    names = list(single)[-1:]
    close(per_sample_gradients(model, batch, parameters=names).explicit(), single[names[0]])


def test_frozen_parameters_are_left_out() -> None:
    model, batch, _ = made("mlp")
    model[1].weight.requires_grad_(False)
    model[6].requires_grad_(False)
    g = flat(one_by_one(model, batch, cross_entropy()))
    close(per_sample_gradients(model, batch).explicit(), g)
    assert not model[1].weight.requires_grad and model[1].bias.requires_grad


def test_a_head_that_grew_has_more_parameters() -> None:
    torch.manual_seed(0)
    model, batch = nets.GrowingHead(3).double(), nets.rows(6, 12)
    batch["y"] %= 3
    before = per_sample_gradients(model, batch)
    held = before.norms()
    model.grow(5)
    after = per_sample_gradients(model, batch)
    close(after.explicit(), flat(one_by_one(model, batch, cross_entropy())))
    with pytest.raises(ValueError, match=r"different parameters \(classifier.weight"):
        after.inner(before)
    with pytest.raises(RuntimeError, match="the model has changed"):
        before.mean()
    assert held is before.norms()  # answers that were given stay
    with pytest.raises(ValueError, match="has the head grown"):
        after.inner(torch.zeros(before.p))


def test_direction_without_forward_mode_goes_by_two_backward_passes() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return 2 * x

        @staticmethod
        def backward(ctx, g):  # type: ignore[no-untyped-def]
            return 2 * g

    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(12, 6), nn.Linear(6, nets.CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(Doubled.apply(self.a(x)).tanh())

    torch.manual_seed(0)
    model, batch = Custom().double(), nets.rows(4, 12)
    g = flat(one_by_one(model, batch, cross_entropy()))
    direction = torch.randn(g.shape[1], dtype=torch.float64)
    close(per_sample_gradients(model, batch).inner(direction), g @ direction)


def test_many_small_kinds_of_layers() -> None:
    torch.manual_seed(0)
    sequence = nn.Sequential(
        nn.Conv1d(3, 4, 3, stride=2, dilation=2, padding=3, padding_mode="reflect"), nn.BatchNorm1d(4),
        nn.ELU(inplace=True), nn.Linear(6, 6), nn.ReLU(inplace=True), nn.RMSNorm(6), nn.PReLU(),
        nn.LayerNorm((4, 6), bias=False), nn.InstanceNorm1d(4, affine=True), nn.Flatten(),
        nn.Linear(24, nets.CLASSES),
    ).double()  # fmt: skip
    volume = nn.Sequential(
        nn.Conv3d(2, 3, (1, 2, 3), padding=(0, 1, 1), stride=(1, 2, 1)), nn.BatchNorm3d(3), nn.Flatten(),
        nn.LazyLinear(nets.CLASSES),
    ).double()  # fmt: skip
    volume(torch.zeros(2, 2, 3, 4, 5, dtype=torch.float64))
    for model, shape in ((sequence, (3, 10)), (volume, (2, 3, 4, 5))):
        batch = nets.rows(4, *shape)
        g = flat(one_by_one(model, batch, cross_entropy()))
        close(per_sample_gradients(model, batch).explicit(), g)
        close(per_sample_gradients(model, batch).gram(), g @ g.T)
