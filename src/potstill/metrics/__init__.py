"""The metrics of every kind of task: what they are called, how they read, and what they are on given logits.

Decisions held here:

* A metric is made in two steps. `statistic` takes logits and labels and prepares once what doesn't change (argmax,
  sorted scores); the function it gives back takes row weights [R, N] and gives R values. Weights of one are the metric
  itself; the counts of a resample are the metric of that resample, exactly. So the number in the table and the
  bootstrap interval around it come from the same lines, and 2,000 resamples cost a few matrix products. The tests hold
  every metric against scikit-learn (and scipy), with weights and without.
* Values are raw fractions (0.873); `Metric.percent` says whether a reader expects 87.3 %.
* What is undefined has a stated value, never NaN and never a warning: see each function.
* Segmentation has counts of pixels an image in place of logits, since logits of every pixel are never kept: see
  `potstill.metrics.segmentation`.
* Shape letters: N rows, V classes, R resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from potstill.checks import problem as message
from potstill.checks import unknown_name
from potstill.errors import PotstillError
from potstill.metrics import classification, regression, segmentation
from potstill.metrics.rows import Array, Statistic

__all__ = [
    "METRICS",
    "PROBLEMS",
    "Array",
    "Metric",
    "Statistic",
    "keys",
    "of_pixels",
    "primary",
    "score",
    "scores",
    "statistic",
]


@dataclass(frozen=True)
class Metric:
    """How one metric is named and read.

    Attributes:
        key: the name in recipes and results (`macro_f1`).
        name: the name in a sentence or a table ("Macro F1").
        percent: True where readers expect percent and points (0.873 is 87.3 %), False for plain numbers.
        higher_is_better: False for errors and losses.
        short: the name over a narrow column, where the first word of `name` won't do.
    """

    key: str
    name: str
    percent: bool
    higher_is_better: bool
    short: str = ""


METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric("accuracy", "Accuracy", percent=True, higher_is_better=True),
        Metric("macro_f1", "Macro F1", percent=True, higher_is_better=True),
        Metric("micro_f1", "Micro F1", percent=True, higher_is_better=True),
        Metric("matthews", "Matthews correlation", percent=False, higher_is_better=True),
        Metric("log_loss", "Log loss", percent=False, higher_is_better=False),
        Metric("subset_accuracy", "Subset accuracy", percent=True, higher_is_better=True),
        Metric("average_precision", "Mean average precision", percent=True, higher_is_better=True),
        Metric("pearson", "Pearson correlation", percent=False, higher_is_better=True),
        Metric("spearman", "Spearman correlation", percent=False, higher_is_better=True),
        Metric("mse", "Mean squared error", percent=False, higher_is_better=False),
        Metric("mae", "Mean absolute error", percent=False, higher_is_better=False),
        Metric("mean_iou", "Mean IoU", percent=True, higher_is_better=True, short="mIoU"),
        Metric("pixel_accuracy", "Pixel accuracy", percent=True, higher_is_better=True),
        Metric("mean_accuracy", "Mean class accuracy", percent=True, higher_is_better=True),
        Metric("boundary_iou", "Boundary IoU", percent=True, higher_is_better=True),
        Metric(
            "mean_iou_quarter", "Mean IoU at 1/4 resolution", percent=True, higher_is_better=True, short="mIoU (1/4)"
        ),
        Metric("pixel_accuracy_quarter", "Pixel accuracy at 1/4 resolution", percent=True, higher_is_better=True),
        Metric("mean_accuracy_quarter", "Mean class accuracy at 1/4 resolution", percent=True, higher_is_better=True),
        Metric("boundary_iou_quarter", "Boundary IoU at 1/4 resolution", percent=True, higher_is_better=True),
    )
}

SEGMENTATION, SEGMENTATION_QUARTER = "segmentation", "segmentation_quarter"

# The first of each is the primary one: what the report leads with and what the best checkpoint is chosen by.
PROBLEMS: dict[str, dict[str, Callable[[Array, Array], Statistic]]] = {
    "single_label": {
        "accuracy": classification.accuracy,
        "macro_f1": classification.macro_f1,
        "matthews": classification.matthews,
        "log_loss": classification.log_loss,
    },
    "multi_label": {
        "micro_f1": classification.multi_micro_f1,
        "macro_f1": classification.multi_macro_f1,
        "subset_accuracy": classification.subset_accuracy,
        "average_precision": classification.average_precision,
    },
    "regression": {
        "pearson": regression.pearson,
        "spearman": regression.spearman,
        "mse": regression.mse,
        "mae": regression.mae,
    },
    SEGMENTATION: segmentation.FULL,
    SEGMENTATION_QUARTER: segmentation.AT_A_QUARTER,
}


def of_pixels(problem: str) -> bool:
    """Whether a problem is a segmentation's, whose metrics are made of counts of pixels an image."""
    return problem in (SEGMENTATION, SEGMENTATION_QUARTER)


def keys(problem: str) -> list[str]:
    """The keys of a problem's metrics, the primary one first.

    Raises:
        PotstillError: if the problem is none of `PROBLEMS`.
    """
    if problem not in PROBLEMS:
        raise PotstillError(unknown_name("problem", problem, PROBLEMS))
    return list(PROBLEMS[problem])


def primary(problem: str) -> str:
    """The metric that a problem is judged by: accuracy, micro F1, Pearson correlation or mean IoU."""
    return keys(problem)[0]


def statistic(metric_key: str, problem: str, logits: Array, labels: Array) -> Statistic:
    """A metric of given logits and labels as a function of row weights.

    Args:
        metric_key: one of `keys(problem)`.
        problem: one of `PROBLEMS`.
        logits: [N, V]; regression [N] or [N, 1]; segmentation [N, V, V + 3], counts of pixels.
        labels: [N] class numbers; multi-label [N, V] of 0 and 1; regression [N]; segmentation [N, V], true pixels.

    Returns:
        A function of weights [R, N] (non-negative counts, each row with a positive sum) that gives [R] float64.

    Raises:
        PotstillError: if the metric isn't one of the problem's.
        ShapeError, DataError, ModelError: if shapes don't fit, labels are out of range, logits aren't finite.
    """
    if metric_key not in keys(problem):
        raise PotstillError(
            message(
                unknown_name(f"metric of a {problem} problem", metric_key, PROBLEMS[problem]),
                do="Name one that is defined for this kind of labels",
            )
        )
    return PROBLEMS[problem][metric_key](logits, labels)


def score(metric_key: str, problem: str, logits: Array, labels: Array) -> float:
    """One metric, as a raw fraction. For the arguments and errors see `statistic`."""
    prepared = statistic(metric_key, problem, logits, labels)
    return float(prepared(np.ones((1, len(labels))))[0])


def scores(problem: str, logits: Array, labels: Array) -> dict[str, float]:
    """Every metric of a problem, by key, the primary one first. For the arguments and errors see `statistic`."""
    return {key: score(key, problem, logits, labels) for key in keys(problem)}
