"""The report's two files: complete, safe, self-contained, and nothing in them but what stands in the results."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from potstill.errors import RunFolderError
from potstill.report import formats, load_results, write_report
from potstill.report.build import html_page

VOID = {"meta", "link", "br", "img", "hr", "input"}
HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(2)></svg></title></style>-->|`#*"


class Page(HTMLParser):
    """What a page holds: texts, ids, attributes, headings; tags must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", " ".join(data.split(" ")).strip()))

    def words(self, *tags: str) -> list[str]:
        return [text for tag, text in self.texts if not tags or tag in tags]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_variants_render_as_sound_pages(variant: Any) -> None:
    assert sorted(path.name for path in variant.html.parent.iterdir()) == ["report.html", "report.md"]
    page = Page(read(variant.html))
    assert len(page.ids) == len(set(page.ids))
    assert page.words("h1") == [variant.results["run"]["title"]]
    anchors = {value[1:] for tag, name, value in page.attributes if tag == "a" and name == "href"}
    assert anchors <= set(page.ids)
    named = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-labelledby"]
    assert set(named) <= set(page.ids)
    assert not {"nan", "None", "inf"} & set(
        re.findall(r"\b\w+\b", " ".join(page.words("td", "th", "dd", "li", "text")))
    )


def test_nothing_points_outside_the_file(variant: Any) -> None:
    text = read(variant.html)
    page = Page(text)
    for _, name, value in page.attributes:
        assert "://" not in value, (name, value)
        if name in {"href", "src", "xlink:href"}:
            assert value.startswith(("#", "data:"))
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text
    assert not {"script", "iframe", "object", "embed", "form", "base"} & set(page.tags)


def test_references_inside_figures_are_kept(written: Any) -> None:
    text = read(written("full").html)
    page = Page(text)
    wanted = {value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]*)\)", text))
    assert len(wanted) > 20
    assert wanted <= set(page.ids)
    assert "DejaVu" not in text
    assert not re.search(r"#0[123]0[123]0[1-6]", text)


def _expected_numbers(results: dict[str, Any]) -> list[str]:
    """Every number that the main table must show, formatted."""
    wanted: list[str] = []
    for model in results["models"]:
        for key, stat in model["metrics"].items():
            info = results["metrics"][key]
            text = formats.value(stat["mean"], info)
            wanted.append(
                text + (f"{formats.NBSP}± {formats.spread(stat['std'], info)}" if stat["std"] is not None else "")
            )
            wanted.append(formats.interval(stat["interval"], lambda number, info=info: formats.value(number, info)))
        if model["key"] != "teacher":
            wanted += [formats.percent(model["retained"]["mean"]), formats.percent(model["agreement"]["mean"])]
            wanted += [
                formats.interval(model["retained"]["interval"], formats.percent),
                formats.decimal(model["kl"]["mean"]),
            ]
        cost = model["cost"]
        wanted += [formats.percent(model["calibration"]["ece"]["mean"]), formats.count(cost["parameters"])]
        wanted += [formats.size(cost["bytes"]), formats.count(cost["macs"]), formats.size(cost["peak_memory_bytes"])]
        wanted += [formats.per_second(cost["throughput_per_s"]), formats.duration(model["training"]["seconds"])]
        wanted += [formats.milliseconds(times["p50_ms"]) for times in cost["latency"].values()]
        wanted += [f"p95 {formats.milliseconds(times['p95_ms'])}" for times in cost["latency"].values()]
    for export in results["exports"]:
        wanted += [formats.value(value, results["metrics"][key]) for key, value in export["metrics"].items()]
        wanted += [formats.size(export["bytes"]), formats.per_second(export["throughput_per_s"])]
    return wanted


def test_every_number_of_the_main_table_stands_in_both_files(written: Any) -> None:
    results, html, markdown = written("full").results, read(written("full").html), read(written("full").markdown)
    section = html[html.index('<section id="models">') : html.index('<section id="comparison">')]
    shown = Page(section).words("td", "small")
    written = markdown[markdown.index("## The models") : markdown.index("## Differences")].replace("\\", "")
    wanted = _expected_numbers(results)
    assert len(wanted) > 70
    for number in wanted:
        assert number in shown
        assert number in written.replace("&lt;", "<")


def test_the_other_tables_hold_their_numbers(written: Any) -> None:
    results = written("full").results
    words = Page(read(written("full").html)).words()
    gap = results["comparisons"][0]
    assert formats.difference(gap["difference"], {"percent": True}) in words
    assert "+0.03 to +1.67" in words
    for export in results["exports"]:
        assert formats.decimal(export["max_logit_difference"], 4) in words
        assert formats.percent(export["agreement"], 2) in words
    for card in results["highlights"]:
        assert {card["value"], card["label"], card["note"]} <= set(words)
    for item in results["how"]:
        assert {item["number"], item["made"]} <= set(words)
    assert results["run"]["recipe"].strip() in words


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        ("helped", "Distillation helped"),
        ("no_difference", "No difference that can be told"),
        ("harm", "Distillation did harm"),
        ("not_compared", "Not compared"),
        ("unheard of", "Not compared"),
    ],
)
def test_verdict_comes_first(examples: ModuleType, tmp_path: Path, outcome: str, word: str) -> None:
    results = examples.minimal()
    results["verdict"].update(outcome=outcome, headline="What came of it.")
    html, markdown = (path.read_text(encoding="utf-8") for path in write_report(results, tmp_path))
    page = Page(html)
    assert word in page.words("span")
    assert html.index("What came of it.") < html.index("<table")
    assert f"**{word}.** What came of it." in markdown


