"""Semantic segmentation: one class a pixel.

Decisions:
- Labels have the size at which the student reads images, each the nearest pixel of the stored map: [B,H,W]. Void pixels
  are -100, and in no mask: no loss and no metric sees them.
- Models answer at a size of their own, SegFormer at a quarter. Whatever they answer is brought to the labels' size
  here, bilinearly, before any loss or metric: teacher and student are compared pixel by pixel, whatever size each has.
- By the quarter protocol (TransKD's) labels have a quarter of that size, rounded up, as SegFormer's logits have. It is
  cheaper, its numbers are better ones, and they can't be compared with those at full size: so it is a problem of its
  own, with metrics of its own names.
- Where classes are weighted, the loss of labels is a weighted mean, as PyTorch's cross-entropy has it: the sum of
  weights times values over the sum of weights, of the whole accumulation window.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForSemanticSegmentation, PreTrainedModel

from potstill import losses
from potstill.augment.image import VIEW, Augmentation
from potstill.checks import problem as message
from potstill.errors import ModelError
from potstill.knowledge import TEACHERS, Knowledge, inputs_for
from potstill.metrics.segmentation import VOID
from potstill.objective import WEIGHTS, Defaults
from potstill.tasks.base import Batch, Rows
from potstill.tasks.classification import NUMBERS, Classification
from potstill.tasks.images import ImageReader, ReadsImages, reader_text
from potstill.tasks.label_maps import MapClasses
from potstill.tasks.pictures import as_pixels, decoded

FULL, QUARTER = "segmentation", "segmentation_quarter"
STRIDE = {FULL: 1, QUARTER: 4}
"""The problem, by the protocol -> by how much labels are smaller than images."""
OF_PIXELS = tuple(STRIDE)
"""The problems whose outputs are one a pixel."""

TWO = MapClasses(("background", "object"))

_OF_ROWS = "it compares one vector a row with those of other rows, and here every pixel has one. Use kl_divergence."
_ONE_CLASS = "every pixel has exactly one class. Use {}."
DEFAULTS = Defaults(
    "cross_entropy",
    "kl_divergence",
    {
        **dict.fromkeys([n for n in losses.__all__ if getattr(losses, n).__module__.endswith(".samples")], _OF_ROWS),
        "binary_cross_entropy": _ONE_CLASS.format("cross_entropy"),
        "squared_error": _ONE_CLASS.format("cross_entropy"),
        "binary_kl_divergence": _ONE_CLASS.format("kl_divergence"),
    },
    maps=True,
)


@dataclass(frozen=True)
class SemanticSegmentation(ReadsImages, Classification):
    """Args:
    problem: segmentation, or segmentation_quarter by TransKD's protocol.
    names: the classes in the order of the logits.
    classes: what the ids of label maps mean.
    augmentation: how the images of rows with a column ``view`` are changed, and their maps with them.
    class_weights: of each class, in the loss of labels.

    References:
        Liu, Zhang, Peng, Song, Wang, Zhang, Yang, Stiefelhagen: TransKD: Transformer Knowledge Distillation for
        Efficient Semantic Segmentation, 2022, https://arxiv.org/abs/2202.13393 (the quarter protocol)
    """

    problem: str = FULL
    names: tuple[str, ...] = TWO.names
    classes: MapClasses = TWO
    augmentation: Augmentation | None = None
    class_weights: tuple[float, ...] | None = None

    auto_class = AutoModelForSemanticSegmentation

    def describe_classes(self, config: Any) -> None:
        """Write the classes into a model's config."""
        config.id2label = dict(enumerate(self.names))
        config.label2id = {name: number for number, name in enumerate(self.names)}

    def encode(self, rows: Dataset, reader: ImageReader, *, max_length: int = 0) -> Dataset:
        """Rows with images and maps as they are stored, and a ``length`` that stands for the work that each is."""
        encoded = super().encode(rows, reader, max_length=max_length)
        return encoded.cast_column("label_map", ImageFeature(decode=False))

    def collator(
        self, reader: ImageReader, teachers: ImageReader | None = None
    ) -> Callable[[Sequence[Mapping[str, Any]]], Batch]:
        """Reads the images and maps of a batch; images for the teachers a second time, by their reader."""
        return MapCollator(reader, self.classes, STRIDE[self.problem], teachers, self.augmentation)

    def targets(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Class numbers [B,H,W], -100 where a pixel is void."""
        return batch.get("labels")

    def masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pixels that aren't void [B,H,W], for labels and outputs alike; rows [B]; and weights, where there are any."""
        labels = batch["labels"]
        known = labels != VOID
        masks = {"labels": known, "outputs": known, "rows": torch.ones_like(known[:, 0, 0])}
        if self.class_weights is None:
            return masks
        weights = torch.tensor(self.class_weights, device=labels.device)[labels.masked_fill(~known, 0)]
        return {**masks, WEIGHTS: weights.masked_fill(~known, 0.0)}

    def outputs(self, known: Knowledge, batch: Mapping[str, Tensor]) -> Knowledge:
        """The same record with logits [B,V,H,W] at the labels' size."""
        if not isinstance(known.logits, Tensor):
            return known
        return replace(known, logits=at_size(known.logits, batch["labels"]))

    def defaults(self) -> Defaults:
        """Cross-entropy and KL, pixel by pixel."""
        return DEFAULTS

    def digest(self, reader: ImageReader) -> str:
        """The reader's, how training images are changed, and which ids are which class."""
        found = super().digest(reader) + repr((self.classes.void, self.classes.palette, self.class_weights))
        return hashlib.sha256(found.encode()).hexdigest()

    def check_rows(self, name: str, model: PreTrainedModel, reader: ImageReader, rows: Mapping[str, Rows]) -> None:
        """Refuse models that can't take the images, or that give no logits a pixel: tried on one."""
        super().check_rows(name, model, reader, rows)
        height, width = reader.size
        blank = torch.zeros(1, 3, height, width, device=model.device, dtype=model.dtype)
        was_training = model.training
        model.eval()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            logits = getattr(model(**inputs_for(model, {"pixel_values": blank})), "logits", None)
        model.train(was_training)
        if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[1] != len(self.names):
            found = None if logits is None else tuple(logits.shape)
            raise ModelError(
                message(
                    f"The {name} gives no logits of every class and pixel",
                    given=f"{type(model).__name__}, logits {found}, {len(self.names)} classes",
                    do="Use a model of AutoModelForSemanticSegmentation, such as SegFormer or UperNet",
                )
            )

    def two_readers(self, reader: ImageReader, teachers: ImageReader, terms: Sequence[str]) -> str:
        """How each of them reads the same images; both have to see the same part of them."""
        if (reader.size, reader.resize) != (teachers.size, teachers.resize):
            raise ModelError(
                message(
                    "Teacher and student of a segmentation read images at different sizes",
                    given=f"student {reader_text(reader)}; teacher {reader_text(teachers)}",
                    follows="Their pixels, and the numbers made from them, couldn't be compared",
                    do="Set data.image_size, such as [512, 512], for both",
                )
            )
        return super().two_readers(reader, teachers, terms)


@dataclass(frozen=True)
class MapCollator:
    """Encoded rows -> a batch: ``pixel_values`` [B,3,H,W]; ``labels`` [B,H/stride,W/stride] (rounded up), void -100;
    and ``teacher_pixel_values``, where they differ.

    Rows with a column ``view`` are changed first, image and map alike, the same for every model.
    """

    reader: ImageReader
    classes: MapClasses
    stride: int = 1
    teachers: ImageReader | None = None
    augmentation: Augmentation | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Decode each image and map once, and read it for every model."""
        shown = [self.shown(row) for row in rows]
        batch = {"pixel_values": torch.stack([self.reader(picture) for picture, _ in shown])}
        if self.teachers is not None:
            batch[f"{TEACHERS}pixel_values"] = torch.stack([self.teachers(picture) for picture, _ in shown])
        batch["labels"] = torch.stack([self._read(numbers) for _, numbers in shown])
        for name in NUMBERS:
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows], dtype=torch.long)
        return batch

    def labels(self, rows: Sequence[Mapping[str, Any]]) -> Int[Tensor, "B H W"]:
        """The labels of rows as they are evaluated, without a look at their images."""
        return torch.stack([self._read(self._numbers(row)) for row in rows])

    def shown(self, row: Mapping[str, Any]) -> tuple[Image.Image | Tensor, Tensor]:
        """The picture of a row and its map [h,w]; of a row with a ``view``, that view."""
        picture, numbers = decoded(row["image"]), self._numbers(row)
        if self.augmentation is None or VIEW not in row:
            return picture, numbers
        seed, epoch, number = row[VIEW]
        seen, moved = self.augmentation.view(as_pixels(picture), numbers, row=number, epoch=epoch, seed=seed)
        assert moved is not None
        return seen, moved

    def _numbers(self, row: Mapping[str, Any]) -> Tensor:
        return torch.from_numpy(self.classes.numbers(row["label_map"]))

    def _read(self, numbers: Tensor) -> Tensor:
        return smaller(self.reader.label_map(numbers), self.stride)


def at_size(logits: Float[Tensor, "B V h w"], labels: Int[Tensor, "B H W"]) -> Float[Tensor, "B V H W"]:
    """Logits at the size of labels, bilinear where they have another; corners aren't aligned, as in SegFormer."""
    size = labels.shape[1:]
    if logits.shape[2:] == size:
        return logits
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def smaller(labels: Int[Tensor, "H W"], stride: int) -> Int[Tensor, "h w"]:
    """Every so many pixels one, the nearest to the middle; sizes are rounded up."""
    if stride == 1:
        return labels
    size = tuple(-(-side // stride) for side in labels.shape)
    return functional.interpolate(labels[None, None].double(), size=size, mode="nearest-exact")[0, 0].long()
