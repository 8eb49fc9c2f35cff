"""A run's results as a few lines: the verdict, and the table of models and files."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from potstill.report.tables import batch_sizes


def print_summary(results: Mapping[str, Any], console: Console) -> None:
    """Print what `results.json` holds of the models, their cost and the verdict."""
    key = results["primary"]
    metric = results["metrics"][key]
    scale, digits = (100, 2) if metric["percent"] else (1, 4)
    table = Table(box=None, pad_edge=False)
    quality = f"{metric.get('short') or metric['name'].split()[0].lower()}{' %' * metric['percent']}"
    costs = [one for one in (*(model["cost"] for model in results["models"]), *results["exports"]) if one]
    sizes = batch_sizes(costs)
    times = [f"ms ({size})" for size in sizes]
    for name in ("", quality, "95 % interval", "agrees", "MB", *times):  # a terminal is 80 columns wide
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for model in results["models"]:
        found = model["metrics"][key]
        low, high = (f"{scale * end:.{digits}f}" for end in found["interval"])
        spread = f" ± {scale * found['std']:.{digits}f}" if found["std"] is not None else ""
        agreement = f"{100 * model['agreement']['mean']:.1f} %" if model["agreement"] else ""
        table.add_row(
            model["title"],
            f"{scale * found['mean']:.{digits}f}{spread}",
            f"{low} - {high}",
            agreement,
            *_cost(model["cost"], sizes),
        )
    for made in results["exports"]:
        table.add_row(made["title"], f"{scale * made['metrics'][key]:.{digits}f}", "", "", *_cost(made, sizes))
    console.print()
    console.print(table)
    console.print(f"\n{results['verdict']['headline']}", style="bold", highlight=False)


def _cost(cost: Mapping[str, Any] | None, sizes: Sequence[str]) -> list[str]:
    """Megabytes, and the milliseconds of a batch of each size."""
    if not cost:
        return ["", *("" for _ in sizes)]
    latency = cost.get("latency") or {}
    return [
        f"{cost['bytes'] / 1e6:.1f}",
        *(f"{latency[size]['p50_ms']:.1f}" if size in latency else "" for size in sizes),
    ]