def test_text_of_users_is_never_markup(written: Any) -> None:
    report = written(f"hostile: {HOSTILE}")
    html, markdown = read(report.html), read(report.markdown)
    page = Page(html)
    assert not {"script", "img"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "<!--" not in html
    outside = re.sub(r"(`{3,})yaml\n.*?\n\1\n", "", markdown, flags=re.DOTALL)
    assert "<" not in outside
    assert HOSTILE in page.words("pre")


def test_markdown_tables_are_whole(variant: Any) -> None:
    text = read(variant.markdown)
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert blocks
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block
        assert re.match(r"\| --- (\| ---: )+\|", block.splitlines()[1])


def test_absent_parts_leave_no_headings(written: Any) -> None:
    html, markdown = read(written("minimal").html), read(written("minimal").markdown)
    assert Page(html).words("h2", "h3") == ["The models"]
    assert re.findall(r"^## .*", markdown, flags=re.MULTILINE) == ["## The models"]
    regression = Page(read(written("regression").html)).words("h2")
    assert not {"Class by class", "Calibration", "Exports"} & set(regression)


def test_many_classes_are_cut_to_those_that_changed_most(written: Any) -> None:
    results, text = written("many_classes").results, read(written("many_classes").html)
    assert "20 of 77 classes: those that changed most." in text
    ranked = sorted(results["per_class_change"], key=lambda item: -abs(item["change"]))
    figure = text[text.index('id="plot-classes"') : text.index('id="plot-reliability"')]
    shown = Page(figure[figure.index("<table") : figure.index("</table>") + 8]).words("th")
    assert [word for word in shown if word.endswith("_request")] == [item["class"] for item in ranked[:20]]
    matrix = text[text.index('id="plot-confusion-student"') : text.index('id="plot-confusion-teacher"')]
    assert len(Page(f"<div {matrix[: matrix.rindex('</figure>')]}</div>").words("text")) <= 2


def test_plots_are_there(written: Any) -> None:
    ids = Page(read(written("full").html)).ids
    cost, classes = (
        ["latency-1", "latency-32", "size"],
        ["classes", "reliability", "confusion-student", "confusion-teacher"],
    )
    keys = ["differences", "seeds", *cost, *classes, "curve-0", "curve-1"]
    assert [f"plot-{key}" for key in keys] == [name for name in ids if name.startswith("plot-")]


def test_names_that_trip_drawing(examples: ModuleType) -> None:
    results = examples.full(classes=("$x_1$", "否定 🙂", "#010101 font-family: x;"))
    text = html_page(results)
    shown = Page(text).words("text")
    assert {"$x_1$", "否定 🙂"} <= set(shown)
    assert "#010101 font-family…" in shown


def test_same_results_same_file(examples: ModuleType, written: Any) -> None:
    assert html_page(examples.full()) == read(written("full").html)


def test_drawing_leaves_matplotlib_as_it_was(examples: ModuleType) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 33.0}):
        before = dict(matplotlib.rcParams)
        html_page(examples.multi_label())
        assert dict(matplotlib.rcParams) == before


def test_load_results(examples: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(examples.full()), encoding="utf-8")
    assert load_results(path) == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't be read"),
        ("{", "can't be read"),
        ("[]", "no 'schema'"),
        ('{"schema": 2}', "schema 1"),
        ('{"schema": 1}', "lacks"),
    ],
)
def test_load_refuses_what_is_no_results(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(RunFolderError, match=message):
        load_results(path)


def test_report_that_cannot_be_written(examples: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="can't be written"):
        write_report(examples.minimal(), tmp_path / "file")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RunFolderError, match="can't be written"):
        write_report(examples.minimal(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "report.html"]


def test_disagreements_over_images_are_a_sheet(written: Any) -> None:
    page, results = read(written("images").html), written("images").results["examples"]
    shown = [item["image"] for key in ("teacher_right", "student_right") for item in results[key]]
    assert len(shown) > 3 and [address for address in shown if f'<img src="{address}"' not in page] == []
    assert page.count('<ol class="sheet">') == 2
    markdown = read(written("images").markdown)
    assert "data:image/png" not in markdown and "picture 0.png" in markdown
    assert '<ol class="sheet">' not in read(written("full").html)


def test_no_picture_comes_from_elsewhere(examples: ModuleType) -> None:
    results = examples.images()
    item = results["examples"]["teacher_right"][0]
    for address in (
        "https://127.0.0.1:9/x.png",
        "data:image/svg+xml;base64,AAAA",
        'data:image/png;base64,A"x',
        7,
        None,
    ):
        item["image"] = address
        assert "picture 0.png</blockquote>" in html_page(results), address
