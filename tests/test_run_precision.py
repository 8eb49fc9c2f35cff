"""A run keeps the precision that it began in, and says what its teachers teach in."""

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_rows, tiny_tokenizer
from tiny_runs import SHORT, Told, tiny_recipe

from potstill import school
from potstill.comparing.run import compare
from potstill.errors import ModelError
from potstill.evaluation import reduced
from potstill.evaluation.reduced import Reduced, reduced_fidelity
from potstill.pipeline import run
from potstill.tasks import TextClassification
from potstill.training import Precision
from potstill.training.int8 import is_int8

AUTO = {**SHORT, "precision": "auto"}


def automatic(folder, **changes):
    recipe = tiny_recipe(folder, changes)
    recipe["teacher"]["train"] = dict(AUTO)
    recipe["distill"][0]["train"] = dict(AUTO)
    return recipe


def measured(monkeypatch, name):
    """Let the measurement say this from now on; gives what was asked of it."""
    asked = []
    real = school.detect_precision

    def detect(given="auto", sizes=None):
        if given != "auto":
            return real(given)
        asked.append(sizes)
        return Precision(name, f"the test measured {name}")

    monkeypatch.setattr(school, "detect_precision", detect)
    return asked


def test_a_run_goes_on_in_the_precision_it_began_in(tmp_path, monkeypatch):
    recipe = automatic(tmp_path)
    asked = measured(monkeypatch, "float32")
    first = run(recipe, tmp_path / "run")
    assert [sizes.width for sizes in asked] == [32]  # once for all that is trained, with the student's width
    asked = measured(monkeypatch, "bfloat16")  # the same machine on another day
    told = Told()
    again = run(recipe, tmp_path / "run", progress=told)
    assert not asked
    assert again.results["run"]["precision"] == {"training": "float32", "why": "the test measured float32"}
    assert "precision: float32, since the test measured float32" in told.text
    assert all(stage["reused"] for stage in again.results["run"]["stages"])
    assert [s["name"] for s in first.results["run"]["stages"]].count("precision") == 1


def test_a_precision_in_the_recipe_is_not_measured(tmp_path, monkeypatch):
    asked = measured(monkeypatch, "bfloat16")
    found = run(tiny_recipe(tmp_path), tmp_path / "run").results["run"]["precision"]
    assert found == {"training": "float32", "why": "the recipe says so"} and not asked


def test_the_cells_of_a_comparison_share_one_precision(tmp_path, monkeypatch):
    recipe = automatic(tmp_path)
    asked = measured(monkeypatch, "float32")

    def other_day(given="auto", sizes=None):
        asked.append(sizes)
        return Precision("float32" if len(asked) == 1 else "bfloat16", f"measurement {len(asked)}")

    monkeypatch.setattr(school, "detect_precision", other_day)
    found = compare(recipe, ["distill.0.terms.0.temperature=1.0,2.0"], tmp_path / "compare")
    assert len(asked) == 1
    cells = list((found.folder / "cells").glob("*/run.json"))
    assert len(cells) == 3
    assert {path.read_text().count("measurement 1") for path in cells} == {1}


def test_an_int8_teacher_is_measured_said_and_recorded(tmp_path, monkeypatch):
    taught = []
    real = school.train
    monkeypatch.setattr(
        school, "train", lambda model, lesson, *a, **k: taught.append(lesson) or real(model, lesson, *a, **k)
    )
    monkeypatch.setattr(reduced, "LEAST_AGREEMENT", 0.5)
    told = Told()
    recipe = tiny_recipe(tmp_path, {"teacher": {"precision": "int8"}})
    found = run(recipe, tmp_path / "run", progress=told)
    assert [lesson.teacher_precision for lesson in taught] == [None, "int8"]  # the teacher itself, the student
    entry = found.results["run"]["precision"]["teachers"]["teacher"]
    assert entry["precision"] == "int8" and entry["allowed"] and 0 < entry["kl"] < 0.01 and entry["rows"] == 60
    assert "teacher in int8: KL to float32" in told.text
    assert "Precision of teachers" in found.report.read_text()


def test_a_teacher_that_loses_too_much_stays_in_float32(tmp_path, monkeypatch):
    taught = []
    real = school.train
    monkeypatch.setattr(
        school, "train", lambda model, lesson, *a, **k: taught.append(lesson) or real(model, lesson, *a, **k)
    )
    monkeypatch.setattr(reduced, "MOST_KL", 0.0)
    told = Told()
    run(tiny_recipe(tmp_path, {"teacher": {"precision": "int8"}}), tmp_path / "run", progress=told)
    assert taught[1].teacher_precision == "float32"
    assert "it teaches in float32" in told.text


def test_int8_that_can_not_run_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.delattr(torch, "quantize_per_channel")
    with pytest.raises(ModelError, match="no int8 kernels"):
        run(tiny_recipe(tmp_path, {"teacher": {"precision": "int8"}}), tmp_path / "run")
    assert not (tmp_path / "run" / "teacher").exists()


def test_stages_of_folders_from_before_the_key_stand(tmp_path, monkeypatch):
    """What is made from a recipe without the key is as it was, so that finished stages aren't done again."""
    digests = []
    for precision in ({}, {"precision": "auto"}):
        recipe = tiny_recipe(tmp_path, {"teacher": precision})
        run(recipe, tmp_path / "run")
        digests.append((tmp_path / "run/.stages/seeds-0-student.json").read_text())
    assert digests[0] == digests[1]
    assert "teacher_precision" not in digests[0]


# ---- fidelity


@pytest.mark.parametrize(
    ("kl", "agreement", "difference", "allowed"),
    [
        (0.01, 0.99, None, True),
        (0.011, 1.0, None, False),
        (0.0, 0.989, None, False),
        (float("nan"), 1.0, None, False),
        (None, None, 0.02, True),
        (None, None, 0.03, False),
    ],
)
def test_both_bounds_have_to_hold(kl, agreement, difference, allowed):
    found = Reduced("int8", 8, kl, agreement, difference)
    assert found.allowed is allowed
    assert found.as_dict()["allowed"] is allowed
    assert not any(value != value for value in found.as_dict().values()), "no NaN in what is written as JSON"


@pytest.mark.parametrize(("problem", "labels"), [("single_label", 2), ("multi_label", 3), ("regression", 1)])
def test_fidelity_of_a_teacher_to_itself(problem, labels):
    names = tuple(f"class {number}" for number in range(labels))
    task, tokenizer = TextClassification(problem, names), tiny_tokenizer()
    rows = task.encode(tiny_rows(20), tokenizer, max_length=32).remove_columns("labels")
    model = tiny_model(labels=labels)
    found = reduced_fidelity(model, "int8", rows, task.collator(tokenizer), problem)
    same = reduced_fidelity(model, "float32", rows, task.collator(tokenizer), problem)
    assert found.rows == 20 and not is_int8(model)
    if problem == "regression":
        assert same.difference == 0.0 < found.difference
        assert np.isfinite(found.difference) and found.kl is None
    else:
        assert same.kl == 0.0 < found.kl and same.agreement == 1.0
