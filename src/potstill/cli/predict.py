"""`potstill predict`: what a model says of texts or images."""

from pathlib import Path
from typing import Annotated

import typer


def predict(
    student: Annotated[Path, typer.Argument(metavar="STUDENT", help="A model's folder, such as runs/reviews/student.")],
    rows: Annotated[list[str], typer.Argument(metavar="TEXT|IMAGE...", help="Texts, or files of images, to classify.")],
    maps: Annotated[Path | None, typer.Option(help="A folder for the label maps that a segmentation gives.")] = None,
    pair: Annotated[list[str] | None, typer.Option(help="The second text of each pair, in the same order.")] = None,
) -> None:
    """Classify texts, images or, of a segmentation, the pixels of images with a model that potstill left."""
    from potstill.prediction import predict as predict_rows

    for row, answers in zip(rows, predict_rows(student, rows, pair, maps), strict=True):
        said = ", ".join(f"{name} {value:.3f}" for name, value in answers)
        typer.echo(f"{said}\t{row}")
