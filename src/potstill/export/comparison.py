"""An exported file against the student that it was made from.

Decision: the comparison is on logits, on the rows that the report evaluates, in the batches that it evaluates them in,
so that the metric of the exported file comes out of the same pass.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from potstill.checks import problem as message
from potstill.checks import same_shape
from potstill.errors import ExportError
from potstill.evaluation.fidelity import agreement

Logits = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Verification:
    """What one pass of an exported file over the rows gave.

    `logits` [N, V] are the exported file's; `max_logit_difference` and `mean_logit_difference` are of the absolute
    values of its difference from the student; `agreement` is the share of equal predictions, None for regression.
    """

    logits: Logits
    max_logit_difference: float
    mean_logit_difference: float
    agreement: float | None


def verify(
    runner: Callable[[Mapping[str, Any]], Logits],
    batches: Iterable[Mapping[str, Any]],
    student_logits: Logits,
    *,
    problem: str,
    tolerance: float | None = None,
) -> Verification:
    """Run an exported model over `batches` and compare its logits with the student's, row by row.

    Args:
        runner: an `OnnxModel`, or anything that turns a batch into logits [B, V].
        batches: the rows' encodings, in the order of `student_logits`.
        student_logits: [N, V] of the student in transformers.
        problem: "single_label", "multi_label" or "regression"; what a prediction is, see `fidelity.agreement`.
        tolerance: the largest difference that is allowed. 1e-3 is far above what float32 leaves (1e-5 on a six-layer
            MiniLM) and far below a wrong graph. None for int8, whose differences are to be reported, not refused.

    Raises `ExportError` above the tolerance, or on a logit that is not a number; `ShapeError` when the rows differ.
    """
    logits = np.concatenate([np.asarray(runner(batch)) for batch in batches])
    same_shape(student_logits, logits, caller="verify", hint="Hand in the same rows, in the same order")
    difference = np.abs(student_logits.astype(np.float64) - logits.astype(np.float64))
    largest = float(difference.max(initial=0.0))
    require_near(largest if np.isfinite(logits).all() else float("nan"), tolerance)
    return Verification(logits, largest, float(difference.mean()), agreement(student_logits, logits, problem))


def require_near(largest: float, tolerance: float | None) -> None:
    """Raise `ExportError` where a file's logits differ from the student's by more than is allowed, or are no numbers.

    Args:
        largest: of the absolute differences; NaN where a logit is not a number.
        tolerance: the largest difference that is allowed; None allows any.
    """
    if math.isnan(largest) or (tolerance is not None and largest > tolerance):
        allowed = "" if tolerance is None else f", where {tolerance:.3g} is allowed"
        raise ExportError(
            message(
                "The exported file is not the student",
                given=f"logits that differ by up to {largest:.3g}{allowed}",
                follows="It would predict something else than what was evaluated",
                do="Ship the transformers folder, and report this with the model's config",
            )
        )
