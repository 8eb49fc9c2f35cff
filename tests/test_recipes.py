"""Every packaged recipe runs, from teacher to results, on tiny models and rows: two steps a stage, offline."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_images import tiny_image_folder, tiny_image_model
from tiny_maps import FOUR_STAGES, tiny_map_folder, tiny_segmenter
from tiny_runs import FAST, SHORT, tiny_files, tiny_teacher, write_csv

from potstill.pipeline import run
from potstill.plan import plan
from potstill.recipe import load_recipe, packaged_recipes

RECIPES = packaged_recipes()
LONGEST = 40
NAMES = ("bad", "good", "very bad", "very good")


def shortened(section: Any) -> Any:
    """A part of a recipe with every training cut to two steps; what the method needs of it stays."""
    if isinstance(section, list):
        return [shortened(one) for one in section]
    if not isinstance(section, dict):
        return section
    kept = {"keep": "best", "early_stopping": 2} if "early_stopping" in section.get("train", {}) else {}
    made = {key: shortened(value) for key, value in section.items()}
    return made | {"train": {**SHORT, **kept}} if "train" in section else made


def files_of(folder: Path, classes: int) -> dict[str, str]:
    """Tiny files of two classes, or with every other row of a class made a strong one."""
    found = tiny_files(folder)
    if classes == 2:
        return found
    for split, path in found.items():
        rows = [line.rsplit(",", 1) for line in Path(path).read_text(encoding="utf-8").splitlines()[1:]]
        labels = [f"very {label}" if number % 2 else label for number, (_, label) in enumerate(rows)]
        found[split] = write_csv(folder / f"{split}.csv", {"text": [text for text, _ in rows], "label": labels})
    return found


def of_texts(written: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A recipe with tiny rows and a tiny teacher."""
    classes = written["data"].get("options", {}).get("classes", 2)
    model = tiny_teacher(folder / "model", layers=6, width=48, heads=4)
    made = shortened(written) | {"data": {"files": files_of(folder, classes), "max_length": 32}} | FAST
    made["teacher"] = {**made["teacher"], "model": model}
    for other in made["teacher"].get("others", ()):
        other["model"] = model
    return made


def of_images(written: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A recipe with tiny pictures and, where its teacher is no config, a tiny one; other models are small enough."""
    size = {key: value for key, value in written["data"].items() if key == "image_size"}
    made = shortened(written) | {"data": {"name": tiny_image_folder(folder / "data"), **size}} | FAST
    if "model" in made["teacher"]:
        made["teacher"] = {**made["teacher"], "model": tiny_image_model(folder / "model")}
    return made


def of_maps(written: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A recipe with tiny pictures of shapes, their label maps, and tiny SegFormers of as many stages."""
    kept = {key: value for key, value in written["data"].items() if key in ("class_weights", "protocol", "augment")}
    made = shortened(written) | {"data": {"name": tiny_map_folder(folder / "data"), **kept}} | FAST
    made["teacher"] = {**made["teacher"], "model": tiny_segmenter(folder / "model", **FOUR_STAGES)}
    made["student"] = {"config": {"model_type": "segformer", **FOUR_STAGES, "hidden_sizes": [8, 8, 8, 16]}}
    return made


MADE = {"text_classification": of_texts, "image_classification": of_images, "semantic_segmentation": of_maps}


@pytest.mark.parametrize("name", RECIPES)
def test_a_packaged_recipe_is_short(name: str) -> None:
    lines = RECIPES[name].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST
    assert lines[0].startswith("# ")  # what it is, and whose


@pytest.mark.parametrize("name", RECIPES)
def test_a_packaged_recipe_runs(name: str, tmp_path: Path) -> None:
    written = yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))
    made = MADE[written["task"]](written, tmp_path)
    recipe = load_recipe(made)
    planned = plan(made)
    assert [stage.title for stage in planned.stages if stage.title.startswith("student")]
    assert all(term.shape.startswith("[B,") for stage in planned.stages for term in stage.terms)
    outcome = run(made, tmp_path / "run")
    student = next(model for model in outcome.results["models"] if model["key"] == "student")
    stages = [curve for curve in student["curves"] if curve["stage"].startswith("distill")]
    assert len(stages) == len(recipe.distill)
    for curve, stage in zip(stages, recipe.distill, strict=True):
        shares = curve["points"][-1]["parts"]
        asked = {term.knowledge for term in stage.terms}
        assert {share.split()[0] for share in shares} - {"peers"} == asked
        assert all(math.isfinite(value) for value in shares.values())
        assert sum(abs(value) for value in shares.values()) > 0
    assert (outcome.student / "model.safetensors").exists()
    assert len(recipe.chain) == sum(m["key"].startswith("assistant") for m in outcome.results["models"])
