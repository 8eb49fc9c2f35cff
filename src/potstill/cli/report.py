"""`potstill report`: the report of a finished run, made anew from its results.json."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run or comparison.")],
) -> None:
    """Write report.html and report.md again from results.json, and print the verdict; a comparison's likewise."""
    from rich.console import Console

    if (run / "comparison.json").exists():
        return _comparison(run)
    from potstill.cli.summary import print_summary
    from potstill.report import write_report
    from potstill.results import finished_results

    results = finished_results(run)
    html, markdown = write_report(results, run)
    console = Console()
    print_summary(results, console)
    console.print(f"\n{html}\n{markdown}", highlight=False, markup=False, soft_wrap=True)


def _comparison(folder: Path) -> None:
    """The report of a comparison, from its comparison.json."""
    import json

    from rich.console import Console

    from potstill.cli.compare import print_comparison
    from potstill.report import write_comparison

    results = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    html, markdown = write_comparison(results, folder)
    console = Console()
    print_comparison(results, console)
    console.print(f"\n{html}\n{markdown}", highlight=False, markup=False, soft_wrap=True)
