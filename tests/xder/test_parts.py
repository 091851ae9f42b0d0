"""Heads, the simplex, BatchNorm that records nothing, strong views and settings."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from replaykit.testing import same
from replaykit.xder import (
    Heads,
    SeenOutputs,
    Settings,
    SimplexClassifier,
    published,
    simplex,
    strong_view,
    training_mode,
    untracked,
)

# -- heads --------------------------------------------------------------------------------------------


def test_heads_are_sets_of_outputs() -> None:
    heads = Heads([[4, 0], [2], (5, 1)])
    assert len(heads) == 3 and heads.outputs == 6
    stage = heads.stage(1, 7)
    where = {
        name: getattr(stage, name).nonzero()[:, 0].tolist() for name in ("past", "present", "future", "later")
    }
    assert where == {"past": [0, 4], "present": [2], "future": [1, 5], "later": [1, 2, 5]}
    assert [head.tolist() for head in stage.coming] == [[5, 1]]
    assert stage.own(torch.tensor([0, 5])).nonzero().tolist() == [[0, 0], [0, 4], [1, 1], [1, 5]]
    last = heads.stage(2, 6)
    assert last.coming == () and not last.future.any() and last.past.nonzero()[:, 0].tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        (None, TypeError, "a stream without them cannot be used"),
        ([0, 1], TypeError, "lists the labels of every task"),
        ([], ValueError, "at least one class"),
        ([[0], []], ValueError, "at least one class"),
        ([[0, -1]], ValueError, "got -1"),
        ([[0, 1], [1, 2]], ValueError, r"\[1\] are in several.*DERpp"),
        ([range(9), range(9)], ValueError, r"\[0, 1, 2, 3, 4, \.\.\.\] are in several"),
    ],
)
def test_tasks_that_make_no_sense(tasks, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Heads(tasks)


def test_too_few_outputs() -> None:
    with pytest.raises(ValueError, match="has 3 outputs, the largest label is 3"):
        Heads([[0, 1], [2, 3]]).stage(0, 3)


def test_outputs_of_unseen_classes_cannot_win() -> None:
    z = torch.tensor([[1.0, 5.0, 3.0]])
    network = nn.Identity()
    assert SeenOutputs(network, [2, 0])(z).tolist() == [[1.0, float("-inf"), 3.0]]
    assert SeenOutputs(network, [])(z).tolist() == z.tolist()


# -- simplex ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_simplex(classes: int) -> None:
    w = simplex(classes)
    assert w.shape == (classes - 1, classes) and w.dtype == torch.float64
    wanted = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64).fill_diagonal_(1.0)
    torch.testing.assert_close(w.T @ w, wanted, atol=1e-14, rtol=0)


def test_simplex_classifier() -> None:
    torch.manual_seed(0)
    net = nn.Linear(4, 5)
    model = SimplexClassifier(net, 4)
    x = torch.randn(3, 4)
    torch.testing.assert_close(model(x), net(x)[:, :3] @ simplex(4).float())
    assert {name for name, _ in model.named_parameters()} == {"net.weight", "net.bias"} == set(model.state_dict())
    with pytest.raises(ValueError, match="6 classes need 5 outputs of the network, it has 4"):
        SimplexClassifier(nn.Linear(4, 4), 6)(x)
    with pytest.raises(ValueError, match="at least 2 classes"):
        simplex(1)


# -- BatchNorm ----------------------------------------------------------------------------------------


def test_untracked_normalises_by_the_batch_and_records_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False))
    model.append(nn.BatchNorm1d(4).eval())
    before, modes, x = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()], torch.randn(6, 3)
    tracked = copy.deepcopy(model)(x)
    with untracked(model):
        torch.testing.assert_close(model(x), tracked)
    assert same(dict(model.state_dict()), dict(before)) and modes == [m.training for m in model.modules()]
    with untracked(model, when=False):
        model(x)
    assert model[1].num_batches_tracked == 1 and model[3].num_batches_tracked == 0
    assert [m.track_running_stats for m in model[1:]] == [True, False, True]


def test_modes_come_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout().eval()))
    with training_mode(model):
        assert all(m.training for m in model.modules())
    assert not model[1][0].training and model[1].training


# -- strong views -------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_strong_views_differ_by_row_and_stay_in_range(channels: int) -> None:
    torch.manual_seed(0)
    one = torch.randint(0, 256, (1, channels, 12, 10), dtype=torch.uint8)
    x = one.expand(16, -1, -1, -1).clone()
    z = strong_view(channels, 12, 10)(x)
    assert z.shape == x.shape and z.dtype == torch.float32 and -1e-5 < z.min() <= z.max() < 1 + 1e-5
    assert len({tuple(row.flatten().tolist()) for row in z}) == 16
    assert torch.equal(x, one.expand(16, -1, -1, -1))
    torch.manual_seed(1)
    first = strong_view(channels, 12, 10, finish=lambda v: v - 0.5)(x)
    torch.manual_seed(1)
    assert torch.equal(first, strong_view(channels, 12, 10)(x / 255) - 0.5)


def test_a_colour_image_is_gray_in_a_fifth_of_its_views() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 3, 4, 4).expand(600, -1, -1, -1)
    z = strong_view(3, 4, 4)(x)
    gray = ((z - z.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-3).float().mean()
    assert abs(gray - 0.2) < 4 * (0.2 * 0.8 / 600) ** 0.5


def test_only_images_of_one_or_three_channels() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        strong_view(2, 8, 8)


def test_kornia_is_imported_when_needed() -> None:
    code = "import sys, replaykit.xder; assert not any(m.split('.')[0] == 'kornia' for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- settings -----------------------------------------------------------------------------------------


def test_presets() -> None:
    tpami, mammoth = (published(name, "xder") for name in ("tpami", "mammoth"))
    assert tpami == Settings() and (tpami.alpha, tpami.beta, tpami.gamma, tpami.tau) == (0.3, 0.8, 0.85, 5.0)
    assert tpami.past_constraint and tpami.batch_norm == "every" and tpami.dp_weight == 0
    assert (tpami.augmentations, tpami.stream_rows, tpami.third_draw) == (2, 64, 64)
    assert not mammoth.past_constraint and mammoth.batch_norm == "aligned" and mammoth.dp_weight == 3000
    assert (mammoth.augmentations, mammoth.stream_rows, mammoth.eta) == (4, 0, 0.1)
    ce, rpc = (published("mammoth", variant) for variant in ("xder_ce", "xder_rpc"))
    assert (ce.alpha, ce.beta, ce.eta, ce.margin) == (0.1, 0.5, 0.005, 0.1)
    assert (rpc.alpha, rpc.beta, rpc.eta, rpc.margin, rpc.batch_norm) == (0.1, 0.5, 0.1, 0.3, "stream")
    for name in ("tpami", "mammoth"):
        assert not any(published(name, variant).future_preparation for variant in ("xder_ce", "xder_rpc"))
    assert tpami.changed(alpha=None, beta=0.0).beta == 0.0 and tpami.changed(alpha=None).alpha == 0.3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": -1.0}, "alpha is a finite number >= 0, got -1"),
        ({"margin": float("nan")}, "margin is a finite number"),
        ({"gamma": 0.0}, r"gamma is a share in \(0, 1\], got 0"),
        ({"tau": 0.0}, "tau is a temperature"),
        ({"augmentations": 0}, "augmentations is a whole number >= 1, got 0"),
        ({"third_draw": 1.5}, "third_draw is a whole number >= 0, got 1.5"),
        ({"attenuation": "other"}, "attenuation is one of 'code', 'paper'; got 'other'"),
        ({"nonpositive": "no"}, "nonpositive is one of"),
        ({"batch_norm": "all"}, "batch_norm is one of"),
        ({"dp_weight": 1.0, "future_preparation": False}, "dp_weight compares views of future preparation"),
    ],
)
def test_settings_outside_their_range(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**given)


def test_unknown_presets_and_variants() -> None:
    with pytest.raises(ValueError, match="preset is 'tpami' or 'mammoth', got 'paper'"):
        published("paper", "xder")
    with pytest.raises(ValueError, match="variant is 'xder'"):
        published("tpami", "der")
