"""report.html and report.md from results.json.

Decided here: the results are read and never changed, and nothing is computed from them. Both files are written beside
their place and then renamed, so that a reader never meets half a report. The page is one file without scripts; its own
policy forbids every request, so that nothing in a user's text could cause one.
"""

import base64
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.checks import problem
from potstill.errors import RunFolderError
from potstill.report import curves, details, plots, tables
from potstill.report.comparison_plots import heat_maps, reading
from potstill.report.drawing import Plot
from potstill.report.markdown import markdown_page
from potstill.report.roles import Role, ordered_models, role
from potstill.report.tables import MOST_CLASSES, Results

SCHEMA = 1
REQUIRED = ("run", "models", "primary", "verdict")
FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">'
    '<g fill="none" stroke="#c24a0a" stroke-width="3" stroke-linejoin="round" stroke-linecap="round">'
    '<path d="M12 5v5c0 8-6 9-6 15 0 2 1 3 3 3h12c2 0 3-1 3-3 0-6-6-7-6-15V5z"/><path d="M12 5h14l3 10"/></g></svg>'
)


@dataclass(frozen=True)
class Outcome:
    """How a verdict is shown: CSS class, word, and a small drawing that means the same."""

    css: str
    word: str
    path: str

    @property
    def icon(self) -> str:
        return (
            '<svg viewBox="0 0 16 16" aria-hidden="true"><path d="' + self.path + '" fill="none" '
            'stroke="currentColor" stroke-width="2.4" stroke-linecap="round" stroke-linejoin="round"/></svg>'
        )


OUTCOMES: dict[str, Outcome] = {
    "helped": Outcome("helped", "Distillation helped", "M2.5 8.5l3.5 3.5 7.5-8"),
    "no_difference": Outcome("no_difference", "No difference that can be told", "M3 6h10M3 10.5h10"),
    "harm": Outcome("harm", "Distillation did harm", "M3.5 3.5l9 9M12.5 3.5l-9 9"),
    "not_compared": Outcome("not_compared", "Not compared", "M3 8h10"),
}


def check_results(results: Any, source: str) -> None:
    """Raise `RunFolderError` unless the results have this report's schema and its indispensable parts."""
    again = "give the recipe's `potstill run` again: what is done is reused, and the file is written anew"
    if not isinstance(results, Mapping) or "schema" not in results:
        raise RunFolderError(problem(f"{source} holds no results: it has no 'schema'", do=again))
    if results["schema"] != SCHEMA:
        raise RunFolderError(
            problem(
                f"This report reads results of schema {SCHEMA}",
                given=f"schema {results['schema']!r} in {source}",
                do=again,
            )
        )
    missing = [key for key in REQUIRED if not results.get(key)]
    if missing:
        raise RunFolderError(problem(f"{source} lacks {', '.join(missing)}", do=again))


def load_results(path: Path) -> dict[str, Any]:
    """The results in a results.json, checked. Raises `RunFolderError` where they can't be read or aren't ours."""
    path = Path(path)
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(
            problem(
                "The results can't be read",
                given=f"{path}: {error}",
                do="name a run folder in which `potstill run` has finished",
            )
        ) from error
    check_results(results, str(path))
    checked: dict[str, Any] = results
    return checked


def write_report(results: Results, folder: Path) -> tuple[Path, Path]:
    """Write report.html and report.md into `folder` and give back their paths, in this order.

    `results` is what results.json holds. Raises `RunFolderError` where it isn't, or where the files can't be written;
    an earlier report then stays as it was.
    """
    folder = Path(folder)
    check_results(results, "The results given")
    pages = {"report.html": html_page(results), "report.md": markdown_page(results, OUTCOMES[_outcome(results)].word)}
    written = [write_page(folder / name, text) for name, text in pages.items()]
    return written[0], written[1]


def write_page(path: Path, text: str) -> Path:
    """Write a page beside its place, then rename it there. Raises `RunFolderError` where that can't be done."""
    handle = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
            handle.write(text.encode("utf-8", "replace"))
        os.chmod(handle.name, 0o644)
        os.replace(handle.name, path)
    except OSError as error:
        if handle is not None:
            Path(handle.name).unlink(missing_ok=True)
        raise RunFolderError(
            problem(
                "The report can't be written",
                given=f"{path}: {error}",
                do="free space or choose a folder that can be written",
            )
        ) from error
    return path


