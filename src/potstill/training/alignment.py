"""Whether two tokenizers cut the same rows into the same tokens, so that what is known of one token fits the other's.

Hidden states, attention and relations are compared token by token. Where teacher and student have tokenizers of their
own, that makes sense only if the tokens stand beside one another: as many in each row, the same texts, padded on one
side. A vocabulary that was cut to the training rows passes; two pretrained models rarely do.
"""

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from potstill.checks import problem
from potstill.errors import ModelError
from potstill.knowledge import TEACHERS
from potstill.objective import BoundObjective
from potstill.tasks.base import Rows
from potstill.terms import PEERS

TOKENS = "tokens"
BATCH = 1000


def token_terms(objective: BoundObjective) -> list[str]:
    """The terms that compare with a teacher token by token; peers share the student's tokenizer."""
    return [t.name for t in objective.terms if t.positions == TOKENS and not t.source.startswith(PEERS)]


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


def require_aligned(
    objective: BoundObjective, rows: Rows, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
) -> None:
    """Raise `ModelError` where a term compares tokens that don't stand beside one another in every row."""
    terms = token_terms(objective)
    row = first_unaligned(rows, student, teacher) if terms else None
    if row is None:
        return
    ours = student.convert_ids_to_tokens(rows[row]["input_ids"])
    its = teacher.convert_ids_to_tokens(rows[row][f"{TEACHERS}input_ids"])
    raise ModelError(
        problem(
            f"{', '.join(terms)} would compare tokens that aren't the same: the tokenizers cut texts differently",
            given=f"row {row}: student {' '.join(ours[:8])} …, teacher {' '.join(its[:8])} …",
            follows="What the teacher knows of one token would be learned for another",
            do="Distil labels and logits, and hidden states only with pool: first, mean or last; or use a student with "
            "the teacher's tokenizer",
        )
    )


def require_known(tokenizer: PreTrainedTokenizerBase, vocabulary: int | None) -> None:
    """Raise `ModelError` where a tokenizer has tokens that not all models have an output for.

    Vocabularies are cut to the ids that all models share; a token beyond them could be no label.
    """
    if vocabulary is None or len(tokenizer) <= vocabulary:
        return
    raise ModelError(
        problem(
            "The tokenizer has more tokens than the smallest of the models",
            given=f"{len(tokenizer)} tokens, {vocabulary} outputs",
            follows="Some labels would be no classes",
            do="Give the tokenizer of these models, or resize their embeddings to it",
        )
    )
