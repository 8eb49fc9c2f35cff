"""Text classification in all its forms: one label, several labels, a number; one sentence or pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedTokenizerBase

from potstill.knowledge import TEACHERS
from potstill.tasks.base import Batch, LoadedModel, bars_on_a_terminal
from potstill.tasks.classification import NUMBERS, Classification, label_columns
from potstill.tasks.tokens import ReadsTokens, processes


@dataclass(frozen=True)
class TextClassification(ReadsTokens, Classification):
    """Args:
    problem: single_label (labels [B], class numbers), multi_label (labels [B,V], 0 or 1) or regression (labels [B]).
    names: the classes in the order of the logits; one name for regression.
    """

    auto_class = AutoModelForSequenceClassification

    def load(
        self,
        path: str | Path | PreTrainedConfig,
        *,
        attention: str | None = None,
        trust_remote_code: bool = False,
        reader: Any = None,
    ) -> LoadedModel:
        """As `Classification.load`; with the padding id of the tokenizer, that decoders need to find the last token."""
        loaded = super().load(path, attention=attention, trust_remote_code=trust_remote_code)
        if reader is not None and loaded.model.config.pad_token_id is None:
            loaded.model.config.pad_token_id = reader.pad_token_id
        return loaded

    def encode(self, rows: Dataset, reader: PreTrainedTokenizerBase, *, max_length: int) -> Dataset:
        """Columns ``text``, ``text_pair`` (if there), ``labels`` as ``input_ids`` and what else the tokenizer gives."""
        paired = "text_pair" in rows.column_names

        def tokens(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
            pair = (batch["text_pair"],) if paired else ()
            encoded = dict(reader(batch["text"], *pair, truncation=True, max_length=max_length))
            encoded.pop("attention_mask", None)  # all ones; the collator makes it from the lengths
            return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]]}

        drop = [name for name in rows.column_names if name not in ("labels", *NUMBERS)]
        with bars_on_a_terminal():
            return rows.map(
                tokens, batched=True, remove_columns=drop, desc="encoding", num_proc=processes(reader, len(rows))
            )

    def collator(
        self, reader: PreTrainedTokenizerBase, teachers: PreTrainedTokenizerBase | None = None
    ) -> Callable[[Sequence[Mapping[str, Any]]], Batch]:
        """Pads to the longest row of the batch, on the tokenizer's side; the teachers' columns by their tokenizer."""
        return TextCollator(reader, self.problem, teachers)

    def masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows with a label [B], rows [B], tokens [B,S]."""
        tokens = batch["attention_mask"].bool()
        rows = tokens.new_ones(tokens.shape[0])
        return {"labels": self.labelled(batch, rows), "outputs": rows, "tokens": tokens}


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
        return batch | label_columns(rows, self.problem)


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
