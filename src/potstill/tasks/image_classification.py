"""Image classification: one class an image, several, or a number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageClassification

from potstill.augment.image import VIEW, Augmentation
from potstill.knowledge import TEACHERS
from potstill.tasks.base import Batch
from potstill.tasks.classification import Classification, label_columns
from potstill.tasks.images import ImageReader, ReadsImages
from potstill.tasks.pictures import as_pixels, decoded


@dataclass(frozen=True)
class ImageClassification(ReadsImages, Classification):
    """Args:
    problem: single_label (labels [B], class numbers, or [B,V] where images are mixed), multi_label (labels [B,V], 0 or
        1) or regression (labels [B]).
    names: the classes in the order of the logits; one name for regression.
    augmentation: how the images of rows with a column ``view`` are changed, before any model reads them.
    """

    augmentation: Augmentation | None = None

    auto_class = AutoModelForImageClassification

    def collator(
        self, reader: ImageReader, teachers: ImageReader | None = None
    ) -> Callable[[Sequence[Mapping[str, Any]]], Batch]:
        """Reads the images of a batch; for the teachers a second time, by their reader."""
        return ImageCollator(reader, self.problem, teachers, self.augmentation, len(self.names))

    def masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows with a label [B], rows [B]."""
        pixels = batch["pixel_values"]
        rows = torch.ones(len(pixels), dtype=torch.bool, device=pixels.device)
        return {"labels": self.labelled(batch, rows), "outputs": rows}


@dataclass(frozen=True)
class ImageCollator:
    """Encoded rows -> a batch: ``pixel_values`` [B,3,H,W], labels; and ``teacher_pixel_values``, where they differ.

    Rows with a column ``view`` are changed first, the same for every model; where they are mixed, labels are [B,V].
    """

    reader: ImageReader
    problem: str
    teachers: ImageReader | None = None
    augmentation: Augmentation | None = None
    classes: int = 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Decode each image once, and read it for every model."""
        pictures = [self.shown(row) for row in rows]
        batch = {"pixel_values": torch.stack([self.reader(picture) for picture in pictures])}
        if self.teachers is not None:
            batch[f"{TEACHERS}pixel_values"] = torch.stack([self.teachers(picture) for picture in pictures])
        batch |= label_columns(rows, self.problem)
        if self.augmentation is None or not self.augmentation.mixes or VIEW not in rows[0]:
            return batch
        seed, epoch, _ = rows[0][VIEW]
        numbers = [int(row[VIEW][2]) for row in rows]
        return self.augmentation.mix(batch, self.classes, rows=numbers, epoch=epoch, seed=seed)

    def shown(self, row: Mapping[str, Any]) -> Image.Image | Tensor:
        """The picture of a row; of one with a ``view``, that view."""
        picture = decoded(row["image"])
        if self.augmentation is None or VIEW not in row:
            return picture
        seed, epoch, number = row[VIEW]
        return self.augmentation.view(as_pixels(picture), row=number, epoch=epoch, seed=seed)[0]
