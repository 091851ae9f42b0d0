"""Views of images: exact pixels, one set of random parameters a row, nothing random in evaluation."""

import kornia.augmentation as kornia
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from torch.nn import functional

from replaykit.augment import Views, shifted, views


def numbered(n: int, size: int = 5) -> Tensor:
    """Images uint8 [n, 3, size, size] whose pixels are all different and never 0."""
    pixels = torch.arange(1, 3 * size * size + 1, dtype=torch.uint8).view(3, size, size)
    return pixels.expand(n, 3, size, size)


def corners(views_of: Tensor, pad: int) -> list[list[tuple[int, int, bool]]]:
    """For each view in uint8 pixels: all (top, left, mirrored) that explain it."""
    size = views_of.shape[-1]
    padded = functional.pad(numbered(1, size)[0], (pad,) * 4)
    found = []
    for view in views_of:
        found.append(
            [
                (top, left, mirrored)
                for top in range(2 * pad + 1)
                for left in range(2 * pad + 1)
                for mirrored in (False, True)
                if torch.equal(
                    view.flip(-1) if mirrored else view, padded[:, top : top + size, left : left + size]
                )
            ]
        )
    return found


def test_bytes_become_fractions_and_floats_stay() -> None:
    v = views()
    x = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    assert torch.equal(v.eval(x), torch.tensor([[0, 51, 255]]) / 255)
    assert torch.equal(v.train(x), v.eval(x))
    assert x.dtype == torch.uint8 and x.tolist() == [[0, 51, 255]]
    floats = torch.rand(2, 3)
    assert v.train(floats) is floats


def test_channels_are_normalised_by_their_own_mean_and_deviation() -> None:
    x = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    v = views((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    for c, (mean, std) in enumerate(zip((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), strict=True)):
        torch.testing.assert_close(v.eval(x)[:, c], (x[:, c] / 255 - mean) / std)
    floats = torch.rand(2, 3, 4, 4)
    before = floats.clone()
    v.train(floats)
    assert torch.equal(floats, before)


def test_every_training_view_is_a_crop_of_the_padded_image_maybe_mirrored() -> None:
    torch.manual_seed(0)
    seen = views(crop=2, flip=True).train(numbered(200)) * 255
    explained = corners(seen.round().to(torch.uint8), 2)
    assert all(len(some) == 1 for some in explained)
    assert len({some[0] for some in explained}) > 25  # of 50: rows draw for themselves


def test_crops_and_mirrors_are_uniform() -> None:
    torch.manual_seed(1)
    runs = 1800
    explained = corners((views(crop=1, flip=True).train(numbered(runs)) * 255).round().to(torch.uint8), 1)
    counts: dict[tuple[int, int, bool], int] = {}
    for some in explained:
        counts[some[0]] = counts.get(some[0], 0) + 1
    assert len(counts) == 18
    assert sum((k - runs / 18) ** 2 / (runs / 18) for k in counts.values()) < chi2.ppf(0.999, 17)


def test_pixels_are_those_of_kornia() -> None:
    torch.manual_seed(0)
    x = torch.rand(16, 3, 12, 12)
    crop, flip = kornia.RandomCrop((12, 12), padding=3, cropping_mode="slice"), kornia.RandomHorizontalFlip()
    crops, flips = crop.forward_parameters(x.shape), flip.forward_parameters(x.shape)
    theirs = flip(crop(x, params=crops), params=flips)
    corner = crops["src"][:, 0].long().flip(1).T  # (x, y) of the top left pixel
    assert torch.equal(shifted(x, 3, corner, flips["batch_prob"] > 0.5), theirs)


def test_evaluation_is_not_random() -> None:
    v, x = views(0.5, 0.5, crop=4, flip=True), numbered(8)
    state = torch.random.get_rng_state()
    assert torch.equal(v.eval(x), v.eval(x))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(v.eval(x), (x / 255 - 0.5) / 0.5)


def test_mirroring_alone_and_cropping_alone() -> None:
    torch.manual_seed(2)
    mirrored = (views(flip=True).train(numbered(50)) * 255).round().to(torch.uint8)
    assert {some[0] for some in corners(mirrored, 0)} == {(0, 0, False), (0, 0, True)}
    cropped = (views(crop=2).train(numbered(50)) * 255).round().to(torch.uint8)
    assert not any(some[0][2] for some in corners(cropped, 2))


def test_views_follow_the_device(device: str) -> None:
    x = numbered(4).to(device)
    v = views(0.5, 0.25, crop=1, flip=True)
    assert v.train(x).device == v.eval(x).device == x.device


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="both mean and std"):
        views(mean=0.5)
    with pytest.raises(ValueError, match="above 0"):
        views(0.5, (0.5, 0.0))
    with pytest.raises(ValueError, match="crop"):
        views(crop=-1)
    with pytest.raises(ValueError, match=r"images \[n, c, h, w\], got \[2, 9\]"):
        views(flip=True).train(torch.zeros(2, 9))


def test_any_pair_of_functions_will_do() -> None:
    pair = Views(lambda x: x + 1, lambda x: x)
    assert pair.train(torch.zeros(1)) == 1 and pair.eval(torch.zeros(1)) == 0


def test_rows_of_a_table_are_scaled_by_column():
    rows = torch.arange(12, dtype=torch.float32).reshape(4, 3)
    view = views(mean=[1.0, 2.0, 3.0], std=[2.0, 4.0, 8.0])
    wanted = (rows - torch.tensor([1.0, 2.0, 3.0])) / torch.tensor([2.0, 4.0, 8.0])
    torch.testing.assert_close(view.train(rows), wanted, rtol=0, atol=0)
    torch.testing.assert_close(
        view.eval(rows.to(torch.uint8)),
        (rows / 255 - torch.tensor([1.0, 2.0, 3.0])) / torch.tensor([2.0, 4.0, 8.0]),
    )
