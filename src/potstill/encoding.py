"""Rows as their models read them: by the student's reader and, where the teachers have another, by theirs.

There is one reader unless the student's vocabulary is cut or its checkpoint has one of its own. Of texts, the rows that
the student learns from then carry both: the student's ids in the plain columns, the teachers' in columns ``teacher_*``,
each cut to its own length. Images are read when a batch is made, so their rows are the same for both. With one reader,
rows and digest of texts are what they were before there could be two.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from potstill.data.encoded import kept
from potstill.data.images import digest_of_images, holds_images
from potstill.data.rows import ROUTE, side_by_side
from potstill.knowledge import TEACHERS
from potstill.tasks import Task
from potstill.tasks.base import bars_on_a_terminal

TEXTS = ("text", "text_pair")
Say = Callable[[str], None]


def encoded(
    task: Task,
    raw: Mapping[str, Any],
    reader: Any,
    max_length: int,
    say: Say,
    whose: str = "model",
) -> dict[str, Any]:
    """Each split as `Task.encode` gives it. What is cut to tokens is no longer than the recipe and the reader have it,
    and is read back where the same texts were encoded by the same tokenizer before."""
    limit = task.limit(reader, max_length)
    if limit is None:
        return {split: task.encode(found, reader, max_length=max_length) for split, found in raw.items()}
    if limit < max_length:
        say(f"max_length {max_length} is cut to {limit}, the most that the {whose} takes")
    made_from = repr((type(task).__name__, task.problem, limit))
    return {
        split: kept(found, reader, made_from, partial(task.encode, found, reader, max_length=limit))
        for split, found in raw.items()
    }


def with_teachers(student: Mapping[str, Any], teachers: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """The student's rows with what the teachers read beside it, where that isn't the same."""
    names = {name: f"{TEACHERS}{name}" for name in task.reader_columns}
    if not names:
        return dict(student)
    with bars_on_a_terminal():
        return {split: side_by_side(rows, teachers[split], names) for split, rows in student.items()}


def texts_of(rows: Iterable[Any]) -> list[str]:
    """Every text of some rows, the second ones of pairs too."""
    return [text for part in rows for name in TEXTS if name in part.column_names for text in part[name]]


def digest_rows(rows: Mapping[str, Any], task: Task, reader: Any) -> str:
    """A digest of all that models are given: inputs and labels of every split, their teachers, and the classes."""
    found = hashlib.sha256(repr((task.problem, task.names)).encode() + task.digest(reader).encode())
    for split, part in rows.items():
        found.update(split.encode())
        for name in (*task.columns, "labels", "label_map", ROUTE):
            if name in part.column_names and holds_images(part, name):
                found.update(digest_of_images(part, name))
            elif name in part.column_names:
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
