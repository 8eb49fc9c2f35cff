"""Image classification: one class an image, several, or a number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageClassification

from potstill.knowledge import TEACHERS
from potstill.tasks.base import Batch
from potstill.tasks.classification import Classification, label_columns
from potstill.tasks.images import ImageReader, ReadsImages
from potstill.tasks.pictures import decoded


@dataclass(frozen=True)
class ImageClassification(ReadsImages, Classification):
    """Args:
    problem: single_label (labels [B], class numbers, or [B,V] where images are mixed), multi_label (labels [B,V], 0 or
        1) or regression (labels [B]).
    names: the classes in the order of the logits; one name for regression.
    """

    auto_class = AutoModelForImageClassification

    def collator(
        self, reader: ImageReader, teachers: ImageReader | None = None
    ) -> Callable[[Sequence[Mapping[str, Any]]], Batch]:
        """Reads the images of a batch; for the teachers a second time, by their reader."""
        return ImageCollator(reader, self.problem, teachers)

    def masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows with a label [B], rows [B]."""
        pixels = batch["pixel_values"]
        rows = torch.ones(len(pixels), dtype=torch.bool, device=pixels.device)
        return {"labels": self.labelled(batch, rows), "outputs": rows}


@dataclass(frozen=True)
class ImageCollator:
    """Encoded rows -> a batch: ``pixel_values`` [B,3,H,W], labels; and ``teacher_pixel_values``, where they differ."""

    reader: ImageReader
    problem: str
    teachers: ImageReader | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Decode each image once, and read it for every model."""
        pictures = [decoded(row["image"]) for row in rows]
        batch = {"pixel_values": torch.stack([self.reader(picture) for picture in pictures])}
        if self.teachers is not None:
            batch[f"{TEACHERS}pixel_values"] = torch.stack([self.teachers(picture) for picture in pictures])
        return batch | label_columns(rows, self.problem)
