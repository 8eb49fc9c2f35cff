"""`potstill compare`: methods held against each other, with the same teacher, start and steps."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli.run import Overrides, Recipe

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def compare(
    recipe: Recipe,
    overrides: Overrides = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B",
            help="A key of the recipe and its values, such as distill=pkd_skip,tinybert,own or student.layers=3,2. "
            "Several make the product.",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Training runs of each variant. Default: the recipe's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder. Default: runs/compare-<recipe>.")] = None,
    own_settings: Annotated[
        bool, typer.Option("--own-settings", help="Keep each method's own training settings; steps then differ.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Redo in the folder what a changed recipe concerns.")
    ] = False,
) -> None:
    """Compare methods fairly: same teacher, same start, same steps; one table, with what can be told from noise.

    Stopped work goes on: give the same command again. More variants and seeds use what is there.
    """
    from potstill.comparing import compare as compare_recipes
    from potstill.progress import Terminal

    changes = [*(overrides or ()), *([f"evaluate.seeds={seeds}"] if seeds is not None else [])]
    terminal = Terminal()
    outcome = compare_recipes(
        recipe, vary or [], out, overrides=changes, own_settings=own_settings, update=update, progress=terminal
    )
    print_comparison(outcome.results, terminal.console)
    terminal.say(f"\nreport: {outcome.report}")


def print_comparison(results: Mapping[str, Any], console: "Console") -> None:
    """Print the table of variants and the verdict."""
    key = results["primary"]
    metric = results["metrics"][key]
    scale, digits = (100, 2) if metric["percent"] else (1, 4)
    over = {one["a"]: one for one in results["differences"] if one["family"] == "plain"}
    quality = f"{metric.get('short') or metric['name'].split()[0].lower()}{' %' * metric['percent']}"
    rows = [results["teacher"], *results["cells"]]

    def number(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{scale * value:{sign}.{digits}f}"

    first = _table("", quality, "95 % interval", "over plain", "95 % interval")
    for cell in rows:
        found, gained = cell["metrics"][key], over.get(cell.get("key"))
        spread = f" ± {number(found['std'])}" if found["std"] is not None else ""
        first.add_row(
            cell["title"],
            f"{number(found['mean'])}{spread}",
            " to ".join(number(end) for end in found["interval"]),
            number(gained["difference"], "+") if gained else "",
            " to ".join(number(end, "+") for end in gained["interval"]) if gained else "",
        )
    second = _table("", "kept", "agrees", "train - val.", "attention", "ms/step", "steps")
    for cell in rows:
        training, attention = cell["training"] or {}, cell.get("attention")
        second.add_row(
            cell["title"],
            *(f"{100 * cell[name]['mean']:.1f} %" if cell[name] else "" for name in ("retained", "agreement")),
            number(cell["overfit"]["gap"], "+") if cell["overfit"] else "",
            f"{attention['mean']['jensen_shannon']:.4f}" if attention else "",
            f"{training['ms_per_step']:.0f}" if "ms_per_step" in training else "",
            f"{training['steps']:,.0f}" if training else "",
        )
    for table in (first, second):
        console.print()
        console.print(table)
    console.print(f"\n{results['verdict']['headline']}", style="bold", highlight=False)
    for sentence in results["verdict"]["sentences"]:
        console.print(sentence, highlight=False, markup=False)


def _table(*names: str) -> "Table":
    """An empty table whose first column is words and whose others are numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, justify="right" if name else "left", no_wrap=bool(name))
    return table
