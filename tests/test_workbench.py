"""What a recipe names, made ready: rows, classes, tokenizer and models, and a digest that changes when they do."""

from pathlib import Path
from typing import Any

import pytest
from tiny import save_folder, tiny_model, tiny_texts, tiny_tokenizer
from tiny_runs import Told, merged, tiny_files, tiny_recipe, write_csv

from potstill.errors import DataError, ExportError, ModelError
from potstill.labelled import same_classes
from potstill.preflight import load_teacher, needed_bytes, preflight, shape_text, start_student
from potstill.recipe import load_recipe
from potstill.workbench import Workbench, label_array, prepare_workbench


def bench_of(recipe: dict[str, Any], told: Told | None = None) -> Workbench:
    return prepare_workbench(load_recipe(recipe), (told or Told()).say)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_recipe(tmp_path_factory.mktemp("bench"))


def test_guesses_are_said(recipe: dict[str, Any]) -> None:
    told = Told()
    bench = bench_of(recipe, told)
    assert "text column: 'text' (guessed" in told.text and "label column: 'label' (guessed" in told.text
    assert bench.task.names == ("bad", "good") and bench.evaluated_on == "test" and bench.attention is None
    assert bench.labels("test").tolist() == [n % 2 for n in range(90, 120)]


def test_splits_that_are_missing_are_cut(recipe: dict[str, Any], tmp_path: Path) -> None:
    told = Told()
    made = merged(recipe, {})
    made["data"]["files"] = {"train": tiny_files(tmp_path)["train"]}
    bench = bench_of(made, told)
    assert {split: len(rows) for split, rows in bench.rows.items()} == {"train": 48, "validation": 6, "test": 6}
    assert "validation: 6 of the 60 rows of train, cut off" in told.text
    made["data"]["limit"] = 20
    assert len(bench_of(made).rows["train"]) == 20


def test_without_a_test_split_the_numbers_are_on_validation(recipe: dict[str, Any], tmp_path: Path) -> None:
    told, best = Told(), Told()
    made = merged(recipe, {"data": {"test": 0}})
    files = tiny_files(tmp_path)
    made["data"]["files"] = {split: files[split] for split in ("train", "validation")}
    bench = bench_of(made, told)
    assert (len(bench.rows["train"]), bench.evaluated_on) == (60, "validation")
    bench_of(merged(made, {"distill": [{**made["distill"][0], "train": {"keep": "best"}}]}), best)
    assert "by which the best weights (keep: best) will be chosen" in best.text and "will be chosen" not in told.text
    several = Told()
    bench_of(merged(made, {"evaluate": {"seeds": 2}}), several)
    assert "by which the seed that ships will be chosen" in several.text


def test_the_digest_is_stable_and_sees_every_change(recipe: dict[str, Any], tmp_path: Path) -> None:
    first = bench_of(recipe).digest
    assert bench_of(recipe).digest == first
    changes: list[dict[str, Any]] = [
        {"data": {"max_length": 6}},
        {"data": {"limit": 50}},
        {"data": {"names": ["good", "bad"]}},
        {"data": {"files": {"test": write_csv(tmp_path / "t.csv", {"text": ["a good film"], "label": ["good"]})}}},
        {"data": {"files": {"test": write_csv(tmp_path / "u.csv", {"text": ["a good film"], "label": ["bad"]})}}},
    ]
    found = [bench_of(merged(recipe, change)).digest for change in changes]
    assert len({first, *found}) == len(found) + 1


def test_the_length_is_cut_to_what_the_tokenizer_takes(recipe: dict[str, Any]) -> None:
    told = Told()
    bench_of(merged(recipe, {"data": {"max_length": 500}}), told)
    assert "max_length 500 is cut to 64" in told.text


