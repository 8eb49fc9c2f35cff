"""Image classification from data to report: one seam for texts and images."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from tiny_images import NAMES, tiny_image_model, tiny_image_recipe, tiny_image_rows
from tiny_runs import SHORT, Told, merged
from transformers import AutoImageProcessor, AutoModelForImageClassification

from potstill.cache import row_keys
from potstill.errors import CacheError, ModelError
from potstill.evaluation import peak_memory
from potstill.pipeline import cache, run
from potstill.preflight import preflight
from potstill.recipe import load_recipe
from potstill.searching import search
from potstill.tasks import ImageClassification
from potstill.workbench import Workbench, prepare_workbench

SPACE = ["distill.0.train.steps=1..2:int"]


def bench_of(recipe: dict[str, Any]) -> Workbench:
    return prepare_workbench(load_recipe(recipe), Told().say)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_image_recipe(tmp_path_factory.mktemp("images"))


def test_a_batch_holds_what_the_student_reads(recipe: dict[str, Any]) -> None:
    bench = bench_of(recipe)
    assert isinstance(bench.task, ImageClassification) and bench.task.names == NAMES
    batch = bench.collate(bench.rows["train"].select(range(3)).to_list())
    assert batch["pixel_values"].shape == (3, 3, 32, 48) and batch["labels"].tolist() == [0, 1, 0]
    assert torch.equal(batch["pixel_values"][1], bench.reader(bench.raw["train"][1]["image"]))
    assert set(bench.task.masks(batch)) == {"labels", "outputs"}


def test_a_run_goes_from_images_to_a_report(recipe: dict[str, Any], tmp_path: Path) -> None:
    outcome = run(recipe, tmp_path / "run")
    assert outcome.report.exists() and "accuracy" in outcome.results["models"][0]["metrics"]
    examples = outcome.results["examples"]
    pictures = [item["image"] for key in ("teacher_right", "student_right") for item in examples[key]]
    page = outcome.report.read_text(encoding="utf-8")
    assert all(f'<img src="{address}"' in page for address in pictures)
    assert len(pictures) == min(8, examples["counts"]["teacher_only"]) + min(8, examples["counts"]["student_only"])
    student = AutoModelForImageClassification.from_pretrained(outcome.student)
    assert student.config.num_hidden_layers == 2 and student.config.id2label == dict(enumerate(NAMES))
    processor = AutoImageProcessor.from_pretrained(outcome.student, backend="pil")
    bench = bench_of(recipe)
    picture = bench.raw["test"][0]["image"]
    theirs = torch.as_tensor(np.asarray(processor(picture)["pixel_values"][0]))
    torch.testing.assert_close(bench.reader(picture), theirs, atol=1e-5, rtol=0)


def test_a_student_with_a_processor_of_its_own_reads_its_own_pixels(recipe: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_image_model(tmp_path / "own", "mobilenet_v2")
    processor = AutoImageProcessor.from_pretrained(model, backend="pil")
    processor.size, processor.image_mean = {"height": 40, "width": 40}, [0.1, 0.2, 0.3]
    processor.save_pretrained(model)
    made = merged(recipe, {"student": {"from": "checkpoint", "model": model}})
    del made["student"]["layers"]
    bench = bench_of(made)
    batch = bench.collate(bench.rows["train"].select(range(2)).to_list())
    assert batch["pixel_values"].shape[-2:] == (40, 40) and batch["teacher_pixel_values"].shape[-2:] == (32, 48)
    outcome = run(made, tmp_path / "run")
    assert AutoImageProcessor.from_pretrained(outcome.student, backend="pil").size["height"] == 40


def test_the_digest_sees_pixels_and_reader(recipe: dict[str, Any]) -> None:
    first = bench_of(recipe).digest
    assert bench_of(recipe).digest == first
    assert bench_of(merged(recipe, {"data": {"limit": 20}})).digest != first
    assert bench_of(merged(recipe, {"data": {"image_size": [32, 32]}})).digest != first


def test_costs_and_exports_of_convolutions_are_measured(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.shipping.peak_memory", peak_memory._measure)  # here, not in four processes
    model = tiny_image_model(tmp_path / "own", "resnet")
    changes = {"evaluate": {"cost": True}, "export": {"formats": ["onnx", "onnx-int8"]}}
    made = merged(recipe, {"student": {"from": "checkpoint", "model": model}, **changes})
    del made["student"]["layers"]
    outcome = run(made, tmp_path / "run")
    results = outcome.results
    student = next(one for one in results["models"] if one["key"] == "student")
    assert student["cost"]["macs_at"] == "1 x 3 x 32 x 48" and student["cost"]["throughput_per_s"] > 0
    assert student["cost"]["peak_memory_bytes"] is not None
    whole, int8 = results["exports"]
    assert whole["max_logit_difference"] < 1e-3 < int8["max_logit_difference"] and int8["agreement"] is not None
    assert int8["peak_memory_bytes"] is not None and "images a second" in outcome.report.read_text(encoding="utf-8")


# ---- a cache


def test_a_teacher_of_images_is_remembered_exactly(recipe: dict[str, Any], tmp_path: Path) -> None:
    terms = [{"knowledge": "logits"}, {"knowledge": "hidden", "layers": "uniform"}]
    made = merged(recipe, {"distill": [{"terms": terms, "train": recipe["distill"][0]["train"]}]})
    live = run(merged(made, {"cache": {"use": "never"}}), tmp_path / "live").results
    kept = run(merged(made, {"cache": {"use": "always", "precision": "float32"}}), tmp_path / "kept").results
    assert kept["kept"]["teacher"]["written_rows"] == 24
    ours, theirs = (next(one for one in found["models"] if one["key"] == "student") for found in (kept, live))
    for ours_points, its in zip(ours["curves"], theirs["curves"], strict=True):
        for a, b in zip(ours_points["points"], its["points"], strict=True):
            assert a["parts"] == pytest.approx(b["parts"], rel=1e-4)
    only = {"use": "only", "precision": "float32", "folder": str(tmp_path / "kept/cache")}
    again = run(merged(made, {"cache": only}), tmp_path / "again")
    assert again.results["kept"]["teacher"]["written_rows"] == 0


def test_what_no_row_has_of_its_own_is_not_kept_and_no_teacher_is_trained_for_it(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_image_model(tmp_path / "swin", "swin", layers=3)
    terms = [{"knowledge": "attention", "layers": [[0, 0]]}]
    asked: dict[str, Any] = {"teacher": {"model": model}, "distill": [{"terms": terms, "train": SHORT}]}
    made = merged({**recipe, "student": {"config": {"depths": [1, 1]}}}, asked)
    always = merged(made, {"cache": {"use": "always"}})
    ways = {"run": partial(run, always), "cache": partial(cache, made), "search": partial(search, always, SPACE)}
    for name, way in ways.items():
        with pytest.raises(CacheError, match=r"answers of teacher can't be kept.*row by row"):
            way(out=tmp_path / name)
        assert not list((tmp_path / name).glob("**/model.safetensors")), "a teacher was trained for it"


@pytest.mark.parametrize("kind", ["sparse", "frozen"])
@pytest.mark.parametrize("whose", ["teacher", "distill"])
def test_embeddings_that_a_model_has_not_are_refused_before_training(
    kind: str, whose: str, recipe: dict[str, Any], tmp_path: Path
) -> None:
    path = tiny_image_model(tmp_path / "model", "mobilenet_v2")
    train = {**SHORT, "embeddings": kind}
    asked: dict[str, Any] = {
        "teacher": {"model": path, "train": train if whose == "teacher" else dict(SHORT)},
        "student": {"model": path},
        "distill": [{"terms": [{"knowledge": "logits"}], "train": train if whose == "distill" else dict(SHORT)}],
    }
    with pytest.raises(ModelError, match="can't learn sparsely" if kind == "sparse" else "convolution|to freeze"):
        preflight(bench_of(merged({**recipe, "student": {}}, asked)))


def test_rows_of_images_are_known_by_their_files_content(recipe: dict[str, Any], tmp_path: Path) -> None:
    rows = bench_of(recipe).rows["train"].select(range(3))
    files = []
    for number, row in enumerate(rows):
        files.append(str(tmp_path / f"{number}.png"))
        Path(files[-1]).write_bytes(row["image"]["bytes"])
    features = rows.select_columns(["image"]).features
    elsewhere = Dataset.from_dict({"image": [{"bytes": None, "path": file} for file in files]}, features=features)
    assert row_keys(elsewhere).tolist() == row_keys(rows).tolist() and len(set(row_keys(rows).tolist())) == 3
    Path(files[1]).write_bytes(Path(files[2]).read_bytes())
    keys = row_keys(elsewhere.select([0, 1, 2])).tolist()
    assert keys[1] == keys[2] == row_keys(rows).tolist()[2]


def test_images_without_labels_teach_and_those_of_evaluated_splits_are_left_out(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    more, known = tiny_image_rows(5, seed=9), bench_of(recipe).raw["test"].select(range(2))
    pictures = [*more["image"], *known["image"]]
    Dataset.from_dict({"image": pictures}, features=Features({"image": ImageFeature()})).save_to_disk(tmp_path / "more")
    made = merged(recipe, {"data": {"unlabelled": {"name": str(tmp_path / "more")}}})
    told = Told()
    bench = prepare_workbench(load_recipe(made), told.say)
    assert len(bench.rows["unlabelled"]) == 5 and "2 unlabelled rows are left out" in told.text
    assert set(bench.rows["unlabelled"]["labels"]) == {-100}
    student = run(made, tmp_path / "run").results["models"][-1]
    assert student["training"]["rows_seen"] == 16
    batch = bench.collate(bench.transfer.select([0, 24]).to_list())
    assert bench.task.masks(batch)["labels"].tolist() == [True, False]
