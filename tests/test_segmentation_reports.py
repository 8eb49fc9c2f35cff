"""What the report of a segmentation shows, and what recipes of it refuse."""

import json

import numpy as np
import pytest
import torch
from tiny_maps import CLASSES, tiny_map_recipe
from tiny_runs import Told, merged

import potstill
from potstill.cache.columns import columns_of
from potstill.errors import RecipeError
from potstill.evaluation.predict import load_predictions
from potstill.knowledge import Knowledge, Needs
from potstill.recipe import load_recipe
from potstill.report import details

ITEM = {"name": "a.png", "image": "data:a", "truth": "data:b", "models": {"student": {"map": "data:c", "iou": 0.41}}}
SHOWN = {
    "run": {"problem": "segmentation_quarter"},
    "models": [{"key": "student", "title": "Student"}],
    "segmentation": {
        "legend": [{"name": "road", "colour": [128, 10, 255]}],
        "void": [224, 224, 192],
        "groups": [{"key": "best", "items": [ITEM]}],
        "of": 7,
    },
}


def test_a_run_from_label_maps_to_the_report(tmp_path):
    told = Told()
    recipe = tiny_map_recipe(tmp_path, {"evaluate": {"baseline": True, "cost": False}})
    outcome = potstill.run(recipe, tmp_path / "run", progress=told)
    results = outcome.results
    assert results["primary"] == "mean_iou" and results["run"]["problem"] == "segmentation"
    models = {model["key"]: model for model in results["models"]}
    assert set(models) == {"teacher", "baseline", "pretrained_baseline", "student"} - {"pretrained_baseline"}
    for model in models.values():
        assert set(model["metrics"]) == {"mean_iou", "pixel_accuracy", "mean_accuracy", "boundary_iou"}
        assert [row["class"] for row in model["per_class"]] == list(CLASSES)
        assert 0 <= model["metrics"]["mean_iou"]["mean"] <= 1
    student = models["student"]
    assert 0 <= student["agreement"]["mean"] <= 1 and student["kl"]["mean"] > 0
    assert models["teacher"]["agreement"] is None
    counts = load_predictions(tmp_path / "run/predictions/student-0.parquet")["test"]
    assert counts.shape == (8, 3, 6)
    hits = np.trace(counts[:, :, :3].sum(0))
    assert student["metrics"]["pixel_accuracy"]["mean"] == pytest.approx(hits / counts[:, :, :3].sum())
    assert json.loads((tmp_path / "run/results.json").read_text())["verdict"]["outcome"]
    report = (tmp_path / "run/report.html").read_text()
    assert "Mean IoU" in report and "boundary" in report.lower()
    shown = results["segmentation"]
    assert [group["key"] for group in shown["groups"]] == ["best", "middle", "worst"]
    assert list(shown["groups"][0]["items"][0]["models"]) == ["teacher", "baseline", "student"]
    assert report.count('<td><img src="data:image/') == 5 * sum(len(group["items"]) for group in shown["groups"])
    assert "What the models see" in report and 'alt="truth of' in report and "</span>void</li>" in report
    assert '<span style="background: #285a28"></span>ground' in report


def test_the_quarter_protocol_is_named_wherever_a_number_stands(tmp_path):
    recipe = tiny_map_recipe(tmp_path, {"data": {"protocol": "quarter", "class_weights": "frequency"}})
    results = potstill.run(recipe, tmp_path / "run").results
    assert results["primary"] == "mean_iou_quarter"
    report = (tmp_path / "run/report.html").read_text()
    assert "Mean IoU at 1/4 resolution" in report and "class by class at 1/4 resolution" in report
    assert "TransKD" in report
    counts = load_predictions(tmp_path / "run/predictions/student-0.parquet")["test"]
    assert counts[:, :, :3].sum(axis=(1, 2)).max() <= 8 * 12


def test_recipes_say_what_means_nothing_here(tmp_path):
    recipe = tiny_map_recipe(tmp_path)
    for section, message in (
        ({"augment": {"mixup": 0.2}}, "a pixel has one class"),
        ({"problem": "single_label"}, r"data\.problem mean nothing for semantic_segmentation"),
        ({"max_length": 64}, r"data\.max_length mean nothing"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_recipe(merged(recipe, {"data": section}))
    with pytest.raises(RecipeError, match=r"data\.void.* mean nothing for image_classification"):
        load_recipe(merged(recipe, {"task": "image_classification", "data": {"void": [3]}}))


def test_kept_logits_of_pixels_have_their_classes_last():
    known = Knowledge(logits=torch.randn(2, 3, 4, 5))
    (column,) = columns_of(known, Needs(logits=True), 2)
    assert column.shape == (4, 5, 3)
    assert column.of(known).equal(known.logits.movedim(1, -1))


def test_the_colours_of_the_legend_are_those_of_the_maps():
    found = details.sheet(SHOWN)
    assert found is not None
    assert found["legend"] == [{"name": "road", "colour": "#800aff"}, {"name": "void", "colour": "#e0e0c0"}]
    assert [name for _, name in found["columns"]] == ["Student"]
    assert found["rows"][0]["which"] == "Best" and found["rows"][0]["pictures"][-1] == ("Student", "data:c", "41.0%")
    assert found["score"] == "mean IoU at 1/4 resolution"
    assert details.sheet({**SHOWN, "segmentation": None}) is None
