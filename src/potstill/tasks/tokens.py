"""How texts are read: tokenizers, what two of them have in common, and whether a model knows all their tokens."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from potstill.checks import problem
from potstill.errors import ModelError
from potstill.knowledge import TEACHERS, Knowledge
from potstill.knowledge.architectures import describe, longest_input
from potstill.tasks.base import Batch, Rows, Sample, Words, quiet_transformers

ROWS_OF_A_PROCESS = 5000  # fewer aren't worth starting one
BATCH = 1000
MOST_TOKENS = 8192  # where neither tokenizer nor model says when a text is too long


class ReadsTokens:
    """The half of a `Task` that reads texts with a tokenizer."""

    augmentation = None
    columns = ("input_ids", "token_type_ids")
    reader_columns = columns
    words = Words(
        row="text",
        rows="rows",
        files="weights, config and tokenizer",
        batched="padded to the longest of their batch, tokenisation apart",
        sized="at the mean length",
        long="at the 95th percentile of the lengths",
    )

    def load_reader(
        self, path: str | Path, *, trust_remote_code: bool = False, size: Any = None
    ) -> PreTrainedTokenizerBase:
        """The tokenizer of a model; texts have no size."""
        return load_tokenizer(path, trust_remote_code=trust_remote_code)

    def same(self, reader: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
        """Whether two tokenizers have the same tokens under the same ids."""
        return bool(reader.get_vocab() == other.get_vocab())

    def require_same(
        self, reader: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, whose: str, kind: str
    ) -> None:
        """Raise `ModelError` where two tokenizers give the same text other ids."""
        ours, theirs = reader.get_vocab(), other.get_vocab()
        if not self.same(reader, other):
            differing = sum(theirs.get(token) != number for token, number in ours.items())
            raise ModelError(
                problem(
                    f"{whose} has another tokenizer than the {kind}",
                    given=f"{len(ours)} tokens, the {kind} {len(theirs)}, {differing} with another id or none",
                    follows="The same text becomes other ids for each, and nothing of one fits the other",
                    do=f"Use models with the {kind}'s tokenizer; only the student's may differ from all the teachers'",
                )
            )

    def shown(self, rows: Dataset) -> list[Any]:
        """The text of each row, or its two texts."""
        if "text_pair" in rows.column_names:
            return list(zip(rows["text"], rows["text_pair"], strict=True))
        return list(rows["text"])

    def pictured(self, row: Mapping[str, Any]) -> None:
        """Texts have no pictures."""

    def limit(self, reader: PreTrainedTokenizerBase, asked: int, model: PreTrainedModel | None = None) -> int:
        """To how many tokens rows are cut: as many as asked, or fewer where tokenizer or model end before."""
        positions = None if model is None else longest_input(model)
        return min(asked, int(reader.model_max_length), asked if positions is None else positions)

    def batch_of(
        self,
        reader: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
    ) -> Mapping[str, Any]:
        """Texts, or pairs of them, as one batch, cut to what the model takes."""
        both = (list(texts), list(pairs)) if pairs else (list(texts),)
        limit = self.limit(reader, MOST_TOKENS, model)
        return reader(*both, padding=True, truncation=True, max_length=limit, return_tensors="pt")  # type: ignore[no-any-return]

    def sample(self, reader: PreTrainedTokenizerBase, rows: Rows, count: int, *, long: bool = False) -> Sample:
        """Of the mean number of tokens; with `long`, of the 95th percentile."""
        lengths = np.asarray(rows["length"])
        tokens = round(float(np.percentile(lengths, 95) if long else lengths.mean()))
        shapes = dict.fromkeys(("input_ids", "attention_mask"), (count, tokens))
        return Sample(shapes, f"{count} x {tokens} tokens")

    def made_up(self, reader: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[Batch]:
        """Four rows each of four lengths, of the later half of the model's words."""
        random = torch.Generator().manual_seed(0)
        words = model.config.vocab_size
        lengths = [self.limit(reader, length, model) for length in (5, 9, 17, 33)]
        ids = [torch.randint(words // 2, words, (4, length), generator=random) for length in lengths]
        return [
            {"input_ids": i, "attention_mask": torch.ones_like(i), "token_type_ids": torch.zeros_like(i)} for i in ids
        ]

    def digest(self, reader: PreTrainedTokenizerBase) -> str:
        """Nothing: encoded rows hold the ids."""
        return ""

    def check_rows(
        self, name: str, model: PreTrainedModel, reader: PreTrainedTokenizerBase, rows: Mapping[str, Rows]
    ) -> None:
        """Refuse rows that are longer than a model has positions for, and ids that it has no embeddings for."""
        require_positions(name, model, rows)
        require_embeddings(name, model, reader, rows)

    def two_readers(
        self, reader: PreTrainedTokenizerBase, teachers: PreTrainedTokenizerBase, terms: Sequence[str]
    ) -> str:
        """How rows with two tokenizers are compared."""
        each = f"token by token for {', '.join(terms)}: the tokens of every training row are the same"
        compared = each if terms else "by row, not by token"
        return f"tokenizers: teacher and student have one each, and are compared {compared}"

    def compared(self, known: Knowledge, batch: Mapping[str, Tensor]) -> Knowledge:
        """What was observed, as it is: outputs and labels have the same positions."""
        return known

    def unaligned(self, rows: Rows, reader: PreTrainedTokenizerBase, teachers: PreTrainedTokenizerBase) -> str | None:
        """The first row whose tokens aren't the same ones for student and teachers, with its tokens."""
        row = first_unaligned(rows, reader, teachers)
        if row is None:
            return None
        ours = reader.convert_ids_to_tokens(rows[row]["input_ids"])
        its = teachers.convert_ids_to_tokens(rows[row][f"{TEACHERS}input_ids"])
        return f"row {row}: student {' '.join(ours[:8])} …, teacher {' '.join(its[:8])} …"


def first_unaligned(rows: Rows, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> int | None:
    """The number of the first row whose tokens differ between the columns of student and teacher; None where all fit.

    Args:
        rows: with the columns ``input_ids`` and ``teacher_input_ids``.
        student, teacher: the tokenizers that made them.
    """
    if student.padding_side != teacher.padding_side:
        return 0
    theirs = teacher.get_vocab()
    meant = np.full(1 + max(student.get_vocab().values()), -1, dtype=np.int64)  # student's id -> teacher's
    for token, number in student.get_vocab().items():
        meant[number] = theirs.get(token, -1)
    for start in range(0, len(rows), BATCH):
        part: Any = rows[start : start + BATCH]
        pairs = zip(part["input_ids"], part[f"{TEACHERS}input_ids"], strict=True)
        for number, (ours, its) in enumerate(pairs):
            if len(ours) != len(its) or (meant[np.asarray(ours, dtype=np.int64)] != np.asarray(its)).any():
                return start + number
    return None


def require_positions(name: str, model: PreTrainedModel, rows: Mapping[str, Rows]) -> None:
    """Refuse rows that are longer than a model has positions for, which would end in an index error in mid-training."""
    longest, limit = max(max(part["length"]) for part in rows.values()), longest_input(model)
    if limit is not None and longest > limit:
        raise ModelError(
            problem(
                f"The {name} has positions for {limit} tokens, and the longest row has more",
                given=f"{longest} tokens",
                do=f"Set data.max_length={limit}",
            )
        )


def require_embeddings(
    name: str, model: PreTrainedModel, reader: PreTrainedTokenizerBase, rows: Mapping[str, Rows]
) -> None:
    """Refuse rows with ids that a model has no embeddings for: a tokenizer that isn't the model's own."""
    known = describe(model).vocabulary
    if known is None or len(reader) <= known:
        return
    largest = max(int(max(ids)) for part in rows.values() for ids in part["input_ids"] if ids)
    if largest >= known:
        raise ModelError(
            problem(
                f"The {name}'s tokenizer has more tokens than the {name}, and the rows use them",
                given=f"id {largest}, {known} rows of embeddings",
                do="Put the model's own tokenizer into its folder, or resize its embeddings",
            )
        )


def processes(tokenizer: PreTrainedTokenizerBase, rows: int) -> int | None:
    """In how many processes to encode; None for this one alone, as a fast tokenizer has threads of its own."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    several = min(cores, rows // ROWS_OF_A_PROCESS)
    return None if tokenizer.is_fast or several < 2 else several


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token (the end-of-text token where it has none of its own)."""
    try:
        with quiet_transformers():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                path, trust_remote_code=trust_remote_code
            )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            problem(
                f"No tokenizer can be loaded from '{path}'",
                given=str(error).strip().splitlines()[0],
                do="Put the tokenizer's files into the model's folder, as save_pretrained writes them; for a hub id, "
                "check the name and the network, or give the folder of a model that was downloaded before",
            )
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
