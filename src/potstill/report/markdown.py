"""report.md: the same words and tables as the page, without the plots.

Decided here: GitHub's tables; a cell's second line follows in brackets. Whatever comes from the results is escaped, so
that a text can neither open a tag nor break a table; the fence around the recipe is longer than any in it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from potstill.report import details, tables
from potstill.report.formats import tidy
from potstill.report.tables import Cell, Results, Table


def escape(text: Any) -> str:
    """A text on one line in which nothing is markup."""
    line = tidy(text).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([|`*_\[\]#!~$])", r"\\\1", line)


def _noted(text: str, note: str) -> str:
    return f"{escape(text)} ({escape(note)})" if note else escape(text)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown_table(table: Table) -> list[str]:
    """The lines of a table; a group's name is a row of its own in bold."""
    lines = [_line([escape(table.corner), *(_noted(column.title, column.note) for column in table.columns)])]
    lines.append(_line(["---", *("---:" for _ in table.columns)]))
    for name, rows in table.groups:
        if name:
            lines.append(_line([f"**{escape(name)}**", *("" for _ in table.columns)]))
        lines += [_line([_noted(row.label, row.note), *(_cell(cell) for cell in row.cells)]) for row in rows]
    return [*lines, ""]


def _cell(cell: Cell) -> str:
    return _noted(cell.text, cell.note)


def _facts(facts: Iterable[tuple[str, str]]) -> list[str]:
    lines = [f"- **{escape(name)}**: {escape(text)}" for name, text in facts]
    return [*lines, ""] if lines else []


def _section(title: str, *parts: list[str]) -> list[str]:
    body = [line for part in parts for line in part]
    return [f"## {title}", "", *body] if body else []


def _table(table: Table | None) -> list[str]:
    return markdown_table(table) if table else []


def _examples(results: Results) -> list[str]:
    lines = _facts((name, number) for name, number in details.agreement_counts(results))
    for group in details.examples(results):
        lines += [f"### {group['heading']}", ""]
        for item in group["items"]:
            answers = "; ".join(f"{escape(name)}: {escape(text)}" for _, name, text in item["answers"] if text)
            pair = f" / {escape(item['pair'])}" if item["pair"] else ""
            lines.append(f"- {escape(item['text'])}{pair} (truth: {escape(item['label'])}; {answers})")
        lines.append("")
    return lines


def _recipe(run: Mapping[str, Any]) -> list[str]:
    recipe = str(run.get("recipe") or "")
    if not recipe:
        return []
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall(r"`+", recipe)), default=0))
    return ["### Recipe, as resolved", "", f"{fence}yaml", recipe.rstrip("\n"), fence, ""]


def markdown_page(results: Results, outcome: str) -> str:
    """The whole of report.md; `outcome` is the verdict's word."""
    run, verdict, data = results["run"], results["verdict"], results.get("data") or {}
    headline = verdict.get("headline")
    lines = [
        f"# {escape(run.get('title') or run.get('name') or 'Distillation report')}",
        "",
        " · ".join(escape(fact) for fact in details.headline_facts(results)),
        "",
        f"**{outcome}.** {escape(headline) if headline else ''}".rstrip(),
        "",
        *(line for sentence in verdict.get("sentences") or [] for line in (escape(sentence), "")),
        *_facts(
            (card["value"], f"{card.get('label') or ''}. {card.get('note') or ''}".strip())
            for card in results.get("highlights") or []
            if card.get("value")
        ),
        *_section("The models", _table(tables.main_table(results))),
        *_section("Differences", _table(tables.comparison_table(results))),
        *_section("Class by class", _table(details.class_change_table(results))),
        *_section("Where teacher and student disagree", _examples(results)),
        *_section("Exports", _table(tables.export_table(results))),
        *_section("Training", _table(details.training_table(results))),
        *_section(
            "Data",
            [escape(data["description"]), ""] if data.get("description") else [],
            _facts(details.data_facts(results)),
            _table(details.split_table(results)),
        ),
        *_section("How every number was made", _facts(details.how(results))),
        *_section("The run", _facts(details.run_facts(results)), _table(details.stage_table(results)), _recipe(run)),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"
