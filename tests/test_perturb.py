"""Perturbations of images: hand cases, what they leave alone, and the share that CutMix reports."""

import ast
import copy
import inspect
import pickle
import random

import numpy as np
import pytest
import torch

from replaykit import perturb
from replaykit.perturb import (
    AutoAugment,
    Cutout,
    Flip,
    RandAugment,
    Rotation,
    Solarise,
    cutmix,
    rainbow_views,
    rotated,
)


def images(n: int = 6, channels: int = 3, size: int = 8, kind: torch.dtype = torch.uint8) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (n, channels, size, size), dtype=torch.uint8, generator=g)
    return x if kind == torch.uint8 else x.to(kind) / 255


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("family", ["vr", "vr_randaug"])
def test_twelve_views_of_the_same_form_that_leave_everything_alone(family: str, channels: int, kind) -> None:
    x = images(channels=channels, kind=kind)
    raw = x.clone()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    views = rainbow_views(8, family, seed=3)
    assert len(views) == 12
    seen = []
    for view in views:
        first, second = view(x), view(x)
        assert first.shape == x.shape and first.dtype == x.dtype and torch.equal(first, second)
        assert float(first.min()) >= 0 and float(first.max()) <= (255 if kind == torch.uint8 else 1)
        seen.append(first)
    assert torch.equal(x, raw) and torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    # Some draw of RandAugment may leave all rows as they are (an equalised image), but not most of them.
    assert sum(not torch.equal(copy, x) for copy in seen) >= 10
    assert all(
        torch.equal(view(x), copy) for view, copy in zip(rainbow_views(8, family, seed=3), seen, strict=True)
    )


@pytest.mark.parametrize("family", ["vr", "vr_randaug"])
def test_another_seed_gives_other_views_and_views_can_be_copied(family: str) -> None:
    x = images(20)
    one, other = rainbow_views(8, family, 0), rainbow_views(8, family, 1)
    assert any(not torch.equal(a(x), b(x)) for a, b in zip(one, other, strict=True))
    for again in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert all(torch.equal(a(x), b(x)) for a, b in zip(one, again, strict=True))


def test_bytes_and_fractions_are_perturbed_alike() -> None:
    x = images(4)
    for family in ("vr", "vr_randaug"):
        for view in rainbow_views(8, family):
            of_bytes, of_floats = view(x).double(), view(x.double() / 255) * 255
            # kornia rounds in its own places (posterise, equalise): a byte more or less.
            assert (of_bytes - of_floats).abs().max() <= (1e-9 if family == "vr" else 1.0)


def test_flips_inversion_and_solarisation_by_hand() -> None:
    x = torch.tensor([[[[0, 31, 32], [127, 128, 255]]]], dtype=torch.uint8)
    assert Flip(-1)(x).tolist() == [[[[32, 31, 0], [255, 128, 127]]]]
    assert Flip(-2)(x).tolist() == [[[[127, 128, 255], [0, 31, 32]]]]
    assert Solarise(0)(x).tolist() == [[[[255, 224, 223], [128, 127, 0]]]]
    assert Solarise(128)(x).tolist() == [[[[0, 31, 32], [127, 127, 0]]]]
    assert Solarise(32)(x).tolist() == [[[[0, 31, 223], [128, 127, 0]]]]
    assert torch.equal(Solarise(32)(x.double() / 255), Solarise(32)(x).double() / 255)


@pytest.mark.parametrize(("h", "w"), [(5, 5), (4, 6)])
def test_quarter_and_half_turns_are_exact(h: int, w: int) -> None:
    x = torch.rand(3, 2, h, w)
    half = torch.full((3,), torch.pi)
    assert torch.equal(rotated(x, half), torch.rot90(x, 2, (2, 3)))
    assert torch.equal(rotated(x, 0 * half), x)
    if h == w:
        turns = torch.tensor([torch.pi / 2, -torch.pi / 2, 0.0])
        by_hand = torch.stack([torch.rot90(x[0], 1, (1, 2)), torch.rot90(x[1], -1, (1, 2)), x[2]])
        assert torch.equal(rotated(x, turns), by_hand)


def test_every_row_is_turned_by_its_own_angle_within_the_bounds() -> None:
    """A bright pixel on the axis says by how much its row was turned."""
    size = 65
    x = torch.zeros(300, 1, size, size)
    x[:, :, 31:34, 55:58] = 1
    turned = Rotation(45, seed=1)(x)[:, 0]
    row, column = torch.meshgrid(torch.arange(size) - 32.0, torch.arange(size) - 32.0, indexing="ij")
    total = turned.sum((1, 2))
    angle = torch.atan2(-(turned * row).sum((1, 2)) / total, (turned * column).sum((1, 2)) / total).rad2deg()
    assert angle.abs().max() <= 46 and angle.max() > 38 and angle.min() < -38 and len(angle.unique()) > 100
    assert angle.mean().abs() < 5  # 26 / sqrt(300) = 1.5 is its deviation


