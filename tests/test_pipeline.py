"""Whole runs with tiny random models, offline: every form of the task, what a run leaves, and what may not be wrong."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_folder, tiny_model, tiny_texts
from tiny_runs import SHORT, Told, merged, tiny_recipe, tiny_teacher, write_csv, write_jsonl
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer

from potstill import pipeline, preflight, school
from potstill.errors import DataError, ExportError, ModelError, PotstillError, RecipeError, TrainingError
from potstill.pipeline import Outcome, run

TERMS = [
    {"knowledge": "labels", "weight": 0.5},
    {"knowledge": "logits", "temperature": 2.0},
    {"knowledge": "hidden"},
    {"knowledge": "values"},
    {"knowledge": "attention"},
]
WHOLE = {
    "distill": [{"terms": TERMS, "train": SHORT}, {"terms": [{"knowledge": "logits"}], "train": SHORT}],
    "refine": {"train": SHORT},
    "evaluate": {"baseline": True, "seeds": 2, "cost": False},
    "export": {"formats": ["onnx", "onnx-int8"]},
}


def numbers(value: Any) -> Iterator[float]:
    """Every number in plain data."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, int | float):
        yield value


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Outcome, Told]:
    """A run with everything in it but the timings, and what it said."""
    folder = tmp_path_factory.mktemp("whole")
    recipe, told = tiny_recipe(folder, WHOLE), Told()
    return recipe, run(recipe, folder / "run", progress=told), told


# ---- what a run leaves

MODEL_KEYS = (
    "key title description seeds metrics retained agreement kl calibration per_class confusion overfit cost training "
    "curves"
)
KEYS = {
    "": "schema run data metrics primary models comparisons verdict exports examples how",
    "run": "name title task problem created seconds stages versions hardware precision command recipe convention seeds",
    "data": "name description licence splits evaluated_on classes max_length tokens",
    "verdict": "outcome headline sentences",
    "examples": "teacher_right student_right counts",
}
LIST_KEYS = {
    "models": MODEL_KEYS,
    "comparisons": "a b metric difference interval standard_error per_seed resamples",
    "exports": "key title file bytes sha256 max_logit_difference agreement metrics",
    "how": "number made",
}


def test_results_hold_what_the_report_reads(whole: tuple[Any, Outcome, Told]) -> None:
    written = (whole[1].folder / "results.json").read_text(encoding="utf-8")
    found = json.loads(written, parse_constant=lambda name: pytest.fail(f"{name} in results.json"))
    assert all(math.isfinite(number) for number in numbers(found))
    for section, keys in KEYS.items():
        assert set(keys.split()) <= set(found[section] if section else found), section
    for section, keys in LIST_KEYS.items():
        assert found[section], section
        for entry in found[section]:
            assert set(keys.split()) <= set(entry), section
    assert [model["key"] for model in found["models"]] == ["teacher", "pretrained_baseline", "baseline", "student"]
    assert [model["seeds"] for model in found["models"]] == [[0], [0, 1], [0, 1], [0, 1]]
    assert [export["key"] for export in found["exports"]] == ["onnx", "onnx-int8"]
    assert found["data"]["splits"] == {"train": 60, "validation": 30, "test": 30}
    assert found["data"]["classes"] == ["bad", "good"]
    student = found["models"][-1]
    assert [(curve["seed"], curve["stage"]) for curve in student["curves"]] == [
        (seed, stage) for seed in (0, 1) for stage in ("distill 1", "distill 2", "refine")
    ]
    assert set(student["curves"][0]["points"][0]["parts"]) == {"labels", "logits", "hidden", "values", "attention"}
    assert student["training"]["steps"] == 6
    assert found["models"][0]["agreement"] is found["models"][0]["retained"] is None


def test_baselines_take_the_students_steps(whole: tuple[Any, Outcome, Told]) -> None:
    _, pretrained, baseline, student = whole[1].results["models"]
    for other in (pretrained, baseline):
        assert (other["training"]["steps"], other["training"]["rows_seen"]) == (
            student["training"]["steps"],
            student["training"]["rows_seen"],
        )
        assert all(set(point["parts"]) == {"labels"} for curve in other["curves"] for point in curve["points"])


