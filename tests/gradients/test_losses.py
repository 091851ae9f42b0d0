"""Any loss of rows; the closed form of the last layer; what is refused."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from reference import small_networks as nets
from reference.per_sample_gradients import flat, one_by_one
from torch import Tensor, nn

from replaykit.gradients import (
    RowLoss,
    cross_entropy,
    last_layer_gradients,
    per_sample_gradients,
    squared_error,
    weighted,
)

Batch = dict[str, Tensor]
MASK = torch.tensor([True, True, False, True, False])
LOSSES: dict[str, RowLoss] = {
    "cross-entropy": cross_entropy(),
    "label smoothing": cross_entropy(label_smoothing=0.2),
    "masked head": cross_entropy("old", mask=MASK),
    "mask of each row": cross_entropy("old", mask="mask"),
    "squared error to logits": squared_error(),
    "squared error, some rows without": squared_error("late"),
    "sum of losses": weighted((0.3, squared_error()), (0.5, cross_entropy()), (2.0, cross_entropy("old"))),
    "of one's own": lambda z, batch: (z.logsumexp(1) * batch["x"].flatten(1).sum(1)).tanh(),
}


def batch_of(n: int) -> Batch:
    return {
        **nets.rows(n, 12),
        "old": torch.arange(n) % 2,
        "mask": torch.rand(n, nets.CLASSES) < 0.5,
        "logits": torch.randn(n, nets.CLASSES - 1),
        "late": torch.randn(n, nets.CLASSES),
        "late_width": torch.arange(n) % (nets.CLASSES + 1),
    }


def made() -> tuple[nn.Module, Batch]:
    torch.manual_seed(0)
    model, batch = nets.mlp().double(), batch_of(7)
    batch["mask"][torch.arange(7), batch["old"]] = True
    return model, batch


@pytest.mark.parametrize("name", LOSSES)
def test_any_loss_of_rows(name: str) -> None:
    model, batch = made()
    single = one_by_one(model, batch, LOSSES[name])
    g, last = flat(single), flat({k: v for k, v in single.items() if k.startswith("6.")})
    for found, expected in (
        (per_sample_gradients(model, batch, LOSSES[name]), g),
        (per_sample_gradients(model, batch, LOSSES[name], route="func"), g),
        (last_layer_gradients(model, batch, LOSSES[name]), last),
    ):
        torch.testing.assert_close(found.explicit(), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.gram(), expected @ expected.T, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.mean(), expected.mean(0), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.inner(expected[:2]), expected @ expected[:2].T, rtol=1e-9, atol=1e-10)


def test_losses_by_hand() -> None:
    z = torch.tensor([[0.0, math.log(3.0)], [1.0, 1.0]])
    y = torch.tensor([0, 1])
    log = math.log
    torch.testing.assert_close(cross_entropy()(z, {"y": y}), torch.tensor([log(4.0), log(2.0)]))
    only = cross_entropy(mask=torch.tensor([True, False]))(z, {"y": torch.tensor([0, 0])})
    torch.testing.assert_close(only, torch.zeros(2))
    stored = {"logits": torch.tensor([[1.0], [3.0]])}  # of a head with one class
    torch.testing.assert_close(squared_error()(z, stored), torch.tensor([1.0, 4.0]))
    stored = {"logits": torch.tensor([[1.0, 9.0], [3.0, 4.0]]), "logits_width": torch.tensor([1, 0])}
    torch.testing.assert_close(squared_error()(z, stored), torch.tensor([1.0, 0.0]))
    both = weighted((2.0, cross_entropy()), (1.0, squared_error()))(z, {"y": y, "logits": z + 1})
    torch.testing.assert_close(both, torch.tensor([2 * log(4.0) + 1, 2 * log(2.0) + 1]))


def test_units_that_were_switched_off_are_no_targets() -> None:
    """Avalanche's heads answer -1000 for classes to come: a masked head is compared like a narrower one."""
    z = torch.tensor([[1.0, 7.0, 3.0]], requires_grad=True)
    stored = {"logits": torch.tensor([[2.0, -1000.0, 6.0]])}
    loss = squared_error()(z, stored)
    assert loss.tolist() == [5.0] and torch.autograd.grad(loss.sum(), z)[0].tolist() == [[-1.0, 0.0, -3.0]]
    stored |= {"logits_width": torch.tensor([2])}
    assert squared_error()(z, stored).tolist() == [1.0]
    assert squared_error(mask_value=None)(z, {"logits": torch.tensor([[-1000.0, 7.0, 3.0]])}).item() > 1e5
    assert squared_error()(z, {"logits": torch.full((1, 3), -1000.0)}).tolist() == [0.0]


