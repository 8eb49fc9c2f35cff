"""Fidelity and calibration against hand-computed values and naive loops."""

import math

import numpy as np
import pytest

from potstill.errors import PotstillError, ShapeError
from potstill.evaluation.fidelity import (
    agreement,
    calibration,
    confidence_and_correct,
    disagreements,
    expected_calibration_error,
    kl_to_teacher,
    mean_absolute_difference,
    overfit,
    reliability_curve,
)
from potstill.metrics import METRICS


def pair(rows=20, classes=3):
    generator = np.random.default_rng(0)
    return generator.normal(size=(rows, classes)), generator.normal(size=(rows, classes))


def test_agreement_counts_equal_predictions():
    student, teacher = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]]), np.array([[3.0, 1.0], [5.0, 1.0], [1.0, 0.0]])
    assert agreement(student, teacher, "single_label") == pytest.approx(2 / 3)
    assert agreement(student - 0.5, teacher - 0.5, "multi_label") == pytest.approx(3 / 6)
    assert agreement(student[:, :1], teacher[:, :1], "regression") is None


def test_mean_absolute_difference():
    assert mean_absolute_difference(np.array([1.0, 2.0]), np.array([2.0, 0.0])) == 1.5


@pytest.mark.parametrize("problem", ["single_label", "multi_label"])
def test_kl_is_zero_at_equality_and_a_naive_loop_elsewhere(problem):
    student, teacher = pair()
    assert kl_to_teacher(teacher, teacher, problem) == 0.0
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        if problem == "single_label":
            p, q = ([math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (t, s))
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        else:
            for a, b in zip(1 / (1 + np.exp(-t)), 1 / (1 + np.exp(-s)), strict=True):
                total += a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))
    assert kl_to_teacher(student, teacher, problem) == pytest.approx(total / len(student))


def test_kl_goes_from_the_teacher_and_not_back():
    sure, unsure = np.array([[4.0, 0.0]]), np.array([[0.0, 0.0]])
    assert kl_to_teacher(sure, unsure, "single_label") != pytest.approx(kl_to_teacher(unsure, sure, "single_label"))
    p = math.exp(4) / (1 + math.exp(4))
    assert kl_to_teacher(sure, unsure, "single_label") == pytest.approx(-math.log(2) - 0.5 * math.log(p * (1 - p)))
    assert kl_to_teacher(sure[:, :1], unsure[:, :1], "regression") is None


def test_kl_of_extreme_logits_is_finite():
    far = np.array([[900.0, -900.0]], dtype=np.float32)
    assert kl_to_teacher(-far, far, "single_label") == 1800.0
    assert kl_to_teacher(-far, far, "multi_label") == 1800.0


def test_calibration_error_by_hand():
    confidence = np.array([0.55, 0.58, 0.91, 0.95, 1.0])
    correct = np.array([True, False, True, True, False])
    # Ten bins: (0.5, 0.6] holds two, accuracy 0.5 and confidence 0.565; (0.9, 1.0] three, 2/3 and 2.86/3.
    by_hand = 2 / 5 * (0.565 - 0.5) + 3 / 5 * (2.86 / 3 - 2 / 3)
    assert expected_calibration_error(confidence, correct, bins=10) == pytest.approx(by_hand)
    curve = reliability_curve(confidence, correct, bins=10)
    assert [row["count"] for row in curve] == [2, 3]
    assert curve[0] == pytest.approx({"low": 0.5, "high": 0.6, "confidence": 0.565, "accuracy": 0.5, "count": 2})


def test_bins_are_closed_above_and_the_first_below_too():
    curve = reliability_curve(np.array([0.0, 0.5, 0.5000001]), np.array([True, True, True]), bins=2)
    assert [(row["low"], row["count"]) for row in curve] == [(0.0, 2), (0.5, 1)]


