"""The plots of a comparison: results and differences with their intervals, the fit, and attention as heat maps.

Decided here: one line a variant, in the order of the tables. A filled mark is a variant that can be told from its plain
student, a hollow one a variant that can't. A heat map is one colour in more or less of it, on one scale for all
variants, so that it reads in grey, in the dark and on paper; its numbers are the table beneath.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from potstill.report import formats
from potstill.report.drawing import Plot, draw, legend
from potstill.report.plots import number_axis, style
from potstill.report.roles import INK, MUTED, Role, role
from potstill.report.tables import Cell, Results, Row, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST_NAME = 26
_STUDENT = role("student")
_HOLLOW = Role(_STUDENT.css, _STUDENT.sign, _STUDENT.marker, _STUDENT.colour, filled=False)


def _height(count: int, room: float = 1.35) -> float:
    return room + 0.36 * count


def _names(axes: "Axes", cells: Sequence[Mapping[str, Any]]) -> None:
    """One line a variant, downwards."""
    axes.set_yticks(range(len(cells)), [formats.tidy(cell["title"], LONGEST_NAME) for cell in cells], color=INK)
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def _look(results: Results, cell: Mapping[str, Any]) -> Role:
    if cell["plain"] is None:
        return role("baseline")
    found = [item for item in results["differences"] if item["family"] == "plain" and item["a"] == cell["key"]]
    return _STUDENT if found and found[0]["outcome"] != "no_difference" else _HOLLOW


def quality_plot(results: Results) -> Plot | None:
    """The primary metric of every variant with its interval, every seed, and the teacher's as a line."""
    key = results["primary"]
    info, cells = results["metrics"][key], results["cells"]

    def paint(figure: "Figure", axes: "Axes") -> None:
        teacher = role("teacher")
        axes.axvline(
            results["teacher"]["metrics"][key]["mean"],
            color=teacher.colour,
            linestyle="--",
            linewidth=1.2,
            label="Teacher",
        )
        for row, cell in enumerate(cells):
            found, look = cell["metrics"][key], _look(results, cell)
            axes.hlines(row, *found["interval"], color=look.colour, linewidth=2, alpha=0.6)
            if len(found["per_seed"]) > 1:
                axes.plot(
                    found["per_seed"], [row + 0.24] * len(found["per_seed"]), "|", color=MUTED, markersize=5, alpha=0.9
                )
            axes.plot([found["mean"]], [row], linestyle="none", **style(look, 8 if look.filled else 4))
        _names(axes, cells)
        axes.margins(x=0.06)
        number_axis(axes.xaxis, info)
        axes.set_xlabel(formats.tidy(info["name"], 40))
        legend(figure, axes)

    title = f"{info['name']} of every variant"
    several = len(results["run"]["seeds"]) > 1
    caption = "Mean and 95 % interval" + ("; small strokes are the seeds." if several else ".")
    return Plot("quality", title, draw("quality", title, paint, height=_height(len(cells), 1.7)), caption)


def difference_plot(results: Results) -> Plot | None:
    """Every variant less its plain student, with intervals, beside zero."""
    info = results["metrics"][results["primary"]]
    found = {item["a"]: item for item in results["differences"] if item["family"] == "plain"}
    cells = [cell for cell in results["cells"] if cell["key"] in found]
    if not cells:
        return None

    def paint(_figure: "Figure", axes: "Axes") -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes.axvline(0, color=INK, linewidth=1)
        for row, cell in enumerate(cells):
            item, look = found[cell["key"]], _look(results, cell)
            axes.hlines(row, *item["interval"], color=look.colour, linewidth=2, alpha=0.6)
            axes.plot([item["difference"]], [row], linestyle="none", **style(look, 8 if look.filled else 4))
        _names(axes, cells)
        axes.margins(x=0.06)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda number, _: formats.bare(formats.difference(number, info, unit=False)))
        )
        axes.set_xlabel(formats.tidy(info["name"], 40) + (", points" if info["percent"] else ""))

    title = "Over the plain student"
    caption = "95 % intervals, each for itself. Filled: told from the plain student with all variants held together."
    return Plot("over-plain", title, draw("over-plain", title, paint, height=_height(len(cells))), caption)


