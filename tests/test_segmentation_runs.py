"""A recipe of segmentation, from images and label maps to the report."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from tiny_runs import Told, merged
from tiny_segmentation import CLASSES, segmentation_recipe

import potstill
from potstill.errors import DataError, RecipeError
from potstill.evaluation.pixels import load_counts
from potstill.metrics.segmentation import VOID
from potstill.recipe import load_recipe
from potstill.sheet import best_middle_worst, coloured


def test_a_run_from_label_maps_to_the_report(tmp_path):
    told = Told()
    recipe = segmentation_recipe(tmp_path, {"evaluate": {"baseline": True, "cost": False}})
    outcome = potstill.run(recipe, tmp_path / "run", progress=told)
    results = outcome.results
    assert results["primary"] == "mean_iou" and results["run"]["problem"] == "segmentation"
    models = {model["key"]: model for model in results["models"]}
    assert set(models) == {"teacher", "baseline", "pretrained_baseline", "student"} - {"pretrained_baseline"}
    for model in models.values():
        assert set(model["metrics"]) == {"mean_iou", "pixel_accuracy", "mean_accuracy", "boundary_iou"}
        assert [row["class"] for row in model["per_class"]] == list(CLASSES.names)
        assert 0 <= model["metrics"]["mean_iou"]["mean"] <= 1
    student = models["student"]
    assert 0 <= student["agreement"]["mean"] <= 1 and student["kl"]["mean"] > 0
    assert models["teacher"]["agreement"] is None
    counts = load_counts(tmp_path / "run/predictions/student-0.parquet")["test"]
    assert counts.shape == (6, 3, 6)
    hits = np.trace(counts[:, :, :3].sum(0))
    assert student["metrics"]["pixel_accuracy"]["mean"] == pytest.approx(hits / counts[:, :, :3].sum())
    assert json.loads((tmp_path / "run/results.json").read_text())["verdict"]["outcome"]
    report = (tmp_path / "run/report.html").read_text()
    assert "Mean IoU" in report and "boundary" in report.lower()
    sheet = results["sheet"]
    assert [row["which"] for row in sheet["rows"]] == ["best", "best", "middle", "middle", "worst", "worst"]
    assert list(sheet["rows"][0]["pictures"]) == ["image", "truth", "teacher", "baseline", "student"]
    assert [row["iou"] for row in sheet["rows"]] == sorted((row["iou"] for row in sheet["rows"]), reverse=True)
    assert [one["name"] for one in sheet["legend"]] == [*CLASSES.names, "void"]
    assert report.count('<td><img src="data:image/png;base64,') == 30
    assert "What the models see" in report and 'alt="truth of' in report


def test_a_map_is_shown_in_the_colours_of_its_classes():
    numbers = np.array([[0, 1, 2], [VOID, VOID, 0]])
    address = coloured(numbers, CLASSES.colours)
    content = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert pixels[0].tolist() == [list(colour) for colour in CLASSES.colours]
    assert pixels[1, 0].tolist() == [255, 255, 255]


def test_images_of_each_kind_are_shown_once():
    scores = np.array([0.1, 0.9, 0.5, 0.8, 0.4, 0.6, 0.2])
    expected = [(1, "best"), (3, "best"), (5, "middle"), (2, "middle"), (6, "worst"), (0, "worst")]
    assert best_middle_worst(scores, 2) == expected
    assert best_middle_worst(scores[:1], 2) == [(0, "best")]


def test_the_quarter_protocol_is_named_wherever_a_number_stands(tmp_path):
    recipe = segmentation_recipe(tmp_path, {"data": {"protocol": "quarter", "class_weights": "frequency"}})
    results = potstill.run(recipe, tmp_path / "run").results
    assert results["primary"] == "mean_iou_quarter"
    report = (tmp_path / "run/report.html").read_text()
    assert "Mean IoU at 1/4 resolution" in report and "class by class at 1/4 resolution" in report
    assert "TransKD" in report
    counts = load_counts(tmp_path / "run/predictions/student-0.parquet")["test"]
    assert counts[:, :, :3].sum(axis=(1, 2)).max() <= 8 * 12


def test_bad_maps_are_told_with_counts_before_anything_is_trained(tmp_path):
    with pytest.raises(DataError, match=r"12 of the 12 label maps of train hold ids that are no class's"):
        potstill.run(segmentation_recipe(tmp_path, {"data": {"void": []}}), tmp_path / "run")
    assert not list((tmp_path / "run").glob("**/*.safetensors"))


def test_recipes_say_what_means_nothing_here(tmp_path):
    recipe = segmentation_recipe(tmp_path)
    for section, message in (
        ({"augment": {"mixup": 0.2}}, "a pixel has one class"),
        ({"problem": "single_label"}, r"data\.problem mean nothing for semantic_segmentation"),
        ({"max_length": 64}, r"data\.max_length mean nothing"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_recipe(merged(recipe, {"data": section}))
    with pytest.raises(RecipeError, match=r"data\.void.* mean nothing for image_classification"):
        load_recipe(merged(recipe, {"task": "image_classification"}))
