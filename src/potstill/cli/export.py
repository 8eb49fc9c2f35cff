"""`potstill export`: the student of a finished run, or any model's folder, as ONNX and ONNX int8."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model's folder, such as runs/reviews/student.")],
    out: Annotated[Path | None, typer.Option(help="Where to write. Default: MODEL/../export.")] = None,
    formats: Annotated[str, typer.Option(help="Which files, separated by commas: onnx, onnx-int8.")] = "onnx,onnx-int8",
    data: Annotated[
        str | None, typer.Option(help="Images on which the int8 ranges of convolutions are found, such as a folder.")
    ] = None,
) -> None:
    """Write ONNX files of a model, and compare each with the model it was made from."""
    from potstill.shipping import export_folder

    for made in export_folder(
        model, out or model.parent / "export", [name.strip() for name in formats.split(",")], data
    ):
        agreement = "" if made["agreement"] is None else f", {100 * made['agreement']:.1f} % of predictions equal"
        typer.echo(
            f"{made['file']}: {made['bytes'] / 1e6:.1f} MB, "
            f"logits differ by at most {made['max_logit_difference']:.2g}{agreement}"
        )