def test_unlabelled_columns_are_called_as_the_labelled(recipe: dict[str, Any], tmp_path: Path) -> None:
    texts, labels = tiny_texts(40)
    named = [("bad", "good")[label] for label in labels]
    more = write_csv(tmp_path / "more.csv", {"a": ["x"] * 5, "body": [*texts[:3], "the film", "  "]})
    made = merged(recipe, {"data": {"columns": {"text": "body"}, "unlabelled": {"files": {"train": more}}}})
    rows = write_csv(tmp_path / "rows.csv", {"a": ["x"] * 40, "body": texts, "label": named})
    made["data"]["files"] = {"train": rows, "test": rows}
    told = Told()
    bench = bench_of(made, told)
    assert bench.raw["unlabelled"]["text"][:] == ["the film"]
    assert "4 unlabelled rows are left out: they show nothing, or what is in validation or test" in told.text
    assert len(bench.transfer) == len(bench.rows["train"]) + 1
    assert bench.rows["unlabelled"]["labels"][:] == [-100]


def test_an_overlap_is_said(recipe: dict[str, Any], tmp_path: Path) -> None:
    told = Told()
    bench_of(merged(recipe, {"data": {"files": {"test": tiny_files(tmp_path)["train"]}}}), told)
    assert "60 of the 60 rows of test have a text that stands in train too" in told.text


