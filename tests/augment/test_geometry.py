"""Operations that move pixels: image and label map alike, and as Pillow moves them."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from test_points import as_pillow, as_tensor, noise
from torch import Tensor

from potstill.augment import geometry
from potstill.augment.geometry import VOID


def map_of(image: Tensor) -> Tensor:
    """The first channel as class numbers, so that the map can be compared with the image."""
    return image[0].long()


def pillows(image: Tensor, matrix: geometry.Matrix, fill: int) -> Tensor:
    """As Pillow shows it."""
    height, width = image.shape[1:]
    moved = as_pillow(image).transform(
        (width, height), Image.Transform.AFFINE, tuple(matrix), Image.Resampling.BILINEAR, fillcolor=(fill,) * 3
    )
    return as_tensor(moved)


SIZE = (13, 17)


@pytest.mark.parametrize(
    "matrix",
    [
        geometry.shear_x(0.3),
        geometry.shear_y(-0.2),
        geometry.translation(3, 0),
        geometry.translation(-2.25, 4.5),
        geometry.rotation(30, SIZE),
        geometry.rotation(-77, SIZE),
    ],
)
@pytest.mark.parametrize("fill", [128, 0])
def test_moved_as_pillow_moves(matrix: geometry.Matrix, fill: int) -> None:
    image = noise(1, SIZE)
    found, label_map = geometry.moved(image, map_of(image), matrix, fill)
    expected = pillows(image, matrix, fill)
    assert (found.int() - expected.int()).abs().max() <= 1
    height, width = SIZE
    nearest = Image.fromarray(np.asarray(image[0].numpy(), dtype=np.int32)).transform(
        (width, height), Image.Transform.AFFINE, tuple(matrix), Image.Resampling.NEAREST, fillcolor=VOID
    )
    assert label_map is not None and torch.equal(label_map, torch.from_numpy(np.array(nearest)).long())


def test_a_rotation_is_pillows_and_counter_clockwise() -> None:
    image = noise(2, (16, 16))
    found = geometry.moved(image, None, geometry.rotation(25, (16, 16)))[0]
    expected = as_tensor(as_pillow(image).rotate(25, Image.Resampling.BILINEAR, fillcolor=(128,) * 3))
    assert (found.int() - expected.int()).abs().max() <= 1
    quarter = geometry.moved(image, None, geometry.rotation(90, (16, 16)))[0]
    assert torch.equal(quarter, image.rot90(1, (1, 2)))


def test_flipped() -> None:
    image = noise()
    found, label_map = geometry.flipped(image, map_of(image))
    assert torch.equal(found, as_tensor(as_pillow(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    assert label_map is not None and torch.equal(label_map, map_of(found))
    assert geometry.flipped(image)[1] is None


@pytest.mark.parametrize("corner", [(0, 0), (-3, 2), (4, -5), (9, 12), (-20, 0)])
def test_cut_as_a_loop_cuts(corner: tuple[int, int]) -> None:
    image = noise(0, SIZE)
    found, label_map = geometry.cut(image, map_of(image), corner, (8, 9), fill=7)
    assert found.shape == (3, 8, 9) and label_map is not None
    for y in range(8):
        for x in range(9):
            row, column = y + corner[0], x + corner[1]
            inside = 0 <= row < SIZE[0] and 0 <= column < SIZE[1]
            assert found[:, y, x].tolist() == (image[:, row, column].tolist() if inside else [7, 7, 7])
            assert int(label_map[y, x]) == (int(image[0, row, column]) if inside else VOID)


@pytest.mark.parametrize("size", [(6, 8), (26, 34), (5, 40), (13, 17)])
def test_resized_as_pillow_resizes(size: tuple[int, int]) -> None:
    image = noise(5, SIZE)
    found, label_map = geometry.resized(image, map_of(image), size)
    expected = as_tensor(as_pillow(image).resize(size[::-1], Image.Resampling.BILINEAR))
    assert (found.int() - expected.int()).abs().max() <= 1
    nearest = np.array(Image.fromarray(image[0].numpy()).resize(size[::-1], Image.Resampling.NEAREST))
    assert label_map is not None and torch.equal(label_map, torch.from_numpy(nearest).long())


def test_a_map_is_resized_by_whole_numbers() -> None:
    """Where a centre falls on an edge, as from 26 to 11, floating point has no say."""
    for have in (7, 26, 40):
        labels = torch.arange(have)[:, None]
        for to in range(1, 12):
            expected = torch.tensor([[(2 * place + 1) * have // (2 * to)] for place in range(to)])
            found = geometry.resized(torch.zeros(3, have, 1, dtype=torch.uint8), labels, (to, 1))[1]
            assert found is not None and torch.equal(found, expected)
            assert torch.equal(geometry.nearest(labels, (to, 1)), expected)


def test_no_class_is_mixed() -> None:
    image = noise(6, (20, 20))
    label_map = (torch.arange(400).reshape(20, 20) // 150) * 10
    for matrix in (geometry.rotation(17, (20, 20)), geometry.shear_x(0.21), geometry.translation(0.5, math.pi)):
        found = geometry.moved(image, label_map, matrix)[1]
        assert found is not None and set(found.unique().tolist()) <= {0, 10, 20, VOID}
