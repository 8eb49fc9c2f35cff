"""`potstill cache`: what teachers know, kept on disk; and a look at what is kept."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from potstill.cli.launchers import require_together
from potstill.cli.run import Overrides, Recipe

if TYPE_CHECKING:
    from potstill.cache import Cache


class _RecipeFirst(TyperGroup):
    """A group whose first argument may be a recipe: what is no command is given to ``write``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["write", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_RecipeFirst,
    help="Keep what teachers know on disk: potstill cache RECIPE, or look at what is kept.",
    no_args_is_help=True,
    subcommand_metavar="RECIPE | COMMAND [ARGS]...",
)
TOGETHER = ("write",)  # what several processes may do together
Place = Annotated[Path, typer.Argument(help="A run folder, a folder of caches, or one cache.")]


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    try:
        return int(number), int(count)
    except ValueError:
        raise typer.BadParameter("give it as 1/4: the first of four parts") from None


@app.callback()
def _options(context: typer.Context) -> None:
    require_together(context, TOGETHER)


@app.command()
def write(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/<recipe>.")] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Redo in the run folder what a changed recipe concerns.")
    ] = False,
    part: Annotated[str, typer.Option(help="Which part of the rows is kept here, such as 1/4.")] = "1/1",
) -> None:
    """Keep what a recipe asks of its teachers; the same as potstill cache RECIPE.

    Stopped work goes on: give the same command again. Runs of the recipe read from there. A launcher may start several
    processes for it (torchrun); each writes its share.
    """
    from potstill.cache import open_cache
    from potstill.pipeline import cache
    from potstill.progress import Terminal

    terminal = Terminal()
    share = _part(part)
    found = cache(recipe, out, overrides=overrides or (), update=update, part=share, progress=terminal)
    if int(os.environ.get("RANK", "0")) > 0:
        return  # the first process speaks
    for name, record in found.items():
        terminal.say(f"\n{name}: {record['written_rows']:,} rows in {record['written_seconds']:.1f} s")
        for line in _lines(open_cache(Path(record["folder"]))):
            terminal.say(line)


@app.command()
def info(place: Place) -> None:
    """Say what is kept, how large it is, and how near it comes to what was observed."""
    for cache in _caches(place):
        for line in _lines(cache):
            typer.echo(line)


@app.command()
def verify(place: Place) -> None:
    """Compare every shard with its checksum; exit code 1 where one is damaged."""
    damaged = 0
    for cache in _caches(place):
        for path in cache.damaged:
            typer.echo(f"damaged: {path}")
        damaged += len(cache.damaged)
        typer.echo(f"{cache.folder}: {cache.rows:,} rows in {_shards(cache)}, as they were written")
    if damaged:
        typer.echo("The rows of damaged shards are written again by the next run, or by potstill cache RECIPE.")
        raise typer.Exit(1)


@app.command()
def prune(
    place: Place,
    everything: Annotated[bool, typer.Option("--all", help="Remove the caches themselves too.")] = False,
) -> None:
    """Remove what nothing reads: damaged shards, and what stopped processes left; with --all everything."""
    import shutil

    freed = 0
    for folder in _folders(place) if everything else ():  # those too of another format
        freed += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        shutil.rmtree(folder)
        typer.echo(f"removed {folder}")
    for cache in () if everything else _caches(place):
        for path in [*cache.damaged, *cache.leftovers()]:
            freed += path.stat().st_size
            path.unlink()
            typer.echo(f"removed {path}")
    typer.echo(f"{freed / 1e6:.1f} MB freed")


def _caches(place: Path) -> "list[Cache]":
    """The caches of a place, opened."""
    from potstill.cache import open_cache

    return [open_cache(folder) for folder in _folders(place)]


def _folders(place: Path) -> list[Path]:
    """The folders of the caches of a place. Raises `CacheError` where there is none."""
    from potstill.cache import caches
    from potstill.checks import problem
    from potstill.errors import CacheError

    found = caches(place) or caches(place / "cache")
    if not found:
        raise CacheError(problem(f"{place} holds no cache", do="Give a run folder, or the folder of a cache"))
    return found


def _shards(cache: "Cache") -> str:
    return f"{len(cache.shards):,} shard{'s' * (len(cache.shards) != 1)}"


def _lines(cache: "Cache") -> list[str]:
    """What there is to say of a cache."""
    kept = cache.identity.storage
    each = f", {cache.bytes / cache.tokens:,.1f} B a token" if cache.tokens else ""
    lines = [
        f"{cache.folder}",
        f"  rows       {cache.rows:,}, {cache.tokens:,} tokens, in {_shards(cache)}"
        + (f"; {len(cache.damaged)} damaged" if cache.damaged else ""),
        f"  size       {cache.bytes / 1e6:,.1f} MB{each}",
        f"  teacher    {cache.shape.family}, {cache.shape.layers} layers of width {cache.shape.width}, "
        f"weights {cache.identity.teacher[:12]}, in {cache.identity.runs_in}",
        f"  kept in    {kept.precision}" + (f", the {kept.top_k} likeliest classes" if kept.top_k else ""),
        f"  holds      {', '.join(column.name for column in cache.columns)}",
    ]
    return lines + [f"  fidelity   {line}" for line in _fidelity(cache.fidelity)]


def _fidelity(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["not measured"]
    lines = []
    for name, lost in found["columns"].items():
        if "kl" in lost:
            lines.append(
                f"{name}: KL {lost['kl']:.2g} nats, first choice kept {100 * lost['agreement']:.1f} %, "
                f"mass {lost['mass']:.4f}"
            )
    errors = {name: lost["relative_error"] for name, lost in found["columns"].items() if "relative_error" in lost}
    if errors:
        worst = max(errors, key=lambda name: errors[name])
        lines.append(f"largest relative error {errors[worst]:.2g}, of {worst}")
    return lines
