"""Semantic segmentation: one class for every pixel of an image.

Decisions:
- Logits are smaller than labels in most models: SegFormer's are a quarter. What they are brought to, for losses and
  metrics alike, is the protocol. ``full``: logits are resized to the labels, bilinearly (pixel centres aligned, not
  corners); losses see the labels at the size that the student reads images at, metrics the label map as it is stored.
  ``quarter``, TransKD's: labels are resized to a quarter of what the student reads, by the nearest pixel, and logits of
  another size to that. Its numbers are higher and mean less; every metric of it says so in its name.
- So the logits of teacher and student, whatever their sizes, have one before a loss sees them.
- Void pixels (-100) are in no loss and no metric. Of a row without a label map nothing is void: its labels teach
  nothing, and its teacher does.
- An image is read whole, resized to one size; one that is cut to a centre would leave pixels of the map unanswered.
- Encoded rows have ``labels`` [V]: how many pixels of each class the metrics see. Counts of predictions are held
  against it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForSemanticSegmentation, PreTrainedConfig, PreTrainedModel

from potstill import losses
from potstill.augment.geometry import nearest
from potstill.augment.image import VIEW, Augmentation
from potstill.checks import problem, unknown_name
from potstill.errors import ArgumentError, ModelError
from potstill.knowledge import TEACHERS, Knowledge, describe
from potstill.knowledge.architectures import ARCHITECTURES
from potstill.metrics import SEGMENTATION, SEGMENTATION_QUARTER
from potstill.tasks.base import Batch, LoadedModel, bars_on_a_terminal, load_classes
from potstill.tasks.images import ImageReader, ReadsImages, reader_text
from potstill.tasks.label_maps import VOID, Ids, MapClasses
from potstill.tasks.pictures import as_pixels, decoded
from potstill.terms import Defaults

Protocol: TypeAlias = Literal["full", "quarter"]
FULL, QUARTER = get_args(Protocol)
UNLABELLED = -101
"""The label of every pixel of an image without a label map."""
STRIDE = 4
ROW = "row"
THREADS = 8

_NOT_SOFTMAX = "every pixel has exactly one class. Use"
_OF_ROWS = [
    name for name in losses.__all__ if getattr(losses, name).__module__.rpartition(".")[2] in ("samples", "contrastive")
]
DEFAULTS = Defaults(
    "cross_entropy",
    "kl_divergence",
    {
        "binary_cross_entropy": f"{_NOT_SOFTMAX} cross_entropy.",
        "binary_kl_divergence": f"{_NOT_SOFTMAX} kl_divergence.",
        "squared_error": "labels are classes, not numbers. Use cross_entropy.",
        **dict.fromkeys(_OF_ROWS, "it compares one vector an image, and these are answers of pixels."),
    },
    maps=True,
)


@dataclass(frozen=True)
class SemanticSegmentation(ReadsImages):
    """Args:
    classes: what the ids of label maps mean, in the order of the logits.
    protocol: at which size logits and labels are compared: ``full`` or ``quarter``.
    class_weights: of each class in the loss of labels, whose mean is then a weighted one; None: all alike.
    augmentation: how the images and label maps of rows with a column ``view`` are changed.

    Raises:
        ArgumentError: another protocol, an augmentation that mixes images, or not one weight a class.
    """

    classes: MapClasses
    protocol: Protocol = "full"
    class_weights: tuple[float, ...] | None = None
    augmentation: Augmentation | None = None

    auto_class = AutoModelForSemanticSegmentation
    of_tokens = False

    def __post_init__(self) -> None:
        if self.protocol not in get_args(Protocol):
            raise ArgumentError(unknown_name("protocol", self.protocol, get_args(Protocol)))
        if self.class_weights is not None and len(self.class_weights) != len(self.names):
            given = f"{len(self.class_weights)} weights, {len(self.names)} classes"
            raise ArgumentError(problem("There is one class weight for each class", given=given))
        if self.augmentation is not None and self.augmentation.mixes:
            raise ArgumentError(
                problem(
                    "Images of a segmentation can't be mixed, since each pixel has one class",
                    given=f"mixup {self.augmentation.mixup}, cutmix {self.augmentation.cutmix}",
                    do="Leave out mixup and cutmix of data.augment",
                )
            )

    @property
    def problem(self) -> str:
        """``segmentation``, or ``segmentation_quarter``: metrics of the two can't be compared."""
        return SEGMENTATION if self.protocol == FULL else SEGMENTATION_QUARTER

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in the order of the logits."""
        return self.classes.names

    def load(
        self,
        path: str | Path | PreTrainedConfig,
        *,
        attention: str | None = None,
        trust_remote_code: bool = False,
        reader: Any = None,
    ) -> LoadedModel:
        """Load a model with this task's classes. A head that the checkpoint doesn't hold is new, and listed as such."""
        return load_classes(self.auto_class, path, self.names, attention=attention, trust_remote_code=trust_remote_code)

    def encode(self, rows: Dataset, reader: ImageReader, *, max_length: int = 0) -> Dataset:
        """Rows with images and maps as they are stored; ``labels`` [V], pixels of each class; ``length``.

        Raises:
            ModelError: the reader cuts images, so that pixels of a map would have no answer.
        """
        require_whole(reader)
        found = super().encode(rows, reader)
        if "label_map" not in found.column_names:
            return found
        found = found.cast_column("label_map", ImageFeature(decode=False))
        with ThreadPoolExecutor(THREADS) as pool:
            counts = list(pool.map(lambda stored: self._pixels(stored, reader).tolist(), _stored_maps(found)))
        with bars_on_a_terminal():
            return found.add_column("labels", counts)

    def _pixels(self, stored: Any, reader: ImageReader) -> Ids:
        """How many pixels of each class the metrics see of a map, [V]; none of an image without one."""
        if stored is None:
            return np.zeros(len(self.names), np.int64)
        truth = self.truth(stored, reader.size)
        return np.bincount(truth[truth != VOID], minlength=len(self.names))

    def truth(self, stored: Any, size: tuple[int, int]) -> Int[np.ndarray, "H W"]:
        """The class numbers that metrics see of a stored map, for images that are read at a size; -100 is void."""
        numbers = self.classes.numbers(stored)
        if self.protocol == FULL:
            return numbers
        read = nearest(torch.from_numpy(numbers), size)
        return np.asarray(nearest(read, quarter(size)).numpy())

    def collator(
        self, reader: ImageReader, teachers: ImageReader | None = None
    ) -> Callable[[Sequence[Mapping[str, Any]]], Batch]:
        """Reads the images and label maps of a batch; images for the teachers a second time, by their reader.

        Raises:
            ModelError: under the quarter protocol, readers of two sizes: there would be two quarters.
        """
        if self.protocol == QUARTER and teachers is not None and teachers.size != reader.size:
            raise ModelError(
                problem(
                    "Under the quarter protocol student and teachers read images at one size",
                    given=f"student {reader_text(reader)}; teacher {reader_text(teachers)}",
                    follows="Each would have other labels at a quarter of it, and their numbers couldn't be compared",
                    do="Set data.image_size, or data.protocol=full",
                )
            )
        return SegmentationCollator(self, reader, teachers)

    def targets(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The class of each pixel at the size of the comparison, [B,H,W]; -100 where there is none."""
        labels = self._compared_labels(batch)
        return None if labels is None else labels.clamp(min=VOID)

    def masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pixels with a label, pixels that aren't void, [B,H,W]; ``rows`` [B] with any such; ``weights`` of labels."""
        labels = self._compared_labels(batch)
        if labels is None:
            pixels = batch["pixel_values"]
            shape = (len(pixels), *self._compared_size((pixels.shape[-2], pixels.shape[-1])))
            labels = torch.full(shape, UNLABELLED, device=pixels.device)
        known, counted = labels >= 0, labels != VOID
        found = {"labels": known, "outputs": counted, "rows": counted.flatten(1).any(1)}
        if self.class_weights is not None:
            weights = torch.tensor(self.class_weights, device=labels.device)
            found["weights"] = torch.where(known, weights[labels.clamp(min=0)], 0.0)
        return found

    def compared(self, known: Knowledge, batch: Mapping[str, Tensor]) -> Knowledge:
        """Logits at the size of the labels."""
        if not isinstance(known.logits, Tensor):
            return known
        pixels = batch["labels"] if "labels" in batch else batch["pixel_values"]
        size = self._compared_size((pixels.shape[-2], pixels.shape[-1]))
        return known.with_logits(resized_logits(known.logits, size))

    def _compared_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size if self.protocol == FULL else quarter(size)

    def _compared_labels(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        labels = batch.get("labels")
        return labels if labels is None or self.protocol == FULL else nearest(labels, quarter(labels.shape[-2:]))

    def defaults(self) -> Defaults:
        """Cross-entropy and KL, pixel by pixel."""
        return DEFAULTS

    def check_model(self, model: PreTrainedModel) -> None:
        """Raise `ModelError` for a family whose stages aren't known: its maps could be compared with nothing."""
        if not describe(model).channels:
            raise ModelError(
                problem(
                    f"The stages of {type(model).__name__} aren't known",
                    given=f"model type '{model.config.model_type}'",
                    do="Use SegFormer, or UperNet with one of "
                    + ", ".join(name for name, row in ARCHITECTURES.items() if row.features is not None),
                )
            )


@dataclass(frozen=True)
class SegmentationCollator:
    """Encoded rows -> a batch: ``pixel_values`` [B,3,H,W]; ``labels`` [B,H,W], where any row has a label map; and
    ``teacher_pixel_values``, where they differ. Rows with a column ``view`` are changed first, map and image alike."""

    task: SemanticSegmentation
    reader: ImageReader
    teachers: ImageReader | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Decode each image and map once, and read the image for every model."""
        shown = [self.shown(row) for row in rows]
        pictures = [picture for picture, _ in shown]
        batch = {"pixel_values": torch.stack([self.reader(picture) for picture in pictures])}
        if self.teachers is not None:
            batch[f"{TEACHERS}pixel_values"] = torch.stack([self.teachers(picture) for picture in pictures])
        if any(numbers is not None for _, numbers in shown):
            nothing = torch.full(self.reader.size, UNLABELLED)
            read = [nothing if numbers is None else nearest(numbers, self.reader.size) for _, numbers in shown]
            batch["labels"] = torch.stack(read)
        if ROW in rows[0]:
            batch[ROW] = torch.tensor([row[ROW] for row in rows])
        return batch

    def shown(self, row: Mapping[str, Any]) -> tuple[Image.Image | Tensor, Tensor | None]:
        """The picture of a row and its class numbers [h,w], both of its view, if it has one."""
        picture, stored = decoded(row["image"]), row.get("label_map")
        numbers = None if stored is None else torch.from_numpy(self.task.classes.numbers(stored))
        if self.task.augmentation is None or VIEW not in row:
            return picture, numbers
        seed, epoch, number = row[VIEW]
        return self.task.augmentation.view(as_pixels(picture), numbers, row=number, epoch=epoch, seed=seed)


def require_whole(reader: ImageReader) -> None:
    """Raise `ModelError` where a reader cuts images, so that pixels of them would have no answer."""
    if reader.resize != reader.size:
        raise ModelError(
            problem(
                "Images of a segmentation are read whole, at one size; this image processor reads them otherwise",
                given=reader_text(reader),
                follows="Pixels of the label map would have no answer",
                do="Set data.image_size, such as [512, 1024]",
            )
        )


def quarter(size: Sequence[int]) -> tuple[int, int]:
    """A quarter of a height and width, rounded up, as a convolution of stride 4 gives it."""
    return -(-size[0] // STRIDE), -(-size[1] // STRIDE)


def resized_logits(logits: Float[Tensor, "B V h w"], size: Sequence[int]) -> Float[Tensor, "B V H W"]:
    """Logits at another size, bilinearly, pixel centres aligned; as they are where they have it."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return functional.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def _stored_maps(rows: Dataset) -> Iterator[Any]:
    for batch in rows.select_columns(["label_map"]).with_format("arrow").iter(64):
        yield from batch.column("label_map").to_pylist()