def test_a_head_narrower_than_the_widest_one_stored() -> None:
    """Heads of tasks have their own widths; their logits lie in one column, padded with zeros."""
    z = torch.tensor([[1.0, 4.0]])
    assert squared_error()(z, {"logits": torch.tensor([[3.0, 4.0, 0.0, 0.0]])}).tolist() == [1.0]
    padded = {"logits": torch.tensor([[3.0, 4.0, 0.0, 0.0]]), "logits_width": torch.tensor([2])}
    assert squared_error()(z, padded).tolist() == [2.0]


def test_the_closed_form_by_hand() -> None:
    """p = (0.5, 0.3, 0.2), y = 0, h = (3, 4): spec values 3.08221 without and 3.14325 with bias."""
    z = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    for bias, norm in ((False, 3.08221), (True, 3.14325)):
        head = nn.Linear(2, 3, bias=bias).double()
        with torch.no_grad():
            head.weight.copy_(torch.stack([z / 3, torch.zeros(3, dtype=torch.float64)], 1))
            if bias:
                head.bias.zero_()
        batch = {"x": torch.tensor([[3.0, 4.0]], dtype=torch.float64), "y": torch.tensor([0])}
        assert float(last_layer_gradients(head, batch).norms()) == pytest.approx(norm, abs=1e-5)
        assert float(per_sample_gradients(head, batch).norms()) == pytest.approx(norm, abs=1e-5)


def test_masked_logits_have_no_residual() -> None:
    model, batch = made()
    found = last_layer_gradients(model, batch, cross_entropy("old", mask=MASK)).explicit()
    weight = found[:, : 7 * nets.CLASSES].view(7, nets.CLASSES, 7)
    assert float(weight[:, ~MASK].abs().max()) == 0 < float(weight[:, MASK].abs().max())


def test_the_last_layer_is_found_or_named() -> None:
    model, batch = made()
    last, named = last_layer_gradients(model, batch), last_layer_gradients(model, batch, layer="6")
    assert list(last.layout.shapes) == ["6.weight", "6.bias"]
    torch.testing.assert_close(last.gram(), named.gram())
    for layer, message in (("9", "no module '9'"), ("5", "a Tanh, and the closed form needs an nn.Linear")):
        with pytest.raises(ValueError, match=message):
            last_layer_gradients(model, batch, layer=layer)
    with pytest.raises(ValueError, match="Conv2d, and the closed form needs"):
        conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
        last_layer_gradients(conv, {"x": torch.zeros(2, 1, 3, 3), "y": torch.zeros(2).long()})
    with pytest.raises(ValueError, match="no module with parameters"):
        identity = nn.Sequential(nn.Flatten())
        identity.unused = nn.Linear(1, 1)
        identity.forward = lambda x: x.flatten(1)  # type: ignore[method-assign]
        last_layer_gradients(identity, batch)
    with pytest.raises(ValueError, match="must be called once"):
        last_layer_gradients(nets.Shared().double(), batch, layer="twice")
    with pytest.raises(ValueError, match="must be called once"):
        last_layer_gradients(nets.RowsOnTheSecondAxis().double(), nets.rows(4, 5, 4), layer="layer")
    with pytest.raises(ValueError, match="does not keep rows on the first axis"):
        last_layer_gradients(nets.RowsOnTheSecondAxis().double(), nets.rows(5, 5, 4), layer="layer")


def test_a_head_over_tokens_has_a_closed_form_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    loss: Callable[[Tensor, Batch], Tensor] = lambda z, _: z.sin().sum((1, 2))  # noqa: E731
    batch = {"x": torch.randn(5, 5, 4, dtype=torch.float64)}
    g = flat({k: v for k, v in one_by_one(model, batch, loss).items() if k[0] == "2"})
    found = last_layer_gradients(model, batch, loss)
    torch.testing.assert_close(found.gram(), g @ g.T)
    torch.testing.assert_close(found.explicit(), g)


