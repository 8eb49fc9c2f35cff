"""Holds the package to its plan: the import order, the borders to other libraries, and what `--help` may cost.

The rules read the source with `ast`, so an import inside a function counts as much as one at the top. `violations`
takes the folder to look at: the tests below also run it on small trees that break one rule each, so a rule that has
stopped seeing anything fails here.
"""

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "potstill"

# Each part may import only from the parts above it. A new part is entered here, at its place.
ORDER = (
    "errors",
    "checks",
    "ranks",
    "reduce",
    "losses",
    "mappings",
    "schedules",
    "transport",
    "knowledge",
    "projectors",
    "kinds",
    "fitting",
    "contrast",
    "terms",
    "staged",
    "fusing",
    "objective",
    "students",
    "augment",
    "metrics",
    "tasks",
    "data",
    "cache",
    "training",
    "evaluation",
    "export",
    "report",
    "sections",
    "recipe",
    "runs",
    "progress",
    "labelled",
    "encoding",
    "workbench",
    "preflight",
    "prediction",
    "evaluating",
    "likeness",
    "segmenting",
    "shipping",
    "results",
    "caching",
    "school",
    "pipeline",
    "plan",
    "comparing",
    "searching",
    "cli",
    "__main__",
)

# Beside the standard library, these parts may import only this.
NOTHING_BUT = {
    "errors": set(),
    "checks": set(),
    "ranks": {"torch"},
    "reduce": {"torch", "jaxtyping"},
    "losses": {"torch", "jaxtyping"},
    "mappings": {"torch", "jaxtyping"},
    "schedules": {"torch", "jaxtyping"},
    "transport": {"torch", "jaxtyping", "numpy", "scipy"},
}

