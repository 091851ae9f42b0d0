"""Replay losses against the numbers of their definitions."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor, nn
from torch.nn import functional

from replaykit import Buffer, policies
from replaykit.losses import (
    AsymmetricCrossEntropy,
    CrossEntropy,
    DERpp,
    MSELogits,
    Sum,
    TaskAware,
    WeightedCrossEntropy,
    ace_mask,
    columns_of,
)
from replaykit.store import Batch


class Draws:
    """Hands out given batches in turn and counts them."""

    def __init__(self, *batches: Batch) -> None:
        self.batches, self.count = batches, 0

    def __call__(self) -> Batch:
        self.count += 1
        return self.batches[(self.count - 1) % len(self.batches)]


def batch(n: int = 6, classes: int = 4, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(n, 5, generator=g),
        "y": torch.randint(classes, (n,), generator=g),
        "logits": torch.randn(n, classes, generator=g),
    }


def linear(classes: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(5, classes)


def gradient(loss: Tensor, model: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_cross_entropy_is_the_weighted_mean_over_all_outputs() -> None:
    model, rows = linear(), batch()
    value = CrossEntropy(0.7)(model, Draws(rows))
    assert value.shape == ()
    torch.testing.assert_close(value, 0.7 * functional.cross_entropy(model(rows["x"]), rows["y"]))


@pytest.mark.parametrize("loss", [CrossEntropy, MSELogits, WeightedCrossEntropy])
def test_a_term_with_coefficient_zero_neither_draws_nor_runs_the_model(loss: type) -> None:
    draws = Draws(batch())
    assert loss(0.0)(lambda x: pytest.fail("the model ran"), draws) == 0
    assert draws.count == 0


@pytest.mark.parametrize("make", [CrossEntropy, MSELogits, WeightedCrossEntropy, lambda w: DERpp(w, 1.0)])
@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_coefficients_are_not_negative(make, value: float) -> None:
    with pytest.raises(ValueError, match="coefficient >= 0"):
        make(value)


# -- weights ------------------------------------------------------------------------------------------


def test_weighted_cross_entropy_is_the_weighted_mean() -> None:
    model, rows = linear(), batch(3)
    rows["weight"] = torch.tensor([1.0, 0.0, 3.0])
    each = functional.cross_entropy(model(rows["x"]), rows["y"], reduction="none")
    torch.testing.assert_close(WeightedCrossEntropy(2.0)(model, Draws(rows)), 2 * (each[0] + 3 * each[2]) / 4)


def test_only_the_ratios_of_weights_matter() -> None:
    model, rows = linear(), batch()
    rows["weight"] = torch.rand(6)
    thrice = {**rows, "weight": 3 * rows["weight"]}
    loss = WeightedCrossEntropy()
    torch.testing.assert_close(loss(model, Draws(thrice)), loss(model, Draws(rows)))
    equal = {**rows, "weight": torch.full((6,), 5, dtype=torch.int64)}
    torch.testing.assert_close(loss(model, Draws(equal)), CrossEntropy()(model, Draws(rows)))


def test_a_draw_without_weight_adds_nothing() -> None:
    model, rows = linear(), batch()
    loss = WeightedCrossEntropy()(model, Draws({**rows, "weight": torch.zeros(6)}))
    assert loss == 0 and not gradient(loss, model).any()


# -- logits -------------------------------------------------------------------------------------------


def test_logits_off_by_one_cost_one_whatever_the_number_of_classes() -> None:
    for classes in (2, 10, 100):
        z = torch.randn(7, classes)
        value = MSELogits(1.0)(lambda x, z=z: z, Draws({"x": torch.zeros(7), "logits": z + 1}))
        assert value.item() == pytest.approx(1.0, rel=1e-5)


def test_logits_that_did_not_move_cost_nothing() -> None:
    model, rows = linear(), batch()
    rows["logits"] = model(rows["x"]).detach()
    assert MSELogits(0.5)(model, Draws(rows)) == 0


@pytest.mark.parametrize(("reduction", "expected"), [("declared", 9 / 12), ("valid", 9 / 3)])
def test_logits_beyond_the_stored_width_are_not_compared(reduction: str, expected: float) -> None:
    # Rows of widths 2, 1 and 0 under a model with 4 outputs; errors 1, 2, 2 on the valid entries.
    target = torch.tensor([[1.0, 2.0], [2.0, 77.0], [88.0, 99.0]])
    rows = {"x": torch.zeros(3), "logits": target, "logits_width": torch.tensor([2, 1, 0])}
    z = torch.zeros(3, 4, requires_grad=True)
    value = MSELogits(1.0, reduction)(lambda x: z, Draws(rows))
    assert value.item() == pytest.approx(expected)
    (grad,) = torch.autograd.grad(value, z)
    assert grad.ne(0).tolist() == [[True, True, False, False], [True, False, False, False], [False] * 4]


def test_the_declared_number_of_classes_replaces_that_of_the_model() -> None:
    rows = {"x": torch.zeros(3), "logits": torch.ones(3, 2)}
    value = MSELogits(1.0, classes=10)(lambda x: torch.zeros(3, 4), Draws(rows))
    assert value.item() == pytest.approx(6 / 30)


def test_units_that_were_switched_off_are_no_targets() -> None:
    rows = {"x": torch.zeros(2), "logits": torch.tensor([[1.0, -1000.0], [2.0, 3.0]])}
    z = torch.zeros(2, 2)
    assert MSELogits(1.0)(lambda x: z, Draws(rows)).item() == pytest.approx((1 + 4 + 9) / 4)
    assert MSELogits(1.0, "valid")(lambda x: z, Draws(rows)).item() == pytest.approx((1 + 4 + 9) / 3)
    assert MSELogits(1.0, mask_value=None)(lambda x: z, Draws(rows)).item() > 1000


def test_a_model_that_shrank_is_refused() -> None:
    with pytest.raises(ValueError, match="4 logits a row, the model gives 3"):
        MSELogits(1.0)(linear(3), Draws(batch()))


def test_the_distance_is_in_float32_under_autocast() -> None:
    model, rows = linear(), batch()
    rows["logits"] = model(rows["x"]).detach() + 1e-3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = MSELogits(1.0)(model, Draws(rows))
        z = model(rows["x"])
    assert z.dtype == torch.bfloat16 and value.dtype == torch.float32
    torch.testing.assert_close(value, (z.float() - rows["logits"]).square().mean())


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="'declared' or 'valid', got 'sum'"):
        MSELogits(1.0, "sum")


# -- DER++ --------------------------------------------------------------------------------------------


def test_derpp_takes_logits_of_the_first_draw_and_labels_of_the_second() -> None:
    model, first, second = linear(), batch(seed=1), batch(seed=2)
    draws = Draws(first, second)
    value = DERpp(0.3, 0.5)(model, draws)
    logits = 0.3 * (model(first["x"]) - first["logits"]).square().mean()
    torch.testing.assert_close(value, logits + 0.5 * functional.cross_entropy(model(second["x"]), second["y"]))
    assert draws.count == 2


def test_derpp_without_beta_is_der_and_without_alpha_is_cross_entropy() -> None:
    model, rows = linear(), batch()
    for special, plain in ((DERpp(0.3, 0), MSELogits(0.3)), (DERpp(0, 0.5), CrossEntropy(0.5))):
        draws = Draws(rows)
        special_gradient = gradient(special(model, draws), model)
        assert draws.count == 1
        assert torch.equal(special_gradient, gradient(plain(model, Draws(rows)), model))


def test_fused_replay_is_the_same_loss_in_one_pass() -> None:
    model, first, second = linear(), batch(4, seed=1), batch(7, seed=2)
    passes: list[int] = []
    model.register_forward_hook(lambda module, args, z: passes.append(len(z)))
    apart = DERpp(0.3, 0.5)(model, Draws(first, second))
    fused = DERpp(0.3, 0.5, fuse_replay=True)(model, Draws(first, second))
    assert passes == [4, 7, 11]
    torch.testing.assert_close(fused, apart)


def test_fused_replay_merges_the_batches_of_batchnorm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 4))
    first, second = batch(seed=1), batch(seed=2)
    apart = DERpp(0.3, 0.5)(model, Draws(first, second))
    fused = DERpp(0.3, 0.5, fuse_replay=True)(model, Draws(first, second))
    assert abs(apart.item() - fused.item()) > 1e-4


def test_the_two_draws_are_independent() -> None:
    # Two rows, memory batches of one: the same row twice with probability 1/2.
    memory = Buffer(2, policies.Reservoir(), seed=5)
    memory.add({"x": torch.tensor([[0.0], [1.0]]), "y": torch.tensor([0, 1]), "logits": torch.zeros(2, 2)})
    drawn: list[float] = []

    def draw() -> Batch:
        rows = memory.sample(1)
        drawn.append(rows["x"].item())
        return rows

    loss, runs = DERpp(1.0, 1.0), 2000
    for _ in range(runs):
        loss(lambda x: torch.zeros(len(x), 2), draw)
    pairs = np.asarray(drawn).reshape(runs, 2)
    counts = np.array([(pairs == [a, b]).all(axis=1).sum() for a in (0, 1) for b in (0, 1)])
    assert ((counts - runs / 4) ** 2 / (runs / 4)).sum() < chi2.ppf(0.999, 3)


# -- composition --------------------------------------------------------------------------------------


def test_a_sum_adds_losses_with_draws_of_their_own() -> None:
    model, rows = linear(), batch()
    draws = Draws(rows)
    total = Sum(CrossEntropy(0.5), MSELogits(0.3))
    torch.testing.assert_close(total(model, draws), DERpp(0.3, 0.5)(model, Draws(rows)))
    assert draws.count == 2 and columns_of(total) == ("x", "y", "logits")
    with pytest.raises(ValueError, match="at least one"):
        Sum()


def test_a_sum_with_a_part_that_says_nothing_reads_everything() -> None:
    assert columns_of(Sum(CrossEntropy(), lambda model, draw: torch.zeros(()))) is None
    assert columns_of(lambda model, draw: torch.zeros(())) is None
    assert columns_of(WeightedCrossEntropy(column="gamma")) == ("x", "y", "gamma")


@pytest.mark.parametrize("fused", [False, True])
def test_a_task_aware_model_gets_the_task_labels(fused: bool) -> None:
    rows = {**batch(3), "t": torch.tensor([2, 0, 1])}
    asked: list[Tensor] = []
    model = linear()

    def forward(x: Tensor, t: Tensor) -> Tensor:
        asked.append(t)
        return model(x)

    DERpp(1.0, 1.0, fuse_replay=fused)(TaskAware(forward), Draws(rows))
    assert torch.cat(asked).tolist() == [2, 0, 1, 2, 0, 1]


# -- ER-ACE -------------------------------------------------------------------------------------------


def ace(z: list[float], present: list[int], highest: int | None = None) -> float:
    logits, y = torch.tensor([z], dtype=torch.float32), torch.tensor([2])
    mask = ace_mask(torch.tensor(present), len(z), highest)
    return functional.cross_entropy(logits.masked_fill(~mask, -math.inf), y).item()


def test_hand_worked_numbers_of_er_ace() -> None:
    assert functional.cross_entropy(torch.tensor([[3.0, 0, 1, 0]]), torch.tensor([2])).item() == (
        pytest.approx(2.2110, abs=5e-5)
    )
    assert ace([3, 0, 1, 0], [2, 3]) == pytest.approx(0.3133, abs=5e-5)
    six = [3.0, 0, 1, 0, 0, 0]
    assert ace(six, [2]) == 0
    assert ace(six, [2], highest=2) == pytest.approx(0.7437, abs=5e-5)
    assert ace(six, [2], highest=5) == pytest.approx(0.3133, abs=5e-5)


def test_the_stream_loss_follows_the_highest_label_seen() -> None:
    six, two = torch.tensor([[3.0, 0, 1, 0, 0, 0]]), torch.tensor([2])
    assert AsymmetricCrossEntropy("strict")(six, two) == 0
    official = AsymmetricCrossEntropy("official")
    assert official(six, two).item() == pytest.approx(0.7437, abs=5e-5)
    official(six, torch.tensor([5]))
    assert official(six, two).item() == pytest.approx(0.3133, abs=5e-5)


@pytest.mark.parametrize("mode", ["strict", "official"])
def test_outputs_that_do_not_compete_get_no_gradient_at_all(mode: str) -> None:
    loss = AsymmetricCrossEntropy(mode)
    loss(torch.randn(4, 8), torch.tensor([0, 5, 1, 1]))
    z = torch.randn(3, 8, requires_grad=True)
    y = torch.tensor([2, 3, 2])
    (grad,) = torch.autograd.grad(loss(z, y), z)
    outside = [0, 1, 4] if mode == "official" else [0, 1, 4, 5, 6, 7]
    assert (grad[:, outside] == 0).all()
    inside = [c for c in range(8) if c not in outside]
    assert (grad[:, inside] != 0).all()
    kept = {old: new for new, old in enumerate(inside)}
    reference = functional.cross_entropy(z[:, inside], torch.tensor([kept[int(c)] for c in y]))
    torch.testing.assert_close(loss(z, y), reference)


def test_replay_is_over_seen_classes_or_over_all() -> None:
    z, y = torch.randn(2, 5), torch.tensor([0, 3])
    strict, official = AsymmetricCrossEntropy("strict"), AsymmetricCrossEntropy("official")
    for loss in (strict, official):
        loss(z, torch.tensor([0, 1]))
    torch.testing.assert_close(official.replayed(z, y), functional.cross_entropy(z, y))
    # 3 is in the memory though this loss has not seen it in the stream: it competes, and 2 and 4 do not.
    only = functional.cross_entropy(z[:, [0, 1, 3]], torch.tensor([0, 2]))
    torch.testing.assert_close(strict.replayed(z, y), only)
    assert strict.seen.tolist() == [True, True, False, False, False]


def test_seen_classes_grow_with_the_outputs_and_are_saved() -> None:
    loss = AsymmetricCrossEntropy("official")
    loss(torch.zeros(1, 2), torch.tensor([1]))
    loss(torch.zeros(1, 4), torch.tensor([3]))
    assert loss.seen.tolist() == [False, True, False, True]
    copy = AsymmetricCrossEntropy("official")
    copy.load_state_dict(loss.state_dict())
    z, y = torch.randn(1, 4), torch.tensor([0])
    assert copy(z, y) == loss(z, y)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'strict' or 'official', got 'paper'"):
        AsymmetricCrossEntropy("paper")
