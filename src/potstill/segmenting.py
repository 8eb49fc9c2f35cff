"""What a run measures of segmentation models beyond their metrics: how near they are to the teacher, pixel by pixel,
and the images that its report shows.

Decisions:
- Images are picked by the mean IoU, on that image alone, of the student that ships: the best, those around the median,
  and the worst. So nobody picks them by hand. Images without a pixel that counts are left out.
- Maps are drawn in the colours of the classes, at the size of the metrics; void in PASCAL VOC's cream, since black is a
  class in many palettes. Then they are made small by the nearest pixel, so that no colour is mixed.
"""

import base64
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from potstill.evaluation.predict import fastest_device
from potstill.evaluation.segmentation import pixel_fidelity, predicted_maps
from potstill.metrics import Array
from potstill.metrics.segmentation import VOID, image_iou
from potstill.progress import Step
from potstill.tasks import MapClasses, SemanticSegmentation
from potstill.tasks.pictures import as_rgb, decoded
from potstill.workbench import Workbench

GROUPS = ("best", "middle", "worst")
OF_A_GROUP = 3
VOID_COLOUR = (224, 224, 192)
LONGEST = 320
"""Pixels of the longer side of an image in the report."""


def measure_fidelity(bench: Workbench, model: Path, teacher: Path, step: Step) -> dict[str, float]:
    """Agreement and KL of a model to the teacher over the pixels of the evaluated split.

    `bench` is as the model reads; a teacher with another reader reads the same rows by that.
    """
    device = fastest_device()
    ours, theirs = bench.load(model).model, bench.for_teacher.load(teacher).model
    for one in (ours, theirs):
        one.to(device)  # type: ignore[arg-type]
    return pixel_fidelity(ours, theirs, bench.rows[bench.evaluated_on], bench.collate, progress=step)  # type: ignore[arg-type]


def picked(iou: Array, counted: Array, of_a_group: int = OF_A_GROUP) -> dict[str, list[int]]:
    """Numbers of images, best first, by group; no image stands in two.

    Args:
        iou: of each image, [N].
        counted: whether it has a pixel that counts, [N].
        of_a_group: how many at most; fewer where there are fewer than three times as many.
    """
    order = [int(number) for number in np.argsort(-iou, kind="stable") if counted[number]]
    if not order:
        return {}
    each = max(1, min(of_a_group, len(order) // len(GROUPS)))
    middle = (len(order) - each) // 2
    parts = {"best": order[:each], "middle": order[middle : middle + each], "worst": order[-each:]}
    seen: set[int] = set()
    found = {}
    for group in GROUPS:
        found[group] = [number for number in parts[group] if number not in seen]
        seen |= set(found[group])
    return {group: numbers for group, numbers in found.items() if numbers}


def shown_images(
    bench: Workbench, models: Mapping[str, Path], counts: Mapping[str, Array], step: Step
) -> dict[str, Any]:
    """The images of the report with the truth and what each model sees in them; the legend; the rule they go by.

    Args:
        models: by role; the student that ships is called ``student``.
        counts: of pixels, on the evaluated split, by role, [N,V,V+3].
    """
    assert isinstance(bench.task, SemanticSegmentation)
    task, split, labels = bench.task, bench.evaluated_on, bench.labels(bench.evaluated_on)
    iou = {role: image_iou(found, labels) for role, found in counts.items()}
    groups = picked(iou["student"], labels.sum(axis=1) > 0)
    numbers = [number for group in groups.values() for number in group]
    said: dict[str, list[Array]] = {}
    for done, (role, path) in enumerate(models.items()):
        step(done, len(models), None)
        own = bench.reads(role)
        said[role] = predicted_maps(own.load(path).model, own.rows[split].select(numbers), own.collate)  # type: ignore[arg-type]
    rows, names = bench.rows[split].select(numbers), task.shown(bench.raw[split].select(numbers))
    items: dict[int, dict[str, Any]] = {}
    for place, number in enumerate(numbers):
        row: Mapping[str, Any] = rows[place]
        truth = task.truth(row["label_map"], bench.reader.size)
        items[number] = {
            "name": names[place],
            "image": _address(as_rgb(decoded(row["image"])), Image.Resampling.BILINEAR, "JPEG"),
            "truth": painted(truth, task.classes),
            "models": {
                role: {"map": painted(maps[place], task.classes), "iou": float(iou[role][number])}
                for role, maps in said.items()
            },
        }
    return {
        "legend": [{"name": n, "colour": list(c)} for n, c in zip(task.names, task.classes.colours, strict=True)],
        "void": list(VOID_COLOUR) if task.classes.void else None,
        "groups": [{"key": key, "items": [items[number] for number in group]} for key, group in groups.items()],
        "of": int((labels.sum(axis=1) > 0).sum()),
    }


def coloured(numbers: Array, classes: MapClasses) -> Image.Image:
    """Class numbers [H,W] in the colours of the classes, with a palette where 256 colours do."""
    palette = [*classes.colours, VOID_COLOUR]
    placed = np.where(numbers == VOID, len(classes.colours), numbers)
    if len(palette) > 256:
        return Image.fromarray(np.array(palette, dtype=np.uint8)[placed])
    picture = Image.fromarray(placed.astype(np.uint8))
    picture.putpalette([channel for colour in palette for channel in colour])
    return picture


def painted(numbers: Array, classes: MapClasses) -> str:
    """`coloured`, as a ``data:`` address of a PNG."""
    return _address(coloured(numbers, classes), Image.Resampling.NEAREST, "PNG")


def _address(picture: Image.Image, resample: Image.Resampling, form: str) -> str:
    """A picture, small, as a ``data:`` address."""
    share = LONGEST / max(picture.size)
    if share < 1:
        size = max(1, round(share * picture.width)), max(1, round(share * picture.height))
        picture = picture.resize(size, resample)
    content = BytesIO()
    picture.save(content, form, quality=85, optimize=True)
    return f"data:image/{form.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