# These libraries may be imported only by those parts.
ONLY_IN = {
    "datasets": {"tasks", "data"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "onnxscript": {"export"},
    "transformers.exporters": {"export"},
    "transformers.trainer": {"training"},
    "transformers.Trainer": {"training"},
    "transformers.Seq2SeqTrainer": {"training"},
    "transformers.TrainingArguments": {"training"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "optuna": {"searching"},
}

# These may be missing where potstill is installed, so they are imported where they are used, inside a function.
OPTIONAL = {"onnx", "onnxruntime", "onnxscript", "optuna", "transformers.exporters"}

VAGUE = {"util", "utils", "helper", "helpers", "common", "misc", "manager"}
LONGEST_FILE = 400


@dataclass(frozen=True)
class Import:
    """One imported name, `module` written out in full: `from a.b import c` is a.b.c."""

    module: str
    line: int
    in_function: bool


def imports(tree: ast.Module, package: str) -> Iterator[Import]:
    """Every import of a file, relative ones resolved against `package`, `import_module("…")` among them."""
    inside = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=module, names=names, level=level):
                above = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                base = ".".join([*above, *([module] if module else [])])
                modules = [f"{base}.{alias.name}" for alias in names]
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                modules = [module]
            case _:
                continue
        yield from (Import(module, node.lineno, id(node) in inside) for module in modules)


def within(module: str, library: str) -> bool:
    """Whether `module` is `library` or lies inside it."""
    return module == library or module.startswith(library + ".")


def broken_by(one: Import, part: str) -> Iterator[str]:
    """What one import of `part` breaks."""
    root, _, rest = one.module.partition(".")
    if rest.endswith("*"):
        yield f"imports everything from {one.module.removesuffix('.*')}: name what is used"
    if root == "potstill":
        other = rest.partition(".")[0]
        if other in ORDER and part in ORDER and ORDER.index(other) > ORDER.index(part):
            yield f"imports {one.module}, which stands below {part} in the import order"
        elif other not in ORDER and other != "__version__" and part in ORDER:
            yield f"imports {one.module}, which is no part in the import order: name the part that holds what is used"
    elif part in NOTHING_BUT and root not in sys.stdlib_module_names and root not in NOTHING_BUT[part]:
        allowed = ", ".join(sorted(NOTHING_BUT[part])) or "nothing"
        yield f"imports {one.module}; beside the standard library, {part} may know {allowed} at most"
    for library, parts in ONLY_IN.items():
        if within(one.module, library) and part not in parts:
            yield f"imports {one.module}, which only {' and '.join(sorted(parts))} may know"
    if not one.in_function and any(within(one.module, library) for library in OPTIONAL):
        yield f"imports {one.module} at the top: it is optional, so import it in the function that uses it"


def violations(package: Path) -> list[str]:
    """Every break of the plan under `package`, as `file:line: what is wrong`."""
    found = []
    for file in sorted(package.rglob("*.py")):
        place = file.relative_to(package)
        text = file.read_text(encoding="utf-8")
        part = place.with_suffix("").parts[0]
        if part not in ORDER and place != Path("__init__.py"):
            found.append(f"{place}: '{part}' has no place in the import order; enter it in ORDER")
        if file.stem in VAGUE:
            found.append(f"{place}: the name says nothing about what it holds")
        if (lines := len(text.splitlines())) > LONGEST_FILE:
            found.append(f"{place}: {lines} lines, and a file has at most {LONGEST_FILE}; split it by what it decides")
        home = ".".join(("potstill", *place.parent.parts))
        for one in imports(ast.parse(text), home):
            found += [f"{place}:{one.line}: {what}" for what in broken_by(one, part)]
    return found


def test_package_keeps_to_the_plan() -> None:
    found = violations(PACKAGE)
    assert not found, "\n" + "\n".join(found)


def test_names_of_the_losses_are_sorted() -> None:
    from potstill import losses

    assert losses.__all__ == sorted(losses.__all__)
    assert all(hasattr(losses, name) for name in losses.__all__)


@pytest.mark.parametrize(
    ("file", "source", "said"),
    [
        ("losses/logits.py", "from potstill.objective import Term", "stands below losses"),
        ("losses/logits.py", "def f():\n    import potstill.cli.run", "logits.py:2: imports potstill.cli.run"),
        ("losses/logits.py", "from potstill import objective", "stands below losses"),
        ("losses/logits.py", "from ..knowledge.types import Knowledge", "imports potstill.knowledge.types.Knowledge"),
        ("losses/deep/er.py", "from ... import cli", "imports potstill.cli"),
        ("errors.py", "from .checks import problem", "stands below errors"),
        ("data/load.py", "if TYPE_CHECKING:\n    from potstill.recipe import Recipe", "stands below data"),
        ("data/load.py", "import importlib\nimportlib.import_module('potstill.pipeline')", "stands below data"),
        ("training/trainer.py", "from potstill import run", "no part in the import order"),
        ("training/trainer.py", "import potstill", "no part in the import order"),
        ("losses/logits.py", "from transformers import AutoModel", "losses may know jaxtyping, torch at most"),
        ("mappings.py", "import numpy as np", "mappings may know jaxtyping, torch at most"),
        ("checks.py", "import torch", "checks may know nothing at most"),
        ("pipeline.py", "def f():\n    from datasets import Dataset", "only data and tasks may know"),
        ("cli/run.py", "def f():\n    import datasets", "only data and tasks may know"),
        ("evaluation/cost.py", "def f():\n    import onnxruntime", "only export may know"),
        ("export/onnx.py", "import onnx", "it is optional"),
        ("export/onnx.py", "from transformers.exporters import OnnxExporter", "it is optional"),
        ("pipeline.py", "from transformers import Trainer", "only training may know"),
        ("evaluation/cost.py", "import matplotlib.pyplot as plt", "only report may know"),
        ("losses/__init__.py", "from potstill.losses.logits import *", "imports everything from potstill.losses"),
        ("data/utils.py", "", "the name says nothing"),
        ("helpers.py", "", "has no place in the import order"),
        ("report/tables.py", "x = 1\n" * 401, "401 lines"),
    ],
)
def test_each_rule_sees_its_break(tmp_path: Path, file: str, source: str, said: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(source, encoding="utf-8")
    assert any(said in one for one in violations(tmp_path)), violations(tmp_path)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("__init__.py", "def __getattr__(name):\n    from potstill.pipeline import run\n    return run"),
        (
            "losses/logits.py",
            "import math\nimport torch\nfrom potstill.reduce import masked_mean\nfrom . import hidden",
        ),
        ("tasks/base.py", "from datasets import Dataset"),
        ("training/trainer.py", "from transformers import Trainer, TrainingArguments"),
        ("export/onnx.py", "def f():\n    import onnxruntime\n    from transformers.exporters import OnnxExporter"),
        ("export/model_card.py", "from potstill import __version__\nfrom potstill.errors import ExportError"),
        ("report/tables.py", "x = 1\n" * 400),
    ],
)
def test_rules_let_pass_what_is_meant(tmp_path: Path, file: str, source: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(source, encoding="utf-8")
    assert violations(tmp_path) == []


def loaded_by(statement: str, *heavy: str) -> list[str]:
    """Those of the `heavy` modules that a fresh interpreter holds after the statement (this one has long held all)."""
    code = f"import sys\n{textwrap.dedent(statement)}\nprint(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


HEAVY = ("torch", "transformers", "pydantic", "datasets", "matplotlib", "jinja2", "sklearn", "numpy", "onnxruntime")


@pytest.mark.parametrize("module", ["potstill", "potstill.cli"])
def test_import_pulls_in_nothing_heavy(module: str) -> None:
    assert loaded_by(f"import {module}", *HEAVY) == []


def test_help_pulls_in_nothing_heavy() -> None:
    ask = """
    from potstill.cli import main
    sys.argv = ["potstill", "--help"]
    try:
        main()
    except SystemExit as done:
        assert not done.code, done.code
    """
    assert loaded_by(ask, *HEAVY) == []


def test_a_heavy_import_is_seen() -> None:
    assert loaded_by("import numpy", *HEAVY) == ["numpy"]


def test_help_of_the_installed_command() -> None:
    command = Path(sys.executable).with_name("potstill")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\brun\b", done.stdout), done.stdout
