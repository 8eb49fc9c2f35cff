"""What is kept of a model's outputs, by the problem of its task: logits a row, or counts of pixels an image."""

from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from potstill.evaluation.predict import predict_logits
from potstill.evaluation.segmentation import predict_counts

OUTPUTS: dict[str, Callable[..., npt.NDArray[Any]]] = {
    **dict.fromkeys(("single_label", "multi_label", "regression"), predict_logits),
    **dict.fromkeys(("segmentation", "segmentation_quarter"), predict_counts),
}
"""The problem of a task -> what makes of a model and rows the array [N,...] that its metrics are made from."""
