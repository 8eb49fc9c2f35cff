"""Whether two tokenizers cut the same rows into the same tokens, so that what is known of one token fits the other's.

Hidden states, attention and relations are compared token by token. Where teacher and student have tokenizers of their
own, that makes sense only if the tokens stand beside one another: as many in each row, the same texts, padded on one
side. A vocabulary that was cut to the training rows passes; two pretrained models rarely do.
"""

from typing import Any

from transformers import PreTrainedTokenizerBase

from potstill.checks import problem
from potstill.errors import ModelError
from potstill.objective import BoundObjective
from potstill.tasks.base import Rows, Task
from potstill.terms import PEERS

TOKENS = "tokens"


def token_terms(objective: BoundObjective) -> list[str]:
    """The terms that compare with a teacher token by token; peers share the student's tokenizer."""
    return [t.name for t in objective.terms if t.positions == TOKENS and not t.source.startswith(PEERS)]


def require_aligned(objective: BoundObjective, task: Task, rows: Rows, student: Any, teacher: Any) -> None:
    """Raise `ModelError` where a term compares tokens that don't stand beside one another in every row.

    Args:
        objective: the terms.
        task: knows how its rows are read.
        rows: as both read them.
        student, teacher: their readers.
    """
    terms = token_terms(objective)
    differing = task.unaligned(rows, student, teacher) if terms else None
    if differing is None:
        return
    raise ModelError(
        problem(
            f"{', '.join(terms)} would compare tokens that aren't the same: the tokenizers cut texts differently",
            given=differing,
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
