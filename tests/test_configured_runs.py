"""Recipes whose student or teacher is made from a configuration: what they may say, and a whole run of each."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import VOCABULARY
from tiny_images import tiny_image_recipe
from tiny_runs import SHORT, tiny_recipe, tiny_teacher
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForSequenceClassification

from potstill.comparing.benches import Benches
from potstill.errors import ModelError, RecipeError
from potstill.export.runtime import OnnxModel
from potstill.pipeline import run
from potstill.preflight import preflight, shape_text, start_student, student_notes
from potstill.progress import Silent
from potstill.recipe import load_recipe
from potstill.students import configuration
from potstill.workbench import prepare_workbench

SMALL = {"model_type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
BASE = {"task": "text_classification", "data": {"name": "reviews"}, "student": {"layers": 2}}
BASE |= {"teacher": {"model": "x"}, "distill": [{"terms": [{"knowledge": "labels"}]}]}


def refused(**sections: Any) -> str:
    with pytest.raises(RecipeError) as raised:
        load_recipe(BASE | sections)
    return str(raised.value)


@pytest.mark.parametrize(
    ("student", "origin"),
    [
        ({"layers": 2}, "teacher"),
        ({"config": SMALL}, "config"),
        ({"config": "a/hub-id"}, "config"),
        ({"config": {"hidden_size": 8}}, "config"),
        ({"model": "a/hub-id"}, "checkpoint"),
    ],
)
def test_where_a_student_is_from_follows_from_its_keys(student: dict[str, Any], origin: str) -> None:
    assert load_recipe(BASE | {"student": student}).student.origin == origin
    assert load_recipe(load_recipe(BASE | {"student": student}).as_dict()).student.origin == origin


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"student": {"config": SMALL | {"dmi": 8}}}, "student.config: Unknown field of DistilBertConfig 'dmi'."),
        ({"student": {"config": SMALL, "layers": 2}}, "'config' doesn't go with from: teacher"),
        ({"student": {"config": SMALL, "model": "x"}}, "doesn't go with from: teacher"),
        ({"student": {"from": "config", "config": SMALL, "rule": "last"}}, "'rule' says which layers"),
        ({"teacher": {"model": "x", "config": "y"}}, "teacher: Give either 'model' or 'config', one of both"),
        ({"teacher": {"train": {"epochs": 1}}}, "teacher: Give either 'model' or 'config', one of both"),
        ({"teacher": {"config": "y"}}, "teacher: A teacher from a config knows nothing yet: train it here"),
        ({"teacher": {"config": {"hidden_size": 8}, "train": {"epochs": 1}}}, "needs the key 'model_type'"),
        (
            {"teacher": {"config": {"model_type": "vti"}, "train": {"epochs": 1}}},
            "teacher.config: Unknown model_type 'vti'",
        ),
        ({"teacher": {"config": SMALL, "train": {"epochs": 1}}}, "A teacher of texts needs a tokenizer"),
        (
            {"teacher": {"config": "y", "train": {"epochs": 1}}, "student": {"layers": 2, "initialise": "pretrained"}},
            "the teacher is one from a config",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(sections: dict[str, Any], said: str) -> None:
    assert said in refused(**sections)


def test_a_new_teacher_has_no_pretrained_baseline() -> None:
    made = load_recipe(BASE | {"teacher": {"config": "y", "train": {"epochs": 1}}})
    assert made.roles == ["student", "baseline"]
    assert made.teacher.called == "a new model like y"


def test_a_student_of_a_config_is_trained_and_shipped(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, {"student": {"layers": None, "config": SMALL}, "evaluate": {"baseline": True}})
    found = run(recipe, tmp_path / "run")
    student = AutoModelForSequenceClassification.from_pretrained(found.student)
    assert (student.config.model_type, student.config.dim, student.config.vocab_size) == ("distilbert", 16, VOCABULARY)
    assert student.config.id2label == {0: "bad", 1: "good"}
    assert (found.student / "tokenizer.json").exists()
    title = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))["run"]["title"]
    assert title.endswith("to a new distilbert, on files")


def test_teacher_and_student_may_have_the_architecture_of_a_model(tmp_path: Path) -> None:
    there = tiny_teacher(tmp_path / "there", layers=3)
    recipe = tiny_recipe(tmp_path, {"student": {"layers": None, "config": there}})
    recipe["teacher"] = {"config": there, "train": dict(SHORT)}
    found = run(recipe, tmp_path / "run")
    given, teacher, student = (
        AutoModelForSequenceClassification.from_pretrained(path)
        for path in (there, tmp_path / "run" / "teacher", found.student)
    )
    assert teacher.config.num_hidden_layers == student.config.num_hidden_layers == 3
    name = "bert.embeddings.word_embeddings.weight"  # two steps hardly move it
    weights = [dict(model.named_parameters())[name] for model in (given, teacher, student)]
    assert weights[0].std() > 2 * weights[1].std()  # that of the model was spread, a new one isn't
    assert not torch.allclose(weights[1], weights[2], atol=1e-3)
    recipe["teacher"] = {"model": there, "train": dict(SHORT)}
    run(recipe, tmp_path / "run", update=True)
    trained = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "teacher")
    assert dict(trained.named_parameters())[name].std() > 2 * weights[1].std()  # another teacher: it was trained anew


def test_the_start_follows_the_seed_alone(tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe(tmp_path, {"student": {"layers": None, "config": SMALL}}))
    bench = prepare_workbench(recipe, Silent().say)
    source = bench.load(bench.teacher_path).model
    first, again, other = (start_student(bench, source, seed).classifier.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_another_vocabulary_than_the_tokenizers_is_refused(tmp_path: Path) -> None:
    config = SMALL | {"vocab_size": 7}
    recipe = load_recipe(tiny_recipe(tmp_path, {"student": {"layers": None, "config": config}}))
    bench = prepare_workbench(recipe, Silent().say)
    with pytest.raises(ModelError, match=r"has its teacher's tokenizer.*vocab_size 7"):
        start_student(bench, bench.load(bench.teacher_path).model, 0)


# ---- images

VIT = {"model_type": "vit", "image_size": [32, 48], "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2}
VIT |= {"num_attention_heads": 2, "intermediate_size": 32}
DEIT = VIT | {"model_type": "deit", "architectures": ["DeiTForImageClassificationWithTeacher"]}
HARD = [
    {"knowledge": "labels", "classifier": "class", "weight": 0.5},
    {"knowledge": "logits", "classifier": "distillation", "loss": "pseudo_label_cross_entropy", "weight": 0.5},
]


def image_recipe(folder: Path, student: dict[str, Any], terms: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    recipe = tiny_image_recipe(folder)
    recipe["teacher"] = {"config": VIT, "train": dict(SHORT)}
    recipe["student"] = student
    recipe["distill"] = [{"terms": terms or [{"knowledge": "logits"}], "train": dict(SHORT)}]
    return recipe


def test_a_deit_with_its_token_learns_from_a_teacher_of_a_config(tmp_path: Path) -> None:
    recipe = image_recipe(tmp_path, {"config": DEIT}, HARD) | {"evaluate": {"baseline": True, "cost": False}}
    recipe["export"] = {"formats": ["onnx"]}
    found = run(recipe, tmp_path / "run")
    student = AutoModelForImageClassification.from_pretrained(found.student)
    assert type(student).__name__ == "DeiTForImageClassificationWithTeacher"
    assert student.config.id2label == {0: "dark", 1: "light"}
    curves = {one["key"]: one["curves"][0]["points"][-1]["parts"] for one in found.results["models"] if one["curves"]}
    assert set(curves["student"]) == {"labels", "logits"}
    assert set(curves["baseline"]) == {"labels"}  # of the mean of both, as it answers
    assert AutoImageProcessor.from_pretrained(found.student, backend="pil").size["width"] == 48
    exported = OnnxModel(next((tmp_path / "run").rglob("*.onnx")))
    pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answer = student.eval()(pixels).logits
    torch.testing.assert_close(torch.as_tensor(exported({"pixel_values": pixels})), answer, atol=1e-4, rtol=1e-3)
    title = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))["run"]["title"]
    assert title.startswith("a new vit to a new deit")


def test_a_student_reads_images_at_the_size_that_its_config_names(tmp_path: Path) -> None:
    def read(student: dict[str, Any]) -> dict[str, torch.Tensor]:
        bench = prepare_workbench(load_recipe(image_recipe(tmp_path, student)), Silent().say)
        return bench.collate(bench.rows["train"].select(range(2)).to_list())

    smaller = read({"config": VIT | {"image_size": 24}})
    assert smaller["pixel_values"].shape[-2:] == (24, 24)
    assert smaller["teacher_pixel_values"].shape[-2:] == (32, 48)
    for same in ({"config": VIT}, {"config": {"model_type": "mobilenet_v2", "depth_multiplier": 0.35}}, {"layers": 1}):
        batch = read(same)
        assert batch["pixel_values"].shape[-2:] == (32, 48)
        assert "teacher_pixel_values" not in batch


def test_the_size_of_the_recipe_comes_before_that_of_a_published_architecture(tmp_path: Path) -> None:
    """Its configuration has the size that it was pretrained at, and it takes any."""
    there, small = tmp_path / "there", {"model_type": "mobilenet_v2", "image_size": 16}
    configuration(small).save_pretrained(there)
    for config, size in ((str(there), (32, 48)), (small, (16, 16))):
        recipe = image_recipe(tmp_path, {"config": config})
        recipe["data"]["image_size"] = [32, 48]
        bench = prepare_workbench(load_recipe(recipe), Silent().say)
        assert bench.reader.size == size and bench.for_teacher.reader.size == (32, 48)
    del recipe["data"]["image_size"]
    recipe["student"]["config"] = str(there)
    assert prepare_workbench(load_recipe(recipe), Silent().say).reader.size == (16, 16)


def test_what_a_plan_says_of_new_models(tmp_path: Path) -> None:
    recipe = load_recipe(image_recipe(tmp_path, {"config": {"model_type": "mobilenet_v2", "depth_multiplier": 0.35}}))
    bench = prepare_workbench(recipe, Silent().say)
    found = preflight(bench)
    assert student_notes(bench, found) == ["student: a new mobilenet_v2, with random weights"]
    assert shape_text(found.student) == "mobilenet_v2, stages of 8, 16, 32, 112 channels"
    assert shape_text(found.teacher) == "vit, 2 layers of width 16, 2 heads"


def test_variants_that_read_images_at_other_sizes_have_benches_of_their_own(tmp_path: Path) -> None:
    recipe = image_recipe(tmp_path, {"config": VIT})
    benches = Benches(Silent())
    first, again, other = (
        benches.of(load_recipe(recipe | {"student": {"config": VIT | changes}}))
        for changes in ({}, {"num_hidden_layers": 1}, {"image_size": 24})
    )
    assert first.rows is again.rows
    assert (first.reader.size, other.reader.size) == ((32, 48), (24, 24))


def test_a_head_that_a_student_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="A term names one of several classifiers"):
        run(image_recipe(tmp_path, {"config": VIT}, HARD), tmp_path / "run")
