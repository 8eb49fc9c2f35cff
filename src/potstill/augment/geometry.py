"""Operations that move pixels: an image and its label map move alike.

- An image is uint8 [3,H,W], a label map int64 [H,W] or None. Both come back.
- Images are read between pixels bilinearly, maps at the nearest pixel, so no class is ever mixed.
- What comes from outside is `fill` in the image and -100, void, in the map.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Int, Int64, UInt8
from torch import Tensor
from torch.nn import functional

Pixels = UInt8[Tensor, "3 H W"]
LabelMap: TypeAlias = Int64[Tensor, "H W"] | None
Shown: TypeAlias = tuple[Tensor, LabelMap]
Matrix: TypeAlias = Sequence[float]
"""(a, b, c, d, e, f): the pixel (x, y) of the output shows (a x + b y + c, d x + e y + f) of the input, in pixels from
the upper left corner; centres of pixels lie at halves."""

VOID = -100
FILL = 128
"""The grey that stands where nothing was seen, near the mean of most photographs: what RandAugment's authors take."""


def flipped(image: Pixels, label_map: LabelMap = None) -> Shown:
    """Left and right exchanged."""
    return image.flip(-1), None if label_map is None else label_map.flip(-1)


def cut(image: Pixels, label_map: LabelMap, corner: tuple[int, int], size: tuple[int, int], fill: int = FILL) -> Shown:
    """The part of a size (height, width) from a corner (top, left) on, which may lie outside: that is filled."""
    top, left = corner
    height, width = image.shape[1:]
    bottom, right = top + size[0], left + size[1]
    sides = (max(0, -left), max(0, right - width), max(0, -top), max(0, bottom - height))
    if any(sides):
        image = functional.pad(image, sides, value=fill)
        label_map = None if label_map is None else functional.pad(label_map, sides, value=VOID)
    rows = slice(top + sides[2], bottom + sides[2])
    columns = slice(left + sides[0], right + sides[0])
    return image[:, rows, columns], None if label_map is None else label_map[rows, columns]


def resized(image: Pixels, label_map: LabelMap, size: tuple[int, int]) -> Shown:
    """Another size (height, width): bilinear with antialiasing; the map at the nearest pixel."""
    if image.shape[1:] == size:
        return image, label_map
    # in float: torch's own path for uint8 rounds its weights
    found = functional.interpolate(
        image[None].to(torch.float32), size=size, mode="bilinear", align_corners=False, antialias=True
    )[0]
    return found.round().clamp(0, 255).to(torch.uint8), None if label_map is None else nearest(label_map, size)


def nearest(labels: Int[Tensor, "*B H W"], size: Sequence[int]) -> Int[Tensor, "*B h w"]:
    """Labels at another size: each pixel has that whose centre is the nearest, as Pillow has it."""
    if tuple(labels.shape[-2:]) == tuple(size):
        return labels
    rows, columns = (
        (2 * torch.arange(to, device=labels.device) + 1) * have // (2 * to)
        for have, to in zip(labels.shape[-2:], size, strict=True)
    )
    return labels[..., rows[:, None], columns]


def moved(image: Pixels, label_map: LabelMap, matrix: Matrix, fill: int = FILL) -> Shown:
    """The image as a matrix shows it, at its own size. What lies outside by its centre is filled."""
    height, width = image.shape[1:]
    a, b, c, d, e, f = matrix
    centres = (torch.arange(side, dtype=torch.float64) + 0.5 for side in (height, width))
    y, x = torch.meshgrid(*centres, indexing="ij")
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    grid = torch.stack([2 * from_x / width - 1, 2 * from_y / height - 1], -1)[None].float()
    found = functional.grid_sample(
        image[None].to(torch.float32), grid, mode="bilinear", padding_mode="border", align_corners=False
    )[0]
    pixels = torch.where(inside, found.round().clamp(0, 255), torch.full_like(found, fill)).to(torch.uint8)
    if label_map is None:
        return pixels, None
    rows, columns = from_y.floor().long().clamp(0, height - 1), from_x.floor().long().clamp(0, width - 1)
    return pixels, torch.where(inside, label_map[rows, columns], VOID)


def shear_x(degree: float) -> Matrix:
    """Rows pushed sideways by `degree` times their distance from the top."""
    return (1, degree, 0, 0, 1, 0)


def shear_y(degree: float) -> Matrix:
    """Columns pushed down by `degree` times their distance from the left."""
    return (1, 0, 0, degree, 1, 0)


def translation(x: float, y: float) -> Matrix:
    """Shown from (x, y) on."""
    return (1, 0, x, 0, 1, y)


def rotation(degrees: float, size: tuple[int, int]) -> Matrix:
    """Turned counter-clockwise about the centre of an image of a size (height, width)."""
    turn = -math.radians(degrees)
    cos, sin = math.cos(turn), math.sin(turn)
    x, y = size[1] / 2, size[0] / 2
    return (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)