def _outcome(results: Results) -> str:
    outcome = str((results.get("verdict") or {}).get("outcome"))
    return outcome if outcome in OUTCOMES else "not_compared"


def html_page(results: Results) -> str:
    """The whole page as text."""
    return rendered("report.html", _page(results))


def rendered(template: str, page: Mapping[str, Any]) -> str:
    """A page's template filled in; style sheet and icon are the same for all of them."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    home = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(home), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = (home / "report.css").read_text(encoding="utf-8")
    favicon = "data:image/svg+xml;base64," + base64.b64encode(FAVICON.encode()).decode()
    return environment.get_template(template).render(page={**page, "style": style, "favicon": favicon})


def _page(results: Results) -> dict[str, Any]:
    run, verdict, data = results["run"], results["verdict"], results.get("data") or {}
    inside, classes = _inside(results), details.class_table(results)
    attention = heat_maps([(one["title"], one["key"], one) for one in results.get("attention") or []])
    page: dict[str, Any] = {
        "title": run.get("title") or run.get("name") or "Distillation report",
        "facts": details.headline_facts(results),
        "outcome": OUTCOMES[_outcome(results)],
        "headline": verdict.get("headline"),
        "sentences": verdict.get("sentences") or [],
        "highlights": [
            {"note": "", "label": "", **card} for card in results.get("highlights") or [] if card.get("value")
        ],
        "main": tables.main_table(results),
        "who": _who(results),
        "comparisons": tables.comparison_table(results),
        "comparison_plots": [plot for plot in (plots.comparison_plot(results), plots.seeds_plot(results)) if plot],
        "trade_offs": plots.trade_offs(results),
        "inside": inside,
        "inside_title": "Calibration" if [plot.key for plot in inside] == ["reliability"] else "Class by class",
        "classes": classes,
        "fold_classes": bool(classes) and len(classes.rows if classes else []) > MOST_CLASSES,
        "counts": details.agreement_counts(results),
        "sheet": details.sheet(results),
        "examples": _examples(results),
        "attention": attention,
        "attention_text": reading(results["attention"][0]) if attention else "",
        "exports": tables.export_table(results),
        "training": details.training_table(results),
        "learning": curves.learning_curves(results),
        "data_text": data.get("description"),
        "data_facts": details.data_facts(results),
        "splits": details.split_table(results),
        "how": details.how(results),
        "run": details.run_facts(results),
        "stages": details.stage_table(results),
        "recipe": run.get("recipe"),
        "version": (run.get("versions") or {}).get("potstill"),
    }
    return {**page, "contents": _contents(page)}


def _who(results: Results) -> list[tuple[Role, str, str]]:
    models = ordered_models(results)
    return [(role(model["key"]), model["title"], model["description"]) for model in models if model.get("description")]


def _inside(results: Results) -> list[Plot]:
    single = (curves.class_change_plot(results), curves.reliability_plot(results))
    return [plot for plot in (*single, *curves.confusion_plots(results)) if plot]


def _examples(results: Results) -> list[dict[str, Any]]:
    lists = details.examples(results)
    for group in lists:
        for item in group["items"]:
            item["answers"] = [(role(key), name, text) for key, name, text in item["answers"]]
    return lists


def _contents(page: Mapping[str, Any]) -> list[tuple[str, str]]:
    sections = (
        ("models", "Models", ("main",)),
        ("comparison", "Differences", ("comparisons", "comparison_plots")),
        ("cost", "Cost", ("trade_offs",)),
        ("classes", page["inside_title"], ("inside", "classes")),
        ("images", "Images", ("sheet",)),
        ("examples", "Examples", ("examples", "counts")),
        ("attention", "Attention", ("attention",)),
        ("exports", "Exports", ("exports",)),
        ("training", "Training", ("training", "learning")),
        ("data", "Data", ("data_facts", "splits", "data_text")),
        ("how", "How", ("how",)),
        ("run", "Run", ("run", "stages", "recipe")),
    )
    return [(key, name) for key, name, parts in sections if any(page[part] for part in parts)]
