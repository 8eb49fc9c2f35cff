"""Recipes: every problem at once with the nearest name, overrides, YAML as data only, and the recipes that ship."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.errors import RecipeError
from potstill.recipe import Recipe, load_recipe, packaged_recipes
from potstill.sections import DataSection

BASE = {
    "task": "text_classification",
    "data": {"name": "reviews"},
    "teacher": {"model": "minilm-l6", "train": {"epochs": 2}},
    "student": {"layers": 3},
    "distill": [{"terms": [{"knowledge": "logits"}], "train": {"epochs": 1}}],
}


def with_changes(change: Callable[[Any], Any]) -> dict[str, Any]:
    """The base recipe after a change."""
    made = yaml.safe_load(yaml.safe_dump(BASE))
    change(made)
    return made


def refusal(change: Callable[[Any], Any], *overrides: str) -> str:
    """What is said of a recipe that is wrong."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(with_changes(change), overrides)
    return str(caught.value)


UNKNOWN = {
    "recipe": (lambda d: d.update(evaluat={}), "recipe: Unknown key 'evaluat'. Did you mean 'evaluate'?"),
    "data": (lambda d: d["data"].update(limt=3), "data: Unknown key 'limt'. Did you mean 'limit'?"),
    "columns": (
        lambda d: d["data"].update(columns={"lable": "x"}),
        "data.columns: Unknown key 'lable'. Did you mean 'label'?",
    ),
    "unlabelled": (
        lambda d: d["data"].update(unlabelled={"nam": "x"}),
        "data.unlabelled: Unknown key 'nam'. Did you mean 'name'?",
    ),
    "teacher": (lambda d: d["teacher"].update(modle="x"), "teacher: Unknown key 'modle'. Did you mean 'model'?"),
    "teacher.train": (
        lambda d: d["teacher"]["train"].update(epoch=1),
        "teacher.train: Unknown key 'epoch'. Did you mean 'epochs'?",
    ),
    "student": (lambda d: d["student"].update(layrs=1), "student: Unknown key 'layrs'. Did you mean 'layers'?"),
    "stage": (lambda d: d["distill"][0].update(trian={}), "distill.0: Unknown key 'trian'. Did you mean 'train'?"),
    "stage.train": (
        lambda d: d["distill"][0]["train"].update(warmpu=0),
        "distill.0.train: Unknown key 'warmpu'. Did you mean 'warmup'?",
    ),
    "term": (
        lambda d: d["distill"][0]["terms"][0].update(temprature=1),
        "distill.0.terms.0: Unknown key of a term with 'kl_divergence' 'temprature'. Did you mean 'temperature'?",
    ),
    "knowledge key": (
        lambda d: d["distill"][0]["terms"].append({"knowlege": "labels"}),
        "distill.0.terms.1.knowledge: this key is required. Was it meant by 'knowlege'?",
    ),
    "knowledge": (
        lambda d: d["distill"][0]["terms"].append({"knowledge": "hiden"}),
        "Unknown knowledge 'hiden'. Did you mean 'hidden'?",
    ),
    "loss": (
        lambda d: d["distill"][0]["terms"][0].update(loss="kl_divergense"),
        "Unknown loss for logits 'kl_divergense'. Did you mean 'kl_divergence'?",
    ),
    "schedule": (
        lambda d: d["distill"][0]["terms"][0].update(weight={"schedule": "linaer", "from": 1, "to": 0}),
        "Unknown schedule 'linaer'. Did you mean 'linear'?",
    ),
    "refine": (lambda d: d.update(refine={"trian": {}}), "refine: Unknown key 'trian'. Did you mean 'train'?"),
    "refine.train": (
        lambda d: d.update(refine={"train": {"kep": 1}}),
        "refine.train: Unknown key 'kep'. Did you mean 'keep'?",
    ),
    "evaluate": (lambda d: d.update(evaluate={"sedes": 1}), "evaluate: Unknown key 'sedes'. Did you mean 'seeds'?"),
    "export": (lambda d: d.update(export={"format": []}), "export: Unknown key 'format'. Did you mean 'formats'?"),
}


@pytest.mark.parametrize("place", UNKNOWN)
def test_unknown_key_at_every_depth_gets_the_nearest_name(place: str) -> None:
    change, said = UNKNOWN[place]
    assert said in refusal(change)


