"""Holds together what the repository says in several places: pins, versions, targets, and the commands it shows.

Whoever follows the README or a page of the documentation types what stands there; each command named there exists.
"""

import ast
import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TARGETS = {"quickstart", "test", "check", "docs", "bench", "peers", "clean", "help"}
PAGES = sorted(page.relative_to(ROOT).as_posix() for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
IMPORTED_AS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}  # where the package has another name

# Put together here, so that this file does not hold what it looks for.
ELSEWHERE = re.compile("|".join([r"(?<![\w.~-])/" + r"(?:root|home|Users)/\w", "--(?:extra-)?" + "index-url"]))


@cache
def kept_files() -> list[Path]:
    """The files that git tracks, or would if they were added."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def text_of(file: Path) -> str:
    """A file's text, or an empty string for a binary file."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def requirements() -> list[Requirement]:
    """Every direct dependency, those of the extras among them."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    return [Requirement(line) for lines in [PROJECT["project"]["dependencies"], *extras] for line in lines]


def pins() -> dict[str, str]:
    """Name and version of every line in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def commands(page: str) -> Iterator[list[str]]:
    """The words of every command that a page shows in its shell blocks."""
    blocks = re.findall(r"^ *```(?:bash|sh|shell|console)\n(.*?)^ *```", (ROOT / page).read_text("utf-8"), re.M | re.S)
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            words = line.partition(" #")[0].strip().removeprefix("$ ").split()
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if words and not words[0].startswith("#"):
                yield words


def test_nothing_points_into_a_home_or_at_an_index() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in kept_files()
        for number, line in enumerate(text_of(file).splitlines(), 1)
        if ELSEWHERE.search(line)
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("bad", ["see /" + "root/x", "'/" + "home/ann/data'", "pip install --" + "index-url https://x"])
def test_the_search_finds_what_it_looks_for(bad: str) -> None:
    assert ELSEWHERE.search(bad)


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    pinned = pins()
    for one in requirements():
        name = canonicalize_name(one.name)
        if name == "pip":  # does the installing, so it is not among what is installed
            continue
        assert name in pinned, f"{one} has no pin in constraints.txt"
        assert one.specifier.contains(pinned[name]), f"constraints.txt pins {name}=={pinned[name]}, outside '{one}'"


def test_every_import_of_the_package_is_declared() -> None:
    declared = {canonicalize_name(one.name) for one in requirements()}
    undeclared = set()
    for file in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for root in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"potstill"}:
                name = canonicalize_name(IMPORTED_AS.get(root, root))
                undeclared |= {f"{file.name}: {root}"} if name not in declared else set()
    assert not undeclared, f"imported, and no direct dependency in pyproject.toml: {sorted(undeclared)}"


def test_constraints_are_plain_versions() -> None:
    odd = [f"{name}=={version}" for name, version in pins().items() if not re.fullmatch(r"[\w.]+", version)]
    assert not odd, f"no local versions, URLs or paths belong into constraints.txt: {odd}"
    assert "potstill" not in pins()


def test_the_version_is_one() -> None:
    version = PROJECT["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_every_data_file_of_the_package_is_installed() -> None:
    package = ROOT / "src" / "potstill"
    globs = PROJECT["tool"]["setuptools"]["package-data"]["potstill"]
    inside = [file.relative_to(package).as_posix() for file in kept_files() if file.is_relative_to(package)]
    missed = [name for name in inside if not name.endswith(".py") and not any(fnmatch(name, one) for one in globs)]
    assert not missed, f"no pattern in package-data covers {missed}"


def test_targets_exist_and_are_listed() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"^([a-z]+):.* ## ", makefile, re.M)) == TARGETS
    assert set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split()) == TARGETS  # type: ignore[index]


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_target_can_be_planned(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_continuous_integration_can_be_started() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], timeout=60).returncode == 0


def test_readme_shows_the_way_in() -> None:
    shown = [words[:2] for words in commands("README.md")]
    assert ["make", "quickstart"] in shown


@pytest.mark.parametrize("page", PAGES)
def test_targets_and_recipes_that_a_page_shows_exist(page: str) -> None:
    for words in commands(page):
        if words[0] == "make":
            named = {word for word in words[1:] if re.fullmatch("[a-z]+", word)}
            assert named <= TARGETS, f"{page} shows 'make {' '.join(sorted(named - TARGETS))}', which does not exist"
        if words[:2] in (["potstill", "run"], ["potstill", "plan"]):
            recipe = words[2]
            packaged = ROOT / "src" / "potstill" / "recipes" / f"{recipe}.yaml"
            assert recipe.endswith(".yaml") or packaged.is_file(), f"{page} shows '{' '.join(words)}': no such recipe"


@pytest.mark.parametrize("page", PAGES)
def test_recipes_that_a_page_shows_are_valid(page: str) -> None:
    from potstill.recipe import load_recipe

    for block in re.findall(r"^```yaml\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.M | re.S):
        data = yaml.safe_load(block)
        if isinstance(data, dict) and "distill" in data:
            load_recipe(data)


def shown_subcommands() -> list[str]:
    """Every subcommand of `potstill` that a page shows, options left out."""
    return sorted({words[1] for page in PAGES for words in commands(page) if words[0] == "potstill"} - {"--help"})


@pytest.mark.parametrize("name", shown_subcommands())
def test_subcommands_that_a_page_shows_exist(name: str) -> None:
    command = Path(sys.executable).with_name("potstill")
    done = subprocess.run([command, name, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_documentation_asks_nothing_of_other_hosts() -> None:
    theme = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["theme"]
    assert theme["font"] is False


def test_every_family_of_losses_is_documented() -> None:
    families = {file.stem for file in (ROOT / "src" / "potstill" / "losses").glob("[a-z]*.py")}
    shown = re.findall(r"^::: potstill\.losses\.(\w+)$", (ROOT / "docs" / "losses.md").read_text("utf-8"), re.M)
    assert set(shown) == families


def test_the_tables_of_the_comparison_are_made_of_its_numbers() -> None:
    tool = runpy.run_path(str(ROOT / "benchmarks" / "comparison.py"))
    found = {page.name: list(tool["BLOCK"].finditer(page.read_text(encoding="utf-8"))) for page in tool["PAGES"]}
    assert set(found) == {"comparison.md", "results.md"} and all(found.values())
    for block in (block for blocks in found.values() for block in blocks):
        file = ROOT / "benchmarks" / "results" / f"comparison-{block[2]}.json"
        made = tool["tables"](json.loads(file.read_text(encoding="utf-8")))
        assert block[0] == f"{block[1]}{made}{block[3]}", block[2]