def test_the_same_seed_starts_the_same_student(recipe: dict[str, Any]) -> None:
    made = merged(recipe, {"student": {"from": "config", "layers": None, "config": {"hidden_size": 16}}})
    bench = bench_of(made)
    teacher = load_teacher(bench)
    one, same, other = (start_student(bench, teacher, seed).state_dict() for seed in (1, 1, 2))
    assert all((one[name] == same[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)


def test_a_checkpoint_with_a_new_head_starts_the_same(recipe: dict[str, Any], tmp_path: Path) -> None:
    save_folder(tiny_model(layers=1).bert, tmp_path / "headless")
    made = merged(recipe, {"student": {"from": "checkpoint", "layers": None, "model": str(tmp_path / "headless")}})
    bench = bench_of(made)
    one, same, other = (start_student(bench, tiny_model(), seed).classifier.weight for seed in (1, 1, 2))
    assert (one == same).all() and (one != other).any()


def test_preflight_and_the_disk(recipe: dict[str, Any]) -> None:
    bench = bench_of(recipe)
    found = preflight(bench)
    assert shape_text(found.student) == "bert, 2 layers of width 32, 4 heads"
    assert [term.name for term in found.stages[0].terms] == ["logits"]
    one, three = (needed_bytes(found, load_recipe(merged(recipe, {"evaluate": {"seeds": n}}))) for n in (1, 3))
    student = 4 * sum(p.numel() for p in found.student.parameters())
    assert three - one == 2 * student
    with_baselines = needed_bytes(found, load_recipe(merged(recipe, {"evaluate": {"baseline": True}})))
    assert with_baselines - one == 2 * student


def test_models_are_costed_as_they_ship(recipe: dict[str, Any]) -> None:
    bench = bench_of(merged(recipe, {"distill": [{"terms": [{"knowledge": "attention"}]}]}))
    assert bench.load(bench.teacher_path).model.config._attn_implementation == "eager"
    assert bench.load(bench.teacher_path, as_shipped=True).model.config._attn_implementation == "sdpa"


def test_decoders_get_a_padding_id(recipe: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.config.pad_token_id = None
    save_folder(model, tmp_path / "llama")
    bench = bench_of(merged(recipe, {"teacher": {"model": str(tmp_path / "llama")}}))
    assert bench.load(bench.teacher_path).model.config.pad_token_id == tiny_tokenizer().pad_token_id


def test_what_can_not_be_loaded(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="No tokenizer can be loaded"):
        bench_of(merged(recipe, {"teacher": {"model": str(tmp_path / "empty")}}))
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        bench_of(merged(recipe, {"data": {"files": {"train": str(tmp_path / "nowhere.csv")}}}))


@pytest.mark.parametrize(
    ("problem", "dtype"), [("single_label", "int64"), ("multi_label", "float32"), ("regression", "float32")]
)
def test_label_arrays(problem: str, dtype: str) -> None:
    assert label_array({"labels": [0, 1]}, problem).dtype == dtype


def test_missing_onnx_packages_are_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(tiny_recipe(tmp_path, {"export": {"formats": ["onnx"]}}))
    bench = prepare_workbench(recipe, lambda _: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ExportError, match=r"no onnxscript.*pip install onnx"):
        preflight(bench)


def test_numbered_labels_with_names_are_renumbered_for_the_teacher(tmp_path: Path) -> None:
    """Numbers 0 and 1 are bad and good by data.names; the teacher has good first."""
    texts, labels = tiny_texts(60)
    parts = {"train": slice(0, 40), "validation": slice(40, 50), "test": slice(50, 60)}
    files = {
        s: write_csv(tmp_path / f"{s}-numbers.csv", {"text": texts[p], "label": labels[p]}) for s, p in parts.items()
    }
    model = tiny_model()
    model.config.id2label, model.config.label2id = {0: "good", 1: "bad"}, {"good": 0, "bad": 1}
    teacher = {"model": str(save_folder(model, tmp_path / "named")), "train": None}
    changes = {"data": {"files": files, "names": ["bad", "good"]}, "teacher": teacher}
    bench = prepare_workbench(load_recipe(tiny_recipe(tmp_path, changes)), lambda _: None)
    assert bench.task.names == ("good", "bad")
    known = dict(zip(texts, labels, strict=True))
    for row in bench.raw["train"]:
        assert row["labels"] == 1 - known[row["text"]]


def test_classes_that_differ_in_case_alone_are_told_apart_by_it(tmp_path: Path) -> None:
    texts, labels = tiny_texts(60)
    rows = {"text": texts, "label": [("Good", "good")[label] for label in labels]}
    files = {split: write_csv(tmp_path / f"case-{split}.csv", rows) for split in ("train", "validation", "test")}

    def bench_for(*names: str, **changes: Any) -> Workbench:
        model = tiny_model()
        model.config.id2label, model.config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
        path = str(save_folder(model, tmp_path / "-".join(names)))
        made = {"data": {"files": files}, "teacher": {"model": path, "train": None}, **changes}
        return bench_of(tiny_recipe(tmp_path, made), told)

    told = Told()
    bench = bench_for("good", "Good")
    assert bench.task.names == ("good", "Good") and "put in the teacher's order" in told.text
    known = dict(zip(texts, labels, strict=True))
    assert all(row["labels"] == 1 - known[row["text"]] for row in bench.raw["train"])
    with pytest.raises(ModelError, match="The teacher doesn't know the classes"):
        bench_for("good", "GOOD")
    student = {"from": "checkpoint", "layers": None, "model": str(tmp_path / "good-Good")}
    with pytest.raises(ModelError, match="in another order"):
        preflight(bench_for("Good", "good", student=student))


def test_same_classes_in_order_and_without() -> None:
    turned = ["Cat", "dog"], ["DOG", "cat"]
    assert same_classes(*turned) and not same_classes(*turned, ordered=True)
    assert not same_classes(["A", "a"], ["a", "A"], ordered=True) and same_classes(["A", "a"], ["a", "A"])
    assert not same_classes(["A", "a", "b"], ["A", "b", "B"]) and not same_classes(["A", "b"], ["A", "a"])


def test_a_checkpoint_with_its_classes_in_another_order_is_refused(tmp_path: Path) -> None:
    model = tiny_model(layers=1)
    model.config.id2label, model.config.label2id = {0: "good", 1: "bad"}, {"good": 0, "bad": 1}
    student = {"from": "checkpoint", "layers": None, "model": str(save_folder(model, tmp_path / "turned"))}
    bench = prepare_workbench(load_recipe(tiny_recipe(tmp_path, {"student": student})), lambda _: None)
    with pytest.raises(ModelError, match="in another order"):
        preflight(bench)


def test_an_unlabelled_split_is_used_only_when_asked_for(tmp_path: Path) -> None:
    files = tiny_files(tmp_path)
    files["unlabelled"] = write_csv(tmp_path / "more.csv", {"text": ["a film of today"], "label": [""]})
    told = Told()
    bench = prepare_workbench(load_recipe(tiny_recipe(tmp_path, {"data": {"files": files}})), told.say)
    assert "unlabelled" not in bench.rows and "data.unlabelled" in told.text
    assert len(bench.transfer) == len(bench.rows["train"])
