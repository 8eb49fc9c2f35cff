"""Text classification in all its forms: one label, several labels, a number; one sentence or pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from potstill import losses
from potstill.knowledge import TEACHERS
from potstill.tasks.base import Batch, LoadedModel, bars_on_a_terminal, load_pretrained, processes
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
class TextClassification:
    """Args:
    problem: single_label (labels [B], class numbers), multi_label (labels [B,V], 0 or 1) or regression (labels [B]).
    names: the classes in the order of the logits; one name for regression.
    """

    problem: str = "single_label"
    names: tuple[str, ...] = ("negative", "positive")

    auto_class = AutoModelForSequenceClassification
    of_tokens = False

    def load(
        self, path: str | Path | PreTrainedConfig, *, attention: str | None = None, trust_remote_code: bool = False
    ) -> LoadedModel:
        """Load a model with this task's classes. A head that the checkpoint doesn't hold is new, and listed as such."""
        loaded = load_pretrained(
            self.auto_class,
            path,
            attention=attention,
            trust_remote_code=trust_remote_code,
            num_labels=len(self.names),
            ignore_mismatched_sizes=True,
        )
        config = loaded.model.config
        config.problem_type = PROBLEM_TYPES[self.problem]
        config.id2label = dict(enumerate(self.names))
        config.label2id = {name: number for number, name in enumerate(self.names)}
        return loaded

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Dataset:
        """Columns ``text``, ``text_pair`` (if there), ``labels`` as ``input_ids`` and what else the tokenizer gives."""
        paired = "text_pair" in rows.column_names

        def tokens(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
            pair = (batch["text_pair"],) if paired else ()
            encoded = dict(tokenizer(batch["text"], *pair, truncation=True, max_length=max_length))
            encoded.pop("attention_mask", None)  # all ones; the collator makes it from the lengths
            return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]]}

        drop = [name for name in rows.column_names if name not in ("labels", *NUMBERS)]
        with bars_on_a_terminal():
            return rows.map(
                tokens, batched=True, remove_columns=drop, desc="encoding", num_proc=processes(tokenizer, len(rows))
            )

    def collator(
        self, tokenizer: PreTrainedTokenizerBase, teachers: PreTrainedTokenizerBase | None = None
    ) -> Callable[[Sequence[Mapping[str, Any]]], Batch]:
        """Pads to the longest row of the batch, on the tokenizer's side; the teachers' columns by their tokenizer."""
        return TextCollator(tokenizer, self.problem, teachers)

    def targets(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Labels with 0 in place of the NaN of unlabelled rows, so that no NaN reaches a gradient."""
        labels = batch.get("labels")
        return labels if labels is None or self.problem == "single_label" else torch.nan_to_num(labels)

    def masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows with a label [B], rows [B], tokens [B,S]."""
        tokens = batch["attention_mask"].bool()
        rows = tokens.new_ones(tokens.shape[0])
        labels = batch.get("labels")
        if labels is None:
            labelled = torch.zeros_like(rows)
        elif self.problem == "single_label":
            labelled = labels != IGNORED
        else:
            labelled = ~labels.reshape(len(labels), -1).isnan().any(-1)
        return {"labels": labelled, "outputs": rows, "tokens": tokens}

    def defaults(self) -> Defaults:
        """Cross-entropy and KL for one label, their binary forms for several, squared error for a number."""
        return DEFAULTS[self.problem]

    def check_model(self, model: PreTrainedModel) -> None:
        """Every model that gives logits a row will do: padding is masked for all of them."""


@dataclass(frozen=True)
class TextCollator:
    """Encoded rows -> a padded batch: ids, mask, labels; and the teachers' ids and mask, where they have other ones."""

    tokenizer: PreTrainedTokenizerBase
    problem: str
    teachers: PreTrainedTokenizerBase | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Pad on each tokenizer's own side, with its own padding ids; labels int64 for classes, float32 otherwise."""
        batch = _padded(rows, self.tokenizer)
        if self.teachers is not None:
            batch |= _padded(rows, self.teachers, TEACHERS)
        if "labels" in rows[0]:
            dtype = torch.long if self.problem == "single_label" else torch.float32
            batch["labels"] = torch.tensor([row["labels"] for row in rows], dtype=dtype)
        for name in NUMBERS:
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows], dtype=torch.long)
        return batch


def _padded(rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, prefix: str = "") -> Batch:
    """The columns of a prefix that hold tokens, [B,S] each, and their mask."""
    ids = f"{prefix}input_ids"
    fills = {ids: tokenizer.pad_token_id, f"{prefix}token_type_ids": tokenizer.pad_token_type_id}
    longest = max(len(row[ids]) for row in rows)
    left = tokenizer.padding_side == "left"

    def padded(values: Sequence[int], fill: int) -> list[int]:
        extra = [fill] * (longest - len(values))
        return [*extra, *values] if left else [*values, *extra]

    batch = {n: torch.tensor([padded(row[n], fill) for row in rows]) for n, fill in fills.items() if n in rows[0]}
    batch[f"{prefix}attention_mask"] = torch.tensor([padded([1] * len(row[ids]), 0) for row in rows])
    return batch
