"""The report of a comparison: sound, self-contained, and every number of comparison.json that matters in it."""

import copy
import html
import importlib.util
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from potstill.report import formats, write_comparison

VOID = {"meta", "link", "br", "img", "hr", "input"}
HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(2)></svg></title>-->|`#*"


class Page(HTMLParser):
    """Ids, references and tags of a page; tags must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The module that makes up a comparison."""
    path = Path(__file__).with_name("example_comparison.py")
    spec = importlib.util.spec_from_file_location("potstill_example_comparison", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(example: ModuleType) -> dict[str, Any]:
    """A comparison of three seeds."""
    found: dict[str, Any] = example.comparison(rows=300)
    return found


@pytest.fixture(scope="module")
def written(results: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The page and the Markdown."""
    page, markdown = write_comparison(results, tmp_path_factory.mktemp("comparison"))
    return page.read_text(encoding="utf-8"), markdown.read_text(encoding="utf-8")


def test_the_page_is_sound_and_asks_nothing_of_anybody(written: tuple[str, str]) -> None:
    page = Page(written[0])
    assert len(page.ids) == len(set(page.ids)), "no id stands twice"
    assert "script" not in page.tags
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert not re.search(r"url\((?!#)", written[0])


def test_every_number_of_the_tables_stands_in_both_files(results: dict[str, Any], written: tuple[str, str]) -> None:
    for text in written:
        for cell in results["cells"]:
            found = cell["metrics"]["accuracy"]
            assert f"{formats.percent(found['mean'])}{formats.NBSP}± {formats.percent(found['std'])[:-1]}" in text
            assert formats.percent(cell["agreement"]["mean"]) in text
            assert formats.decimal(cell["attention"]["mean"]["jensen_shannon"]) in text
            assert formats.milliseconds(cell["training"]["ms_per_step"]) in text
        for one in results["differences"]:
            if one["family"] in ("plain", "first"):
                assert formats.difference(one["difference"], results["metrics"]["accuracy"], unit=False) in text


def test_the_verdict_comes_first(results: dict[str, Any], written: tuple[str, str]) -> None:
    for text in (html.unescape(written[0]), written[1].replace("\\", "")):
        places = [text.index(words) for words in (results["verdict"]["headline"], *results["verdict"]["sentences"])]
        assert places == sorted(places) and places[-1] < text.index("Teacher kept")


def test_one_heat_map_a_model(results: dict[str, Any], written: tuple[str, str]) -> None:
    maps = re.findall(r'id="plot-(attention-[\w-]+)"', written[0])
    assert maps == ["attention-start-plain", *(f"attention-{cell['key']}" for cell in results["cells"])]


def test_names_are_never_markup(results: dict[str, Any], tmp_path: Path) -> None:
    changed = copy.deepcopy(results)
    changed["cells"][1]["title"] = changed["run"]["recipe"] = HOSTILE
    written, markdown = write_comparison(changed, tmp_path)
    page = Page(written.read_text(encoding="utf-8"))
    assert "script" not in page.tags and "img" not in page.tags
    assert "<img" not in markdown.read_text(encoding="utf-8")


def test_without_cost_attention_and_further_seeds(example: ModuleType, tmp_path: Path) -> None:
    found = example.comparison(rows=200, seeds=1)
    found["attention_at_start"] = {}
    found["teacher"]["cost"] = None
    for cell in found["cells"]:
        cell["attention"] = cell["cost"] = None
    page, _ = write_comparison(found, tmp_path)
    text = page.read_text(encoding="utf-8")
    Page(text)
    assert 'id="attention"' not in text and "Parameters" not in text and "One seed was run" in text


@pytest.mark.browser
def test_the_page_opens_in_a_browser(results: dict[str, Any], browser: str, tmp_path: Path) -> None:
    page, _ = write_comparison(results, tmp_path)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run([browser, *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert results["verdict"]["headline"] in html.unescape(done.stdout)
