"""The command line. A command is a function in a file of its own, and imports inside it: `--help` is instant."""

import sys
from typing import Annotated

import typer

from potstill import __version__
from potstill.cli import cache, compare, evaluate, export, plan, predict, recipes, report, run, samples, search
from potstill.cli.launchers import require_together
from potstill.errors import PotstillError, RankError

INTERRUPTED = 130
TOGETHER = ("run", "cache")  # the commands that several processes may do together

app = typer.Typer(
    name="potstill",
    help="Knowledge distillation for transformers: from a teacher to a small model that ships, with the evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run.run)
app.command()(plan.plan)
app.command()(compare.compare)
app.command()(search.search)
app.add_typer(cache.app, name="cache")
app.command()(predict.predict)
app.command()(evaluate.evaluate)
app.command()(export.export)
app.command()(report.report)
app.add_typer(recipes.app, name="recipes")
app.command()(samples.samples)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"potstill {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    require_together(context, TOGETHER)


def main() -> None:
    """Run the command line: exit code 1 and a message for what is wrong, 130 when interrupted."""
    try:
        app()
    except PotstillError as error:
        said = isinstance(error, RankError) and error.said  # by the process that failed
        for line in () if said else str(error).splitlines():
            typer.secho(f"error: {line}", fg="red", err=True)
        sys.exit(1)
    except SystemExit as done:
        if done.code == INTERRUPTED:  # typer has made this of a KeyboardInterrupt
            typer.echo("\nstopped. The same command goes on from the last checkpoint.", err=True)
        raise