def test_the_folder_is_laid_out_as_promised(whole: tuple[Any, Outcome, Told]) -> None:
    folder = whole[1].folder
    expected = [
        *("recipe.yaml", "results.json", "report.html", "report.md", "student/README.md", "teacher/config.json"),
        *("baseline/model.safetensors", "export/model.onnx", "export/model-int8.onnx"),
        *(f"seeds/{seed}/{role}/model.safetensors" for seed in (0, 1) for role in ("student", *pipeline.ROLES)),
        *(f"predictions/{role}-{seed}.parquet" for seed in (0, 1) for role in pipeline.ROLES),
        "predictions/teacher-0.parquet",
    ]
    assert [name for name in expected if not (folder / name).is_file()] == []
    assert not list(folder.glob("work/*")), "nothing to go on from is kept of a stage that is done"


def test_nothing_that_ships_is_a_pickle(whole: tuple[Any, Outcome, Told]) -> None:
    assert [path for path in whole[1].folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")] == []


def test_the_student_is_a_plain_model(whole: tuple[Any, Outcome, Told]) -> None:
    model, info = AutoModelForSequenceClassification.from_pretrained(whole[1].student, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in tiny_model(layers=2).parameters())
    assert set(load_file(whole[1].student / "model.safetensors")) <= set(model.state_dict())
    assert model.config.id2label == {0: "bad", 1: "good"}
    tokenizer = AutoTokenizer.from_pretrained(whole[1].student)
    assert model(**tokenizer("a good film", return_tensors="pt")).logits.shape == (1, 2)


def test_the_best_seed_on_validation_ships(whole: tuple[Any, Outcome, Told]) -> None:
    shipped = whole[1].results["run"]["shipped_seed"]
    ours = load_file(whole[1].student / "model.safetensors")
    theirs = load_file(whole[1].folder / f"seeds/{shipped}/student/model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_running_again_does_nothing_and_says_the_same(whole: tuple[dict[str, Any], Outcome, Told]) -> None:
    recipe, first, _ = whole
    again = run(recipe, first.folder)
    assert all(stage["reused"] for stage in again.results["run"]["stages"])
    assert json.dumps(again.results["models"]) == json.dumps(first.results["models"])
    for section in ("comparisons", "verdict", "exports", "examples", "data"):
        assert again.results[section] == first.results[section], section


def test_an_update_redoes_only_what_is_concerned(whole: tuple[dict[str, Any], Outcome, Told], tmp_path: Path) -> None:
    from potstill.runs import copy_folder

    recipe, first, _ = whole
    copy_folder(first.folder, tmp_path / "run")
    changed = merged(recipe, {"refine": None, "evaluate": {"seeds": 1}, "export": {"formats": []}})
    updated = run(changed, tmp_path / "run", update=True)
    reused = {stage["name"]: stage["reused"] for stage in updated.results["run"]["stages"]}
    assert {name for name, kept in reused.items() if kept} == {"teacher", "predictions/teacher/0"}
    for place in ("seeds/0/student", "predictions/student/0"):
        assert reused[place] is False


def test_attention_maps_make_both_models_eager(
    whole: tuple[Any, Outcome, Told], tmp_path: Path, monkeypatch: Any
) -> None:
    assert "both models run eager attention" in whole[2].text
    seen: list[str] = []

    def spy(model: Any, lesson: Any, *_: Any, **__: Any) -> None:
        seen.extend([model.config._attn_implementation, lesson.teacher["teacher"].config._attn_implementation])
        raise KeyboardInterrupt

    monkeypatch.setattr(school, "train", spy)
    made = {"distill": [{"terms": [{"knowledge": "attention"}], "train": SHORT}], "teacher": {"train": None}}
    recipe = tiny_recipe(tmp_path, made)
    save_named(Path(recipe["teacher"]["model"]))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "run")
    assert seen == ["eager", "eager"]


# ---- the baseline


def test_the_baseline_has_the_students_start_and_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[tuple[str, dict[str, torch.Tensor]]] = []
    batches: dict[int, list[list[Any]]] = {}
    whole_train = school.train

    def spy(model: Any, lesson: Any, settings: Any, folder: Path, **options: Any) -> Any:
        starts.append((folder.parent.parent.name, {k: v.clone() for k, v in model.state_dict().items()}))
        number, collator = len(starts) - 1, type(lesson.task).collator

        def collate(task: Any, *tokenizers: Any) -> Callable[[Any], Any]:
            inner = collator(task, *tokenizers)

            def record(rows: Any) -> Any:
                batch = inner(rows)
                batches.setdefault(number, []).append(batch["input_ids"].tolist())
                return batch

            return record

        with monkeypatch.context() as patched:
            patched.setattr(type(lesson.task), "collator", collate)
            return whole_train(model, lesson, settings, folder, **options)

    monkeypatch.setattr(school, "train", spy)
    stage = {
        "terms": [{"knowledge": "logits"}, {"knowledge": "hidden", "project": "linear"}],
        "train": {**SHORT, "steps": 10},
    }
    changes = {"distill": [stage], "refine": {"train": SHORT}, "evaluate": {"baseline": True}}
    run(tiny_recipe(tmp_path, changes), tmp_path / "run")
    assert [name for name, _ in starts] == [
        "teacher",
        *(f"seeds-0-{role}" for role in ("student", "baseline", "pretrained_baseline") for _ in range(2)),
    ]
    student, baseline, pretrained = (starts[n][1] for n in (1, 3, 5))
    assert student.keys() == baseline.keys()
    assert all(torch.equal(student[name], baseline[name]) for name in student)
    assert not all(torch.equal(student[name], pretrained[name]) for name in student), "it was not trained here"
    for stage_of_student, stage_of_baseline in ((1, 3), (2, 4), (1, 5), (2, 6)):
        assert batches[stage_of_student] == batches[stage_of_baseline]
    assert len(batches[1]) >= 10 and len(batches[2]) >= 2


# ---- every form of the task


def save_named(folder: Path, *names: str, **options: Any) -> str:
    """A classifier that knows its classes, saved with its tokenizer: a teacher to be taken as it is."""
    names = names or ("bad", "good")
    model = tiny_model(labels=len(names), **options)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    return str(save_folder(model, folder))


def pairs(folder: Path) -> dict[str, Any]:
    texts, labels = tiny_texts(60)
    rows = [{"premise": a, "hypothesis": a[::-1], "label": label} for a, label in zip(texts, labels, strict=True)]
    return {"data": {"files": {"train": write_jsonl(folder / "rows.jsonl", rows)}}}


def multi_label(folder: Path) -> dict[str, Any]:
    texts, _ = tiny_texts(60)
    rows = [{"text": t, "label": [["x"], ["x", "y"], ["y"]][n % 3]} for n, t in enumerate(texts)]
    hidden = {"terms": [{"knowledge": "logits"}, {"knowledge": "hidden"}], "train": SHORT}
    return {"data": {"files": {"train": write_jsonl(folder / "rows.jsonl", rows)}}, "distill": [hidden]}


def regression(folder: Path) -> dict[str, Any]:
    texts, labels = tiny_texts(60)
    file = write_csv(folder / "rows.csv", {"text": texts, "score": [n / 7 + label for n, label in enumerate(labels)]})
    return {"data": {"files": {"train": file}}}


def unlabelled(folder: Path) -> dict[str, Any]:
    texts, _ = tiny_texts(40, seed=5)
    return {"data": {"unlabelled": {"files": {"train": write_csv(folder / "more.csv", {"text": texts})}}}}


def unlabelled_regression(folder: Path) -> dict[str, Any]:
    return merged(regression(folder), unlabelled(folder))


def unlabelled_multi_label(folder: Path) -> dict[str, Any]:
    return merged(multi_label(folder), unlabelled(folder))


def taken_as_it_is(folder: Path) -> dict[str, Any]:
    return {"teacher": {"model": save_named(folder / "named"), "train": None}}


def checkpoint(folder: Path) -> dict[str, Any]:
    path = tiny_teacher(folder / "small", layers=1, width=16, seed=3)
    terms = [{"knowledge": "hidden", "layers": {0: 3}}, {"knowledge": "logits"}]
    student = {"from": "checkpoint", "layers": None, "model": path}
    return {"student": student, "distill": [{"terms": terms, "train": SHORT}]}


def narrower(folder: Path) -> dict[str, Any]:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    terms = [{"knowledge": "hidden", "layers": "last"}, {"knowledge": "values", "heads": 2}]
    return {
        "student": {"from": "config", "layers": None, "config": sizes},
        "distill": [{"terms": terms, "train": SHORT}],
    }


def mpnet(folder: Path) -> dict[str, Any]:
    terms = [{"knowledge": kind} for kind in ("logits", "hidden", "queries", "attention")]
    return {
        "teacher": {"model": tiny_teacher(folder / "mpnet", "mpnet")},
        "distill": [{"terms": terms, "train": SHORT}],
    }


def llama(folder: Path) -> dict[str, Any]:
    return {"teacher": {"model": tiny_teacher(folder / "llama", "llama")}}


FORMS = {
    form.__name__: form
    for form in (
        *(pairs, multi_label, regression, unlabelled, unlabelled_regression, unlabelled_multi_label),
        *(taken_as_it_is, checkpoint, narrower, mpnet, llama),
    )
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_runs_to_the_end_and_again(tmp_path: Path, form: str) -> None:
    recipe = tiny_recipe(tmp_path)
    changes = FORMS[form](tmp_path)
    if "files" in changes.get("data", {}):
        recipe["data"].pop("files")
    recipe = merged(recipe, changes)
    told = Told()
    made = run(recipe, tmp_path / "run", progress=told)
    assert all(math.isfinite(number) for number in numbers(dict(made.results)))
    student = AutoModelForSequenceClassification.from_pretrained(made.student)
    expected = {
        "multi_label": ("multi_label", 2),
        "unlabelled_multi_label": ("multi_label", 2),
        "regression": ("regression", 1),
        "unlabelled_regression": ("regression", 1),
    }.get(form, ("single_label", 2))
    assert (made.results["run"]["problem"], student.config.num_labels) == expected
    assert not any("projector" in name for name in load_file(made.student / "model.safetensors"))
    assert [model["key"] for model in made.results["models"]] == ["teacher", "student"]
    if form.startswith("unlabelled"):
        assert made.results["data"]["splits"]["unlabelled"] == 40
    if form == "narrower":
        assert (student.config.hidden_size, student.config.num_hidden_layers) == (16, 3)
    if form == "checkpoint":
        assert (student.config.hidden_size, student.config.num_hidden_layers) == (16, 1)
    if form == "taken_as_it_is":
        assert made.results["models"][0]["training"] is None
        assert not (made.folder / "teacher").exists()
    if form in ("multi_label", "taken_as_it_is"):  # a digest of rows that isn't stable would do it all again
        again = run(recipe, tmp_path / "run")
        assert all(stage["reused"] for stage in again.results["run"]["stages"])
        assert again.results["models"] == made.results["models"]


def test_unlabelled_rows_only_teach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    whole_train = school.train

    def spy(model: Any, lesson: Any, *rest: Any, **options: Any) -> Any:
        seen.append(len(lesson.rows))
        return whole_train(model, lesson, *rest, **options)

    monkeypatch.setattr(school, "train", spy)
    recipe = tiny_recipe(
        tmp_path, {**unlabelled(tmp_path), "evaluate": {"baseline": True, "pretrained_baseline": False}}
    )
    run(recipe, tmp_path / "run")
    assert seen == [60, 100, 100], "teacher, student, baseline"


def test_a_checkpoint_has_no_pretrained_cut_to_compare_with(tmp_path: Path) -> None:
    made = run(tiny_recipe(tmp_path, {**checkpoint(tmp_path), "evaluate": {"baseline": True}}), tmp_path / "run")
    assert [model["key"] for model in made.results["models"]] == ["teacher", "baseline", "student"]


def test_a_changed_checkpoint_is_noticed(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, checkpoint(tmp_path))
    run(recipe, tmp_path / "run")
    tiny_teacher(tmp_path / "small", layers=1, width=16, seed=4)
    again = run(recipe, tmp_path / "run")
    reused = {stage["name"]: stage["reused"] for stage in again.results["run"]["stages"]}
    assert reused["teacher"] and not reused["seeds/0/student"]


def test_a_teacher_that_moved_is_found(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, taken_as_it_is(tmp_path))
    run(recipe, tmp_path / "run")
    (tmp_path / "named").rename(tmp_path / "elsewhere")
    moved = merged(recipe, {"teacher": {"model": str(tmp_path / "elsewhere")}, "student": {"layers": 1}})
    found = run(moved, tmp_path / "run", update=True).results
    assert found["run"]["stages"][0] | {"seconds": 0} == {"name": "teacher", "seconds": 0, "reused": True}
    assert found["models"][0]["key"] == "teacher"


def test_what_was_deleted_is_made_again(tmp_path: Path) -> None:
    import shutil

    recipe = tiny_recipe(tmp_path)
    first = run(recipe, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "teacher")
    (tmp_path / "run" / "predictions" / "student-0.parquet").unlink()
    again = run(recipe, tmp_path / "run")
    reused = {stage["name"]: stage["reused"] for stage in again.results["run"]["stages"]}
    assert {name for name, kept in reused.items() if not kept} == {"teacher", "predictions/student/0"}
    assert [m["metrics"] for m in again.results["models"]] == [m["metrics"] for m in first.results["models"]]


def test_rows_without_a_label_are_left_out_of_the_numbers(tmp_path: Path) -> None:
    recipe, told = tiny_recipe(tmp_path), Told()
    texts, _ = tiny_texts(20, seed=9)
    recipe["data"]["files"]["test"] = write_csv(
        tmp_path / "gaps.csv", {"text": texts, "label": ["bad", "good", "", "bad"] * 5}
    )
    made = run(recipe, tmp_path / "run", progress=told)
    assert made.results["data"]["splits"]["test"] == 15
    assert "5 of the 20 rows of test are left out: they have no label" in told.text


# ---- bad input: an error before anything is trained


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs the tiny recipe with changes; gives the message of the error that comes before training."""
    monkeypatch.setattr(school, "train", lambda *_, **__: pytest.fail("it trained"))

    def message(changes: dict[str, Any], error: type[PotstillError], **model: Any) -> str:
        with pytest.raises(error) as caught:
            run(tiny_recipe(tmp_path, changes, **model), tmp_path / "run")
        assert not (tmp_path / "run" / "work").exists()
        return str(caught.value)

    return message


def test_a_column_that_is_not_there(refused: Any) -> None:
    said = refused({"data": {"columns": {"text": "txet", "label": "lable"}}}, DataError)
    assert "'txet'" in said and "'lable'" in said and "Did you mean 'text'?" in said and "Columns: text, label" in said


@pytest.mark.parametrize(
    ("texts", "labels", "said"),
    [
        ([], [], "The split train has 0 rows"),
        (["a good film", "a fine plot", "the cast"], ["good", "good", "good"], "fewer than two classes"),
        (["a good film", "", "the cast"], ["good", "bad", "bad"], "no text in 'text'"),
        (["a good film", "in it", "the cast"], ["good", "bad", ""], "have no label"),
    ],
)
def test_rows_that_teach_nothing(refused: Any, tmp_path: Path, texts: list[str], labels: list[str], said: str) -> None:
    file = write_csv(tmp_path / "rows.csv", {"text": texts, "label": labels})
    assert said in refused({"data": {"files": {"train": file}}}, DataError)


def test_labels_that_the_teacher_does_not_know(refused: Any, tmp_path: Path) -> None:
    teacher = {"model": save_named(tmp_path / "named", "cold", "warm"), "train": None}
    said = refused({"teacher": teacher}, ModelError)
    for part in ("doesn't know the classes", "['cold', 'warm']", "['bad', 'good']", "teacher.train", "data.names"):
        assert part in said


def test_a_teacher_with_another_number_of_classes(refused: Any, tmp_path: Path) -> None:
    teacher = {"model": save_named(tmp_path / "named", "bad", "so", "good"), "train": None}
    assert "doesn't know the classes" in refused({"teacher": teacher}, ModelError)


@pytest.mark.parametrize("names", [("good", "bad"), ("GOOD", "Bad")])
def test_labels_in_another_order_are_aligned_and_that_is_said(tmp_path: Path, names: tuple[str, str]) -> None:
    told = Told()
    recipe = tiny_recipe(tmp_path, {"teacher": {"model": save_named(tmp_path / "named", *names), "train": None}})
    made = run(recipe, tmp_path / "run", progress=told)
    assert f"classes are put in the teacher's order: {list(names)}" in told.text
    assert made.results["data"]["classes"] == ["good", "bad"]
    # The same teacher with its classes the other way round answers the same, so its numbers are the same.
    model = tiny_model()
    with torch.no_grad():
        for parameter in (model.classifier.weight, model.classifier.bias):
            parameter.copy_(parameter.flip(0))
    model.config.id2label, model.config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
    save_folder(model, tmp_path / "turned")
    other = run(merged(recipe, {"teacher": {"model": str(tmp_path / "turned")}}), tmp_path / "other")
    assert other.results["models"][0]["metrics"]["accuracy"] == made.results["models"][0]["metrics"]["accuracy"]


def test_classes_without_names_are_said(tmp_path: Path) -> None:
    told = Told()
    run(tiny_recipe(tmp_path, {"teacher": {"train": None}}), tmp_path / "run", progress=told)
    assert "the teacher's classes have no names; they are taken to be ['bad', 'good']" in told.text


def test_a_student_with_another_tokenizer_learns_no_tokens(refused: Any, tmp_path: Path) -> None:
    texts, _ = tiny_texts(20)
    words = sorted({word for text in texts for word in text.split()})[:20]
    tokenizer = BertTokenizer(
        vocab={t: n for n, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    )
    student = {"from": "checkpoint", "layers": None}
    path = str(save_folder(tiny_model(layers=1), tmp_path / "other", tokenizer))
    terms = [{"knowledge": "logits"}, {"knowledge": "hidden"}]
    said = refused({"student": {**student, "model": path}, "distill": [{"terms": terms, "train": SHORT}]}, ModelError)
    assert "hidden would compare tokens that aren't the same" in said and "pool: first" in said


def test_a_student_with_another_vocabulary(refused: Any, tmp_path: Path) -> None:
    model = tiny_model(layers=1)
    model.resize_token_embeddings(40)
    save_folder(model, tmp_path / "other")
    said = refused({"student": {"from": "checkpoint", "layers": None, "model": str(tmp_path / "other")}}, ModelError)
    assert "different vocabularies" in said and "student 40 entries" in said


@pytest.mark.parametrize(
    ("student", "layers", "said"),
    [
        ({"layers": 2}, {0: 4}, "4"),
        ({"layers": 2}, {2: 0}, "2"),
        ({"from": "config", "layers": None, "config": {"num_hidden_layers": 6}}, "uniform", "6"),
    ],
)
def test_a_layer_map_that_does_not_fit(refused: Any, student: dict[str, Any], layers: Any, said: str) -> None:
    terms = [{"knowledge": "hidden", "layers": layers}]
    message = refused({"student": student, "distill": [{"terms": terms, "train": SHORT}]}, RecipeError)
    assert message.startswith("terms.0 (hidden): ") and f"{said} " in message and "layer" in message


def test_more_layers_than_the_teacher_has(refused: Any) -> None:
    assert "4" in refused({"student": {"layers": 9}}, PotstillError)


@pytest.mark.parametrize(
    ("version", "terms", "said"),
    [
        ("1", [{"knowledge": "logits"}], "Only FSDP's version 2 shards students and teachers. Got: 1."),
        (
            "2",
            [{"knowledge": "hidden", "loss": "crd", "layers": "last1", "pool": "first"}],
            "no term can keep a memory",
        ),
    ],
)
def test_what_fsdp_can_not_train(
    refused: Any, monkeypatch: pytest.MonkeyPatch, version: str, terms: list[dict[str, Any]], said: str
) -> None:
    monkeypatch.setattr(preflight, "sharding", lambda: True)
    monkeypatch.setenv("FSDP_VERSION", version)
    assert said in refused({"distill": [{"terms": terms}]}, TrainingError)


def test_a_new_head_that_nobody_trains(refused: Any, tmp_path: Path) -> None:
    path = str(save_folder(tiny_model().bert, tmp_path / "headless"))
    said = refused({"teacher": {"model": path, "train": None}}, ModelError)
    for part in ("newly initialised head", "classifier.weight", "teacher: {train: {epochs: 2}}"):
        assert part in said


def test_texts_longer_than_a_model_has_places_for(refused: Any, tmp_path: Path) -> None:
    texts, labels = tiny_texts(40)
    named = [("bad", "good")[label] for label in labels]
    file = write_csv(tmp_path / "long.csv", {"text": [f"{text} the " * 3 for text in texts], "label": named})
    changes = {"data": {"files": {"train": file}}, "student": {"from": "config", "layers": None}}
    changes["student"]["config"] = {"max_position_embeddings": 16}
    said = refused(changes, ModelError)
    assert "The student has positions for 16 tokens" in said and "data.max_length=16" in said


@pytest.mark.parametrize("what", ["model", "data"])
def test_no_network(refused: Any, what: str) -> None:
    changes = (
        {"teacher": {"model": "someone/some-model"}} if what == "model" else {"data": {"name": "someone/some-data"}}
    )
    if what == "data":
        changes["data"]["files"] = None
    said = refused(changes, ModelError if what == "model" else DataError)
    assert f"someone/some-{what}" in said and "network" in said and "folder" in said


# ---- a loss that is no number


def test_nan_stops_names_the_term_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    train = {
        **SHORT,
        "steps": 8,
        "checkpoint_steps": 1,
        "learning_rate": 1e30,
        "max_grad_norm": 0,
        "warmup": 0,
        "schedule": "constant",
    }
    terms = [{"knowledge": "labels", "weight": 1.0}, {"knowledge": "hidden"}]
    with pytest.raises((TrainingError, ModelError)) as caught:
        run(tiny_recipe(tmp_path, {"distill": [{"terms": terms, "train": train}]}), tmp_path / "run")
    said = str(caught.value)
    for part in (
        "not a finite number at step 2",
        "labels = nan",
        "hidden = nan",
        "Lower the learning rate",
        "last checkpoint",
    ):
        assert part in said, said
    kept = list((tmp_path / "run" / "work").rglob("complete"))
    assert len(kept) == 1 and kept[0].parent.name == "checkpoint-1"


def test_numbers_that_do_not_exist_do_not_end_a_run(tmp_path: Path) -> None:
    """A constant target and a model without any answer: correlations are undefined, and the report still comes."""
    texts, _ = tiny_texts(40)
    file = write_csv(tmp_path / "rows.csv", {"text": texts, "score": [0.5] * 40})
    recipe = tiny_recipe(tmp_path)
    recipe["data"]["files"] = {"train": file}
    recipe = merged(recipe, {"evaluate": {"baseline": True, "seeds": 2}})
    assert all(math.isfinite(number) for number in numbers(dict(run(recipe, tmp_path / "run").results)))


def test_a_failed_export_is_raised_after_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise ExportError("the student can't be traced")

    monkeypatch.setattr("potstill.pipeline.export_student", fail)
    recipe = tiny_recipe(tmp_path, {"export": {"formats": ["onnx"]}})
    with pytest.raises(ExportError, match="can't be traced"):
        run(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "report.html").is_file()
    monkeypatch.undo()
    assert [made["key"] for made in run(recipe, tmp_path / "run").results["exports"]] == ["onnx"]


# ---- attention beside the teacher's


def test_attention_is_compared_when_asked_for(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, {"evaluate": {"baseline": True, "attention_similarity": True}})
    outcome = run(recipe, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "results.json").read_text())["attention"]
    assert [one["key"] for one in found] == ["pretrained_baseline", "baseline", "student"]
    for one in found:
        assert [(layer["student"], layer["teacher"]) for layer in one["layers"]] == [(0, 1), (1, 3)]
        assert all(0 <= value <= math.log(2) for layer in one["layers"] for value in layer["jensen_shannon"])
    assert 'id="plot-attention-student"' in outcome.report.read_text(encoding="utf-8")


def test_attention_of_other_tokens_is_refused_before_training(tmp_path: Path) -> None:
    changes = {"student": {"vocabulary": {"minimum_count": 1}}, "evaluate": {"attention_similarity": True}}
    with pytest.raises(ModelError, match="different tokenizers"):
        run(tiny_recipe(tmp_path, changes), tmp_path / "run")
    assert not (tmp_path / "run" / "teacher").exists()
