"""What `results.json` holds of the models: every key of the contract, and numbers that can be counted by hand."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from potstill.evaluation.results import (
    Contender,
    Truth,
    comparisons,
    highlights,
    judgement,
    metric_table,
    model_entry,
    per_class_change,
)
from potstill.metrics import keys, primary

ROWS = 40
ENTRY = {
    *("key", "title", "description", "seeds", "metrics", "retained", "agreement", "kl", "calibration", "per_class"),
    *("confusion", "overfit", "cost", "training", "curves"),
}
COST = {"bytes": 2_000_000, "latency": {"1": {"p50_ms": 4.0, "p95_ms": 5.0}, "32": {"p50_ms": 30.0, "p95_ms": 31.0}}}


def labels_of(problem: str) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(0)
    return {
        "single_label": np.arange(ROWS) % 2,
        "multi_label": random.integers(0, 2, (ROWS, 2)).astype(np.float32),
        "regression": random.normal(size=ROWS).astype(np.float32),
    }[problem]


def logits_of(problem: str, noise: float, seed: int) -> np.ndarray[Any, Any]:
    """Logits that say the truth, the less clearly the more noise there is."""
    labels = labels_of(problem)
    clear = {
        "single_label": 2 * np.eye(2)[labels.astype(int) % 2],
        "multi_label": 4 * labels - 2,
        "regression": labels[:, None],
    }[problem]
    return (clear + noise * np.random.default_rng(seed).normal(size=clear.shape)).astype(np.float32)


def contender(key: str, problem: str, noise: float, seeds: int = 1, **more: Any) -> Contender:
    runs = [logits_of(problem, noise, 10 * len(key) + seed) for seed in range(seeds)]
    each = [{"train": z, "validation": z[::-1].copy(), "test": z} for z in runs]
    return Contender(key, key.title(), "made up", list(range(seeds)), each, **more)


def truth_of(problem: str) -> Truth:
    labels = labels_of(problem)
    names = ["score"] if problem == "regression" else ["bad", "good"]
    return Truth(problem, names, {"train": labels, "validation": labels, "test": labels}, "test")


@pytest.fixture(params=["single_label", "multi_label", "regression"])
def problem(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_entries_have_the_keys_of_the_contract(problem: str) -> None:
    truth = truth_of(problem)
    teacher = contender("teacher", problem, 0.5)
    student = contender("student", problem, 1.0, 2, training=[{"seconds": 1.0, "steps": 2, "rows_seen": 3}] * 2)
    for model in (teacher, student):
        entry = model_entry(model, teacher, truth)
        assert set(entry) == ENTRY
        assert list(entry["metrics"]) == keys(problem)
        for found in entry["metrics"].values():
            assert set(found) == {"mean", "std", "per_seed", "interval"}
            assert len(found["per_seed"]) == len(model.seeds)
            assert found["interval"][0] <= found["mean"] <= found["interval"][1]
            assert found["mean"] == pytest.approx(np.mean(found["per_seed"]))
            assert (found["std"] is None) == (len(model.seeds) == 1)
        assert set(entry["overfit"]) == {"metric", "train", "validation", "gap"}
        json.dumps(entry, allow_nan=False)
    entry = model_entry(student, teacher, truth)
    assert entry["training"] == {"seconds": 1.0, "steps": 2.0, "rows_seen": 3.0}
    assert entry["retained"]["mean"] == pytest.approx(
        entry["metrics"][primary(problem)]["mean"]
        / model_entry(teacher, teacher, truth)["metrics"][primary(problem)]["mean"]
    )


def test_the_teacher_is_not_compared_with_itself(problem: str) -> None:
    teacher = contender("teacher", problem, 0.5)
    entry = model_entry(teacher, teacher, truth_of(problem))
    assert entry["retained"] is entry["agreement"] is entry["kl"] is entry["training"] is entry["cost"] is None


def test_a_copy_of_the_teacher_keeps_everything(problem: str) -> None:
    teacher = contender("teacher", problem, 0.5)
    copy = Contender("student", "Student", "", [0], teacher.logits)
    entry = model_entry(copy, teacher, truth_of(problem))
    assert entry["retained"]["mean"] == pytest.approx(1.0)
    if problem == "regression":
        assert entry["agreement"] is entry["kl"] is entry["calibration"] is entry["confusion"] is None
        assert entry["per_class"] == []
    else:
        assert entry["agreement"]["mean"] == 1.0
        assert entry["kl"]["mean"] == pytest.approx(0.0, abs=1e-6)


def test_numbers_counted_by_hand() -> None:
    truth = truth_of("single_label")
    teacher = contender("teacher", "single_label", 1.5)
    student = contender("student", "single_label", 2.5, 2)
    entry = model_entry(student, teacher, truth)
    labels, first, theirs = truth.labels["test"], student.on("test"), teacher.on("test")[0]
    accuracies = [float((z.argmax(-1) == labels).mean()) for z in first]
    assert entry["metrics"]["accuracy"]["per_seed"] == pytest.approx(accuracies)
    assert entry["metrics"]["accuracy"]["std"] == pytest.approx(np.std(accuracies, ddof=1))
    assert entry["agreement"]["per_seed"] == pytest.approx([(z.argmax(-1) == theirs.argmax(-1)).mean() for z in first])
    counted = [[int(((labels == a) & (first[0].argmax(-1) == b)).sum()) for b in (0, 1)] for a in (0, 1)]
    assert entry["confusion"] == counted, "rows truth, columns predicted, of the first seed"
    assert [row["class"] for row in entry["per_class"]] == ["bad", "good"]
    assert sum(row["support"] for row in entry["per_class"]) == ROWS
    recalls = [np.mean([(z.argmax(-1) == labels)[labels == k].mean() for z in first]) for k in (0, 1)]
    assert [row["recall"] for row in entry["per_class"]] == pytest.approx(recalls)
    assert sum(part["count"] for part in entry["calibration"]["curve"]) == 2 * ROWS, "of both seeds"


def test_comparisons_are_student_less_other(problem: str) -> None:
    truth = truth_of(problem)
    student, other = contender("student", problem, 0.3, 2), contender("baseline", problem, 3.0, 2)
    entries, by_model = comparisons(student, [other], truth)
    assert [entry["metric"] for entry in entries] == keys(problem)
    wanted = {"a", "b", "metric", "difference", "interval", "standard_error", "per_seed", "resamples"}
    for entry in entries:
        assert wanted <= set(entry)
        assert (entry["a"], entry["b"]) == ("student", "baseline")
        assert entry["interval"][0] <= entry["difference"] <= entry["interval"][1]
        ours, theirs = (
            model_entry(model, other, truth)["metrics"][entry["metric"]]["mean"] for model in (student, other)
        )
        assert entry["difference"] == pytest.approx(ours - theirs)
    assert by_model["baseline"].difference == entries[keys(problem).index(primary(problem))]["difference"]
    json.dumps(entries, allow_nan=False)


def test_judgement_with_and_without_baselines(problem: str) -> None:
    truth = truth_of(problem)
    teacher, student = contender("teacher", problem, 0.1), contender("student", problem, 0.2, 3)
    alone = judgement(student, {"teacher": teacher, "student": student}, truth)
    assert alone["verdict"]["outcome"] == "not_compared"
    assert {entry["b"] for entry in alone["comparisons"]} == {"teacher"}
    others: Mapping[str, Contender] = {
        "teacher": teacher,
        "pretrained_baseline": contender("pretrained_baseline", problem, 6.0, 3),
        "baseline": contender("baseline", problem, 6.0, 3),
        "student": student,
    }
    found = judgement(student, others, truth)
    assert found["verdict"]["outcome"] == "helped"
    assert set(found["verdict"]) >= {"outcome", "headline", "sentences"}
    assert {entry["b"] for entry in found["comparisons"]} == {"teacher", "baseline", "pretrained_baseline"}


def test_harm_is_said() -> None:
    truth = truth_of("single_label")
    student, baseline = contender("student", "single_label", 30.0, 3), contender("baseline", "single_label", 0.2, 3)
    models = {"teacher": contender("teacher", "single_label", 0.1), "student": student, "baseline": baseline}
    assert judgement(student, models, truth)["verdict"]["outcome"] == "harm"


def test_metric_table(problem: str) -> None:
    for entry in metric_table(problem).values():
        assert {"name", "percent", "higher_is_better"} <= set(entry)


def test_per_class_change_and_highlights() -> None:
    truth = truth_of("single_label")
    teacher = contender("teacher", "single_label", 0.1, cost={**COST, "bytes": 8_000_000})
    models = [teacher, contender("baseline", "single_label", 2.0), contender("student", "single_label", 1.0, cost=COST)]
    entries = {model.key: model_entry(model, teacher, truth) for model in models}
    for row in per_class_change(entries):
        assert row["change"] == pytest.approx(row["student"] - row["baseline"])
    assert per_class_change({key: entries[key] for key in ("teacher", "student")}) == []
    cards = highlights(entries, [{"key": "onnx-int8", **COST, "bytes": 1_000_000}])
    assert [(card["label"], card["value"]) for card in cards[1:]] == [
        ("faster, student", "1.0x"),
        ("smaller, student", "4.0x"),
        ("faster, as ONNX int8", "1.0x"),
        ("smaller, as ONNX int8", "8.0x"),
    ]
    assert cards[0]["value"] == f"{100 * entries['student']['retained']['mean']:.1f} %"
