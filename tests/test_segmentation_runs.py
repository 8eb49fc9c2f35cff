"""Whole runs of a segmentation, offline: from folders of shapes to a report, both protocols, exports and costs."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny import tiny_upernet
from tiny_maps import (
    CLASSES,
    FOUR_STAGES,
    VOID_ID,
    shapes,
    tiny_map_folder,
    tiny_map_recipe,
    tiny_segformer,
    tiny_segmenter,
)
from tiny_runs import SHORT, Told, merged

from potstill.errors import DataError, ModelError, RecipeError
from potstill.evaluation.predict import load_predictions
from potstill.evaluation.reduced import Reduced
from potstill.export import OnnxModel, export_onnx
from potstill.export.onnx import GridPool
from potstill.metrics import keys, score
from potstill.pipeline import run
from potstill.plan import plan
from potstill.recipe import load_recipe
from potstill.shipping import _difference, _other_sizes
from potstill.tasks import MapClasses, SemanticSegmentation


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run with its baseline and costs; the folder, results and what was said."""
    folder, told = tmp_path_factory.mktemp("run"), Told()
    recipe = tiny_map_recipe(folder, {"data": {"class_weights": "frequency"}, "evaluate": {"baseline": True}})
    return run(recipe, folder / "run", progress=told), recipe, told


def test_a_run_reports_the_metrics_of_maps(finished: Any) -> None:
    outcome, _, told = finished
    results = json.loads((outcome.folder / "results.json").read_text(encoding="utf-8"))
    assert results["primary"] == "mean_iou" and list(results["metrics"]) == keys("segmentation")
    assert results["class_score"] == {"key": "iou", "name": "IoU"}
    assert results["data"]["classes"] == list(CLASSES) and results["data"]["image_size"] == [32, 48]
    assert "labels are weighted by class" in told.text
    for model in results["models"]:
        counts = load_predictions(outcome.folder / "predictions" / f"{model['key']}-0.parquet")["test"]
        assert model["metrics"]["mean_iou"]["mean"] == pytest.approx(
            score("mean_iou", "segmentation", counts, counts[:, :, :3].sum(2))
        )
        assert [row["class"] for row in model["per_class"]] == list(CLASSES)
        assert np.array_equal(model["confusion"], counts[:, :, :3].sum(0))
        assert model["calibration"] is None
        near = model["key"] != "teacher"
        assert (model["agreement"] is not None) == near and (model["kl"] is not None) == near
    assert all({"teacher", "baseline", "student", "change"} <= set(row) for row in results["per_class_change"])


def test_the_images_of_the_report_go_from_best_to_worst(finished: Any) -> None:
    outcome, _, _ = finished
    shown = outcome.results["segmentation"]
    assert [group["key"] for group in shown["groups"]] == ["best", "middle", "worst"]
    ious = [item["models"]["student"]["iou"] for group in shown["groups"] for item in group["items"]]
    assert ious == sorted(ious, reverse=True) and len(ious) == 6
    assert [entry["name"] for entry in shown["legend"]] == list(CLASSES)
    assert [entry["colour"] for entry in shown["legend"]] == [[40, 90, 40], [200, 60, 40], [50, 90, 220]]
    for item in (item for group in shown["groups"] for item in group["items"]):
        assert list(item["models"]) == ["teacher", "baseline", "student"]
        assert item["image"].startswith("data:image/jpeg") and item["truth"].startswith("data:image/png")


def test_predictions_and_results_stay_small(finished: Any) -> None:
    outcome, _, _ = finished
    for file in (outcome.folder / "predictions").iterdir():
        assert file.stat().st_size < 10_000


def test_a_finished_run_is_not_done_again(finished: Any) -> None:
    outcome, recipe, _ = finished
    again = run(recipe, outcome.folder)
    assert all(stage["reused"] for stage in again.results["run"]["stages"])
    assert again.results["models"] == outcome.results["models"]


def test_the_quarter_protocol_is_named_wherever_a_number_stands(tmp_path: Path) -> None:
    changes = {"data": {"protocol": "quarter"}, "evaluate": {"baseline": True}}
    outcome = run(tiny_map_recipe(tmp_path, changes), tmp_path / "run")
    assert list(outcome.results["metrics"]) == keys("segmentation_quarter")
    text = (outcome.folder / "report.md").read_text(encoding="utf-8")
    named = re.findall(r"[Mm]ean IoU[^.|\n]{0,20}|[Pp]ixel accuracy[^.|\n]{0,20}", text)
    assert named and all("at 1/4 resolution" in name for name in named)
    assert "at 1/4 resolution" in (outcome.student / "README.md").read_text(encoding="utf-8")