def test_all_problems_come_at_once() -> None:
    def change(recipe: Any) -> None:
        for one, _ in UNKNOWN.values():
            one(recipe)
        recipe["teacher"]["train"]["batch_size"] = 0
        del recipe["task"]

    lines = refusal(change, "nokey").splitlines()
    # A section with an unknown key is checked no further (its "terms" are), hence two hide behind `temprature`.
    expected = len(UNKNOWN) - len(("loss", "schedule", "knowledge key")) + len(("task", "batch_size", "nokey"))
    assert len(lines) >= expected, "\n".join(lines)
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["student"].update(layers="x"), "student.layers: Input should be a valid integer"),
        (lambda d: d["distill"][0]["terms"][0].update(weight=float("inf")), "is a finite number. Got: inf"),
        (lambda d: d["distill"][0]["terms"][0].update(weight=float("nan")), "is a finite number. Got: nan"),
        (
            lambda d: d["distill"][0]["train"].update(learning_rate=0),
            "distill.0.train.learning_rate: Input should be greater",
        ),
        (lambda d: d.update(distill=[]), "distill: List should have at least 1 item"),
        (lambda d: d["distill"][0].update(terms=[]), "distill.0.terms: List should have at least 1 item"),
        (lambda d: d.update(task="tokens"), "task: Input should be 'text_classification'"),
        (lambda d: d.update(export={"formats": ["onx"]}), "export.formats.0: Input should be 'onnx' or 'onnx-int8'"),
        (lambda d: d["data"].update(validation=1.5), "data.validation: Input should be less than 1"),
        (lambda d: d["data"].update(files={"train": "a.csv"}), "data: Give either 'name'"),
        (lambda d: d["data"].pop("name"), "data: Give either 'name'"),
    ],
)
def test_values_out_of_range(change: Callable[[Any], Any], said: str) -> None:
    assert said in refusal(change)


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({"from": "teacher"}, "from: teacher needs 'layers'"),
        ({"from": "config"}, "from: config needs 'config'"),
        ({"from": "checkpoint"}, "from: checkpoint needs 'model'"),
        ({"from": "teacher", "layers": 2, "model": "x"}, "'model' doesn't go with from: teacher, which takes layers"),
        ({"from": "config", "config": {}, "layers": 2}, "'layers' doesn't go with from: config, which takes config"),
        ({"from": "checkpoint", "model": "x", "config": {}}, "'config' doesn't go with from: checkpoint"),
        (
            {"layers": 2, "initialise": "rand"},
            "student.initialise: Input should be 'teacher', 'pretrained'",
        ),
        ({"from": "config", "config": {}, "initialise": "random"}, "a student from: config is always random"),
        ({"from": "checkpoint", "model": "x", "initialise": "pretrained"}, "from: checkpoint has weights of its own"),
        ({"layers": 2, "width": {"hiden": 8}}, "student.width: Unknown key 'hiden'. Did you mean 'hidden'?"),
        ({"layers": 2, "width": {}}, "student.width: A width needs one of 'hidden', 'intermediate' and 'heads'"),
        ({"layers": 2, "width": {"heads": 0}}, "student.width.heads: Input should be greater than or equal to 1"),
        ({"from": "config", "config": {}, "width": {"heads": 2}}, "'width' doesn't go with from: config"),
        ({"layers": 2, "vocabulary": "dat"}, "student.vocabulary: Write vocabulary: data, or"),
        (
            {"layers": 2, "vocabulary": {"minimum_count": 0}},
            "student.vocabulary.minimum_count: Input should",
        ),
        ({"from": "nowhere", "layers": 2}, "student.from: Input should be 'teacher', 'config' or 'checkpoint'"),
    ],
)
def test_student_keys_that_do_not_fit(student: dict[str, Any], said: str) -> None:
    assert said in refusal(lambda d: d.update(student=student))


@pytest.mark.parametrize(
    "student",
    [{"layers": [0, 5]}, {"from": "config", "config": {"hidden_size": 8}}, {"from": "checkpoint", "model": "x"}],
)
def test_student_keys_that_fit(student: dict[str, Any]) -> None:
    assert (
        load_recipe(with_changes(lambda d: d.update(student=student))).as_dict()["student"].items() >= student.items()
    )


