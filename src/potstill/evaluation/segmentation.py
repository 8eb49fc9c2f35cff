"""Segmentation models over images: counts of pixels for metrics, agreement with a teacher, a few predicted maps.

Decisions:
- Logits of all pixels are never kept. Each batch is counted (`metrics.segmentation.pixel_counts`), and what stays is
  V x (V + 3) numbers an image.
- Under the full protocol logits are resized to each label map as it is stored, one image at a time: only one image's
  logits are ever at full size.
- How near a model is to its teacher is found by running both on the same batches, at the size that losses compare them
  at, void pixels aside.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.evaluation.predict import Step, logits_of_batches
from potstill.knowledge import TEACHERS, Knowledge, inputs_for, own_columns
from potstill.metrics import Array
from potstill.metrics.segmentation import BANDS, pixel_counts
from potstill.tasks.semantic_segmentation import SegmentationCollator, resized_logits

DEVICE_PATCHES = 8192
"""Of 16 x 16 pixels, in a batch on an accelerator: a SegFormer-B2 takes 4 GB for them."""


def predict_counts(
    model: PreTrainedModel,
    rows: Any,
    collate: SegmentationCollator,
    *,
    tokens: int | None = None,
    bfloat16: bool = False,
    edges: bool = True,
    progress: Step | None = None,
) -> Array:
    """Counts of pixels [N,V,V+3] of a model's predictions, in the order of the rows.

    Args:
        model: used where it is, in eval mode; its mode is put back.
        rows: encoded rows with the columns ``label_map`` and ``length``.
        collate: reads images, and knows protocol and classes.
        tokens: of a batch, in patches of 16 x 16 pixels; None: as suits the model's device.
        bfloat16: under autocast, for a quick look while training; a final number is float32.
        edges: whether bands along edges are counted too, as in `pixel_counts`.
        progress: called with (rows done, rows, None).
    """
    classes = len(collate.task.names)
    found = np.zeros((len(rows), classes, classes + BANDS), dtype=np.int32)
    for numbers, chosen, _, logits in _over(model, rows, _images(collate), tokens, bfloat16):
        for number, row, own in zip(numbers, chosen, logits, strict=True):
            found[number] = _counts(own, row, collate, edges=edges)
        if progress is not None:
            progress(int(numbers[-1]) + 1, len(rows), None)
    return found


def _counts(logits: Tensor, row: Mapping[str, Any], collate: SegmentationCollator, *, edges: bool = True) -> Array:
    """Counts of pixels [V,V+3] of one image by its logits [V,h,w], against its label map."""
    truth = collate.task.truth(row["label_map"], collate.reader.size)
    said = predicted_map(logits, truth.shape)
    counts: Array = pixel_counts(said[None], truth[None], len(collate.task.names), edges=edges)[0]
    return counts


def _over(
    model: PreTrainedModel, rows: Any, collate: Any, tokens: int | None = None, bfloat16: bool = False
) -> Iterator[Any]:
    """`logits_of_batches`, on a device in smaller ones: a patch holds more in maps than a token in a text."""
    if tokens is None and model.device.type != "cpu":
        tokens = DEVICE_PATCHES
    return logits_of_batches(model, rows, collate, tokens=tokens, bfloat16=bfloat16)


def _images(collate: SegmentationCollator) -> Callable[[Sequence[Any]], dict[str, Tensor]]:
    """Collates images without their label maps, which are read once, where they are counted."""
    return lambda rows: collate([{name: value for name, value in row.items() if name != "label_map"} for row in rows])


def predicted_map(logits: Tensor, size: tuple[int, ...]) -> Array:
    """The class of each pixel at a size, [H,W], from logits [V,h,w]."""
    resized = resized_logits(logits.unsqueeze(0).float(), size)[0]
    return np.asarray(resized.max(0).indices.cpu().numpy())  # on a CPU argmax takes four times as long


def predicted_maps(model: PreTrainedModel, rows: Any, collate: SegmentationCollator) -> list[Array]:
    """What a model sees in each of a few rows, [H,W] each, at the size of the metrics."""
    found: dict[int, Array] = {}
    for numbers, chosen, _, logits in _over(model, rows, _images(collate)):
        for number, row, own in zip(numbers, chosen, logits, strict=True):
            found[int(number)] = predicted_map(own, collate.task.truth(row["label_map"], collate.reader.size).shape)
    return [found[number] for number in range(len(rows))]


def pixel_fidelity(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    rows: Any,
    collate: SegmentationCollator,
    *,
    progress: Step | None = None,
) -> dict[str, float]:
    """How near a student is to its teacher: ``agreement``, the share of pixels in which both predict the same, and
    ``kl``, the mean over pixels of KL(teacher || student) at temperature 1, in nats; void pixels aside.

    `collate` reads images for the teacher too, where its reader is another; both models are on one device.
    """
    same, divergence, pixels, done = 0, 0.0, 0, 0
    for numbers, _, batch, logits in _over(student, rows, collate):
        with torch.inference_mode():
            theirs = teacher(**inputs_for(teacher, own_columns(batch, TEACHERS))).logits
        mask = collate.task.masks(batch)["outputs"]
        log_s, log_t = (_log_probabilities(one, collate, batch)[mask] for one in (logits, theirs))
        same += int((log_s.argmax(-1) == log_t.argmax(-1)).sum())
        divergence += float((log_t.exp() * (log_t - log_s)).sum(-1, dtype=torch.float64).sum())
        pixels, done = pixels + int(mask.sum()), done + len(numbers)
        if progress is not None:
            progress(done, len(rows), None)
    return {"agreement": same / max(1, pixels), "kl": max(0.0, divergence / max(1, pixels))}


@dataclass(frozen=True)
class Beside:
    """Another form of a model, such as an exported file, beside the model itself: counts of its predictions [N,V,V+3],
    the largest difference of a logit (NaN where one is not a number), the share of logits' places that agree."""

    counts: Array
    max_logit_difference: float
    agreement: float


def beside(
    runner: Callable[[Mapping[str, Any]], Any], model: PreTrainedModel, rows: Any, collate: SegmentationCollator
) -> Beside:
    """Run another form of a model over the same batches, and compare it with the model at the size of its logits.

    Args:
        runner: a function of a batch that gives logits [B,V,h,w].
        model: on the CPU.
        rows, collate: as in `predict_counts`.
    """
    classes = len(collate.task.names)
    counts = np.zeros((len(rows), classes, classes + BANDS), dtype=np.int32)
    largest, same, places = 0.0, 0, 0
    for numbers, chosen, batch, logits in _over(model, rows, _images(collate)):
        theirs = torch.as_tensor(np.asarray(runner(batch)))
        largest = max(largest, float((theirs - logits).abs().max())) if theirs.isfinite().all() else math.nan
        same += int((theirs.argmax(1) == logits.argmax(1)).sum())
        places += logits.argmax(1).numel()
        for number, row, own in zip(numbers, chosen, theirs, strict=True):
            counts[number] = _counts(own, row, collate)
        if math.isnan(largest):
            break
    return Beside(counts, largest, same / max(1, places))


def _log_probabilities(logits: Tensor, collate: SegmentationCollator, batch: Mapping[str, Tensor]) -> Tensor:
    """[B,H,W,V] at the size of the comparison."""
    placed = collate.task.compared(Knowledge(logits=logits.float()), batch).logits
    assert isinstance(placed, Tensor)
    return placed.movedim(1, -1).log_softmax(-1)