def test_costs_are_at_a_stated_size_in_both_counts(tmp_path: Path) -> None:
    outcome = run(tiny_map_recipe(tmp_path, {"evaluate": {"cost": True}}), tmp_path / "run")
    for model in outcome.results["models"]:
        cost = model["cost"]
        assert cost["macs_at"] == "1 x 3 x 32 x 48"
        assert 0 < cost["macs_without_attention"] < cost["macs"]
        assert cost["parameters"] > 0 and cost["throughput_per_s"] > 0 and cost["peak_memory_bytes"] > 0
    assert "without attention’s products" in outcome.report.read_text(encoding="utf-8")


def test_a_student_that_reads_larger_images_than_its_teacher(tmp_path: Path) -> None:
    """Logits of both are brought to the student's labels; the numbers are of the maps as they are stored."""
    other = tiny_segmenter(tmp_path / "other", layers=2)
    stored = json.loads((Path(other) / "preprocessor_config.json").read_text(encoding="utf-8"))
    stored["size"] = {"height": 64, "width": 64}
    (Path(other) / "preprocessor_config.json").write_text(json.dumps(stored), encoding="utf-8")
    recipe = tiny_map_recipe(tmp_path)
    outcome = run(recipe | {"student": {"from": "checkpoint", "model": other}}, tmp_path / "run")
    student = outcome.results["models"][-1]
    assert 0 < student["agreement"]["mean"] <= 1
    with pytest.raises(ModelError, match="at one size"):
        run(merged(recipe, {"data": {"protocol": "quarter"}}) | {"student": {"from": "checkpoint", "model": other}},
            tmp_path / "quarter")  # fmt: skip


def test_a_kept_teacher_is_the_teacher(tmp_path: Path) -> None:
    """Its logits are kept at their own size, and that is said; one step of one epoch is the same."""
    recipe = tiny_map_recipe(tmp_path)
    told = Told()
    live = run(merged(recipe, {"cache": {"use": "never"}}), tmp_path / "live")
    kept = run(merged(recipe, {"cache": {"use": "always", "precision": "float32"}}), tmp_path / "kept", progress=told)
    assert "its answers are kept on disk" in told.text
    record = kept.results["kept"]["teacher"]
    logits = 16 * 3 * 8 * 12 * 4  # of 16 rows, float32, at a quarter of 32 x 48
    assert record["rows"] == 16 and logits <= record["bytes"] < 1.05 * logits
    assert kept.results["models"][-1]["metrics"] == live.results["models"][-1]["metrics"]


def test_a_teacher_in_bfloat16_teaches_maps_and_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reduced, "allowed", True)  # a random teacher is no near enough one
    terms = [
        {"knowledge": "labels"},
        {"knowledge": "logits"},
        {"knowledge": "features", "loss": "hcl", "project": "csf"},
    ]
    half = {"train": SHORT | {"precision": "bfloat16"}}
    recipe = tiny_map_recipe(tmp_path, {"distill": [{"terms": terms, **half}]})
    told = Told()
    assert plan(recipe).stages
    results = run(recipe, tmp_path / "run", progress=told).results
    assert "bfloat16" in told.text and results["models"][-1]["metrics"]["mean_iou"]["mean"] > 0


