"""Two images in one, and their labels in proportion: mixup and CutMix.

- Both act on a batch as models take it, after each model's own resizing and normalisation, which are affine: so they do
  what they would have done to the images. What student and teacher read is mixed alike.
- A label becomes a distribution over the classes, [B,V]. A row without a label, or mixed with one that has none, has
  none: NaN.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Box:
    """A part of an image, in pixels: rows top … bottom - 1, columns left … right - 1."""

    top: int
    left: int
    bottom: int
    right: int

    def share(self, height: int, width: int) -> float:
        """Of the image's area."""
        return (self.bottom - self.top) * (self.right - self.left) / (height * width)

    def scaled(self, height: int, width: int, to: tuple[int, int]) -> "Box":
        """The same part of an image of another size (height, width), to the nearest pixel."""
        rows, columns = to[0] / height, to[1] / width
        return Box(
            round(self.top * rows), round(self.left * columns), round(self.bottom * rows), round(self.right * columns)
        )


def beta(alpha: float, generator: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha), from two Gamma(alpha) by Marsaglia and Tsang's method (2000)."""
    first, second = _log_gamma(alpha, generator), _log_gamma(alpha, generator)
    return 1.0 / (1.0 + math.exp(min(second - first, 700.0)))


def _log_gamma(alpha: float, generator: torch.Generator) -> float:
    """The logarithm of a draw from Gamma(alpha): small alphas give numbers that float64 can't hold."""
    d = (alpha if alpha >= 1 else alpha + 1) - 1 / 3
    while True:
        normal = float(torch.randn((), generator=generator, dtype=torch.float64))
        v = (1 + normal / math.sqrt(9 * d)) ** 3
        uniform = 1.0 - float(torch.rand((), generator=generator, dtype=torch.float64))
        if v > 0 and math.log(uniform) < 0.5 * normal**2 + d - d * v + d * math.log(v):
            break
    boost = 0.0
    if alpha < 1:
        boost = math.log(1.0 - float(torch.rand((), generator=generator, dtype=torch.float64))) / alpha
    return math.log(d * v) + boost


def box(height: int, width: int, kept: float, generator: torch.Generator) -> Box:
    """A box of about 1 - `kept` of the area and of the image's shape, its centre anywhere: cut off at the edges."""
    side = math.sqrt(1 - kept)
    high, wide = int(height * side), int(width * side)
    y = int(torch.randint(height, (), generator=generator))
    x = int(torch.randint(width, (), generator=generator))
    top, left = max(0, y - high // 2), max(0, x - wide // 2)
    return Box(top, left, min(height, y - high // 2 + high), min(width, x - wide // 2 + wide))


def mixup(images: Float[Tensor, "B 3 H W"], order: Int[Tensor, " B"], kept: float) -> Float[Tensor, "B 3 H W"]:
    """kept * x_i + (1 - kept) * x_order(i).

    References:
        Zhang, Cisse, Dauphin and Lopez-Paz, mixup, 2018, https://arxiv.org/abs/1710.09412.
    """
    return kept * images + (1 - kept) * images[order]


def cutmix(images: Float[Tensor, "B 3 H W"], order: Int[Tensor, " B"], where: Box) -> Float[Tensor, "B 3 H W"]:
    """x_i with the box of x_order(i).

    References:
        Yun, Han, Oh, Chun, Choe and Yoo, CutMix, 2019, https://arxiv.org/abs/1905.04899.
    """
    mixed = images.clone()
    rows, columns = slice(where.top, where.bottom), slice(where.left, where.right)
    mixed[:, :, rows, columns] = images[order][:, :, rows, columns]
    return mixed


def mixed_labels(labels: Tensor, order: Tensor, kept: float, classes: int) -> Float[Tensor, "B V"]:
    """kept * y_i + (1 - kept) * y_order(i), [B,V], from class numbers [B] or what is a float already: distributions or
    several labels [B,V], or numbers [B], which stay [B]. NaN where either row has no label."""
    soft = labels
    if not labels.is_floating_point():
        known = labels != IGNORED
        soft = torch.nn.functional.one_hot(labels.masked_fill(~known, 0), classes).float()
        soft[~known] = float("nan")
    return kept * soft + (1 - kept) * soft[order]
