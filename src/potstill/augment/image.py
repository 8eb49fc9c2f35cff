"""Augmentation of images: one view of a row, the same for teacher and student, and batches that mix two rows.

Decisions:
- A view is a pure function of (seed, epoch, row): a resumed training sees what it would have seen, and ranks and
  processes of a data loader need not agree on anything.
- Each model resizes and normalises the view for itself, afterwards. So `resized_crop` leaves the part at its own size,
  unless a size is named.
- The order is that of the fields: first what moves pixels, then what changes them, at last what hides or mixes them.
- Pure torch on uint8; every operation is compared with Pillow's where it has one.
"""

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from potstill.augment import geometry, mixing, points
from potstill.augment.geometry import LabelMap, Pixels, Shown
from potstill.augment.rand_augment import rand_augment

Chance = Annotated[float, Ge(0), Le(1)]
Positive = Annotated[float, Gt(0)]
Side = Annotated[int, Ge(1)]
PIXELS, LABELS = "pixel_values", "labels"
VIEW = "view"
"""The column of a row that is shown changed: [seed, epoch, row], what its view is a function of. A row without it is
shown as it is."""

_TRIES = 10
MIXING = 1 << 40  # added to the epoch, so that mixing draws other numbers than the view of the same row


@dataclass(frozen=True)
class ResizedCrop:
    """A part of random size and shape: `area` of the image's, width to height by `ratio` (evenly in its logarithm).

    Without `size` (height, width) it keeps its pixels, and each model resizes it.
    """

    area: tuple[Positive, Annotated[float, Gt(0), Le(1)]] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    size: tuple[Side, Side] | None = None


@dataclass(frozen=True)
class RandAugment:
    """So many of fourteen operations, all of one magnitude from 0 to 30."""

    operations: Annotated[int, Ge(1)] = 2
    magnitude: Annotated[float, Ge(0), Le(30)] = 9


@dataclass(frozen=True)
class Jitter:
    """Factors drawn from 1 ± each of these, in random order; the hue is turned by up to ± `hue` of the circle."""

    brightness: Chance = 0.0
    contrast: Chance = 0.0
    saturation: Chance = 0.0
    hue: Annotated[float, Ge(0), Le(0.5)] = 0.0


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed.

    Args:
        resized_crop: a random part.
        crop: a part of the image's own size, after so many pixels were put around it: the image moved by up to so many.
        flip: the chance that left and right are exchanged.
        rand_augment: RandAugment.
        jitter: of colours.
        erase: the chance that a random box is filled with noise.
        mixup: the alpha of mixup; 0 is none.
        cutmix: the alpha of CutMix; 0 is none. With both, each batch has one or the other by even chance.
        views: so many fixed views, each a row of its own; an epoch goes through all of them. None: fresh views in every
            epoch.
        fill: the value of what is put around an image: 128, a middle grey; 0 for a black ground.

    References:
        Szegedy et al., GoogLeNet, 2015, https://arxiv.org/abs/1409.4842 (resized crop); He, Zhang, Ren and Sun, ResNet,
        2016, https://arxiv.org/abs/1512.03385 (crop); Zhong, Zheng, Kang, Li and Yang, Random Erasing, 2020,
        https://arxiv.org/abs/1708.04896. RandAugment, mixup and CutMix: where they stand.
    """

    resized_crop: ResizedCrop | None = None
    crop: Annotated[int, Ge(0)] = 0
    flip: Chance = 0.0
    rand_augment: RandAugment | None = None
    jitter: Jitter | None = None
    erase: Chance = 0.0
    mixup: Annotated[float, Ge(0)] = 0.0
    cutmix: Annotated[float, Ge(0)] = 0.0
    views: Annotated[int, Ge(1)] | None = None
    fill: Annotated[int, Ge(0), Le(255)] = geometry.FILL

    @property
    def mixes(self) -> bool:
        """Whether rows of a batch are mixed, so that labels become distributions."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def fixed(self) -> bool:
        """Whether a model sees the same pixels of a row each time, so that its answers can be kept."""
        return self.views is not None and not self.mixes

    @property
    def digest(self) -> str:
        """Of all that decides what a view shows."""
        return hashlib.sha256(repr(astuple(self)).encode()).hexdigest()

    def view(self, image: Pixels, label_map: LabelMap = None, *, row: int, epoch: int, seed: int = 0) -> Shown:
        """What is shown of a row.

        Args:
            image: uint8 [3,H,W].
            label_map: int64 [H,W], -100 void; or None. It moves as the image does, and is void where that is erased.
            row: its number in the data set.
            epoch: or the number of the view, where views are fixed.
            seed: of the training, or of the recipe, where views are fixed.

        Returns:
            uint8 [3,h,w], and the map [h,w] or None.
        """
        random = generator_of(seed, epoch, row)
        shown = (image, label_map)
        if self.resized_crop is not None:
            shown = _resized_crop(*shown, self.resized_crop, random)
        if self.crop:
            corner = _between(-self.crop, self.crop, random), _between(-self.crop, self.crop, random)
            shown = geometry.cut(*shown, corner, (shown[0].shape[1], shown[0].shape[2]), self.fill)
        if self.flip and _uniform(random) < self.flip:
            shown = geometry.flipped(*shown)
        if self.rand_augment is not None:
            drawn = self.rand_augment
            shown = rand_augment(*shown, drawn.operations, drawn.magnitude, random, self.fill)
        if self.jitter is not None:
            shown = _jittered(shown[0], self.jitter, random), shown[1]
        if self.erase and _uniform(random) < self.erase:
            shown = erased(*shown, random)
        return shown

    def mix(
        self, batch: Mapping[str, Tensor], classes: int, *, rows: Sequence[int], epoch: int, seed: int = 0
    ) -> dict[str, Tensor]:
        """A batch whose images are mixed in pairs, every ``…pixel_values`` alike; ``labels`` become [B,V].

        Of CutMix's box, the exact share of the student's image decides the labels.

        Args:
            batch: with ``pixel_values`` [B,3,H,W] and ``labels`` [B] or [B,V].
            classes: how many there are.
            rows, epoch, seed: of the views in it, which decide what is drawn.
        """
        random = generator_of(seed, epoch + MIXING, *rows)
        cuts = self.cutmix > 0 and (not self.mixup or _uniform(random) < 0.5)
        kept = mixing.beta(self.cutmix if cuts else self.mixup, random)
        order = torch.randperm(len(rows), generator=random)
        height, width = batch[PIXELS].shape[-2:]
        where = mixing.box(height, width, kept, random) if cuts else None
        kept = kept if where is None else 1 - where.share(height, width)
        mixed = dict(batch)
        for name in (name for name in batch if name.endswith(PIXELS)):
            images = batch[name]
            if where is None:
                mixed[name] = mixing.mixup(images, order, kept)
            else:
                size = (images.shape[-2], images.shape[-1])
                mixed[name] = mixing.cutmix(images, order, where.scaled(height, width, size))
        if LABELS in batch:
            mixed[LABELS] = mixing.mixed_labels(batch[LABELS], order, kept, classes)
        return mixed