@pytest.mark.parametrize("make", [per_sample_gradients, last_layer_gradients])
def test_losses_that_are_not_one_number_a_row(make: Callable[..., object]) -> None:
    model, batch = made()
    cases: list[tuple[Callable[..., object], type[Exception], str]] = [
        (lambda z, b: F.cross_entropy(z, b["y"]), ValueError, r"one value a row.*got a scalar.*reduction='none'"),
        (lambda z, b: z, ValueError, r"one value a row, shape \[\d+\], got shape \[\d+, 5\]"),
        (lambda z, b: 1.0, TypeError, "must return a tensor"),
        (lambda z, b: z.argmax(1), TypeError, "floating numbers"),
        (lambda z, b: torch.where(b["old"] == 0, z[:, 0], math.nan), ValueError, r"losses .* in rows \[1, 3, 5\]"),
    ]
    for loss, error, message in cases:
        with pytest.raises(error, match=message):
            make(model, batch, loss).norms()  # type: ignore[attr-defined]


@pytest.mark.parametrize("route", ["auto", "func", "loop"])
def test_gradients_that_are_not_finite(route: str) -> None:
    """A finite loss with an infinite slope: sqrt at 0."""
    model = nn.Linear(2, 2, bias=False).double()
    batch = {"x": torch.tensor([[1.0, 2.0], [0.0, 0.0], [2.0, 1.0]], dtype=torch.float64)}
    loss: Callable[[Tensor, Batch], Tensor] = lambda z, _: z[:, 0].abs().sqrt()  # noqa: E731
    for question, name in (
        (lambda g: g.norms(), r"norms of per-sample gradients .* rows \[1\]"),
        (lambda g: g.gram(), "inner products"),
        (lambda g: g.explicit(), r"per-sample gradients .* rows \[1\]"),
        (lambda g: g.mean(), "weighted sum"),
        (lambda g: g.project(2, 0), "sketches"),
        (lambda g: g.inner(torch.ones(2, 4)), "products .* with a direction"),
    ):
        with pytest.raises(ValueError, match=name):
            question(per_sample_gradients(model, batch, loss, route=route))


def test_zero_gradients_are_degenerate_and_have_cosine_zero() -> None:
    model, batch = made()
    silent = {**batch, "scale": torch.tensor([1.0, 0, 1, 1, 0, 1e-12, 1])}
    loss: Callable[[Tensor, Batch], Tensor] = lambda z, b: cross_entropy()(z, b) * b["scale"]  # noqa: E731
    for found in (per_sample_gradients(model, silent, loss), last_layer_gradients(model, silent, loss)):
        cosine = found.cosine(found)
        assert found.degenerate == 3
        dead = torch.tensor([False, True, False, False, True, True, False])
        assert not cosine[dead].any() and not cosine[:, dead].any()
        torch.testing.assert_close(cosine.diag()[~dead], torch.ones(4, dtype=torch.float64))
        assert not found.cosine(torch.zeros(found.p)).any()
        assert not found.cosine(torch.ones(found.p))[dead].any()
    none = per_sample_gradients(model, batch, lambda z, _: (0 * z).sum(1))
    assert none.degenerate == 7 and not none.gram().any() and not none.explicit().any()
    unrelated = per_sample_gradients(model, batch, lambda z, b: b["x"].sum(1))
    assert unrelated.degenerate == 7 and not unrelated.mean().any()


