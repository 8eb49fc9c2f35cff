"""A segmentation's outputs, batch by batch: counts of pixels an image, nearness to a teacher, and maps of a few images.

Logits of every pixel are never kept: of 500 images at 512 x 1024 with 19 classes they are 20 GB. What metrics need of
an image is V x (V + 3) numbers, and what a report shows of it is one map.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.evaluation.predict import CPU_TOKENS, DEVICE_TOKENS, token_batches
from potstill.knowledge import inputs_for, own_columns
from potstill.metrics.segmentation import VOID, pixel_counts
from potstill.tasks.base import Task
from potstill.tasks.semantic_segmentation import MapCollator, at_size

Array = npt.NDArray[Any]
Told = Callable[[int, int, float | None], None] | None
_MAPS = 64  # that are read at once where no model runs


def predict_counts(
    model: PreTrainedModel,
    rows: Any,
    collate: MapCollator,
    *,
    tokens: int | None = None,
    bfloat16: bool = False,
    progress: Told = None,
) -> Array:
    """Counts of pixels [N,V,V+3] of a model, as `metrics.segmentation.pixel_counts` has them, in the order of the rows.

    For the arguments see `predict_logits`.
    """
    found: list[Array] = []
    order: list[Array] = []
    with _evaluated(model), torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
        for chosen, batch in _batches(model, rows, collate, tokens, progress):
            logits = at_size(model(**inputs_for(model, batch)).logits.float(), batch["labels"])
            labels = batch["labels"].cpu().numpy()
            found.append(pixel_counts(logits.argmax(1).cpu().numpy(), labels, logits.shape[1]))
            order.append(chosen)
    counts = np.concatenate(found)
    result = np.empty_like(counts)
    result[np.concatenate(order)] = counts
    return result


def pixel_fidelity(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    rows: Any,
    collate: MapCollator,
    *,
    prefix: str = "",
    progress: Told = None,
) -> dict[str, float]:
    """How near a student is to its teacher over all pixels that aren't void, both run batch by batch.

    Args:
        prefix: of the columns that the teacher reads, where they are its own.

    Returns:
        ``agreement``, the share of pixels with the same answer, and ``kl``, the mean KL(teacher || student) in nats.
    """
    same, divergence, pixels = 0, 0.0, 0
    with _evaluated(student), _evaluated(teacher):
        for _, batch in _batches(student, rows, collate, None, progress):
            known = batch["labels"] != VOID
            theirs = own_columns(batch, prefix)
            logits = [
                at_size(model(**inputs_for(model, given)).logits.float(), batch["labels"]).movedim(1, -1)[known]
                for model, given in ((student, batch), (teacher, theirs))
            ]
            ours, theirs_ = (z.log_softmax(-1) for z in logits)
            same += int((ours.argmax(-1) == theirs_.argmax(-1)).sum())
            divergence += float((theirs_.exp() * (theirs_ - ours)).sum(dtype=torch.float64))
            pixels += int(known.sum())
    return {"agreement": same / max(pixels, 1), "kl": max(0.0, divergence / max(pixels, 1))}


def predicted_maps(model: PreTrainedModel, rows: Any, collate: MapCollator) -> list[Array]:
    """The class of every pixel of a few images, [H,W] uint8 (uint16 of more than 255 classes) at the labels' size."""
    with _evaluated(model):
        found = []
        for _, batch in _batches(model, rows, collate, 1, None):
            logits = at_size(model(**inputs_for(model, batch)).logits.float(), batch["labels"])
            found += list(logits.argmax(1).cpu().numpy().astype(np.uint8 if logits.shape[1] < 256 else np.uint16))
        return found


def true_pixels(rows: Any, task: Task, collate: MapCollator) -> Array:
    """How many pixels of each class an image has, [N,V]: what counts are held against."""
    found = []
    for start in range(0, len(rows), _MAPS):
        labels = collate.labels(rows.select(range(start, min(start + _MAPS, len(rows)))).to_list())
        found += [np.bincount(one[one != VOID].numpy(), minlength=len(task.names)) for one in labels]
    return np.stack(found)


def save_counts(path: Path, counts: dict[str, Array]) -> None:
    """Write the counts of each split to one Parquet file: split, row, counts (flat); V is in the schema."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = {split: list(found.reshape(len(found), -1)) for split, found in counts.items()}
    tables = [
        pa.table({"split": [split] * len(found), "row": np.arange(len(found)), "counts": found})
        for split, found in flat.items()
    ]
    classes = next(iter(counts.values())).shape[1]
    table = pa.concat_tables(tables).replace_schema_metadata({"classes": str(classes)})
    beside = path.with_name(f".{path.name}")
    pq.write_table(table, beside, compression="zstd")
    beside.replace(path)


def load_counts(path: Path) -> dict[str, Array]:
    """The counts of each split, as `save_counts` wrote them."""
    table = pq.read_table(path)
    classes = int((table.schema.metadata or {})[b"classes"])
    splits = np.asarray(table["split"].to_pylist())
    counts = np.stack(table["counts"].to_numpy()).reshape(len(table), classes, -1)
    return {str(split): counts[splits == split] for split in dict.fromkeys(splits.tolist())}


def _batches(
    model: PreTrainedModel, rows: Any, collate: MapCollator, tokens: int | None, progress: Told
) -> Iterator[tuple[Array, dict[str, Tensor]]]:
    """Row numbers and their batch, on the model's device."""
    budget = tokens or (CPU_TOKENS if model.device.type == "cpu" else DEVICE_TOKENS)
    done = 0
    for chosen in token_batches(np.asarray(rows["length"]), budget):
        batch = collate(rows.select(chosen).to_list())
        yield chosen, {name: value.to(model.device) for name, value in batch.items()}
        done += len(chosen)
        if progress is not None:
            progress(done, len(rows), None)


@contextmanager
def _evaluated(model: PreTrainedModel) -> Iterator[None]:
    """In eval mode and without gradients; its mode is put back."""
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        yield
    model.train(was_training)
