import pytest
import torch

from replaykit.loggers import Images


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(2, 1, 4, 4),
        torch.zeros(1, 4, 4, dtype=torch.uint8),
        torch.zeros(2, 2, 4, 4, dtype=torch.uint8),
    ],
)
def test_images_are_bytes_with_one_or_three_channels(pixels):
    with pytest.raises(ValueError, match="uint8"):
        Images(pixels, ["a", "b"])


def test_images_have_a_caption_each():
    with pytest.raises(ValueError, match="2 images need as many captions, got 1"):
        Images(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), ["a"])
