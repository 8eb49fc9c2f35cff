"""`potstill recipes`: the recipes that ship with potstill."""

import itertools
import re
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="List, show or copy the recipes that ship with potstill.", invoke_without_command=True)
Name = Annotated[str, typer.Argument(help="A packaged recipe's name.")]


def _path(name: str) -> Path:
    from potstill.checks import unknown_name
    from potstill.errors import RecipeError
    from potstill.recipe import packaged_recipes

    known = packaged_recipes()
    if name not in known:
        raise RecipeError(unknown_name("recipe", name, known))
    return known[name]


@app.callback()
def _default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_recipes()


@app.command("list")
def list_recipes() -> None:
    """Every packaged recipe, with the first sentence of what it says of itself."""
    from potstill.recipe import packaged_recipes

    for name, path in packaged_recipes().items():
        lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
        says = " ".join(line.removeprefix("#").strip() for line in lines)
        typer.echo(f"{name}  {re.split(r'(?<=[.]) (?=[A-Z])', says)[0]}")


@app.command()
def show(name: Name) -> None:
    """Print a recipe."""
    typer.echo(_path(name).read_text(encoding="utf-8").rstrip())


@app.command()
def copy(name: Name, to: Annotated[Path | None, typer.Argument(help="Default: ./<name>.yaml")] = None) -> None:
    """Copy a recipe, to change it."""
    from potstill.checks import problem
    from potstill.errors import RecipeError

    source = _path(name)
    goal = to or Path(source.name)
    if goal.is_dir():
        goal = goal / source.name
    if goal.exists():
        raise RecipeError(problem(f"{goal} is there already", do="Give another name"))
    goal.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    typer.echo(f"{goal}")
