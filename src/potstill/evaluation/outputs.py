"""What is kept of a model's outputs, by the problem of its task: logits a row, or counts of pixels an image."""

from collections.abc import Callable
from typing import Any

import numpy.typing as npt
from transformers import PreTrainedModel

from potstill.evaluation.predict import predict_logits
from potstill.evaluation.segmentation import predict_counts
from potstill.metrics import Array, keys, of_pixels, score

OUTPUTS: dict[str, Callable[..., npt.NDArray[Any]]] = {
    **dict.fromkeys(("single_label", "multi_label", "regression"), predict_logits),
    **dict.fromkeys(("segmentation", "segmentation_quarter"), predict_counts),
}
"""The problem of a task -> what makes of a model and rows the array [N,...] that its metrics are made from."""


def quick_scores(
    problem: str, model: PreTrainedModel, rows: Any, collate: Callable[..., Any], labels: Array, *, bfloat16: bool
) -> dict[str, float]:
    """The metrics of a look while training, by key, the primary one first; those of edges, which take most of the time
    that pixels are counted in, are left out.

    Args: as of `predict_logits`, with the problem of the task and the labels of the rows.
    """
    if not of_pixels(problem):
        found, asked = OUTPUTS[problem](model, rows, collate, bfloat16=bfloat16), keys(problem)
    else:
        found = predict_counts(model, rows, collate, bfloat16=bfloat16, edges=False)  # type: ignore[arg-type]
        asked = [key for key in keys(problem) if not key.startswith("boundary")]
    return {key: score(key, problem, found, labels) for key in asked}
