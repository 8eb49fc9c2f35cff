"""RandAugment: a few of fourteen operations drawn at random, all of one magnitude."""

from collections.abc import Callable

import torch
from torch import Tensor

from potstill.augment import geometry, points
from potstill.augment.geometry import LabelMap, Pixels, Shown

HIGHEST = 30
"""Magnitudes run from 0, which leaves most operations without effect, to this."""

ENHANCED = 0.9
TURNED = 30.0  # degrees
SHEARED = 0.3
MOVED = 150 / 331  # of the image's side: AutoAugment's 150 pixels of images of 331

Operation = Callable[[Pixels, LabelMap, float, int], Shown]


def _of_points(change: Callable[[Tensor, float], Tensor]) -> Operation:
    return lambda image, label_map, level, fill: (change(image, level), label_map)


def _enhanced(change: Callable[[Tensor, float], Tensor]) -> Operation:
    return _of_points(lambda image, level: change(image, 1 + ENHANCED * level))


def _moved(matrix: Callable[[float, int, int], geometry.Matrix]) -> Operation:
    """`matrix` is given the level, height and width."""
    return lambda image, label_map, level, fill: geometry.moved(
        image, label_map, matrix(level, image.shape[1], image.shape[2]), fill
    )


OPERATIONS: dict[str, Operation] = {
    "identity": _of_points(lambda image, level: image),
    "autocontrast": _of_points(lambda image, level: points.autocontrast(image)),
    "equalize": _of_points(lambda image, level: points.equalize(image)),
    "rotate": _moved(lambda level, height, width: geometry.rotation(TURNED * level, (height, width))),
    "solarize": _of_points(lambda image, level: points.solarize(image, 256 * (1 - abs(level)))),
    "color": _enhanced(points.saturation),
    "posterize": _of_points(lambda image, level: points.posterize(image, 8 - round(4 * abs(level)))),
    "contrast": _enhanced(points.contrast),
    "brightness": _enhanced(points.brightness),
    "sharpness": _enhanced(points.sharpness),
    "shear_x": _moved(lambda level, height, width: geometry.shear_x(SHEARED * level)),
    "shear_y": _moved(lambda level, height, width: geometry.shear_y(SHEARED * level)),
    "translate_x": _moved(lambda level, height, width: geometry.translation(MOVED * level * width, 0)),
    "translate_y": _moved(lambda level, height, width: geometry.translation(0, MOVED * level * height)),
}
"""The fourteen; the level is the share of the highest magnitude, from -1 to 1."""


def rand_augment(
    image: Pixels,
    label_map: LabelMap,
    operations: int,
    magnitude: float,
    generator: torch.Generator,
    fill: int = geometry.FILL,
) -> Shown:
    """So many operations, one after the other, each drawn evenly from the fourteen, its sign at random.

    At magnitude M, level = M/30: shear up to 0.3, translation up to 150/331 of the side, rotation up to 30 degrees,
    factors of colour, contrast, brightness and sharpness 1 ± 0.9, solarizing from 256 down to 0, posterizing to 8 … 4
    bits.

    Args:
        image: uint8 [3,H,W].
        label_map: int64 [H,W], moved as the image is; or None.
        operations: how many; the paper's N.
        magnitude: 0 … 30; the paper's M.
        fill: the value of what comes from outside.

    References:
        Cubuk, Zoph, Shlens and Le, RandAugment, 2020, https://arxiv.org/abs/1909.13719; ranges as AutoAugment's,
        Cubuk et al., 2019, https://arxiv.org/abs/1805.09501, table 6.
    """
    names = list(OPERATIONS)
    for _ in range(operations):
        number = int(torch.randint(len(names), (), generator=generator))
        sign = 1 if torch.rand((), generator=generator) < 0.5 else -1
        image, label_map = OPERATIONS[names[number]](image, label_map, sign * magnitude / HIGHEST, fill)
    return image, label_map
