"""comparison.html and comparison.md from comparison.json.

Decided here: as in a run's report, nothing is computed, and the page is one file that asks nothing of anybody. Variants
run downwards, since there may be many of them, and quantities across, in two tables: how good, and why. The plain
student and the teacher keep the marks that they have in every report; the best variant has the student's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill.report import formats
from potstill.report.build import OUTCOMES, rendered, write_page
from potstill.report.comparison_plots import attention_plots, difference_plot, fit_plot, quality_plot, reading
from potstill.report.details import Facts
from potstill.report.markdown import escape, markdown_table
from potstill.report.roles import Role, role
from potstill.report.tables import Cell, Column, Results, Row, Table, batch_sizes, estimate, table

WORDS = {"helped": "better", "harm": "worse", "no_difference": "can't be told apart"}
VERDICTS = {
    "helped": "Teaching helps",
    "harm": "Every method does harm",
    "no_difference": "No method can be told to help",
}


def write_comparison(results: Results, folder: Path) -> tuple[Path, Path]:
    """Write comparison.html and comparison.md into `folder` and give back their paths, in this order.

    `results` is what comparison.json holds. Raises `RunFolderError` where the files can't be written.
    """
    page = write_page(Path(folder) / "comparison.html", rendered("comparison.html", _page(results)))
    return page, write_page(Path(folder) / "comparison.md", comparison_markdown(results))


def _page(results: Results) -> dict[str, Any]:
    run, verdict = results["run"], results["verdict"]
    attention = attention_plots(results)
    sections = [("quality", "Quality"), ("behaviour", "Closeness and fit"), ("cost", "Cost")]
    sections += [("attention", "Attention"), ("how", "How"), ("run", "Comparison")]
    return {
        "title": run["title"],
        "facts": headline_facts(results),
        "outcome": replace(OUTCOMES[_outcome(results)], word=VERDICTS[_outcome(results)]),
        "headline": verdict["headline"],
        "sentences": verdict["sentences"],
        "quality": quality_table(results),
        "behaviour": behaviour_table(results),
        "cost": cost_table(results),
        "plots": [plot for plot in (quality_plot(results), difference_plot(results)) if plot],
        "fit": [plot for plot in (fit_plot(results),) if plot],
        "attention": attention,
        "attention_text": attention_text(results),
        "attention_table": attention_table(results),
        "how": [(item["number"], item["made"]) for item in results["how"]],
        "run": run_facts(results),
        "cells": cell_table(results),
        "recipe": run["recipe"],
        "version": run["versions"].get("potstill"),
        "contents": [(key, name) for key, name in sections if key != "attention" or attention],
    }


def _outcome(results: Results) -> str:
    """Whether any variant can be told to be better than its plain student; else whether all are worse."""
    outcomes = {item["outcome"] for item in results["differences"] if item["family"] == "plain"}
    return "helped" if "helped" in outcomes else "harm" if outcomes == {"harm"} else "no_difference"


def headline_facts(results: Results) -> list[str]:
    """What a reader wants to know before the numbers."""
    run, data = results["run"], results["data"]
    steps = sorted({round(cell["training"]["steps"]) for cell in results["cells"]})
    span = formats.whole(steps[0]) if len(steps) == 1 else f"{formats.whole(steps[0])} to {formats.whole(steps[-1])}"
    seeds = len(run["seeds"])
    rows = formats.whole(data["splits"][data["evaluated_on"]])
    return [
        f"{seeds} seed{'s' * (seeds > 1)}",
        f"{span} steps each",
        f"{rows} rows of {data['evaluated_on']}",
        run["created"].partition("T")[0],
    ]


def cell_role(results: Results, cell: Mapping[str, Any]) -> Role | None:
    """The mark of a row: the plain student's, the best variant's, or none."""
    if cell["plain"] is None:
        return role("baseline")
    return role("student") if cell["key"] == results["verdict"]["best"] else None


def differences_of(results: Results, family: str) -> dict[str, Mapping[str, Any]]:
    """The differences of one family, by the variant that they are of."""
    return {item["a"]: item for item in results["differences"] if item["family"] == family}


def _difference(item: Mapping[str, Any] | None, info: Mapping[str, Any], word: bool = False) -> Cell:
    if item is None:
        return Cell()
    bounds = formats.interval(item["interval"], lambda number: formats.difference(number, info, unit=False))
    note = f"{bounds}; {WORDS[item['outcome']]}" if word else bounds
    return Cell(formats.difference(item["difference"], info, unit=False), note)


def quality_table(results: Results) -> Table | None:
    """Every variant's metrics, and how it stands to its plain student and to the first variant."""
    info = results["metrics"][results["primary"]]
    plain, first = differences_of(results, "plain"), differences_of(results, "first")
    others = [key for key in results["metrics"] if key != results["primary"]]

    def metric(model: Mapping[str, Any], key: str) -> Cell:
        about = results["metrics"][key]
        found = estimate(
            model["metrics"][key],
            lambda number: formats.value(number, about),
            lambda number: formats.spread(number, about),
        )
        return found if key == results["primary"] else Cell(found.text)

    rows = []
    for cell in [None, *results["cells"]]:
        model = results["teacher"] if cell is None else cell
        cells = (
            metric(model, results["primary"]),
            _difference(plain.get(cell["key"]) if cell else None, info, word=True),
            _difference(first.get(cell["key"]) if cell else None, info),
            estimate(model["retained"], formats.percent) if cell else Cell(),
            *(metric(model, key) for key in others),
        )
        rows.append(Row(model["title"], cells, role=cell_role(results, cell) if cell else role("teacher")))
    unit = "points" if info["percent"] else ""
    methods = [cell for cell in results["cells"] if cell["plain"] is not None]
    heads = [
        Column(info["name"], "95 % interval"),
        Column("Over plain", unit),
        Column(f"Over {methods[0]['title']}", unit),
        Column("Teacher kept"),
        *(Column(results["metrics"][key]["name"], _sense(results["metrics"][key])) for key in others),
    ]
    return table("Quality of every variant", "Variant", heads, rows)


