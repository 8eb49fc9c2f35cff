"""How near a student is to its teacher, how far its probabilities can be believed, and where the two disagree.

Decisions held here:

* Student before teacher, and logits in, as everywhere. All arithmetic is float64.
* What isn't defined for a kind of task is None (agreement, KL and calibration of a regression), never a made-up number.
* Calibration bins are equal in width, each open below and closed above, as (0.4, 0.6]; the first is closed at 0 too.
  Empty bins are left out of the curve.
* Source of the calibration error: Guo et al., "On Calibration of Modern Neural Networks", 2017.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from potstill.checks import problem as message
from potstill.checks import same_shape
from potstill.errors import ShapeError
from potstill.metrics import Array, Metric, keys, of_pixels
from potstill.metrics.classification import class_names, log_sigmoid, log_softmax, predictions, probabilities

Text = str | tuple[str, str | None]


def agreement(student: Array, teacher: Array, problem: str) -> float | None:
    """The share of predictions in which student and teacher are equal; None for regression.

    Args:
        student, teacher: logits [N, V].
        problem: for "multi_label" every (row, class) decision counts as one.

    It doesn't see how sure they are; prefer `kl_to_teacher` for that. For regression see `mean_absolute_difference`.
    """
    _check(student, teacher, problem, "agreement")
    if problem == "regression":
        return None
    return float((predictions(problem, student) == predictions(problem, teacher)).mean())


def mean_absolute_difference(student: Array, teacher: Array) -> float:
    """The mean of |student - teacher| over all outputs, in the label's unit: regression's agreement."""
    same_shape(student, teacher, caller="mean_absolute_difference")
    return float(np.abs(student.astype(np.float64) - teacher.astype(np.float64)).mean())


def kl_to_teacher(student: Array, teacher: Array, problem: str) -> float | None:
    """The mean over rows of KL(teacher || student) at temperature 1, in nats; None for regression.

    Single-label: sum over classes of p_T (log p_T - log p_S). Multi-label: the same of each class's yes and no, summed
    over classes, which is the KL of the row's joint distribution with independent classes. 0 where both are equal.
    """
    _check(student, teacher, problem, "kl_to_teacher")
    if problem == "regression":
        return None
    if problem == "single_label":
        log_s, log_t = log_softmax(student), log_softmax(teacher)
        rows = (np.exp(log_t) * (log_t - log_s)).sum(axis=1)
    else:
        # The log probabilities of yes, and of no: [2, N, V].
        log_s, log_t = (np.stack([log_sigmoid(logits), log_sigmoid(-logits)]) for logits in (student, teacher))
        rows = (np.exp(log_t) * (log_t - log_s)).sum(axis=(0, 2))
    return max(0.0, float(np.mean(rows)))


def confidence_and_correct(logits: Array, labels: Array, problem: str) -> tuple[Array, Array]:
    """The probability of each decision taken, and whether it was right: both flat.

    Single-label: N decisions, the probability of the predicted class. Multi-label: N x V decisions, max(p, 1 - p).
    """
    chances = probabilities(problem, logits)
    if problem == "single_label":
        return chances.max(axis=1), np.asarray(chances.argmax(axis=1) == labels)
    return np.maximum(chances, 1 - chances).reshape(-1), np.asarray((logits > 0) == (labels == 1)).reshape(-1)


def reliability_curve(confidence: Array, correct: Array, bins: int = 15) -> list[dict[str, float | int]]:
    """For every bin that holds a decision: its bounds, mean confidence, accuracy and count.

    Args:
        confidence: probabilities of the decisions taken, each 0 to 1.
        correct: whether each was right; the same shape.
        bins: the number of equal bins between 0 and 1.
    """
    if confidence.shape != correct.shape or confidence.ndim != 1:
        given = f"{confidence.shape} and {correct.shape}"
        raise ShapeError(message("Confidence and correctness are two flat arrays of one length", given=given))
    edges = np.linspace(0.0, 1.0, bins + 1)
    where = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    curve: list[dict[str, float | int]] = []
    for k in np.unique(where):
        inside = where == k
        curve.append(
            {
                "low": float(edges[k]),
                "high": float(edges[k + 1]),
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(correct[inside].mean()),
                "count": int(inside.sum()),
            }
        )
    return curve


def expected_calibration_error(confidence: Array, correct: Array, bins: int = 15) -> float:
    """The mean gap between confidence and accuracy: sum over bins of (count / N) |accuracy - confidence|.

    0 is a model whose 80 % means 80 %. The value depends on the bins: compare only at the same number.
    """
    curve = reliability_curve(confidence, correct, bins)
    return float(sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in curve) / max(1, len(confidence)))


def calibration(logits: Array, labels: Array, problem: str, bins: int = 15) -> dict[str, Any] | None:
    """`{"ece": float, "curve": [...]}` of one model; None for regression, which gives no probabilities, and for
    segmentation, of which none are kept."""
    if problem == "regression" or of_pixels(problem):
        return None
    confidence, correct = confidence_and_correct(logits, labels, problem)
    return {
        "ece": expected_calibration_error(confidence, correct, bins),
        "curve": reliability_curve(confidence, correct, bins),
    }


def overfit(metric: Metric, train: float, validation: float) -> dict[str, str | float]:
    """A metric on training and on validation rows; `gap` is positive where training is the better, for any metric."""
    gap = train - validation if metric.higher_is_better else validation - train
    return {"metric": metric.key, "train": train, "validation": validation, "gap": gap}


def disagreements(
    texts: Sequence[Text],
    labels: Array,
    student: Array,
    teacher: Array,
    *,
    problem: str = "single_label",
    names: Sequence[str] | None = None,
    limit: int = 20,
) -> dict[str, Any] | None:
    """Rows that one of the two gets right and the other wrong, and how many there are; None for regression.

    Args:
        texts: N texts, or pairs (text, second text or None).
        labels: [N], or [N, V] for "multi_label", where a row is right if all its classes are, a prediction is the list
            of its classes, and its probability the product over all V decisions.
        student, teacher: logits [N, V].
        names: class names; without them classes are called by their numbers.
        limit: the most rows in each list. The surest disagreements come first (student's probability times
            teacher's), equal ones in the order of the data.

    Returns:
        `{"teacher_right": [...], "student_right": [...], "counts": {"both_right", "teacher_only", "student_only",
        "both_wrong"}}`, each row `{"row", "text", "text_pair", "label", "teacher": {"prediction", "probability"},
        "student"}`, `row` being its number.
    """
    _check(student, teacher, problem, "disagreements")
    if len(texts) != len(student) or len(labels) != len(student):
        given = f"{len(texts)} texts, {len(labels)} labels, {len(student)} rows of logits"
        raise ShapeError(message("Every row needs its text and its label", given=given))
    if problem == "regression":
        return None
    called = class_names(names, student.shape[1])
    s_said, s_sure, s_right = _rows(problem, student, labels)
    t_said, t_sure, t_right = _rows(problem, teacher, labels)

    def row(i: int) -> dict[str, Any]:
        given = texts[i]
        text, pair = (given, None) if isinstance(given, str) else given
        return {
            "row": i,
            "text": text,
            "text_pair": pair,
            "label": _named(problem, labels[i], called),
            "teacher": {"prediction": _named(problem, t_said[i], called), "probability": float(t_sure[i])},
            "student": {"prediction": _named(problem, s_said[i], called), "probability": float(s_sure[i])},
        }

    def surest(mask: Array) -> list[dict[str, Any]]:
        order = np.argsort(-(s_sure * t_sure), kind="stable")
        return [row(int(i)) for i in order[mask[order]][:limit]]

    cells = {
        "both_right": s_right & t_right,
        "teacher_only": ~s_right & t_right,
        "student_only": s_right & ~t_right,
        "both_wrong": ~s_right & ~t_right,
    }
    return {
        "teacher_right": surest(cells["teacher_only"]),
        "student_right": surest(cells["student_only"]),
        "counts": {name: int(mask.sum()) for name, mask in cells.items()},
    }


def _rows(problem: str, logits: Array, labels: Array) -> tuple[Array, Array, Array]:
    """For each row: what was said, how surely, and whether it was right."""
    said = predictions(problem, logits)
    confidence, correct = confidence_and_correct(logits, labels, problem)
    by_row = (len(logits), -1)
    sure, right = confidence.reshape(by_row).prod(axis=1), correct.reshape(by_row).all(axis=1)
    return said, np.asarray(sure), np.asarray(right)


def _named(problem: str, value: Any, names: list[str]) -> str | list[str]:
    if problem == "single_label":
        return names[int(value)]
    return [name for name, on in zip(names, value, strict=True) if on]


def _check(student: Array, teacher: Array, problem: str, caller: str) -> None:
    keys(problem)  # an unknown problem is an error here, not a silent multi-label
    same_shape(student, teacher, caller=caller, hint="Evaluate both on the same rows, with the same classes")
