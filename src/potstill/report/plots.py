"""The plots that set models beside each other: quality against cost, differences, seeds.

Decided here: the exports stand beside the models; a filled mark is a model that was trained, a hollow one an export.
The vertical line through a mark is the interval of the results. Every plot comes with its numbers as a table, and a
plot that would show fewer than two things is None.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from potstill.report import formats
from potstill.report.drawing import Plot, draw, legend
from potstill.report.roles import INK, MUTED, PAPER, Role, export_role, metric_info, ordered_models, role, title_of
from potstill.report.tables import Cell, Results, Row, batch_sizes, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Mark:
    """One model or export in a plot: primary metric, its interval, and its cost."""

    title: str
    role: Role
    score: float
    interval: tuple[float, float] | None
    cost: Mapping[str, Any]


def number_axis(axis: Any, metric: Mapping[str, Any]) -> None:
    """Write an axis in the metric's own unit."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(5))
    if metric.get("percent"):
        axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number * 100:.4g}%"))
    else:
        axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:.4g}".replace("-", formats.MINUS)))


def style(role: Role, size: float = 8) -> dict[str, Any]:
    """How a role's mark is drawn; hollow marks are larger, so that a filled one at the same place stays visible."""
    face = role.colour if role.filled else "none"
    edge = PAPER if role.filled else role.colour
    return {
        "marker": role.marker,
        "markersize": size if role.filled else size + 4,
        "markerfacecolor": face,
        "markeredgecolor": edge,
        "markeredgewidth": 0.8 if role.filled else 1.6,
        "color": role.colour,
    }


def marks(results: Results) -> list[Mark]:
    """Every model and export that has the primary metric."""
    primary = results["primary"]
    found: list[Mark] = []
    for model in ordered_models(results):
        stat = (model.get("metrics") or {}).get(primary) or {}
        bounds: Any = stat.get("interval")
        if formats.is_number(stat.get("mean")):
            whole = bounds and all(formats.is_number(bound) for bound in bounds)
            span = (bounds[0], bounds[1]) if whole else None
            found.append(
                Mark(str(model["title"]), role(model["key"]), float(stat["mean"]), span, model.get("cost") or {})
            )
    for index, export in enumerate(results.get("exports") or []):
        score: Any = (export.get("metrics") or {}).get(primary)
        if formats.is_number(score):
            found.append(Mark(str(export["title"]), export_role(index), score, None, export))
    return found


def _against(
    results: Results,
    key: str,
    title: str,
    cost: str,
    pick: Callable[[Mapping[str, Any]], Any],
    form: Callable[[Any], str],
) -> Plot | None:
    """The primary metric against one cost, the cost from zero."""
    metric = metric_info(results, results["primary"])
    shown = [mark for mark in marks(results) if formats.is_number(pick(mark.cost))]
    if len(shown) < 2:
        return None

    def paint(figure: "Figure", axes: "Axes") -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        for mark in shown:
            spot = pick(mark.cost)
            if mark.interval:
                axes.vlines(spot, *mark.interval, color=mark.role.colour, linewidth=1.1, alpha=0.55)
            axes.plot([spot], [mark.score], linestyle="none", label=formats.tidy(mark.title, 24), **style(mark.role))
        axes.set_xlim(0, max(pick(mark.cost) for mark in shown) * 1.08)
        axes.margins(y=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: formats.bare(form(number)) if number else "0"))
        number_axis(axes.yaxis, metric)
        axes.set_title(formats.tidy(metric["name"], 40))
        axes.set_xlabel(cost)
        legend(figure, axes)

    name = str(metric["name"])
    rows = [
        Row(mark.title, (Cell(formats.value(mark.score, metric)), Cell(form(pick(mark.cost)))), role=mark.role)
        for mark in shown
    ]
    better = "Up" if metric.get("higher_is_better") is not False else "Down"
    caption = f"{better} and to the left is better. Lines: interval of the results."
    return Plot(key, title, draw(key, f"{name}: {title}", paint), caption, table(title, "Model", (name, cost), rows))


