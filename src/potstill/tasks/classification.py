"""Classification of whatever comes in: what labels and logits mean with one class, several, or a number a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from potstill import losses
from potstill.tasks.base import Batch, LoadedModel, load_classes
from potstill.terms import Defaults

IGNORED = -100
NUMBERS = ("row", "teacher")  # of the row in the data set, for a memory; of the teacher that it is routed to
PROBLEM_TYPES: dict[str, Any] = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
_NOT_SOFTMAX = "it normalises over the classes, which are independent here. Use binary_kl_divergence or logit_mse."
_NO_CLASSES = "a number has no classes to normalise over. Use logit_mse."
_OF_CLASSES = [
    name
    for name in losses.__all__
    if getattr(losses, name).__module__.rpartition(".")[2] in ("divergence", "bounded", "logits")
    and name not in ("binary_kl_divergence", "logit_mse")
]
"""The losses of logits that take them for one distribution over the classes."""

DEFAULTS = {
    "single_label": Defaults(
        "cross_entropy",
        "kl_divergence",
        {
            "binary_cross_entropy": "every row has exactly one class. Use cross_entropy.",
            "squared_error": "labels are classes, not numbers. Use cross_entropy.",
            "binary_kl_divergence": "every row has exactly one class. Use kl_divergence.",
        },
    ),
    "multi_label": Defaults(
        "binary_cross_entropy",
        "binary_kl_divergence",
        {
            **dict.fromkeys([*_OF_CLASSES, "shift"], _NOT_SOFTMAX),
            "cross_entropy": "a row may have several classes. Use binary_cross_entropy.",
            "squared_error": "labels are classes, not numbers. Use binary_cross_entropy.",
        },
    ),
    "regression": Defaults(
        "squared_error",
        "logit_mse",
        {
            **dict.fromkeys([*_OF_CLASSES, "shift", "binary_kl_divergence"], _NO_CLASSES),
            "cross_entropy": "labels are numbers, not classes. Use squared_error.",
            "binary_cross_entropy": "labels are numbers, not classes. Use squared_error.",
        },
    ),
}


@dataclass(frozen=True)
class Classification:
    """What all classifications share; a task adds what comes in, and how it is read.

    Args:
        problem: single_label (labels [B], class numbers), multi_label (labels [B,V], 0 or 1) or regression (labels
            [B]).
        names: the classes in the order of the logits; one name for regression.
    """

    problem: str = "single_label"
    names: tuple[str, ...] = ("negative", "positive")

    auto_class: ClassVar[Any]
    of_tokens: ClassVar[bool] = False

    def load(
        self,
        path: str | Path | PreTrainedConfig,
        *,
        attention: str | None = None,
        trust_remote_code: bool = False,
        reader: Any = None,
    ) -> LoadedModel:
        """Load a model with this task's classes. A head that the checkpoint doesn't hold is new, and listed as such."""
        loaded = load_classes(
            self.auto_class, path, self.names, attention=attention, trust_remote_code=trust_remote_code
        )
        loaded.model.config.problem_type = PROBLEM_TYPES[self.problem]
        return loaded

    def targets(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Labels with 0 in place of the NaN of unlabelled rows, so that no NaN reaches a gradient."""
        labels = batch.get("labels")
        return labels if labels is None or not labels.is_floating_point() else torch.nan_to_num(labels)

    def labelled(self, batch: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """Which of the `rows` [B] of a batch have a label, [B]."""
        labels = batch.get("labels")
        if labels is None:
            return torch.zeros_like(rows)
        if self.problem == "single_label" and not labels.is_floating_point():
            return labels != IGNORED
        return ~labels.reshape(len(labels), -1).isnan().any(-1)

    def defaults(self) -> Defaults:
        """Cross-entropy and KL for one label, their binary forms for several, squared error for a number."""
        return DEFAULTS[self.problem]

    def check_model(self, model: PreTrainedModel) -> None:
        """Every model that gives logits a row will do."""


def label_columns(rows: Sequence[Mapping[str, Any]], problem: str) -> Batch:
    """The labels of a batch, int64 for classes, float32 otherwise, and the numbers that go with its rows; where there
    are any."""
    found: Batch = {}
    if "labels" in rows[0]:
        dtype = torch.long if problem == "single_label" else torch.float32
        found["labels"] = torch.tensor([row["labels"] for row in rows], dtype=dtype)
    for name in NUMBERS:
        if name in rows[0]:
            found[name] = torch.tensor([row[name] for row in rows], dtype=torch.long)
    return found
