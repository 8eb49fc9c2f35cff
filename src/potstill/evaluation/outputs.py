"""What is kept of a model's outputs, by the problem of its task: logits a row, or counts of pixels an image."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from potstill.evaluation.predict import load_predictions, predict_logits, save_predictions
from potstill.evaluation.segmentation import load_counts, predict_counts, save_counts


@dataclass(frozen=True)
class Outputs:
    """What is kept of a model's outputs on a split, an array with one entry a row [N,...]: how it is made, written and
    read back. Metrics of the same problem are made from it."""

    predict: Callable[..., npt.NDArray[Any]]  # as `predict_logits`
    save: Callable[[Path, dict[str, npt.NDArray[Any]]], None]  # to a file, split by split
    load: Callable[[Path], dict[str, npt.NDArray[Any]]]


LOGITS = Outputs(predict_logits, save_predictions, load_predictions)
COUNTS = Outputs(predict_counts, save_counts, load_counts)

OUTPUTS: dict[str, Outputs] = {
    **dict.fromkeys(("single_label", "multi_label", "regression"), LOGITS),
    **dict.fromkeys(("segmentation", "segmentation_quarter"), COUNTS),
}
"""The problem of a task -> what is kept of its models' outputs."""
