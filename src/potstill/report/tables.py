"""The report's tables, made once for the page and the Markdown.

Decided here: a table is text and nothing else (HTML escapes it, Markdown escapes it in its own way); a row without any
number is dropped, and a table without rows is None, so that nothing empty is ever headed. Quantities run downwards and
models across, since on a phone the first column stays in place while the models scroll.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.report import formats
from potstill.report.roles import Role, export_role, metric_info, ordered_models, role, title_of

MOST_CLASSES = 20
Results = Mapping[str, Any]
Form = Callable[[Any], str]


@dataclass(frozen=True)
class Cell:
    """One cell: its text, and a second line in small type."""

    text: str = ""
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A row's label, the label's second line, and its cells; a marked row names a model."""

    label: str
    cells: tuple[Cell, ...]
    note: str = ""
    role: Role | None = None


@dataclass(frozen=True)
class Column:
    """A column's head; with a role it belongs to a model."""

    title: str
    note: str = ""
    role: Role | None = None
    text: bool = False


@dataclass(frozen=True)
class Table:
    """Groups of rows under shared columns. `caption` is read by screen readers and stands over the Markdown table."""

    caption: str
    corner: str
    columns: tuple[Column, ...]
    groups: tuple[tuple[str, tuple[Row, ...]], ...] = field(default=())

    @property
    def rows(self) -> list[Row]:
        return [row for _, rows in self.groups for row in rows]


def _kept(rows: Iterable[Row]) -> tuple[Row, ...]:
    return tuple(row for row in rows if any(cell.text for cell in row.cells))


def table(caption: str, corner: str, columns: Sequence[Column | str], rows: Iterable[Row]) -> Table | None:
    """A table of one group, or None without rows. Columns in which every row is empty are dropped."""
    kept = _kept(rows)
    if not kept:
        return None
    heads = [column if isinstance(column, Column) else Column(column) for column in columns]
    used = [index for index in range(len(heads)) if any(row.cells[index].text for row in kept)]
    slim = tuple(Row(row.label, tuple(row.cells[index] for index in used), row.note, row.role) for row in kept)
    return Table(caption, corner, tuple(heads[index] for index in used), (("", slim),))


def estimate(stat: Mapping[str, Any] | None, form: Form, spread: Form | None = None) -> Cell:
    """Mean, plus or minus the deviation over seeds, and the interval beneath."""
    if not stat:
        return Cell()
    text = form(stat.get("mean"))
    deviation = (spread or form)(stat.get("std"))
    if text and deviation:
        text += f"{formats.NBSP}± {deviation}"
    return Cell(text, formats.interval(stat.get("interval"), form) if text else "")


def _metric_order(results: Results) -> list[str]:
    named = list(results.get("metrics") or {})
    named += [key for model in results["models"] for key in model.get("metrics") or {} if key not in named]
    primary = results.get("primary")
    return sorted(dict.fromkeys(named), key=lambda key: key != primary)


def _quality_rows(results: Results, models: Sequence[Any], exports: Sequence[Any]) -> list[Row]:
    rows = []
    for key in _metric_order(results):
        info = metric_info(results, key)

        def form(number: Any, info: Mapping[str, Any] = info) -> str:
            return formats.value(number, info)

        def spread(number: Any, info: Mapping[str, Any] = info) -> str:
            return formats.spread(number, info)

        cells = [estimate((model.get("metrics") or {}).get(key), form, spread) for model in models]
        cells += [Cell(form((export.get("metrics") or {}).get(key))) for export in exports]
        note = "lower is better" if info.get("higher_is_better") is False else ""
        rows.append(Row(str(info["name"]), tuple(cells), note))
    blank = tuple(Cell() for _ in exports)
    kept = tuple(estimate(model.get("retained"), formats.percent) for model in models)
    rows.append(
        Row("Retained", kept + blank, f"{metric_info(results, results['primary'])['name']} beside the teacher's")
    )
    return rows


def _fidelity_rows(models: Sequence[Any], exports: Sequence[Any]) -> list[Row]:
    blank = tuple(Cell() for _ in exports)
    agreement = tuple(estimate(model.get("agreement"), formats.percent) for model in models)
    divergence = tuple(estimate(model.get("kl"), formats.decimal) for model in models)
    errors = tuple(
        estimate(
            (model.get("calibration") or {}).get("ece"), formats.percent, lambda number: formats.percent(number)[:-1]
        )
        for model in models
    )
    return [
        Row("Agreement", agreement + blank, "same answer as the teacher"),
        Row("KL to the teacher", divergence + blank, "lower is closer"),
        Row("Calibration error", errors + blank, "ECE, lower is better"),
    ]


def batch_sizes(costs: Iterable[Mapping[str, Any]]) -> list[str]:
    """The sizes of the batches that were timed, the smallest first."""
    return sorted({size for cost in costs for size in cost.get("latency") or {}}, key=int)


