"""What is kept of a model's outputs on a split, by the problem of the task: logits of rows, or counts of pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from potstill.evaluation.pixels import load_counts, predict_counts, save_counts, true_pixels
from potstill.evaluation.predict import label_array, load_predictions, predict_logits, save_predictions
from potstill.tasks.base import Task
from potstill.tasks.semantic_segmentation import FULL, QUARTER


@dataclass(frozen=True)
class Outputs:
    """What is kept of a model's outputs on a split, an array with one entry a row [N,...]: how it is made, written and
    read back; and what it is held against. Metrics of the same problem are made from both."""

    predict: Callable[..., npt.NDArray[Any]]  # as `predict_logits`
    save: Callable[[Path, dict[str, Any]], None]  # to a file, split by split
    load: Callable[[Path], dict[str, Any]]
    truth: Callable[[Any, Task, Any], npt.NDArray[Any]]  # of rows, their task and its collator


LOGITS = Outputs(predict_logits, save_predictions, load_predictions, label_array)
COUNTS = Outputs(predict_counts, save_counts, load_counts, true_pixels)

OUTPUTS: dict[str, Outputs] = {
    **dict.fromkeys(("single_label", "multi_label", "regression"), LOGITS),
    **dict.fromkeys((FULL, QUARTER), COUNTS),
}
"""The problem of a task -> what is kept of its models' outputs."""
