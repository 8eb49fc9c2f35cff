"""Comparisons: what is varied, that all variants are trained alike, and that what is equal is done once."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import Told, merged, tiny_recipe

from potstill.comparing import ComparisonOutcome, axes, cells, compare
from potstill.comparing.axes import choices, override, slug, split_values, title
from potstill.comparing.cells import shares
from potstill.errors import RecipeError, RunFolderError
from potstill.recipe import Recipe, load_recipe

STEPS = {"steps": 4, "batch_size": 8, "precision": "float32"}
TWO = [
    {"terms": [{"knowledge": "attention"}, {"knowledge": "hidden"}], "train": {"epochs": 3, "batch_size": 4}},
    {"terms": [{"knowledge": "logits", "temperature": 2.0}], "train": {"epochs": 1, "learning_rate": 1.0}},
]


def base(folder: Path, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """A recipe of one stage of four steps, and beside it the file two.yaml with a method of two stages."""
    recipe = tiny_recipe(folder, {"distill": [{"terms": [{"knowledge": "logits"}], "train": STEPS}]})
    (folder / "two.yaml").write_text(yaml.safe_dump({**recipe, "distill": TWO}))
    return merged(recipe, changes or {})


def of(recipe: dict[str, Any], *vary: str, rows: int = 60, own_settings: bool = False) -> list[Any]:
    """The cells of a comparison."""
    return cells(load_recipe(recipe), choices(axes(vary)), lambda _recipe: rows, own_settings=own_settings)


# ---- what is varied


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b", ["a", "b"]),
        ("[1, 2],[3]", ["[1, 2]", "[3]"]),
        ("{a: 1, b: [2, 3]},4", ["{a: 1, b: [2, 3]}", "4"]),
        ('"a,b",c', ['"a,b"', "c"]),
        (" a , ,b,", ["a", "b"]),
    ],
)
def test_values_are_split_at_outer_commas(text: str, parts: list[str]) -> None:
    assert split_values(text) == parts


def test_axes_make_the_product() -> None:
    found = choices(axes(["student.layers=3,[0, 1]", "distill=own,two"]))
    assert found == [
        {"student.layers": 3, "distill": "own"},
        {"student.layers": 3, "distill": "two"},
        {"student.layers": [0, 1], "distill": "own"},
        {"student.layers": [0, 1], "distill": "two"},
    ]
    assert choices(axes({"student.layers": [3, [0, 1]], "distill": ["own", "two"]})) == found


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ([], "Nothing is varied"),
        (["distill"], "written key=first,second"),
        (["distill="], "has no values"),
        (["a=1", "a=2"], "varied twice"),
        (["a=1,1"], "a value twice"),
        (["a={b"], "no readable YAML"),
    ],
)
def test_what_can_not_be_varied(vary: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        axes(vary)


@pytest.mark.parametrize("value", [3, 1e-5, "uniform", [0, 2], {"schedule": "linear", "from": 1, "to": 0}, True, None])
def test_a_value_comes_back_from_its_override(value: Any) -> None:
    key, _, text = override("a.b", value).partition("=")
    assert (key, yaml.safe_load(text)) == ("a.b", value)


def test_titles_and_folders() -> None:
    assert title({"distill": "/x/y/mine.yaml", "student.layers": [0, 2]}) == "mine, layers [0, 2]"
    assert title({"distill.0.terms.0.weight": 1, "distill.0.terms.1.weight": 2.5}) == (
        "distill.0.terms.0.weight 1, distill.0.terms.1.weight 2.5"
    )
    assert slug("pkd_skip, layers [0, 2]") == "pkd-skip-layers-0-2"


# ---- fair


@pytest.mark.parametrize(
    ("total", "weights", "parts"),
    [(314, (3, 1), [236, 78]), (10, (1, 1, 1), [4, 3, 3]), (3, (100, 1, 1), [1, 1, 1]), (5, (100, 1), [4, 1])],
)
def test_steps_are_shared_whole(total: int, weights: tuple[float, ...], parts: list[int]) -> None:
    found = shares(total, weights)
    assert sum(found) == total
    assert sorted(found) == sorted(parts)


def test_fewer_steps_than_stages_are_refused() -> None:
    with pytest.raises(RecipeError, match="can't share 1"):
        shares(1, [1, 1])


def test_a_method_gives_its_terms_and_the_recipe_its_settings(tmp_path: Path) -> None:
    plain, own, two = of(base(tmp_path), f"distill=own,{tmp_path / 'two.yaml'}")
    assert (plain.key, plain.plain, own.plain, two.plain) == ("plain", None, "plain", "plain")
    assert plain.steps == own.steps == two.steps == 4
    assert [stage.train.steps for stage in two.recipe.distill] == [3, 1]
    assert {(s.train.batch_size, s.train.learning_rate, s.train.precision) for s in two.recipe.distill} == {
        (8, own.recipe.distill[0].train.learning_rate, "float32")
    }
    assert [[term.knowledge for term in stage.terms] for stage in two.recipe.distill] == [
        ["attention", "hidden"],
        ["logits"],
    ]
    assert [term.knowledge for term in plain.recipe.distill[0].terms] == ["labels"]
    for cell in (plain, own, two):
        assert cell.recipe.teacher == own.recipe.teacher and cell.recipe.student == own.recipe.student
        assert not cell.recipe.evaluate.baseline and not cell.recipe.export.formats


def test_epochs_become_the_same_number_of_steps(tmp_path: Path) -> None:
    recipe = base(tmp_path)
    recipe["distill"] = [{"terms": [{"knowledge": "logits"}], "train": {"epochs": 2, "batch_size": 8}}]
    plain, two = of(recipe, f"distill={tmp_path / 'two.yaml'}", rows=1251)
    assert plain.steps == two.steps == 2 * 157
    assert [stage.train.steps for stage in two.recipe.distill] == [236, 78], "rounded up each, it would be one more"


def test_own_settings_are_kept_when_asked_for(tmp_path: Path) -> None:
    _, two = of(base(tmp_path), f"distill={tmp_path / 'two.yaml'}", own_settings=True)
    assert [(s.train.steps, s.train.epochs, s.train.batch_size) for s in two.recipe.distill] == [
        (None, 3, 4),
        (None, 1, 32),
    ]
    assert two.steps == 45 + 2


def test_students_of_other_sizes_have_their_own_plain_student(tmp_path: Path) -> None:
    found = of(base(tmp_path), f"distill=own,{tmp_path / 'two.yaml'}", "student.layers=3,2")
    plain = {cell.key: cell.recipe.student.layers for cell in found if cell.plain is None}
    assert plain == {"plain-layers-3": 3, "plain-layers-2": 2}
    assert {(cell.recipe.student.layers, cell.plain) for cell in found if cell.plain} == {
        (3, "plain-layers-3"),
        (2, "plain-layers-2"),
    }


def test_keys_of_a_method_share_the_plain_student(tmp_path: Path) -> None:
    found = of(base(tmp_path), "distill.0.terms.0.temperature=1,2,4")
    assert [cell.title for cell in found] == ["plain", "temperature 1", "temperature 2", "temperature 4"]
    assert [cell.recipe.distill[0].terms[0].temperature for cell in found[1:]] == [1, 2, 4]


def test_training_that_differs_has_a_plain_student_that_does(tmp_path: Path) -> None:
    found = of(base(tmp_path), "distill.0.train.learning_rate=0.1,0.2")
    rates = {cell.key: cell.recipe.distill[0].train.learning_rate for cell in found}
    assert rates == {
        "plain-learning-rate-0.1": 0.1,
        "plain-learning-rate-0.2": 0.2,
        "learning-rate-0.1": 0.1,
        "learning-rate-0.2": 0.2,
    }


def test_problems_of_all_variants_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        of(base(tmp_path), "distill=own,nowhere", "distill.0.terms.0.temperature=-1,hot")
    lines = str(caught.value).splitlines()
    assert sum("nowhere" in line and "no recipe" in line for line in lines) == 2
    assert any(line.startswith("recipe, temperature hot: ") for line in lines)


def test_a_problem_that_all_have_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        of(base(tmp_path), "distill.0.terms.0.temperature=1,2", "student.layerz=1")
    assert len(str(caught.value).splitlines()) == 1


def test_a_method_with_further_teachers_is_refused(tmp_path: Path) -> None:
    recipe = base(tmp_path)
    others = [{"name": "second", "model": recipe["teacher"]["model"], "train": STEPS}]
    many = {**recipe, "teacher": {**recipe["teacher"], "others": others}}
    (tmp_path / "many.yaml").write_text(yaml.safe_dump(many))
    with pytest.raises(RecipeError, match="further teachers"):
        of(recipe, f"distill=own,{tmp_path / 'many.yaml'}")
    own, two = (cell for cell in of(many, f"distill=own,{tmp_path / 'two.yaml'}") if cell.plain)
    assert own.recipe.teacher == two.recipe.teacher and own.recipe.teacher.others


def test_a_chain_of_assistants_belongs_to_its_method(tmp_path: Path) -> None:
    recipe = base(tmp_path)
    chain = [{"student": {"layers": 3}}]
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump({**recipe, "assistants": chain}))
    plain, own, chained = of(recipe, f"distill=own,{tmp_path / 'chain.yaml'}")
    assert [len(cell.recipe.assistants) for cell in (plain, own, chained)] == [0, 0, 1]
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(recipe))
    plain, own, bare = of({**recipe, "assistants": chain, "generations": 2}, f"distill=own,{tmp_path / 'bare.yaml'}")
    assert [len(cell.recipe.chain) for cell in (plain, own, bare)] == [0, 2, 0]


def test_names_that_collide_are_refused(tmp_path: Path) -> None:
    recipe = base(tmp_path)
    (tmp_path / "plain.yaml").write_text((tmp_path / "two.yaml").read_text())
    with pytest.raises(RecipeError, match=r"the same name.*plain"):
        of(recipe, f"distill=own,{tmp_path / 'plain.yaml'}")


# ---- whole comparisons


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ComparisonOutcome, Told]:
    """A comparison of two methods over two seeds, and what it said."""
    folder, told = tmp_path_factory.mktemp("compare"), Told()
    recipe = base(folder)
    vary = [f"distill=own,{folder / 'two.yaml'}"]
    return folder, compare(recipe, vary, folder / "out", overrides=["evaluate.seeds=2"], progress=told), told


def trained(folder: Path) -> dict[str, float]:
    """When each model of a comparison was made, by its place; a link has the time of what it links to."""
    return {
        str(path.parent.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.glob("cells/*/seeds/*/student/model.safetensors")
    } | {"teacher": (folder / "cells/plain/teacher/model.safetensors").stat().st_mtime_ns}


def test_every_cell_takes_the_same_steps_from_the_same_start(whole: tuple[Path, ComparisonOutcome, Told]) -> None:
    results = whole[1].results
    assert [(cell["key"], cell["plain"]) for cell in results["cells"]] == [
        ("plain", None),
        ("recipe", "plain"),
        ("two", "plain"),
    ]
    assert {(cell["training"]["steps"], cell["training"]["rows_seen"]) for cell in results["cells"]} == {(4, 32)}
    assert [one["family"] for one in results["differences"]] == ["plain", "plain", "first", "best"]
    assert all(len(cell["metrics"]["accuracy"]["per_seed"]) == 2 for cell in results["cells"])
    assert set(results["attention_at_start"]) == {"plain"}
    assert all(len(cell["attention"]["layers"]) == 2 for cell in results["cells"])
    json.loads((whole[1].folder / "comparison.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_the_teacher_is_trained_once(whole: tuple[Path, ComparisonOutcome, Told]) -> None:
    made = {path.stat().st_mtime_ns for path in whole[1].folder.glob("cells/*/teacher/model.safetensors")}
    assert len(made) == 1
    seen = {path.stat().st_mtime_ns for path in whole[1].folder.glob("cells/*/predictions/teacher-0.parquet")}
    assert len(seen) == 1


def test_the_teacher_is_asked_once_for_all_that_learn_from_it(whole: tuple[Path, ComparisonOutcome, Told]) -> None:
    kept = {
        key: json.loads((whole[1].folder / f"cells/{key}/results.json").read_text()).get("kept", {})
        for key in ("plain", "recipe", "two")
    }
    assert not kept["plain"]  # asks no teacher, and does not count
    assert kept["recipe"]["teacher"]["passes"] == 2 * 2 * 4 / 8  # variants, seeds, steps over those of an epoch
    assert kept["two"]["teacher"]["rows"] == kept["recipe"]["teacher"]["rows"]


def test_a_cell_is_an_ordinary_run(whole: tuple[Path, ComparisonOutcome, Told]) -> None:
    cell = whole[1].folder / "cells" / "two"
    assert (cell / "report.html").exists() and (cell / "student" / "config.json").exists()
    assert isinstance(load_recipe(cell / "recipe.yaml"), Recipe)


def test_the_report_names_every_variant(whole: tuple[Path, ComparisonOutcome, Told]) -> None:
    for name in ("comparison.html", "comparison.md"):
        text = (whole[1].folder / name).read_text(encoding="utf-8")
        assert all(cell["title"] in text for cell in whole[1].results["cells"])
        assert whole[1].results["verdict"]["headline"] in text


@pytest.mark.slow
def test_again_nothing_is_trained_and_more_uses_what_is_there(whole: tuple[Path, ComparisonOutcome, Told]) -> None:
    folder, outcome, _ = whole
    before = trained(outcome.folder)
    recipe = base(folder)
    vary = [f"distill=own,{folder / 'two.yaml'}", "distill.0.terms.0.weight=1,2"]
    more = compare(recipe, vary, outcome.folder, overrides=["evaluate.seeds=3"])
    after = trained(outcome.folder)
    assert {place: after[place] for place in before} == before
    assert len(after) > len(before)
    assert len(more.results["cells"]) == 5
    # the weight of 1 is what the first comparison had: the same students, linked
    same = [
        outcome.folder / f"cells/{cell}/seeds/0/student/model.safetensors" for cell in ("recipe", "recipe-weight-1")
    ]
    assert same[0].stat().st_mtime_ns == same[1].stat().st_mtime_ns


def test_another_recipe_is_refused(whole: tuple[Path, ComparisonOutcome, Told]) -> None:
    folder, outcome, _ = whole
    with pytest.raises(RunFolderError, match=r"student.layers: 2 -> 3.*--update"):
        compare(base(folder, {"student": {"layers": 3}}), ["distill=own"], outcome.folder)


def test_what_fits_no_model_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    recipe = base(tmp_path)
    for name, heads in (("five", 5), ("seven", 7)):
        terms = [{"knowledge": "values", "heads": heads}]
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**recipe, "distill": [{"terms": terms}]}))
    with pytest.raises(RecipeError) as caught:
        compare(recipe, [f"distill=own,{tmp_path / 'five.yaml'},{tmp_path / 'seven.yaml'}"], tmp_path / "out")
    assert {line.partition(":")[0] for line in str(caught.value).splitlines()} == {"five", "seven"}
    assert not list((tmp_path / "out").glob("cells/*"))


def test_variants_on_other_rows_are_refused(tmp_path: Path) -> None:
    recipe = base(tmp_path)
    files = recipe["data"]["files"]
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("".join(Path(files["test"]).read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(RecipeError, match="evaluated on other rows"):
        compare(recipe, {"data.files.test": [files["test"], str(fewer)]}, tmp_path / "out")
    assert not list((tmp_path / "out").glob("cells/*"))


@pytest.mark.slow
def test_killed_anywhere_it_goes_on(tmp_path: Path) -> None:
    recipe = base(tmp_path, {"teacher": {"train": {"checkpoint_steps": 1}}})
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(recipe))
    code = f"""
    from potstill.comparing import compare
    compare({str(tmp_path / "base.yaml")!r}, ["distill=own,{tmp_path / "two.yaml"}"], {str(tmp_path / "out")!r})
    """
    running = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.DEVNULL)
    goal = tmp_path / "out/cells/base/.stages/seeds-0-student.json"  # written when the model is there
    while not goal.exists() and running.poll() is None:
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    before = trained(tmp_path / "out")
    outcome = compare(tmp_path / "base.yaml", [f"distill=own,{tmp_path / 'two.yaml'}"], tmp_path / "out")
    after = trained(tmp_path / "out")
    assert {place: after[place] for place in before} == before
    assert [cell["key"] for cell in outcome.results["cells"]] == ["plain", "base", "two"]


def test_the_functions_are_the_packages_own() -> None:
    """Not the modules that hold them, whatever was imported before."""
    import potstill
    from potstill.searching import search

    assert potstill.compare is compare
    assert potstill.search is search