def test_models_whose_rows_depend_on_each_other_or_on_chance() -> None:
    torch.manual_seed(0)
    model, batch = nets.slim_resnet18().double(), nets.rows(3, 3, 8, 8)
    for make in (per_sample_gradients, last_layer_gradients):
        with pytest.raises(
            ValueError, match=r"BatchNorm '1' is in training mode.*mode='eval'.*model.eval\(\).*GroupNorm"
        ):
            make(model, batch, mode="keep")
    model.eval()
    kept = per_sample_gradients(model, batch, mode="keep").norms()
    torch.testing.assert_close(kept, per_sample_gradients(model.train(), batch).norms())
    with pytest.raises(ValueError, match="dropout '3' is active"):
        per_sample_gradients(nets.mlp(), nets.rows(2, 12), mode="keep")
    bare = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="keeps no running statistics"):
        per_sample_gradients(bare, {"x": torch.zeros(2, 3), "y": torch.zeros(2).long()})
    with pytest.raises(ValueError, match=r"embedding '0' has max_norm"):
        worded = nn.Sequential(nn.Embedding(4, 2, max_norm=1.0))
        per_sample_gradients(worded, {"x": torch.zeros(2, 1).long(), "y": torch.zeros(2).long()})
    with pytest.raises(ValueError, match="mode is one of"):
        per_sample_gradients(model, batch, mode="train")


def test_bad_requests() -> None:
    model, batch = made()
    found = per_sample_gradients(model, batch)
    cases: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (ValueError, "route is one of", lambda: per_sample_gradients(model, batch, route="fast")),
        (ValueError, "not trainable parameters", lambda: per_sample_gradients(model, batch, parameters=["a"])),
        (ValueError, "no trainable", lambda: per_sample_gradients(model, batch, parameters=lambda _: False)),
        (ValueError, "no column 'x'", lambda: per_sample_gradients(model, {"y": batch["y"]}).norms()),
        (ValueError, "holds uint8", lambda: per_sample_gradients(model, {"x": torch.zeros(2, 12).byte()}).norms()),
        (ValueError, "equal first dimension", lambda: per_sample_gradients(model, {**batch, "y": batch["y"][:3]})),
        (ValueError, "equal first dimension", lambda: per_sample_gradients(model, {})),
        (ValueError, r"one weight a row.*\[7\], got \[3\]", lambda: found.weighted_sum(torch.ones(3))),
        (ValueError, "a direction has 3 entries", lambda: found.inner(torch.ones(3))),
        (ValueError, "at least 1 number", lambda: found.project(0, 0)),
        (ValueError, "a sketch is one of", lambda: found.project(2, 0, "hadamard")),
        (IndexError, r"row numbers must be in \[0, 7\)", lambda: found.rows([7])),
        (ValueError, r"a mask of rows has shape \[7\]", lambda: found.rows(torch.ones(3, dtype=torch.bool))),
    ]  # fmt: skip
    for error, message, act in cases:
        with pytest.raises(error, match=message):
            act()
    assert found.degenerate == 0


def test_rows_by_number_or_mask_before_and_after_the_first_answer() -> None:
    model, batch = made()
    g = flat(one_by_one(model, batch, cross_entropy()))
    mask = torch.tensor([True, False, True, True, False, False, True])
    found = per_sample_gradients(model, batch)
    fresh = found.rows(mask).explicit()
    found.norms()
    for again in (found.rows(mask), found.rows(mask.nonzero().flatten().numpy()), found.rows([0, 2, 3, 6])):
        torch.testing.assert_close(again.explicit(), g[mask])
    torch.testing.assert_close(fresh, g[mask])
    torch.testing.assert_close(found.rows([4, 1]).rows([1]).explicit(), g[1:2])
    empty = found.rows([])
    assert len(empty) == 0 and empty.gram().shape == (0, 0) and empty.norms().shape == (0,)
    nobody = per_sample_gradients(model, {k: v[:0] for k, v in batch.items()})
    assert nobody.gram().shape == (0, 0) and nobody.inner(found).shape == (0, 7)
    assert not nobody.mean().any()


def test_products_in_double_precision_of_a_model_in_single() -> None:
    model, batch = made()
    model, batch = model.float(), {k: v.float() if v.is_floating_point() else v for k, v in batch.items()}
    for found in (per_sample_gradients(model, batch), per_sample_gradients(model, batch, route="func")):
        g = found.explicit().double()
        assert found.gram().dtype == torch.float32
        assert found.gram(torch.float64).dtype == torch.float64
        torch.testing.assert_close(found.gram(torch.float64), g @ g.T, rtol=2e-6, atol=1e-7)
    last = last_layer_gradients(model, batch)
    exact = last.gram(torch.float64)
    assert float(torch.linalg.eigvalsh(exact).min()) > -1e-14 * float(exact.diag().max())
