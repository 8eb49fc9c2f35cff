"""`potstill evaluate`: a model on data, with intervals, beside a teacher if one is given."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model's folder, such as runs/reviews/student.")],
    data: Annotated[str, typer.Option(help="A packaged sample, a hub id, a folder, or a file.")],
    split: Annotated[str, typer.Option(help="Which split of the data.")] = "test",
    teacher: Annotated[Path | None, typer.Option(help="A model to compare with: agreement, KL, difference.")] = None,
    text: Annotated[str | None, typer.Option(help="The column of the text, where it can't be guessed.")] = None,
    text_pair: Annotated[str | None, typer.Option(help="The column of the second text of a pair.")] = None,
    image: Annotated[str | None, typer.Option(help="The column of the image.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of the label.")] = None,
    label_map: Annotated[str | None, typer.Option(help="The column of the label map, of a segmentation.")] = None,
    void: Annotated[list[int] | None, typer.Option(help="Ids of label maps that mean no class.")] = None,
    max_length: Annotated[int, typer.Option(help="Texts are cut to so many tokens.")] = 128,
) -> None:
    """Evaluate a model on data: metrics with 95 % intervals, calibration, and fidelity to a teacher."""
    from potstill.evaluating import evaluate_folder
    from potstill.progress import Terminal

    terminal = Terminal()
    columns = {"text": text, "text_pair": text_pair, "image": image, "label": label, "label_map": label_map}
    found = evaluate_folder(model, data, split, teacher, columns, max_length, terminal, void)
    for name, value in found:
        terminal.say(f"{name:<28} {value}")