@pytest.mark.parametrize("side", [1, 2, 3, 8])
def test_cutouts_are_squares_with_every_centre_alike(side: int) -> None:
    n, size = 4000, 6
    black = Cutout(side, seed=0)(torch.ones(n, 3, size, size)) == 0
    assert bool((black == black[:, :1]).all())
    rows, columns = black[:, 0].any(2), black[:, 0].any(1)
    assert torch.equal(black[:, 0], rows[:, :, None] & columns[:, None])  # boxes
    lengths = rows.sum(1)
    assert lengths.max() == min(side, size) and lengths.min() >= min(side - side // 2, size)
    # Of one pixel: how often each place is hit, 24 degrees of freedom more than the mean of chi-square.
    if side == 1:
        hits = black[:, 0].sum(0).double().flatten()
        statistic = ((hits - n / 36).square() / (n / 36)).sum()
        assert statistic < 35 + 5 * (2 * 35) ** 0.5


def test_cutouts_follow_the_size_of_the_image() -> None:
    sides = lambda size: [view.side for view in rainbow_views(size, "vr") if isinstance(view, Cutout)]  # noqa: E731
    assert sides(32) == [8, 16, 24, 32] and sides(28) == [7, 14, 21, 28] and sides((64, 80)) == [16, 32, 48, 64]
    assert sides(2) == [1, 1, 2, 2]


def test_the_draws_of_a_part_are_not_those_of_the_whole() -> None:
    """Documented: what is drawn for a row depends on its place in the batch."""
    x = images(8)
    cut = rainbow_views(8, "vr")[0]
    assert torch.equal(cut(x)[:4], cut(x[:4])) is False or torch.equal(cut(x)[4:], cut(x[4:])) is False


def test_auto_augment_draws_from_the_global_generator() -> None:
    x, augment = images(10), AutoAugment()
    torch.manual_seed(5)
    first = [augment(x) for _ in range(8)]
    torch.manual_seed(5)
    assert all(torch.equal(augment(x), before) for before in first)
    assert sum(not torch.equal(copy, x) for copy in first) >= 3 and len({copy.sum().item() for copy in first}) > 2
    assert all(copy.dtype == torch.uint8 for copy in first)
    grey = images(4, channels=1)
    assert augment(grey).shape == grey.shape


# -- CutMix -----------------------------------------------------------------------------------------


def test_the_share_of_cutmix_is_that_of_the_pixels() -> None:
    """Every row is filled with its own number, so that pixels say where they come from."""
    y = torch.arange(6)
    x = y.float()[:, None, None, None].expand(6, 2, 7, 9).contiguous()
    torch.manual_seed(0)
    shares = []
    for _ in range(200):
        mixed, own, pasted, share = cutmix(x, y, 1.0)
        assert own is y and pasted.dtype == y.dtype and sorted(pasted.tolist()) == list(range(6))
        from_other = mixed == pasted[:, None, None, None]
        assert bool(((mixed == x) | from_other).all())
        moved = pasted != y
        torch.testing.assert_close(
            from_other[moved].flatten(1).float().mean(1), (1 - share).expand(int(moved.sum())).float()
        )
        shares.append(float(share))
    assert min(shares) == pytest.approx(15 / 63) and max(shares) > 0.9 and 0.45 < sum(shares) / 200 < 0.75


def test_cutmix_is_done_as_often_as_asked() -> None:
    x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
    torch.manual_seed(0)
    done = sum(not torch.equal(cutmix(x, y, 0.5)[0], x) for _ in range(400))
    assert abs(done - 190) < 60  # some boxes are empty, some permutations the identity
    for n in (0, 1, 2):
        assert [len(part) for part in cutmix(x[:n], y[:n], 1.0)[:3]] == [n] * 3
    mixed, own, pasted, _ = cutmix(x, y, 0.0)
    assert torch.equal(mixed, x) and torch.equal(own, pasted)


def test_on_devices_views_keep_their_form(device: str) -> None:
    x = images().to(device)
    for family in ("vr", "vr_randaug"):
        for view in rainbow_views(8, family):
            assert view(x).device == x.device and torch.equal(view(x), view(x))
    mixed, _, pasted, share = cutmix(x.float(), torch.arange(6, device=device), 1.0)
    assert mixed.device == pasted.device == x.device and 0 <= float(share) <= 1


# -- bad input --------------------------------------------------------------------------------------


def test_what_is_no_image_is_refused() -> None:
    for view in (*rainbow_views(8, "vr"), RandAugment(0), AutoAugment()):
        with pytest.raises(ValueError, match=r"of images \[n, c, h, w\], got rows of shape \[8\]"):
            view(torch.zeros(4, 8))
        with pytest.raises(TypeError, match=r"uint8, or floating in \[0, 1\], got torch.int64"):
            view(torch.zeros(4, 1, 8, 8, dtype=torch.int64))
        assert len(view(images(0))) == 0
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        AutoAugment()(images(channels=2))
    with pytest.raises(ValueError, match=r"lie in \[0, 1\], got -.* perturb them before normalising"):
        AutoAugment()(images(kind=torch.float32) - 0.5)


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="'vr' or 'vr_randaug', got 'none'"):
        rainbow_views(8, "none")
    with pytest.raises(ValueError, match="number of pixels >= 1, got 0"):
        rainbow_views(0)
    with pytest.raises(ValueError, match="policy is 'cifar10'"):
        AutoAugment("mnist")
    x, y = torch.rand(2, 1, 4, 4), torch.arange(2)
    with pytest.raises(ValueError, match="probability lies in"):
        cutmix(x, y, 1.5)
    with pytest.raises(ValueError, match="alpha is a positive number, got 0"):
        cutmix(x, y, 0.5, 0.0)


def test_kornia_is_not_imported_before_it_is_used() -> None:
    tree = ast.parse(inspect.getsource(perturb))
    imported = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imported and not any("kornia" in ast.dump(node) for node in imported)
    assert any("kornia" in ast.dump(node) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