@pytest.mark.parametrize(
    "student",
    [
        {"layers": 2, "initialise": "random"},
        {"width": {"hidden": 8, "heads": 2}},
        {"vocabulary": "data"},
        {"vocabulary": {"minimum_count": 3}},
        {"from": "checkpoint", "model": "x", "vocabulary": "data"},
        {"from": "config", "config": {"hidden_size": 8}, "vocabulary": "data"},
    ],
)
def test_students_cut_in_other_ways(student: dict[str, Any]) -> None:
    loaded = load_recipe(with_changes(lambda d: d.update(student=student)))
    assert load_recipe(loaded.as_dict()) == loaded
    kept = None if "vocabulary" not in student else {"data": 1}.get(str(student["vocabulary"]), 3)
    assert loaded.student.vocabulary is None if kept is None else loaded.student.vocabulary.minimum_count == kept


def test_what_a_student_is_made_from_says_only_what_is_used() -> None:
    """Stages of runs from before these keys are found again by what they were made from."""
    plain = load_recipe(with_changes(lambda d: d.update(student={"layers": 2}))).student
    assert plain.inputs() == {"origin": "teacher", "layers": 2, "rule": "spread", "config": None, "model": None}
    cut = {"layers": 2, "initialise": "random", "width": {"heads": 2}, "vocabulary": "data"}
    found = load_recipe(with_changes(lambda d: d.update(student=cut))).student.inputs()
    assert found["initialise"] == "random" and found["vocabulary"] == {"minimum_count": 1}
    assert found["width"] == {"hidden": None, "intermediate": None, "heads": 2, "calibration": 256}


def test_a_pretrained_start_needs_a_teacher_that_is_trained_here() -> None:
    def change(data: dict[str, Any]) -> None:
        data["student"] = {"layers": 2, "initialise": "pretrained"}
        data["teacher"]["train"] = None

    assert "initialise: pretrained is the model before it is trained here" in refusal(change)


def test_others_of_the_students_kind_have_its_vocabulary() -> None:
    assistants = [{"student": {"layers": 3, "vocabulary": "data"}}]
    assert "'vocabulary' is written in 'student' alone" in refusal(lambda d: d.update(assistants=assistants))


@pytest.mark.parametrize(
    ("initialise", "roles"),
    [
        ("teacher", ["student", "baseline", "pretrained_baseline"]),
        ("pretrained", ["student", "baseline"]),
        ("random", ["student", "baseline"]),
    ],
)
def test_the_pretrained_baseline_goes_where_it_would_be_the_baseline(initialise: str, roles: list[str]) -> None:
    student = {"layers": 2, "initialise": initialise}
    made = with_changes(lambda d: d.update(student=student, teacher={"model": "x", "train": {"epochs": 1}}))
    assert load_recipe(made).roles == roles


# ---- overrides


def test_overrides_reach_every_depth() -> None:
    loaded = load_recipe(
        BASE,
        [
            "distill.0.train.epochs=5",
            "distill.0.train.learning_rate=3e-5",  # YAML 1.1 reads this as text
            "distill.0.terms.0.weight={schedule: linear, from: 1, to: 0}",
            "student.layers=[0, 5]",
            "teacher.train=null",
            "refine.train.epochs=3",  # a section that isn't there yet
            "evaluate.seeds=3",
            "evaluate.baseline=false",
            "data.columns.label=a=b",
        ],
    )
    stage = loaded.distill[0]
    assert (stage.train.epochs, stage.train.learning_rate) == (5, 3e-5)
    assert stage.terms[0].weight == {"schedule": "linear", "from": 1, "to": 0}
    assert loaded.student.layers == [0, 5]
    assert loaded.teacher.train is None
    assert loaded.refine is not None and loaded.refine.train.epochs == 3
    assert loaded.evaluate.seeds == 3 and loaded.evaluate.baseline is False
    assert loaded.data.columns.label == "a=b"


def test_overrides_change_nothing_of_the_callers() -> None:
    before = yaml.safe_dump(BASE)
    load_recipe(BASE, ["distill.0.train.epochs=5", "data.limit=3"])
    assert yaml.safe_dump(BASE) == before