def test_a_calibrated_model_has_little_error():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.5, 1.0, 20_000)
    correct = generator.random(20_000) < confidence
    assert expected_calibration_error(confidence, correct) < 0.02
    assert expected_calibration_error(np.minimum(1.0, confidence + 0.1), correct) > 0.07


def test_confidence_of_multi_label_takes_every_decision():
    confidence, correct = confidence_and_correct(np.array([[2.0, -1.0]]), np.array([[1, 1]]), "multi_label")
    np.testing.assert_allclose(confidence, [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))])
    assert correct.tolist() == [True, False]


def test_calibration_of_one_model():
    student, _ = pair()
    labels = np.zeros(20, dtype=int)
    made = calibration(student, labels, "single_label")
    assert made["ece"] == expected_calibration_error(*confidence_and_correct(student, labels, "single_label"))
    assert sum(row["count"] for row in made["curve"]) == 20
    assert calibration(student[:, :1], labels, "regression") is None


def test_overfit_is_positive_where_training_is_better():
    assert overfit(METRICS["accuracy"], 0.99, 0.875) == {
        "metric": "accuracy", "train": 0.99, "validation": 0.875, "gap": pytest.approx(0.115),
    }  # fmt: skip
    assert overfit(METRICS["mse"], 0.25, 0.5)["gap"] == 0.25


def test_disagreements_are_sorted_counted_and_named():
    labels = np.array([0, 0, 0, 1, 1, 0])
    teacher = np.array([[3.0, 0], [2.0, 0], [9.0, 0], [4.0, 0], [5.0, 0], [2.0, 0]])
    student = np.array([[0, 1.0], [0, 3.0], [9.0, 0], [0, 1.0], [5.0, 0], [0, 3.0]])
    texts = ["a", ("b", "second"), "c", "d", "e", ("f", None)]
    made = disagreements(texts, labels, student, teacher, names=["no", "yes"], limit=2)
    assert made["counts"] == {"both_right": 1, "teacher_only": 3, "student_only": 1, "both_wrong": 1}
    # b and f are equally sure (0.88 x 0.95 against a's 0.95 x 0.73): the order of the data decides.
    assert [(row["text"], row["text_pair"]) for row in made["teacher_right"]] == [("b", "second"), ("f", None)]
    assert made["student_right"] == [
        {
            "row": 3,
            "text": "d",
            "text_pair": None,
            "label": "yes",
            "teacher": {"prediction": "no", "probability": pytest.approx(1 / (1 + math.exp(-4)))},
            "student": {"prediction": "yes", "probability": pytest.approx(1 / (1 + math.exp(-1)))},
        }
    ]


def test_disagreements_of_multi_label_rows():
    labels = np.array([[1, 0], [1, 1]])
    made = disagreements(["a", "b"], labels, np.array([[1.0, 1], [1, 1]]), np.array([[1.0, -1], [1, 1]]),
                         problem="multi_label", names=["x", "y"])  # fmt: skip
    (row,) = made["teacher_right"]
    assert (row["label"], row["teacher"]["prediction"], row["student"]["prediction"]) == (["x"], ["x"], ["x", "y"])
    assert row["student"]["probability"] == pytest.approx(1 / (1 + math.exp(-1)) ** 2)
    assert made["counts"]["both_right"] == 1


def test_what_does_not_fit_is_refused():
    student, teacher = pair()
    with pytest.raises(ShapeError, match=r"student \(20, 3\), teacher \(20, 2\)"):
        agreement(student, teacher[:, :2], "single_label")
    with pytest.raises(PotstillError, match="Unknown problem"):
        kl_to_teacher(student, teacher, "ranking")
    with pytest.raises(ShapeError, match="1 texts"):
        disagreements(["a"], np.zeros(20, dtype=int), student, teacher)
    with pytest.raises(ShapeError, match="flat"):
        reliability_curve(np.ones((2, 2)), np.ones((2, 2)))
    assert disagreements(["a"] * 20, np.zeros(20), student[:, :1], teacher[:, :1], problem="regression") is None
