"""The plots that look into a model: learning curves, reliability, confusion, change by class.

Decided here: loss parts keep one colour and one dash over all stages; all seeds are drawn, thin, in the same colour. A
confusion matrix is shaded by counts alone, and above twenty classes neither its cells nor its axes carry text.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from potstill.report import formats
from potstill.report.details import class_change_table, class_changes, class_score, most_changed
from potstill.report.drawing import Plot, draw, legend
from potstill.report.plots import number_axis, style
from potstill.report.roles import DASHES, INK, MUTED, PARTS, RULE, metric_info, model_of, role, title_of
from potstill.report.tables import MOST_CLASSES, Cell, Results, Row, Table, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Mapping[str, Any]
MOST_WRITTEN, FEW_CLASSES = 9999, 5
"""Counts of pixels are too long for the cells of a confusion matrix, unless it has few."""


def learning_curves(results: Results, key: str = "student") -> list[Plot]:
    """One figure a stage: the loss by parts, and below it the evaluations on the same steps."""
    curves = [curve for curve in model_of(results, key).get("curves") or [] if curve.get("points")]
    stages = list(dict.fromkeys(str(curve.get("stage")) for curve in curves))
    parts = list(
        dict.fromkeys(name for curve in curves for point in curve["points"] for name in point.get("parts") or {})
    )
    looks = {name: (PARTS[index % len(PARTS)], DASHES[(index + 1) % len(DASHES)]) for index, name in enumerate(parts)}
    return [
        _stage(results, f"curve-{index}", stage, [curve for curve in curves if str(curve.get("stage")) == stage], looks)
        for index, stage in enumerate(stages)
    ]


def _stage(
    results: Results, key: str, stage: str, curves: Sequence[Curve], looks: Mapping[str, tuple[str, str]]
) -> Plot:
    metric = metric_info(results, results["primary"])
    evaluated = any(curve.get("evaluations") for curve in curves)

    def paint(figure: "Figure", axes: "Axes") -> None:
        _paint_losses(axes, curves, looks)
        legend(figure, axes)
        if not evaluated:
            axes.set_xlabel("Step")
            return
        grid = figure.add_gridspec(2, 1, height_ratios=(3, 2))
        axes.set_subplotspec(grid[0])
        below = figure.add_subplot(grid[1], sharex=axes)
        axes.tick_params(labelbottom=False)
        for curve in curves:
            points = [point for point in curve.get("evaluations") or [] if formats.is_number(point.get("value"))]
            look = {**style(role("student"), 5), "linewidth": 1.1}
            below.plot([point["step"] for point in points], [point["value"] for point in points], **look)
        number_axis(below.yaxis, metric)
        below.set_title(f"{formats.tidy(metric['name'], 30)}, validation")
        below.set_xlabel("Step")

    title = f"Stage: {formats.tidy(stage, 40)}"
    seeds = f" Thin lines: {len(curves)} seeds." if len(curves) > 1 else ""
    svg = draw(key, f"Learning curves. {title}", paint, height=4.9 if evaluated else 3.4)
    return Plot(key, title, svg, f"Loss by parts, as trained.{seeds}", _evaluation_table(title, metric, curves))


def _paint_losses(axes: "Axes", curves: Sequence[Curve], looks: Mapping[str, tuple[str, str]]) -> None:
    from matplotlib.ticker import FuncFormatter

    width = 1.6 if len(curves) == 1 else 1.0
    values: list[float] = []
    for number, curve in enumerate(curves):
        lines: dict[str, list[tuple[float, float]]] = {"total": []}
        for point in curve["points"]:
            for name, value in {**(point.get("parts") or {}), "total": point.get("loss")}.items():
                if formats.is_number(value):
                    lines.setdefault(name, []).append((point["step"], value))
        if len(lines) == 2:
            lines.pop("total")  # one part is the whole: the two lines would lie on each other
        for name, line in lines.items():
            colour, dash = looks.get(name, (INK, "-"))
            label = formats.tidy(name, 20) if number == 0 else None
            axes.plot(
                *zip(*line, strict=True), color=colour, linestyle=dash, linewidth=width, label=label
            ) if line else None
            values += [value for _, value in line]
    positive = [value for value in values if value > 0]
    if positive and len(positive) == len(values) and max(positive) > 50 * min(positive):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}".replace("-", formats.MINUS)))
    axes.set_title("Loss" + (", logarithmic" if axes.get_yscale() == "log" else ""))


def _evaluation_table(title: str, metric: Mapping[str, Any], curves: Sequence[Curve]) -> Table | None:
    steps = sorted({point["step"] for curve in curves for point in curve.get("evaluations") or []})
    found = [{point["step"]: point.get("value") for point in curve.get("evaluations") or []} for curve in curves]
    rows = [
        Row(formats.whole(step), tuple(Cell(formats.value(at.get(step), metric)) for at in found)) for step in steps
    ]
    heads = [f"Seed {curve.get('seed')}" for curve in curves]
    return table(f"{metric['name']} on validation. {title}", "Step", heads, rows)


def reliability_plot(results: Results) -> Plot | None:
    """How often each model is right at each confidence."""
    shown: list[tuple[str, list[Mapping[str, Any]]]] = []
    for key in ("teacher", "baseline", "student"):
        curve = (model_of(results, key).get("calibration") or {}).get("curve") or []
        bins = [
            spot
            for spot in curve
            if formats.is_number(spot.get("confidence")) and formats.is_number(spot.get("accuracy"))
        ]
        if bins:
            shown.append((key, bins))
    if not shown:
        return None

    def paint(figure: "Figure", axes: "Axes") -> None:
        from matplotlib.ticker import PercentFormatter

        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, label="as right as confident")
        for key, bins in shown:
            look = {**style(role(key), 7), "linestyle": role(key).dash}
            axes.plot(
                [spot["confidence"] for spot in bins],
                [spot["accuracy"] for spot in bins],
                label=formats.tidy(title_of(results, key), 24),
                **look,
            )
        start = min(spot["low"] if formats.is_number(spot.get("low")) else 0.0 for _, bins in shown for spot in bins)
        axes.set_xlim(start, 1.015)
        axes.set_ylim(min([start, *(spot["accuracy"] - 0.02 for _, bins in shown for spot in bins)]), 1.02)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_title("How often it is right")
        axes.set_xlabel("How sure it says it is")
        legend(figure, axes)

    lows = list(dict.fromkeys((spot.get("low"), spot.get("high")) for _, bins in shown for spot in bins))
    at = [{(spot.get("low"), spot.get("high")): spot for spot in bins} for _, bins in shown]
    rows = [
        Row(
            formats.interval(span, lambda number: formats.percent(number, 0)),
            tuple(
                Cell(
                    formats.percent((bins.get(span) or {}).get("accuracy")),
                    formats.whole((bins.get(span) or {}).get("count")),
                )
                for bins in at
            ),
        )
        for span in sorted(lows)
    ]
    title = "Reliability"
    svg = draw("reliability", "Reliability: accuracy at each confidence", paint)
    data = table(
        "Accuracy and number of rows at each confidence",
        "Confidence",
        [title_of(results, key) for key, _ in shown],
        rows,
    )
    return Plot("reliability", title, svg, "Below the line a model is surer than it is right.", data)


def confusion_plots(results: Results) -> list[Plot]:
    """What each class was taken for, student and teacher."""
    classes = [formats.tidy(name, 40) for name in (results.get("data") or {}).get("classes") or []]
    drawn = []
    for key in ("student", "teacher"):
        matrix = model_of(results, key).get("confusion")
        if matrix:
            names = classes if len(classes) == len(matrix) else [str(index) for index in range(len(matrix))]
            drawn.append(_confusion(key, title_of(results, key), matrix, names))
    return drawn


def _confusion(key: str, who: str, matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Plot:
    number, large = len(matrix), len(matrix) > MOST_CLASSES
    most = max((value for line in matrix for value in line), default=0) or 1
    written = not large and (most <= MOST_WRITTEN or number <= FEW_CLASSES)

    def paint(figure: "Figure", axes: "Axes") -> None:
        from matplotlib.patches import Rectangle

        axes.set(xlim=(-0.5, number - 0.5), ylim=(number - 0.5, -0.5), aspect="equal")
        axes.grid(visible=False)
        axes.add_patch(Rectangle((-0.5, -0.5), number, number, facecolor="none", edgecolor=RULE, linewidth=0.8))
        for truth, line in enumerate(matrix):
            for predicted, value in enumerate(line):
                if value:
                    shade = 0.06 + 0.54 * value / most if not large else 0.15 + 0.85 * value / most
                    axes.add_patch(
                        Rectangle(
                            (predicted - 0.5, truth - 0.5), 1, 1, facecolor=role(key).colour, alpha=shade, linewidth=0
                        )
                    )
                if written:
                    axes.text(predicted, truth, formats.whole(value), ha="center", va="center", fontsize=_fit(number))
        axes.set_xlabel("Predicted")
        axes.set_title("Truth")
        if large:
            axes.set(xticks=[], yticks=[])
            return
        short = [formats.tidy(name, 14) for name in names]
        crowded = number > 3
        axes.set_xticks(range(number), short, rotation=90 if crowded else 0, fontsize=_fit(number))
        axes.set_yticks(range(number), short, fontsize=_fit(number))
        axes.tick_params(length=0)

    title = f"Confusion, {formats.tidy(who, 30)}"
    caption = f"{number} classes in the order of the labels; the darker, the more rows." if large else ""
    if not written and not large:
        caption = "The darker, the more; the counts are in the table."
    rows = [
        Row(name, tuple(Cell(formats.whole(value)) for value in line)) for name, line in zip(names, matrix, strict=True)
    ]
    data = None if large else table(f"{title}: truth down, predicted across", "Truth", list(names), rows)
    return Plot(
        f"confusion-{key}",
        title,
        draw(f"confusion-{key}", title, paint, height=min(4.4, 2.1 + 0.6 * number)),
        caption,
        data,
    )


def _fit(classes: int) -> float:
    return max(5.0, min(10.0, 72.0 / classes))


def class_change_plot(results: Results) -> Plot | None:
    """F1 (or IoU) of each class: from the baseline to the student, and the teacher's beside."""
    changes = most_changed(results)
    if not changes:
        return None
    total, score = len(class_changes(results)), class_score(results)

    def paint(figure: "Figure", axes: "Axes") -> None:
        from matplotlib.ticker import FuncFormatter

        lines = [
            item
            for item in changes
            if formats.is_number(item.get("baseline")) and formats.is_number(item.get("student"))
        ]
        for row, item in enumerate(changes):
            if item in lines:
                axes.hlines(
                    row, item["baseline"], item["student"], color=role("student").colour, linewidth=1.6, alpha=0.6
                )
        for key in ("teacher", "baseline", "student"):
            spots = [(item[key], row) for row, item in enumerate(changes) if formats.is_number(item.get(key))]
            if spots:
                axes.plot(
                    *zip(*spots, strict=True),
                    linestyle="none",
                    label=formats.tidy(title_of(results, key), 24),
                    **style(role(key), 7),
                )
        axes.set_yticks(range(len(changes)), [formats.tidy(item["class"], 20) for item in changes], color=INK)
        axes.set_ylim(len(changes) - 0.4, -0.6)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number * 100:.4g}%"))
        axes.set_xlabel(score)
        legend(figure, axes, columns=3)

    title = f"{score} by class"
    caption = f"{len(changes)} of {total} classes: those that changed most." if total > len(changes) else ""
    svg = draw(
        "classes", f"{score} of each class: teacher, baseline and student", paint, height=1.4 + 0.28 * len(changes)
    )
    return Plot("classes", title, svg, caption, class_change_table(results))
