"""Operations on pixel values, each beside Pillow's."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from potstill.augment import points


def noise(seed: int = 0, size: tuple[int, int] = (13, 17), low: int = 0, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (3, *size), generator=generator, dtype=torch.uint8)


def smooth(seed: int = 0) -> Tensor:
    """A picture of few values that lie close together."""
    return (noise(seed, low=60, high=90).float() * torch.tensor([1.0, 1.5, 2.0]).reshape(3, 1, 1)).to(torch.uint8)


def as_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


FACTORS = (0.0, 0.1, 0.7, 1.0, 1.4, 1.9)


@pytest.mark.parametrize("image", [noise(), smooth()], ids=["noise", "smooth"])
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (points.brightness, ImageEnhance.Brightness),
        (points.saturation, ImageEnhance.Color),
        (points.contrast, ImageEnhance.Contrast),
        (points.sharpness, ImageEnhance.Sharpness),
    ],
)
def test_enhancements_are_pillows(ours: Callable[..., Tensor], theirs: type, factor: float, image: Tensor) -> None:
    found, expected = ours(image, factor), as_tensor(theirs(as_pillow(image)).enhance(factor))
    assert (found.int() - expected.int()).abs().max() <= 1
    assert (found != expected).float().mean() < 0.02
    if factor == 1:
        assert torch.equal(found, image)


@pytest.mark.parametrize("image", [noise(), smooth(), noise(1, (40, 50), 0, 40), torch.full((3, 4, 4), 9).byte()])
def test_autocontrast_and_equalize_are_pillows(image: Tensor) -> None:
    assert torch.equal(points.autocontrast(image), as_tensor(ImageOps.autocontrast(as_pillow(image))))
    assert torch.equal(points.equalize(image), as_tensor(ImageOps.equalize(as_pillow(image))))


def test_posterize_and_solarize_are_pillows() -> None:
    for bits in range(1, 9):
        assert torch.equal(points.posterize(noise(), bits), as_tensor(ImageOps.posterize(as_pillow(noise()), bits)))
    for threshold in (0, 1, 100, 255, 256):
        expected = as_tensor(ImageOps.solarize(as_pillow(noise()), threshold))
        assert torch.equal(points.solarize(noise(), threshold), expected)


def test_grey_is_pillows() -> None:
    image = noise(3, (64, 64))
    assert torch.equal(points.grey(image)[0], torch.from_numpy(np.array(as_pillow(image).convert("L"))))


@pytest.mark.parametrize("turn", [0.0, 0.1, -0.25, 0.5])
def test_hue_turns_as_colorsys_does(turn: float) -> None:
    import colorsys

    image = torch.cat([noise(4, (6, 6)), torch.full((3, 1, 6), 77).byte()], dim=1)
    found = points.hue(image, turn)
    for y in range(7):
        for x in range(6):
            h, s, v = colorsys.rgb_to_hsv(*(image[:, y, x] / 255).tolist())
            expected = torch.tensor(colorsys.hsv_to_rgb((h + turn) % 1, s, v)) * 255
            assert (found[:, y, x].float() - expected).abs().max() <= 0.51
    assert torch.equal(points.hue(image, 0.0), image)


def test_a_picture_too_small_to_smooth_stays() -> None:
    assert torch.equal(points.sharpness(noise(0, (2, 9)), 0.1), noise(0, (2, 9)))