def _sense(info: Mapping[str, Any]) -> str:
    return "" if info["higher_is_better"] else "lower is better"


def behaviour_table(results: Results) -> Table | None:
    """Every variant's closeness to the teacher, its fit to the training rows, and what it cost."""
    info = results["metrics"][results["primary"]]
    rows = []
    for cell in [None, *results["cells"]]:
        model = results["teacher"] if cell is None else cell
        fit, attention = model["overfit"] or {}, ((cell or {}).get("attention") or {}).get("mean") or {}
        cells = (
            estimate(model["agreement"], formats.percent),
            estimate(model["kl"], formats.decimal),
            Cell(formats.decimal(attention.get("jensen_shannon"))),
            Cell(formats.value(fit.get("train"), info)),
            Cell(formats.value(fit.get("validation"), info)),
            Cell(formats.difference(fit.get("gap"), info, unit=False)),
        )
        rows.append(Row(model["title"], cells, role=cell_role(results, cell) if cell else role("teacher")))
    heads = [
        Column("Agreement", "same answer as the teacher"),
        Column("KL", "to the teacher"),
        Column("Attention", "JS to the teacher’s, nats"),
        Column("Train", info["name"]),
        Column("Validation", info["name"]),
        Column("Gap", "train − validation"),
    ]
    return table("Closeness and fit of every variant", "Variant", heads, rows)


def cost_table(results: Results) -> Table | None:
    """What every variant took to train, and takes to run."""
    rows = []
    sizes = batch_sizes(model["cost"] or {} for model in (results["teacher"], *results["cells"]))
    for cell in [None, *results["cells"]]:
        model = results["teacher"] if cell is None else cell
        took, cost = model["training"] or {}, model["cost"] or {}
        latency = cost.get("latency") or {}
        cells = (
            Cell(formats.whole(took.get("steps"))),
            Cell(formats.milliseconds(took.get("ms_per_step"))),
            Cell(formats.duration(took.get("seconds"))),
            Cell(formats.count(cost.get("parameters"))),
            Cell(formats.size(cost.get("bytes"))),
            Cell(formats.count(cost.get("macs"))),
            *(Cell(formats.milliseconds((latency.get(size) or {}).get("p50_ms"))) for size in sizes),
            Cell(formats.size(cost.get("peak_memory_bytes"))),
        )
        rows.append(Row(model["title"], cells, role=cell_role(results, cell) if cell else role("teacher")))
    heads = [
        Column("Steps"),
        Column("A step", "teacher and student"),
        Column("Training", "one seed"),
        Column("Parameters"),
        Column("Size on disk"),
        Column("Multiply-adds", "a row"),
        *(Column(f"Latency, batch {size}", "p50") for size in sizes),
        Column("Peak memory"),
    ]
    return table("What every variant costs", "Variant", heads, rows)


