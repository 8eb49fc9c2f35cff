"""Classification metrics, single-label and multi-label, each as a function of row weights (why: `potstill.metrics`).

Decisions held here:

* Single-label predictions are the argmax (the lowest class number on a tie); multi-label ones are sigmoids above 0.5,
  that is logits above 0.
* A class that occurs neither in the labels nor in the predictions has no F1 and is left out of the macro mean: what
  scikit-learn does with `zero_division=nan`. In a resample this is decided for each resample anew.
* Softmax and logarithms are taken in float64 from the logits, so that a confident model has no infinite log loss.
* Everything else that could be 0/0 is 0: precision without a prediction, recall without a case, Matthews correlation
  with a single class on either side.
"""

from collections.abc import Sequence

import numpy as np

from potstill.checks import problem as message
from potstill.errors import DataError, PotstillError, ShapeError
from potstill.metrics.rows import Array, Statistic, check_rows, ratio, shapes, weighted_mean


def log_softmax(logits: Array) -> Array:
    """The logarithm of the softmax over the last axis, [N, V] to [N, V], in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def log_sigmoid(logits: Array) -> Array:
    """The logarithm of the sigmoid, elementwise, in float64."""
    return np.asarray(-np.logaddexp(0.0, -logits.astype(np.float64)))


def probabilities(problem: str, logits: Array) -> Array:
    """Class probabilities [N, V] in float64: softmax for "single_label", sigmoids for "multi_label"."""
    if problem == "single_label":
        return np.asarray(np.exp(log_softmax(logits)))
    if problem == "multi_label":
        return np.asarray(np.exp(log_sigmoid(logits)))
    raise PotstillError(message("Only classification has class probabilities", given=problem))


def predictions(problem: str, logits: Array) -> Array:
    """What the model says: class numbers [N], for "multi_label" booleans [N, V], for "regression" values [N]."""
    if problem == "single_label":
        return np.asarray(logits.argmax(axis=-1))
    return np.asarray(logits > 0) if problem == "multi_label" else np.asarray(logits, dtype=np.float64).reshape(-1)


def accuracy(logits: Array, labels: Array) -> Statistic:
    """The share of rows whose argmax is the label."""
    check_single(logits, labels)
    return weighted_mean(logits.argmax(axis=-1) == labels)


def macro_f1(logits: Array, labels: Array) -> Statistic:
    """The mean over classes of F1 = 2 TP / (predicted + true). Prefer it to accuracy if classes are unequal in size."""
    truth, predicted = _one_hots(logits, labels)
    return _macro_f1(truth, predicted)


def matthews(logits: Array, labels: Array) -> Statistic:
    """Matthews correlation, for any number of classes; 0 where labels or predictions hold a single class.

    With c correct of s rows, and t_k true and p_k predicted rows of class k:
    (c s - sum t_k p_k) / sqrt((s^2 - sum p_k^2)(s^2 - sum t_k^2)).

    Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004.
    """
    truth, predicted = _one_hots(logits, labels)
    hits = (truth * predicted).sum(axis=1)

    def of(weights: Array) -> Array:
        rows, correct = weights.sum(axis=1), weights @ hits
        true, said = weights @ truth, weights @ predicted
        spread = (rows**2 - (said**2).sum(axis=1)) * (rows**2 - (true**2).sum(axis=1))
        return ratio(correct * rows - (true * said).sum(axis=1), np.sqrt(spread))

    return of


def log_loss(logits: Array, labels: Array) -> Statistic:
    """The mean of -log p(label), in nats."""
    check_single(logits, labels)
    return weighted_mean(-log_softmax(logits)[np.arange(len(labels)), labels])


def multi_micro_f1(logits: Array, labels: Array) -> Statistic:
    """F1 over all (row, class) decisions together; 0 where nothing is true and nothing predicted."""
    truth, predicted = _marks(logits, labels)
    hits, sizes = (truth * predicted).sum(axis=1), (truth + predicted).sum(axis=1)
    return lambda weights: ratio(2 * (weights @ hits), weights @ sizes)


def multi_macro_f1(logits: Array, labels: Array) -> Statistic:
    """The mean over classes of F1; 0 where nothing is true and nothing predicted in any class."""
    truth, predicted = _marks(logits, labels)
    return _macro_f1(truth, predicted)


def subset_accuracy(logits: Array, labels: Array) -> Statistic:
    """The share of rows in which every class is decided rightly."""
    truth, predicted = _marks(logits, labels)
    return weighted_mean((truth == predicted).all(axis=1))


def average_precision(logits: Array, labels: Array) -> Statistic:
    """The mean over classes of the area under precision-recall steps; classes without a true row are left out.

    AP = sum over thresholds of (recall_i - recall_{i-1}) precision_i; equal scores are one threshold. 0 where no class
    has a true row. It needs no threshold of 0.5: prefer it to F1 while the threshold is still open.
    """
    check_multi(logits, labels)
    prepared = []
    for scores, marks in zip(logits.T, labels.T, strict=True):
        order = np.argsort(-scores, kind="stable")
        last_of_tie = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
        prepared.append((order, last_of_tie, marks[order].astype(np.float64)))

    def of(weights: Array) -> Array:
        total, counted = np.zeros(len(weights)), np.zeros(len(weights))
        for order, last_of_tie, marks in prepared:
            ranked = weights[:, order]
            said = np.cumsum(ranked, axis=1)[:, last_of_tie]
            hits = np.cumsum(ranked * marks, axis=1)[:, last_of_tie]
            steps = np.diff(hits, axis=1, prepend=0.0)
            total += ratio((steps * ratio(hits, said)).sum(axis=1), hits[:, -1])
            counted += hits[:, -1] > 0
        return ratio(total, counted)

    return of


def per_class(
    problem: str, logits: Array, labels: Array, names: Sequence[str] | None = None
) -> list[dict[str, str | float | int]]:
    """Precision, recall, F1 and support (the number of true rows) of every class; [] for regression.

    Precision of a class never predicted and recall of a class without a row are 0, and then so is F1. `names` are the V
    class names; without them a class is called by its number.
    """
    if problem == "regression":
        return []
    truth, predicted = (_one_hots if problem == "single_label" else _marks)(logits, labels)
    hits, said, true = (truth * predicted).sum(axis=0), predicted.sum(axis=0), truth.sum(axis=0)
    columns = {"precision": ratio(hits, said), "recall": ratio(hits, true), "f1": ratio(2 * hits, said + true)}
    called = class_names(names, logits.shape[1])
    return [
        {"class": called[k], **{name: float(column[k]) for name, column in columns.items()}, "support": int(true[k])}
        for k in range(logits.shape[1])
    ]


def confusion(logits: Array, labels: Array) -> list[list[int]]:
    """The V x V counts of a single-label problem: rows are the truth, columns the predictions."""
    check_single(logits, labels)
    size = logits.shape[1]
    counts = np.bincount(labels * size + logits.argmax(axis=-1), minlength=size * size)
    return [[int(count) for count in row] for row in counts.reshape(size, size)]


def class_names(names: Sequence[str] | None, size: int) -> list[str]:
    """The names of V classes, or their numbers as strings; `ShapeError` where the count differs."""
    if names is not None and len(names) != size:
        raise ShapeError(message("Every class needs one name", given=f"{len(names)} names, logits of {size} classes"))
    return [str(k) for k in range(size)] if names is None else list(names)


def check_single(logits: Array, labels: Array) -> None:
    """Raise unless logits are finite [N, V] and labels are whole numbers [N] from 0 to V - 1, with N at least 1."""
    if logits.ndim != 2 or labels.ndim != 1 or len(logits) != len(labels):
        raise ShapeError(
            message("Single-label metrics take logits [N, V] and labels [N]", given=shapes(logits, labels))
        )
    check_rows(logits)
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(message("Labels must be class numbers, that is integers", given=labels.dtype))
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise DataError(
            message(
                f"Labels must be class numbers from 0 to {logits.shape[1] - 1}",
                given=f"{labels.min()} to {labels.max()}",
                do="Leave rows without a label out, and compare the model's classes with the data's",
            )
        )


def check_multi(logits: Array, labels: Array) -> None:
    """Raise unless logits are finite [N, V] and labels are 0 and 1 of the same shape, with N at least 1."""
    if logits.ndim != 2 or logits.shape != labels.shape:
        raise ShapeError(message("Multi-label metrics take logits and labels [N, V]", given=shapes(logits, labels)))
    check_rows(logits)
    if not np.isin(labels, (0, 1)).all():
        raise DataError(message("Multi-label labels must be 0 or 1", given=np.unique(labels)[:5].tolist()))


def _one_hots(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Truth and argmax as 0/1 matrices [N, V]."""
    check_single(logits, labels)
    classes = np.arange(logits.shape[1])
    predicted = logits.argmax(axis=-1)
    return (labels[:, None] == classes).astype(np.float64), (predicted[:, None] == classes).astype(np.float64)


def _marks(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Truth and thresholded decisions as 0/1 matrices [N, V]."""
    check_multi(logits, labels)
    return labels.astype(np.float64), (logits > 0).astype(np.float64)


def _macro_f1(truth: Array, predicted: Array) -> Statistic:
    both = truth * predicted

    def of(weights: Array) -> Array:
        sizes = weights @ truth + weights @ predicted
        return ratio(ratio(2 * (weights @ both), sizes).sum(axis=1), (sizes > 0).sum(axis=1))

    return of