def generator_of(*numbers: int) -> torch.Generator:
    """A generator whose state follows from these numbers, in this order, and nothing else."""
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def erased(image: Pixels, label_map: LabelMap, generator: torch.Generator) -> Shown:
    """A box of 2 to 33 % of the area, of a shape from 0.3 to 1/0.3, filled with noise; the map is void there. Where ten
    draws give no box that fits, nothing is erased."""
    height, width = image.shape[1:]
    for _ in range(_TRIES):
        area = _uniform(generator, 0.02, 1 / 3) * height * width
        ratio = math.exp(_uniform(generator, math.log(0.3), math.log(1 / 0.3)))
        high, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < high < height and 0 < wide < width:
            top, left = _between(0, height - high, generator), _between(0, width - wide, generator)
            image = image.clone()
            noise = torch.randint(256, (3, high, wide), generator=generator, dtype=torch.uint8)
            image[:, top : top + high, left : left + wide] = noise
            if label_map is not None:
                label_map = label_map.clone()
                label_map[top : top + high, left : left + wide] = geometry.VOID
            break
    return image, label_map


def _resized_crop(image: Pixels, label_map: LabelMap, crop: ResizedCrop, generator: torch.Generator) -> Shown:
    """A random part; after ten draws that don't fit, the centre, as far as the shapes allow."""
    height, width = image.shape[1:]
    low, high = crop.ratio
    for _ in range(_TRIES):
        area = _uniform(generator, *crop.area) * height * width
        ratio = math.exp(_uniform(generator, math.log(low), math.log(high)))
        size = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < size[0] <= height and 0 < size[1] <= width:
            top, left = _between(0, height - size[0], generator), _between(0, width - size[1], generator)
            break
    else:
        ratio = min(max(width / height, low), high)
        size = min(height, round(width / ratio)), min(width, round(height * ratio))
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
    shown = geometry.cut(image, label_map, (top, left), size)
    return shown if crop.size is None else geometry.resized(*shown, crop.size)


def _jittered(image: Pixels, jitter: Jitter, generator: torch.Generator) -> Pixels:
    changes = (
        (points.brightness, jitter.brightness),
        (points.contrast, jitter.contrast),
        (points.saturation, jitter.saturation),
    )
    for number in torch.randperm(4, generator=generator).tolist():
        if number == 3:
            turn = _uniform(generator, -jitter.hue, jitter.hue)
            image = points.hue(image, turn) if jitter.hue else image
        else:
            change, most = changes[number]
            factor = _uniform(generator, 1 - most, 1 + most)
            image = change(image, factor) if most else image
    return image


def _uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _between(low: int, high: int, generator: torch.Generator) -> int:
    """An integer from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
