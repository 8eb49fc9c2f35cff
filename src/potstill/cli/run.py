"""`potstill run`: a recipe from start to end, or from where it was stopped."""

import os
from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A packaged recipe's name, or a path to a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, such as evaluate.seeds=3.")
]


def run(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/<recipe>.")] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Redo in the run folder what a changed recipe concerns.")
    ] = False,
) -> None:
    """Teacher, student, distillation, comparison, export and report, by one recipe.

    Stopped work goes on: give the same command again. A launcher may start several processes for it (torchrun).
    """
    from potstill.cli.summary import print_summary
    from potstill.pipeline import run as run_recipe
    from potstill.progress import Terminal

    terminal = Terminal()
    outcome = run_recipe(recipe, out, overrides=overrides or (), update=update, progress=terminal)
    if int(os.environ.get("RANK", "0")) > 0:
        return  # the first process speaks
    print_summary(outcome.results, terminal.console)
    terminal.say(f"\nstudent: {outcome.student}\nreport:  {outcome.report}")
