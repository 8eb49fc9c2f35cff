"""Rows of pictures for the report of a segmentation: image, truth, and what each model says, in the classes' colours.

Decided here: the images are the student's best, middle and worst ones by their own mean IoU, so that a reader sees how
good it gets and where it fails, and not what somebody chose. All are of the evaluated split, by the student that ships
and the models beside it. Maps are shown at the labels' size, at most `LONGEST` pixels a side.
"""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from potstill.evaluation.pixels import predicted_maps
from potstill.evaluation.predict import fastest_device
from potstill.metrics.segmentation import VOID, image_iou
from potstill.tasks.label_maps import Colour
from potstill.tasks.pictures import decoded, thumbnail
from potstill.tasks.semantic_segmentation import SemanticSegmentation
from potstill.workbench import Workbench

Array = npt.NDArray[Any]
EACH = 2
"""So many images of each kind."""
LONGEST = 320
NO_CLASS: Colour = (255, 255, 255)


def sheet(bench: Workbench, models: Mapping[str, Path], counts: Array) -> dict[str, Any]:
    """The pictures of a few images, and what the colours mean.

    Args:
        models: by role, in the order in which they are shown.
        counts: the student's counts of pixels on the evaluated split, [N,V,V+3].

    Returns:
        ``rows``: of each image its ``name``, ``which`` (best, middle, worst), the student's ``iou`` on it, and
        ``pictures``, ``data:`` addresses of image, truth and each role; ``legend``: name and colour of each class, and
        of void where any is.
    """
    task, split = bench.task, bench.evaluated_on
    assert isinstance(task, SemanticSegmentation)
    scores = image_iou(counts, bench.labels(split))
    chosen = best_middle_worst(scores, EACH)
    numbers = [number for number, _ in chosen]
    rows = bench.rows[split].select(numbers)
    labels = task.collator(bench.reader).labels(rows.to_list()).numpy()  # type: ignore[attr-defined]
    said = {"truth": list(labels)}
    for role, path in models.items():
        reads = bench.reads(role)
        model = reads.load(path).model
        model.to(fastest_device())  # type: ignore[arg-type]
        said[role] = predicted_maps(model, reads.rows[split].select(numbers), reads.task.collator(reads.reader))
    colours = task.classes.colours
    names = task.shown(bench.raw[split].select(numbers))
    found = []
    for place, (number, which) in enumerate(chosen):
        pictures = {"image": thumbnail(decoded(rows[place]["image"]), LONGEST)}
        pictures |= {role: coloured(maps[place], colours) for role, maps in said.items()}
        found.append({"name": names[place], "which": which, "iou": float(scores[number]), "pictures": pictures})
    legend = [{"name": name, "colour": _hex(colour)} for name, colour in zip(task.names, colours, strict=True)]
    if (labels == VOID).any():
        legend.append({"name": "void", "colour": _hex(NO_CLASS)})
    return {"rows": found, "legend": legend}


def best_middle_worst(scores: Array, each: int) -> list[tuple[int, str]]:
    """So many numbers of images of each kind with the word for it, best first; none twice, and fewer where there are
    fewer images."""
    order = [int(number) for number in np.argsort(-scores, kind="stable")]
    middle = max(0, (len(order) - each) // 2)
    kinds = (("best", order[:each]), ("middle", order[middle : middle + each]), ("worst", order[-each:]))
    found: dict[int, str] = {}
    for word, numbers in kinds:
        for number in numbers:
            found.setdefault(number, word)
    return list(found.items())


def coloured(numbers: Array, colours: Sequence[Colour]) -> str:
    """A map [H,W] of class numbers (-100 void) in the classes' colours, as a ``data:`` address of a PNG."""
    table = np.asarray([*colours, NO_CLASS], dtype=np.uint8)
    picture = Image.fromarray(table[np.where(numbers == VOID, len(colours), numbers)])
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.NEAREST)
    content = BytesIO()
    picture.quantize(min(256, len(table))).save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _hex(colour: Colour) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in colour)