def attention_table(results: Results) -> Table | None:
    """The means of the three measures, and the divergence layer by layer."""
    titles = {cell["key"]: cell["title"] for cell in results["cells"]}
    starts = [(f"{titles[key]}, before training", one) for key, one in results["attention_at_start"].items()]
    shown = starts + [(cell["title"], cell["attention"]) for cell in results["cells"] if cell["attention"]]
    most = max((len(one["layers"]) for _, one in shown), default=0)
    rows = []
    for title, one in shown:
        layers = [Cell(formats.decimal(layer["mean"]), f"with {layer['teacher']}") for layer in one["layers"]]
        means = (Cell(formats.decimal(one["mean"][name])) for name in ("jensen_shannon", "cosine", "mse"))
        rows.append(Row(title, (*means, *layers, *[Cell()] * (most - len(layers)))))
    heads = [Column("JS", "nats"), Column("Cosine"), Column("MSE")]
    heads += [Column(f"Layer {number}", "JS") for number in range(most)]
    return table("Attention maps beside the teacher's", "Variant", heads, rows)


def attention_text(results: Results) -> str:
    """How to read the heat maps, and where the students began."""
    shown = [cell["attention"] for cell in results["cells"] if cell["attention"]]
    if not shown:
        return ""
    text = reading(shown[0])
    starts = list((results.get("attention_at_start") or {}).values())
    if starts:
        means = ", ".join(formats.decimal(one["mean"]["jensen_shannon"]) for one in starts)
        text += f" Before training, the student stood at {means} on average."
    return text


def run_facts(results: Results) -> Facts:
    """When, where and how the comparison was made."""
    run = results["run"]
    machine = run["hardware"]
    return [
        ("Varied", ", ".join(run["varied"])),
        ("Seeds", ", ".join(map(str, run["seeds"]))),
        ("Training settings", "each method's own" if run["own_settings"] else "the recipe's, for all methods"),
        ("Written", run["created"]),
        ("Work in all", formats.duration(run["seconds"])),
        ("Machine", ", ".join(str(part) for part in (machine["processor"], machine["accelerator"]) if part)),
        ("Precision", f"{run['precision']['training']}: {run['precision']['why']}"),
        ("Versions", ", ".join(f"{name} {number}" for name, number in run["versions"].items())),
        ("Command", run["command"]),
    ]


def cell_table(results: Results) -> Table | None:
    """What each variant learns, stage by stage, and where its run lies."""
    rows = [
        Row(
            cell["title"],
            (
                Cell("; then ".join(" + ".join(stage["terms"]) for stage in cell["stages"])),
                Cell(cell["folder"]),
            ),
            role=cell_role(results, cell),
        )
        for cell in results["cells"]
    ]
    return table("The runs of the comparison", "Variant", ("What it learns", "Folder"), rows)


def comparison_markdown(results: Results) -> str:
    """The whole of comparison.md: the words and tables of the page."""
    run, verdict = results["run"], results["verdict"]
    lines = [
        f"# {escape(run['title'])}",
        "",
        " · ".join(escape(fact) for fact in headline_facts(results)),
        "",
        f"**{escape(verdict['headline'])}**",
        "",
        *(line for sentence in verdict["sentences"] for line in (escape(sentence), "")),
        *_section("Quality", quality_table(results)),
        *_section("Closeness and fit", behaviour_table(results)),
        *_section("Cost", cost_table(results)),
        *_section("Attention beside the teacher's", attention_table(results)),
    ]
    lines += ["## How every number was made", ""]
    lines += [f"- **{escape(item['number'])}**: {escape(item['made'])}" for item in results["how"]]
    lines += ["", "## The comparison", ""]
    lines += [f"- **{escape(name)}**: {escape(text)}" for name, text in run_facts(results)]
    lines += ["", *_section("What was compared", cell_table(results))]
    return "\n".join(lines).rstrip("\n") + "\n"


def _section(title: str, shown: Table | None) -> Sequence[str]:
    return [f"## {escape(title)}", "", *markdown_table(shown)] if shown else []