def _cost_rows(costs: Sequence[Mapping[str, Any]], unit: str) -> list[Row]:
    def row(label: str, key: str, form: Form, note: str = "") -> Row:
        return Row(label, tuple(Cell(form(cost.get(key))) for cost in costs), note)

    def latency(cost: Mapping[str, Any], batch: str) -> Cell:
        times = (cost.get("latency") or {}).get(batch) or {}
        late = formats.milliseconds(times.get("p95_ms"))
        return Cell(formats.milliseconds(times.get("p50_ms")), f"p95 {late}" if late else "")

    shapes = dict.fromkeys(str(cost["macs_at"]) for cost in costs if cost.get("macs_at"))
    return [
        row("Parameters", "parameters", formats.count),
        row("Size on disk", "bytes", formats.size),
        row("Multiply-adds", "macs", formats.count, f"MACs at {', '.join(shapes)}" if shapes else "MACs"),
        *(
            [
                row(
                    "Multiply-adds, as published",
                    "macs_without_attention",
                    formats.count,
                    "without attention’s products",
                )
            ]
            if any(cost.get("macs_without_attention") for cost in costs)
            else []
        ),
        *(
            Row(f"Latency, batch{formats.NBSP}{batch}", tuple(latency(cost, batch) for cost in costs), "p50 a batch")
            for batch in batch_sizes(costs)
        ),
        row("Throughput", "throughput_per_s", formats.per_second, f"{unit} a second"),
        row("Peak memory", "peak_memory_bytes", formats.size),
    ]


def _seeds_note(model: Mapping[str, Any]) -> str:
    seeds = model.get("seeds") or []
    return f"{len(seeds)} seeds" if len(seeds) > 1 else ""


def main_table(results: Results) -> Table:
    """Every model and export across, every quantity down, in four groups."""
    models, exports = ordered_models(results), list(results.get("exports") or [])
    columns = [Column(str(model["title"]), _seeds_note(model), role(model["key"])) for model in models]
    columns += [Column(str(export["title"]), "", export_role(index)) for index, export in enumerate(exports)]
    times = tuple(Cell(formats.duration((model.get("training") or {}).get("seconds"))) for model in models)
    costs = [*(model.get("cost") or {} for model in models), *exports]
    unit = str((results.get("data") or {}).get("rows") or "rows")
    groups = {
        "Quality": _quality_rows(results, models, exports),
        "Closeness and calibration": _fidelity_rows(models, exports),
        "Size and speed": _cost_rows(costs, unit),
        "Training": [Row("Training time", times + tuple(Cell() for _ in exports), "one seed")],
    }
    kept = {name: _kept(rows) for name, rows in groups.items()}
    return Table("Every model beside the teacher", "", tuple(columns), tuple((k, v) for k, v in kept.items() if v))


def comparison_table(results: Results) -> Table | None:
    """Differences between two models with their intervals, one comparison a row."""
    rows = []
    for item in results.get("comparisons") or []:
        info = metric_info(results, item["metric"])

        def form(number: Any, info: Mapping[str, Any] = info) -> str:
            return formats.difference(number, info)

        def bare(number: Any, info: Mapping[str, Any] = info) -> str:
            return formats.difference(number, info, unit=False)

        seeds = item.get("per_seed") or []
        cells = (
            Cell(form(item.get("difference"))),
            Cell(formats.interval(item.get("interval"), bare)),
            Cell(bare(item.get("standard_error")).lstrip("+")),
            Cell(", ".join(bare(number) for number in seeds) if len(seeds) > 1 else ""),
            Cell(formats.whole(item.get("resamples"))),
        )
        label = f"{title_of(results, item['a'])} {formats.MINUS} {title_of(results, item['b'])}"
        rows.append(Row(label, cells, str(info["name"])))
    heads = ("Difference", "Interval", "Standard error", "Per seed", "Resamples")
    return table("Differences between models", "Comparison", heads, rows)


def export_table(results: Results) -> Table | None:
    """Each exported file, loaded again and compared with the student."""
    exports = list(results.get("exports") or [])
    info, sizes = metric_info(results, results["primary"]), batch_sizes(exports)
    rows = []
    for index, export in enumerate(exports):
        latency = export.get("latency") or {}
        cells = (
            Cell(formats.decimal(export.get("max_logit_difference"), 4)),
            Cell(formats.percent(export.get("agreement"), 2)),
            Cell(formats.value((export.get("metrics") or {}).get(results["primary"]), info)),
            Cell(formats.size(export.get("bytes"))),
            *(Cell(formats.milliseconds((latency.get(batch) or {}).get("p50_ms"))) for batch in sizes),
            Cell(formats.per_second(export.get("throughput_per_s"))),
        )
        rows.append(Row(str(export["title"]), cells, str(export.get("file") or ""), export_role(index)))
    times = [f"p50, batch {size}" for size in sizes]
    heads = ("Largest |Δ logit|", "Agreement", str(info["name"]), "Size", *times, "Throughput")
    return table("Exported files beside the student", "File", heads, rows)
