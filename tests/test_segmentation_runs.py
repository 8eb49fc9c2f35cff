"""A recipe of segmentation, from images and label maps to the report."""

import json

import numpy as np
import pytest
from tiny_runs import Told
from tiny_segmentation import CLASSES, segmentation_recipe

import potstill
from potstill.evaluation.pixels import load_counts


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