def trade_offs(results: Results) -> list[Plot]:
    """Quality against latency at both batch sizes, and against bytes on disk."""

    def latency(batch: str) -> Callable[[Mapping[str, Any]], Any]:
        return lambda cost: ((cost.get("latency") or {}).get(batch) or {}).get("p50_ms")

    drawn = [
        _against(
            results,
            f"latency-{batch}",
            f"Quality against latency, batch {batch}",
            "Median latency of one batch",
            latency(batch),
            formats.milliseconds,
        )
        for batch in batch_sizes(mark.cost for mark in marks(results))
    ]
    drawn.append(
        _against(results, "size", "Quality against size", "Bytes on disk", lambda cost: cost.get("bytes"), formats.size)
    )
    return [plot for plot in drawn if plot]


def comparison_plot(results: Results) -> Plot | None:
    """Differences in the primary metric with their intervals, beside zero."""
    primary = results["primary"]
    metric = metric_info(results, primary)
    shown = [
        item
        for item in results.get("comparisons") or []
        if item["metric"] == primary and formats.is_number(item.get("difference")) and item.get("interval")
    ]
    if not shown:
        return None

    def paint(figure: "Figure", axes: "Axes") -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes.axvline(0, color=INK, linewidth=1)
        for row, item in enumerate(shown):
            look = role(item["a"])
            axes.hlines(row, *item["interval"], color=look.colour, linewidth=2)
            axes.plot([item["difference"]], [row], linestyle="none", **style(look, 9))
        titles = [f"{formats.MINUS} {formats.tidy(title_of(results, item['b']), 18)}" for item in shown]
        axes.set_yticks(range(len(shown)), titles, color=INK)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda number, _: formats.bare(formats.difference(number, metric, unit=False)))
        )
        axes.set_xlabel(formats.tidy(metric["name"], 40) + (", points" if metric.get("percent") else ""))
        axes.set_title(formats.tidy(title_of(results, shown[0]["a"]), 30) + " compared")

    title = "Differences with their intervals"
    svg = draw("differences", title, paint, height=1.3 + 0.38 * len(shown))
    return Plot(
        "differences", title, svg, "An interval that crosses zero is a difference that can't be told from none."
    )


def seeds_plot(results: Results) -> Plot | None:
    """One mark a seed for each model, and the mean."""
    primary = results["primary"]
    metric = metric_info(results, primary)
    shown = [
        (model, stat)
        for model in ordered_models(results)
        if (stat := (model.get("metrics") or {}).get(primary)) and stat.get("per_seed")
    ]
    most = max((len(stat["per_seed"]) for _, stat in shown), default=0)
    if most < 2:
        return None

    def paint(figure: "Figure", axes: "Axes") -> None:
        for row, (model, stat) in enumerate(shown):
            values = [value for value in stat["per_seed"] if formats.is_number(value)]
            if formats.is_number(stat.get("mean")):
                axes.vlines(stat["mean"], row - 0.26, row + 0.26, color=MUTED, linewidth=1.4)
            axes.plot(values, [row] * len(values), linestyle="none", **style(role(model["key"])))
        axes.set_yticks(range(len(shown)), [formats.tidy(model["title"], 18) for model, _ in shown], color=INK)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.margins(x=0.08)
        number_axis(axes.xaxis, metric)
        axes.set_xlabel(formats.tidy(metric["name"], 40))

    rows = [
        Row(
            str(model["title"]),
            tuple(Cell(formats.value(value, metric)) for value in stat["per_seed"])
            + (Cell(),) * (most - len(stat["per_seed"])),
            role=role(model["key"]),
        )
        for model, stat in shown
    ]
    title = "Every seed"
    seeds = (results.get("run") or {}).get("seeds") or []
    heads = [f"Seed {seed}" for seed in seeds] if len(seeds) == most else [f"Run {index + 1}" for index in range(most)]
    svg = draw("seeds", f"{metric['name']} of every seed", paint, height=1.2 + 0.42 * len(shown))
    return Plot(
        "seeds", title, svg, "One mark a seed; the upright line is the mean.", table(title, "Model", heads, rows)
    )
