"""`potstill search`: the best temperature, weights and maps within a budget."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli.run import Overrides, Recipe

if TYPE_CHECKING:
    from rich.console import Console


def search(
    recipe: Recipe,
    overrides: Overrides = None,
    space: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=LOW..HIGH",
            help="What may be chosen: a range such as distill.0.terms.0.temperature=1..8:log (or :int), or a list such "
            "as distill.0.terms.1.layers=uniform,last.",
        ),
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Trials in all, those of an earlier call among them.")] = 20,
    hours: Annotated[float | None, typer.Option(min=0, help="Begin no further trial after so many hours.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Training runs of each trial. Default: the recipe's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder. Default: runs/search-<recipe>.")] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Take a folder in which another recipe was searched.")
    ] = False,
) -> None:
    """Look for a recipe's best values within a budget, on the validation rows alone.

    Stopped work goes on: give the same command again. A larger budget adds trials.
    """
    from potstill.progress import Terminal
    from potstill.searching import search as search_recipe

    changes = [*(overrides or ()), *([f"evaluate.seeds={seeds}"] if seeds is not None else [])]
    terminal = Terminal()
    outcome = search_recipe(
        recipe, space or [], out, overrides=changes, trials=budget, hours=hours, update=update, progress=terminal
    )
    print_trials(outcome.results, terminal.console)
    terminal.say(f"\nThe test rows were not looked at. To train the best and evaluate it:\npotstill run {outcome.best}")


def print_trials(results: Mapping[str, Any], console: "Console") -> None:
    """Print the trials, the best first."""
    from rich.table import Table

    metric = results["metric"]
    scale, digits = (100, 2) if metric["percent"] else (1, 4)
    keys = list(results["space"])
    short = [key.rpartition(".")[2] for key in keys]
    names = [name if short.count(name) == 1 else key for key, name in zip(keys, short, strict=True)]
    table = Table(box=None, pad_edge=False)
    quality = f"{metric.get('short') or metric['name'].split()[0].lower()}{' %' * metric['percent']}"
    for name in ("trial", quality, *names):
        table.add_column(name, justify="right")
    sign = -1 if metric["higher_is_better"] else 1
    scored = sorted((t for t in results["trials"] if t["value"] is not None), key=lambda t: sign * t["value"])
    for trial in [*scored, *(t for t in results["trials"] if t["value"] is None)]:
        value = "failed" if trial["value"] is None else f"{scale * trial['value']:.{digits}f}"
        chosen = (trial["chosen"].get(key) for key in keys)
        table.add_row(
            str(trial["number"] + 1), value, *(f"{one:.4g}" if isinstance(one, float) else str(one) for one in chosen)
        )
    console.print()
    console.print(table)
    console.print(
        f"\nScored on the {results['rows']:,} rows of {results['scored_on']}. The best of {len(scored)} trials looks "
        "better there than it is: what it is worth, the test rows say.",
        highlight=False,
        markup=False,
    )