def test_overrides_of_a_loaded_recipe() -> None:
    assert load_recipe(load_recipe(BASE), ["evaluate.seeds=2"]).evaluate.seeds == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("nokey", "An override is written key=value. Got: 'nokey'. For example evaluate.seeds=3."),
        ("=3", "An override is written key=value"),
        ("distill.0=[", "The value of 'distill.0' is no readable YAML"),
        ("data.limit=!!python/object/apply:os.getcwd []", "The value of 'data.limit' is no readable YAML"),
        ("distill.3.train.epochs=1", "'3' leads nowhere"),
        ("distill.-1.train.epochs=1", "'-1' leads nowhere"),
        ("distill.7=1", "There is no 'distill.7' to override. Got: a list of 1. Count from 0."),
        ("task.name=1", "'task' leads nowhere"),
        ("distil.0.train.epochs=5", "recipe: Unknown key 'distil'. Did you mean 'distill'?"),
        ("evaluate.seeds=many", "evaluate.seeds: Input should be a valid integer"),
    ],
)
def test_overrides_that_are_wrong(override: str, said: str) -> None:
    assert said in refusal(lambda d: d, override)


# ---- files


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    file = tmp_path / "r.yaml"
    file.write_text(f"task: !!python/object/apply:os.mkdir ['{mark}']\n")
    with pytest.raises(RecipeError, match="is no readable YAML"):
        load_recipe(file)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "said"), [("a: [", "no readable YAML"), ("- 1", "holds no recipe"), ("", "holds no recipe")]
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=said):
        load_recipe(file)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'reviews'"):
        load_recipe("review")


def test_the_name_comes_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(BASE))
    assert load_recipe(file).name == load_recipe(str(file)).name == "mine"
    assert load_recipe({**BASE, "name": "own"}).name == "own"


@pytest.mark.parametrize("name", packaged_recipes())
def test_packaged_recipes(name: str) -> None:
    path = packaged_recipes()[name]
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    assert lines[0].startswith("# "), "the first line says what the recipe does"
    assert load_recipe(name).name == name


METHODS = {
    "layers by number": {"knowledge": "hidden", "layers": {0: 1, 2: 5}},
    "pairs": {"knowledge": "hidden", "layers": [["embeddings", "embeddings"], [0, "last"]]},
    "schedule": {"knowledge": "labels", "weight": {"schedule": "linear", "from": 1.0, "to": 0.0}},
    "options": {"knowledge": "values", "loss": "relation_kl", "heads": 4},
}


@pytest.mark.parametrize("term", METHODS.values(), ids=METHODS)
def test_as_yaml_comes_back_the_same(term: dict[str, Any]) -> None:
    once = load_recipe(with_changes(lambda d: d["distill"][0]["terms"].append(term)))
    again = load_recipe(yaml.safe_load(once.as_yaml()))
    assert again.as_dict() == once.as_dict()
    assert again.as_yaml() == once.as_yaml()


@pytest.mark.parametrize("name", packaged_recipes())
def test_packaged_recipes_come_back_the_same(name: str) -> None:
    once = load_recipe(name)
    assert Recipe.model_validate(yaml.safe_load(once.as_yaml())) == once


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("task: text_classification\nseed: 1\ndata: {name: reviews}\nseed: 2\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="'seed' stands twice, again in line 4"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("distill.0.train.early_stopping=2", "keep: best"),
        ("student={from: config, config: {hidden_size: 32}, rule: last}", "'rule'"),
        ("student={layers: [0, 1], rule: last}", "'rule'"),
    ],
)
def test_what_would_be_ignored_is_refused(override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("reviews", [override])


def test_what_concerns_the_whole_recipe_is_said_without_a_place() -> None:
    message = refusal(lambda d: d["distill"][0]["terms"][0].update(teacher="secnd"))
    assert message == "Unknown teacher 'secnd'. Known: teacher."


def test_what_the_rows_are_called(tmp_path: Path) -> None:
    (tmp_path / "streets").mkdir()
    assert DataSection(name=str(tmp_path / "streets")).called == "streets"
    assert DataSection(name="AI-Lab-Makerere/beans").called == "AI-Lab-Makerere/beans"
    assert DataSection(files={"train": "a.csv"}).called == "files"
