"""Searches: the space, the budget, trials that go on, and the test rows, which no trial ever sees."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import SHORT, Told, merged, tiny_recipe

from potstill import workbench
from potstill.cache import caches, open_cache
from potstill.errors import RecipeError, RunFolderError, TrainingError
from potstill.recipe import load_recipe
from potstill.searching import Choice, Range, parse_space, search
from potstill.searching import run as searching

SPACE = ["distill.0.terms.0.temperature=1..8:log", "student.layers=1,2"]


# ---- the space


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1..8", Range(1, 8)),
        ("0.1..100:log", Range(0.1, 100, log=True)),
        ("1..4:int", Range(1, 4, whole=True)),
        ("1..64:int:log", Range(1, 64, log=True, whole=True)),
        ("1e-5..1e-3:log", Range(1e-5, 1e-3, log=True)),
        ("-1..1", Range(-1, 1)),
        ("uniform,last", Choice(("uniform", "last"))),
        ("[0, 1],[1, 2]", Choice(("[0, 1]", "[1, 2]"))),
        ("{0: 1},{0: 3}", Choice(("{0: 1}", "{0: 3}"))),
    ],
)
def test_ranges_and_lists(text: str, found: Range | Choice) -> None:
    assert parse_space([f"distill.x={text}"]) == parse_space({"distill.x": text}) == {"distill.x": found}


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ([], "Nothing is searched"),
        (["distill"], "key=low..high"),
        (["distill.x=1..8:lag"], "'lag' is no mark"),
        (["distill.x=0..8:log"], "begins above 0"),
        (["distill.x=8..1"], "smaller to a larger"),
        (["distill.x=1..inf"], "smaller to a larger"),
        (["distill.x=a..b"], "from a number to a number"),
        (["distill.x=1..2.5:int"], "whole numbers"),
        (["distill.x=only"], "at least two"),
        (["distill.x=1,2", "distill.x=3,4"], "twice"),
        (["data.limit=10,20"], "can't be searched"),
        (["teacher.train.epochs=1..3"], "can't be searched"),
    ],
)
def test_what_can_not_be_searched(space: Sequence[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_space(space)


# ---- searches


def made(folder: Path) -> dict[str, Any]:
    """A recipe whose teacher takes a number of steps that shows in its files."""
    return tiny_recipe(folder, {"teacher": {"train": {**SHORT, "steps": 3}}, "cache": {"use": "always"}})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Any, Told]:
    """A search of three trials."""
    folder, told = tmp_path_factory.mktemp("search"), Told()
    recipe = made(folder)
    return folder, recipe, search(recipe, SPACE, folder / "out", trials=3, progress=told), told


def test_trials_choose_from_the_space_and_share_the_teacher(whole: tuple[Path, dict[str, Any], Any, Told]) -> None:
    results = json.loads((whole[2].folder / "search.json").read_text())
    assert len(results["trials"]) == 3
    for trial in results["trials"]:
        assert 1 <= trial["chosen"]["distill.0.terms.0.temperature"] <= 8
        assert trial["chosen"]["student.layers"] in (1, 2)
        assert 0 <= trial["value"] <= 1 and len(trial["per_seed"]) == 1
    teachers = list(whole[2].folder.glob("trials/*/teacher/model.safetensors"))
    assert len(teachers) == 3
    assert len({path.stat().st_mtime_ns for path in teachers}) == 1
    assert not list(whole[2].folder.glob("trials/*/seeds/*")), "a student that was scored is no longer needed"


def test_all_trials_read_one_cache(whole: tuple[Path, dict[str, Any], Any, Told]) -> None:
    told = whole[3].text
    assert told.count("its answers are kept on disk") == 1 and told.count("its answers are read from") == 2
    (folder,) = caches(whole[2].folder / "cache")
    assert open_cache(folder).rows == 60 and not list(whole[2].folder.glob("trials/*/cache"))


def test_the_best_is_a_recipe(whole: tuple[Path, dict[str, Any], Any, Told]) -> None:
    _, recipe, outcome, _ = whole
    best = outcome.results["trials"][outcome.results["best"]]
    assert best["value"] == max(trial["value"] for trial in outcome.results["trials"])
    found = load_recipe(outcome.best)
    assert found.student.layers == best["chosen"]["student.layers"]
    assert found.distill[0].terms[0].temperature == best["chosen"]["distill.0.terms.0.temperature"]
    assert found.evaluate.model_dump(exclude_unset=True) == recipe["evaluate"], "only the trials do without"


def test_a_larger_budget_goes_on_with_the_same_study(whole: tuple[Path, dict[str, Any], Any, Told]) -> None:
    folder, recipe, outcome, _ = whole
    told = Told()
    more = search(recipe, SPACE, outcome.folder, trials=4, progress=told)
    assert more.results["trials"][:3] == outcome.results["trials"]
    assert len(more.results["trials"]) == 4
    assert [line.partition(":")[0] for line in told.lines if line.startswith("trial")] == ["trial 4/4"]
    temperatures = [trial["chosen"]["distill.0.terms.0.temperature"] for trial in more.results["trials"]]
    assert len(set(temperatures)) == 4
    whole_at_once = search(made(folder), SPACE, folder / "again", trials=4)
    assert [t["chosen"] for t in whole_at_once.results["trials"]] == [t["chosen"] for t in more.results["trials"]]


def test_no_trial_sees_the_test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []

    class Watched(searching.School):
        def __init__(self, folder: Any, bench: Any, *others: Any) -> None:
            seen.extend((set(bench.rows), set(bench.raw)))
            super().__init__(folder, bench, *others)

    monkeypatch.setattr(searching, "School", Watched)
    search(made(tmp_path), ["distill.0.terms.0.temperature=1,2"], tmp_path / "out", trials=2)
    assert seen == [{"train", "validation"}] * 4


def test_a_bench_without_test_rows_is_another_bench(tmp_path: Path) -> None:
    bench = workbench.prepare_workbench(load_recipe(made(tmp_path)), lambda _text: None)
    less = searching.without_test(bench)
    assert "test" in bench.rows and "test" not in less.rows and "test" not in less.raw
    assert less.evaluated_on == "validation"
    assert less.digest != bench.digest


def test_a_trial_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    through = searching._Search.score

    def killed(*_args: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(searching._Search, "score", killed)
    recipe = made(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        search(recipe, SPACE, tmp_path / "out", trials=2)
    [student] = (tmp_path / "out").glob("trials/*/seeds/0/student/model.safetensors")
    before = student.stat().st_mtime_ns
    made_at = []

    def score(self: Any, bench: Any, place: Path) -> float:
        made_at.append((place / "model.safetensors").stat().st_mtime_ns)
        return through(self, bench, place)

    monkeypatch.setattr(searching._Search, "score", score)
    outcome = search(recipe, SPACE, tmp_path / "out", trials=2)
    assert [trial["number"] for trial in outcome.results["trials"]] == [0, 1]
    assert all(trial["value"] is not None for trial in outcome.results["trials"])
    assert made_at[0] == before, "the student was there, and only its score was missing"


def test_what_fits_no_model_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    recipe = merged(made(tmp_path), {"distill": [{"terms": [{"knowledge": "values"}], "train": SHORT}]})
    with pytest.raises(RecipeError) as caught:
        search(recipe, ["distill.0.terms.0.heads=4,5,7", "student.layers=2,9"], tmp_path / "out", trials=1)
    assert {line.partition(":")[0] for line in str(caught.value).splitlines()} >= {
        "distill.0.terms.0.heads 5",
        "distill.0.terms.0.heads 7",
        "student.layers 9",
    }
    assert not (tmp_path / "out" / "trials").exists()


def test_a_trial_that_fails_is_one_of_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    through = searching._Search.scores

    def fails_first(self: Any, recipe: Any, name: str, title: str) -> list[float]:
        if name.endswith("000"):
            raise TrainingError("The loss is no number.")
        return through(self, recipe, name, title)

    monkeypatch.setattr(searching._Search, "scores", fails_first)
    outcome = search(made(tmp_path), SPACE, tmp_path / "out", trials=2)
    assert [trial["value"] is None for trial in outcome.results["trials"]] == [True, False]
    assert outcome.results["trials"][0]["problem"] == "The loss is no number."
    assert outcome.results["best"] == 1


def test_no_further_trial_is_begun_when_the_hours_are_over(tmp_path: Path) -> None:
    outcome = search(made(tmp_path), SPACE, tmp_path / "out", trials=5, hours=1e-9)
    assert len(outcome.results["trials"]) == 1


def test_another_space_is_another_study(whole: tuple[Path, dict[str, Any], Any, Told]) -> None:
    _, recipe, outcome, _ = whole
    other = search(recipe, ["distill.0.terms.0.temperature=1,4"], outcome.folder, trials=1)
    assert len(other.results["trials"]) == 1
    assert yaml.safe_load(other.best.read_text())["student"]["layers"] == recipe["student"]["layers"]


def test_another_recipe_is_refused(whole: tuple[Path, dict[str, Any], Any, Told]) -> None:
    _, recipe, outcome, _ = whole
    with pytest.raises(RunFolderError, match="another recipe"):
        search(merged(recipe, {"data": {"max_length": 16}}), SPACE, outcome.folder, trials=1)
