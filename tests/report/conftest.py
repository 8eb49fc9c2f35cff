"""The made-up results, written once, and the browser: its tests are left out where there is none to be had."""

import copy
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from potstill.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser() -> str | None:
    """A Chromium on the PATH."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if find_browser() or os.environ.get("POTSTILL_BROWSER") == "required":
        return
    chosen: Sequence[pytest.Item] = [item for item in items if item.get_closest_marker("browser")]
    if chosen:
        config.hook.pytest_deselected(items=chosen)
        items[:] = [item for item in items if item not in chosen]


@pytest.fixture(scope="session")
def browser() -> str:
    """The browser's path; the test fails where one is required and none is found."""
    return find_browser() or pytest.fail("POTSTILL_BROWSER=required, and no Chromium is on the PATH")


@pytest.fixture(scope="session")
def examples() -> ModuleType:
    """The module that makes up results."""
    path = Path(__file__).with_name("example_results.py")
    spec = importlib.util.spec_from_file_location("potstill_example_results", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Written:
    """Results, and the two files written from them."""

    results: dict[str, Any]
    html: Path
    markdown: Path


@pytest.fixture(scope="session")
def written(examples: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """The report of a named variant, or of ``hostile: <text>``."""

    @lru_cache
    def write(name: str) -> Written:
        kind, _, text = name.partition(": ")
        results = examples.hostile(text) if kind == "hostile" else examples.VARIANTS[name]()
        before = copy.deepcopy(results)
        paths = write_report(results, tmp_path_factory.mktemp("report"))
        assert results == before
        return Written(results, *paths)

    return write


@pytest.fixture(params=["full", "regression", "multi_label", "many_classes", "minimal"])
def variant(request: pytest.FixtureRequest, written: Callable[[str], Written]) -> Written:
    """Every kind of results in turn."""
    return written(request.param)