def fit_plot(results: Results) -> Plot | None:
    """The primary metric on training and on validation rows, joined: the longer the line, the more overfitted."""
    info = results["metrics"][results["primary"]]
    shown = [results["teacher"], *results["cells"]]
    shown = [model for model in shown if model["overfit"]]
    if not shown:
        return None

    def paint(figure: "Figure", axes: "Axes") -> None:
        for row, model in enumerate(shown):
            fit = model["overfit"]
            axes.hlines(row, *sorted((fit["train"], fit["validation"])), color=MUTED, linewidth=1.6)
            for name, look in (("train", _HOLLOW), ("validation", _STUDENT)):
                label = name.capitalize() if row == 0 else None
                axes.plot([fit[name]], [row], linestyle="none", label=label, **style(look, 8 if look.filled else 4))
        _names(axes, shown)
        axes.margins(x=0.06)
        number_axis(axes.xaxis, info)
        axes.set_xlabel(formats.tidy(info["name"], 40))
        legend(figure, axes)

    title = "Training rows and validation rows"
    svg = draw("fit", title, paint, height=_height(len(shown), 1.7))
    return Plot(
        "fit", title, svg, "The longer the line, the more a variant has learnt that holds of its training rows only."
    )


def attention_plots(results: Results) -> list[Plot]:
    """One heat map a variant, layers by heads, of the Jensen-Shannon divergence; that of each start before them."""
    titles = {cell["key"]: cell["title"] for cell in results["cells"]}
    starts = [
        (f"{titles[key]}, before training", f"start-{key}", one)
        for key, one in (results.get("attention_at_start") or {}).items()
    ]
    shown = starts + [(c["title"], c["key"], c["attention"]) for c in results["cells"] if c["attention"]]
    return heat_maps(shown)


def reading(one: Mapping[str, Any]) -> str:
    """How the heat maps are read, and from how many rows they are."""
    return (
        "Jensen-Shannon divergence between a student head and the teacher head of the same number, on "
        f"{formats.whole(one['rows'])} rows of {one['split']}: 0 where both look at the same tokens, 0.693 "
        "where at wholly different ones. A darker field is further from the teacher."
    )


def heat_maps(shown: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[Plot]:
    """Heat maps on one scale, each of (title, key, measures of a model)."""
    most = max((max(layer["jensen_shannon"]) for _, _, one in shown for layer in one["layers"]), default=0.0)
    return [_heat_map(title, f"attention-{key.replace('.', '-')}", one, most) for title, key, one in shown]


def _heat_map(title: str, key: str, found: Mapping[str, Any], most: float) -> Plot:
    layers = found["layers"]
    heads = len(layers[0]["jensen_shannon"])

    def paint(figure: "Figure", axes: "Axes") -> None:
        from matplotlib.patches import Rectangle

        for row, layer in enumerate(layers):
            for column, value in enumerate(layer["jensen_shannon"]):
                shade = value / most if most else 0.0
                place = (column - 0.5, row - 0.5)
                axes.add_patch(
                    Rectangle(place, 1, 1, facecolor=_STUDENT.colour, alpha=0.04 + 0.96 * shade, linewidth=0)
                )
        axes.set_xlim(-0.5, heads - 0.5)
        axes.set_yticks(range(len(layers)), [f"{one['student']} – {one['teacher']}" for one in layers], color=INK)
        axes.set_ylim(len(layers) - 0.5, -0.5)
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.set_xticks(range(heads), [str(head) for head in range(heads)] if heads > 1 else ["mean of heads"])
        axes.set_xlabel("Head" if heads > 1 else "")
        axes.set_title("Student layer – teacher layer")

    form: Callable[[Any], str] = formats.decimal
    rows = [
        Row(f"{one['student']} – {one['teacher']}", tuple(Cell(form(value)) for value in one["jensen_shannon"]))
        for one in layers
    ]
    names = [f"Head {head}" for head in range(heads)] if heads > 1 else ["Mean of heads"]
    svg = draw(key, f"Attention divergence of {title}", paint, height=1.25 + 0.34 * len(layers))
    numbers = table(f"Attention divergence of {title}", "Layers", names, rows)
    return Plot(key, title, svg, f"Mean {form(found['mean']['jensen_shannon'])} nats", numbers)
