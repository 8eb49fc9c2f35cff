"""Rows as their models read them: token ids by the student's tokenizer and, where the teachers have another, by theirs.

There is one tokenizer unless the student's vocabulary is cut or its checkpoint has one of its own. With two, the rows
that the student learns from carry both: the student's ids in the plain columns, the teachers' in columns ``teacher_*``.
Each is cut to its own length. With one, rows and digest are what they were before there could be two.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from potstill.data.encoded import kept
from potstill.data.rows import ROUTE, side_by_side
from potstill.knowledge import TEACHERS
from potstill.tasks import TextClassification
from potstill.tasks.base import bars_on_a_terminal

TEXTS = ("text", "text_pair")
Say = Callable[[str], None]


def encoded(
    task: TextClassification,
    texts: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    say: Say,
    whose: str = "model",
) -> dict[str, Any]:
    """Each split as token ids, no longer than the recipe and the tokenizer have it; read back where the same texts were
    encoded by the same tokenizer before."""
    limit = min(max_length, tokenizer.model_max_length)
    if limit < max_length:
        say(f"max_length {max_length} is cut to {limit}, the most that the {whose} takes")
    made_from = repr((type(task).__name__, task.problem, limit))
    return {
        split: kept(found, tokenizer, made_from, partial(task.encode, found, tokenizer, max_length=limit))
        for split, found in texts.items()
    }


def with_teachers(student: Mapping[str, Any], teachers: Mapping[str, Any]) -> dict[str, Any]:
    """The student's rows with the teachers' ids beside them."""
    names = {name: f"{TEACHERS}{name}" for name in ("input_ids", "token_type_ids")}
    with bars_on_a_terminal():
        return {split: side_by_side(rows, teachers[split], names) for split, rows in student.items()}


def texts_of(rows: Iterable[Any]) -> list[str]:
    """Every text of some rows, the second ones of pairs too."""
    return [text for part in rows for name in TEXTS if name in part.column_names for text in part[name]]


def digest_rows(rows: Mapping[str, Any], task: TextClassification) -> str:
    """A digest of all that models are given: ids, kinds and labels of every split, their teachers, and the classes."""
    found = hashlib.sha256(repr((task.problem, task.names)).encode())
    for split, part in rows.items():
        found.update(split.encode())
        for name in ("input_ids", "token_type_ids", "labels", ROUTE):
            if name in part.column_names:
                for chunk in part.data.column(name).chunks:
                    for buffer in _leaves(chunk):
                        found.update(buffer)
    return found.hexdigest()[:16]


def digest_both(teachers: str, student: str, kept: Iterable[int]) -> str:
    """A digest of rows that are read in two ways, and of the vocabulary that was kept."""
    return hashlib.sha256(repr((teachers, student, tuple(kept))).encode()).hexdigest()[:16]


def _leaves(array: Any) -> list[bytes]:
    """The values and lengths of an Arrow array, whatever its chunking and offsets."""
    import pyarrow as pa

    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        lengths = np.asarray(array.value_lengths())
        return [lengths.tobytes(), *_leaves(array.flatten())]
    return [np.asarray(array).tobytes()]
