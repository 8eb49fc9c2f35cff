"""What the models of a finished comparison see, side by side: a picture for the docs.

    python benchmarks/pictures.py runs/compare-street docs/street.png --variants kd,transkd_base

Columns are the image, the truth, the teacher and each variant's student of the first seed; rows the teacher's best,
middle and worst image, by its mean IoU on that image alone, so that nobody picks them. The colours of the classes stand
below.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from potstill.evaluation.predict import load_predictions
from potstill.evaluation.segmentation import predicted_maps
from potstill.metrics.segmentation import image_iou
from potstill.progress import Terminal
from potstill.recipe import load_recipe
from potstill.segmenting import VOID_COLOUR, coloured, picked
from potstill.tasks import MapClasses
from potstill.tasks.pictures import as_rgb, decoded
from potstill.workbench import prepare_workbench

WIDTH, GAP, LINE = 240, 6, 18
FONT = ImageFont.load_default(13)


def sheet(heads: Sequence[str], rows: Sequence[Sequence[Image.Image]], classes: MapClasses) -> Image.Image:
    """Rows of pictures under their heads, with the legend below."""
    height = round(WIDTH * rows[0][0].height / rows[0][0].width)
    whole = (len(heads) * (WIDTH + GAP) + GAP, LINE + len(rows) * (height + GAP) + 2 * LINE)
    made = Image.new("RGB", whole, "white")
    draw = ImageDraw.Draw(made)
    for column, head in enumerate(heads):
        left = GAP + column * (WIDTH + GAP)
        draw.text((left, 1), head, "black", FONT)
        for number, row in enumerate(rows):
            small = row[column].resize(
                (WIDTH, height), Image.Resampling.NEAREST if column else Image.Resampling.BILINEAR
            )
            made.paste(small, (left, LINE + number * (height + GAP)))
    left, top = GAP, whole[1] - LINE - GAP
    for name, colour in zip((*classes.names, "void"), (*classes.colours, VOID_COLOUR), strict=True):
        draw.rectangle((left, top, left + 12, top + 12), colour, "grey")
        draw.text((left + 17, top - 1), name, "black", FONT)
        left += 17 + round(draw.textlength(name, FONT)) + 14
    return made


def main() -> None:
    """Draw the sheet of a comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--variants", help="keys of cells, with commas between them; all where it is left out")
    given = parser.parse_args()
    found = json.loads((given.folder / "comparison.json").read_text(encoding="utf-8"))
    asked = given.variants.split(",") if given.variants else [cell["key"] for cell in found["cells"]]
    cells = {cell["key"]: cell for cell in found["cells"] if cell["key"] in asked}
    first = given.folder / found["cells"][0]["folder"]
    bench = prepare_workbench(load_recipe(first / "recipe.yaml"), Terminal().say)
    rows, labels = bench.rows[bench.evaluated_on], bench.labels(bench.evaluated_on)
    counts = load_predictions(next((first / "predictions").glob("teacher-*.parquet")))[bench.evaluated_on]
    groups = picked(image_iou(counts, labels), labels.sum(axis=1) > 0, 1)
    chosen = rows.select([number for group in groups.values() for number in group])
    models = {"teacher": first / "teacher"}
    models |= {
        one["title"]: given.folder / one["folder"] / f"seeds/{one['seeds'][0]}/student" for one in cells.values()
    }
    seen = [predicted_maps(bench.load(path).model, chosen, bench.collate) for path in models.values()]
    drawn = []
    for number, row in enumerate(chosen):
        truth = bench.task.truth(row["label_map"], bench.reader.size)
        maps = [coloured(one, bench.task.classes).convert("RGB") for one in (truth, *(one[number] for one in seen))]
        drawn.append([as_rgb(decoded(row["image"])), *maps])
    sheet(["image", "truth", *models], drawn, bench.task.classes).save(given.out, optimize=True)
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
