"""`potstill predict`: what a model says of texts."""

from pathlib import Path
from typing import Annotated

import typer


def predict(
    student: Annotated[Path, typer.Argument(metavar="STUDENT", help="A model's folder, such as runs/reviews/student.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Texts to classify.")],
    pair: Annotated[list[str] | None, typer.Option(help="The second text of each pair, in the same order.")] = None,
) -> None:
    """Classify texts with a model that potstill left."""
    from potstill.prediction import predict as predict_texts

    for text, answers in zip(texts, predict_texts(student, texts, pair), strict=True):
        said = ", ".join(f"{name} {value:.3f}" for name, value in answers)
        typer.echo(f"{said}\t{text}")