def test_images_without_maps_are_learned_from_the_teacher(tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    for number in range(4):
        shapes(9000 + number)[0].save(more / f"{number}.png")
    told = Told()
    recipe = tiny_map_recipe(tmp_path, {"data": {"unlabelled": {"name": str(more)}}})
    recipe["distill"][0]["train"] = {"epochs": 1, "batch_size": 4, "precision": "float32"}
    outcome = run(recipe, tmp_path / "run", progress=told)
    took = {model["key"]: model["training"]["rows_seen"] for model in outcome.results["models"]}
    assert took["student"] == 20
    assert np.isfinite(outcome.results["models"][-1]["curves"][0]["points"][-1]["loss"])


def test_what_does_not_go_together_is_said_before_anything_is_read(tmp_path: Path) -> None:
    recipe = tiny_map_recipe(tmp_path)
    for changes, said in (
        ({"data": {"columns": {"label": "label"}}}, "data.columns.label mean nothing for semantic_segmentation"),
        ({"data": {"problem": "single_label"}}, "data.problem mean nothing"),
        ({"data": {"protocol": "half"}}, "protocol"),
        ({"task": "image_classification", "data": {"void": [3]}}, "data.void mean nothing for image_classification"),
    ):
        with pytest.raises(RecipeError, match=said):
            load_recipe(merged(recipe, changes))


def test_bad_maps_are_told_before_training(tmp_path: Path) -> None:
    recipe = tiny_map_recipe(tmp_path)
    folder = Path(recipe["data"]["name"]) / "train" / "labels"
    shapes(0, (30, 48))[1].save(folder / "000.png")
    _, ids = shapes(1)
    ids.putpixel((0, 0), 9)
    ids.save(folder / "001.png")
    (folder / "002.png").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        plan(recipe)
    said = str(caught.value)
    for part in ("1 of the 16 label maps of train can't be used", "another size than their image", "ids 9 (in 1 maps)"):
        assert part in said


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    recipe = tiny_map_recipe(tmp_path)
    recipe["teacher"].pop("train")
    recipe["data"]["names"] = ["disc", "square", "ground"]
    model = SemanticSegmentation(MapClasses(CLASSES, (VOID_ID,))).load(recipe["teacher"]["model"]).model
    model.save_pretrained(recipe["teacher"]["model"])
    with pytest.raises(ModelError, match="doesn't know the classes of the label maps, or has them in another order"):
        plan(recipe)


@pytest.mark.parametrize("size", [(6, 6), (7, 13), (25, 5), (3, 2)])
def test_pooling_to_a_grid_by_matrices_is_the_pooling(size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    for grid in ((1, 1), (2, 2), (3, 3), (6, 6), (2, 5)):
        torch.testing.assert_close(GridPool(grid)(maps), torch.nn.functional.adaptive_avg_pool2d(maps, grid))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["convnext", "pvt_v2"])
def test_a_model_that_pools_to_a_grid_is_exported_for_any_size(backbone: str, tmp_path: Path) -> None:
    model = tiny_upernet(backbone)
    runner = OnnxModel(
        export_onnx(model, {"pixel_values": torch.zeros(1, 3, 64, 96)}, tmp_path / "model.onnx"), threads=1
    )
    assert runner.takes_any_size
    assert any(isinstance(module, torch.nn.AdaptiveAvgPool2d) for module in model.modules())  # a copy was changed
    random = torch.Generator().manual_seed(0)
    for shape in ((1, 3, 64, 96), (3, 3, 100, 150), (2, 3, 130, 70)):
        assert _difference(runner, model, {"pixel_values": torch.randn(*shape, generator=random)}) < 1e-5


def test_a_file_that_is_wrong_at_other_sizes_is_refused(tmp_path: Path) -> None:
    model = tiny_segformer()

    def exact(batch: Any) -> Any:
        with torch.no_grad():
            return model(pixel_values=batch["pixel_values"]).logits.numpy()

    sizes = [tuple(batch["pixel_values"].shape) for batch in _other_sizes((32, 48))]
    assert sizes == [(2, 3, 25, 61), (2, 3, 41, 37)]
    for batch in _other_sizes((32, 48)):
        assert _difference(exact, model, batch) < 1e-6
        assert _difference(lambda batch: exact(batch) + 0.5, model, batch) == pytest.approx(0.5, abs=1e-5)
        assert np.isnan(_difference(lambda batch: exact(batch)[:1], model, batch))


@pytest.mark.slow
def test_exports_take_images_of_any_size_and_are_measured_again(tmp_path: Path) -> None:
    sizes = {"config": {"model_type": "segformer", **FOUR_STAGES, "hidden_sizes": [8, 8, 8, 16]}}
    changes = {"export": {"formats": ["onnx", "onnx-int8"]}, "evaluate": {"cost": True}}
    recipe = tiny_map_recipe(tmp_path, changes) | {"student": sizes}
    recipe["data"] = {"name": tiny_map_folder(tmp_path / "larger", size=(64, 96)), "image_size": [64, 96]}
    recipe["teacher"] = {"model": tiny_segmenter(tmp_path / "four", **FOUR_STAGES), "train": dict(SHORT)}
    outcome = run(recipe, tmp_path / "run")
    exact, int8 = outcome.results["exports"]
    assert exact["max_logit_difference"] < 1e-3 and exact["agreement"] > 0.999
    student = outcome.results["models"][-1]["metrics"]
    assert exact["metrics"]["mean_iou"] == pytest.approx(student["mean_iou"]["mean"], abs=1e-3)
    assert set(int8["metrics"]) == set(keys("segmentation")) and int8["throughput_per_s"] > 0
    proto = onnx.load(outcome.folder / exact["file"])
    axes = [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*proto.graph.input, *proto.graph.output)]  # fmt: skip
    assert axes == [["batch", 3, "height", "width"], ["batch", 3, "logits_height", "logits_width"]]
    model = SemanticSegmentation(MapClasses(CLASSES, (VOID_ID,))).load(outcome.student).model
    for file, near in ((exact["file"], 1e-4), (int8["file"], None)):
        runner = OnnxModel(outcome.folder / file, threads=1)
        for shape in ((1, 64, 96), (2, 128, 64), (1, 100, 150), (3, 33, 47)):
            pixels = torch.randn(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                expected = model(pixel_values=pixels).logits.numpy()
            found = runner({"pixel_values": pixels})
            assert found.shape == expected.shape
            if near is not None:
                np.testing.assert_allclose(found, expected, atol=near)
