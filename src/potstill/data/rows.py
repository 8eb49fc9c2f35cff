"""Rows under the names that tasks know (``text``, ``text_pair``, ``labels``), and rows without labels beside them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from datasets import Sequence as SequenceFeature

from potstill.augment.image import VIEW
from potstill.checks import problem
from potstill.data.columns import Columns, TextColumns, normalised_text
from potstill.data.images import ImageColumns
from potstill.errors import DataError

IGNORED = -100
ROUTE = "teacher"


def standard_columns(dataset: DatasetDict, columns: Columns) -> dict[str, Dataset]:
    """Each split with what a model is given, ``labels``, and ``teacher`` (where rows are routed), and no others."""
    return {split: _standard(rows, columns) for split, rows in dataset.items()}


def _standard(rows: Dataset, columns: Columns) -> Dataset:
    is_routed = ROUTE in rows.column_names and isinstance(rows.features[ROUTE], ClassLabel)
    return columns.standard(rows, ["labels", *([ROUTE] if is_routed else [])])


def routed(dataset: DatasetDict, column: str, names: Sequence[str]) -> DatasetDict:
    """The dataset with a column ``teacher``: the number of the teacher that each training row learns from.

    Args:
        column: holds the teachers' names in the training split.
        names: the teachers, in the order of their numbers.

    Raises:
        DataError: the column isn't there, or holds something that is no teacher's name; with counts.
    """
    train = dataset["train"]
    if column not in train.column_names:
        raise DataError(
            problem(
                f"There is no column '{column}' that says which teacher a row learns from",
                given=", ".join(train.column_names),
                do="Name the column with teacher.route, or set it to 'confident'",
            )
        )
    values = ["" if value is None else str(value) for value in train[column]]
    if strangers := Counter(value for value in values if value not in names):
        listed = ", ".join(f"{value!r} ({count} rows)" for value, count in strangers.most_common(5))
        raise DataError(
            problem(f"The column '{column}' names teachers that there aren't", given=listed, do=f"Known: {list(names)}")
        )
    if ROUTE in train.column_names:
        train = train.remove_columns(ROUTE)
    numbers = [list(names).index(value) for value in values]
    train = train.add_column(ROUTE, numbers).cast_column(ROUTE, ClassLabel(names=list(names)))
    return DatasetDict({**dataset, "train": train})


def with_labels(rows: Dataset) -> Dataset:
    """The rows that have a label: what a number can be made from."""
    labels = np.asarray(rows["labels"])
    missing = labels == IGNORED if np.issubdtype(labels.dtype, np.integer) else np.isnan(labels)
    kept = np.flatnonzero(~missing.reshape(len(labels), -1).any(axis=1))
    return rows if len(kept) == len(rows) else rows.select(kept)


def unlabelled_rows(
    dataset: DatasetDict, columns: TextColumns, like: Dataset, held_out: Sequence[Dataset]
) -> tuple[Dataset, int]:
    """All splits of `dataset` as one, with labels that say there are none, and with no text of an evaluated split.

    Where both have a second text it stays, and a row counts as evaluated when both its texts do.

    Args:
        like: rows whose ``labels`` give the form: -100 for class numbers, NaN for numbers and multi-hot rows.
        held_out: the evaluated splits, whose texts are left out.

    Returns:
        The rows, and how many were left out.
    """
    wanted = {columns.text: "text"}
    if columns.text_pair is not None and "text_pair" in like.column_names:
        wanted[columns.text_pair] = "text_pair"
    rows = concatenate_datasets([part.select_columns(list(wanted)) for part in dataset.values()])
    texts = {ours: [text or "" for text in rows[theirs]] for theirs, ours in wanted.items()}
    evaluated = {key for part in held_out for key in _keys([part[name] for name in wanted.values()])}
    keys = _keys(list(texts.values()))
    kept = [number for number, key in enumerate(keys) if key[0] and key not in evaluated]
    columns_kept = {name: [values[number] for number in kept] for name, values in texts.items()}
    made = Dataset.from_dict(columns_kept, features=Features({name: Value("string") for name in texts}))
    return without_labels(made, like), len(rows) - len(made)


def unlabelled_images(
    dataset: DatasetDict, columns: ImageColumns, like: Dataset, held_out: Sequence[Dataset]
) -> tuple[Dataset, int]:
    """As `unlabelled_rows`, of images: all splits as one, without the images of evaluated splits, told by their
    pixels."""
    seen, _ = columns.looked_at(dataset)
    rows = concatenate_datasets([columns.standard(part, []) for part in seen.values()])
    own = ImageColumns("image")
    evaluated = {key for part in held_out for key in own.keys(part)}
    kept = [number for number, key in enumerate(own.keys(rows)) if key not in evaluated]
    return without_labels(rows.select(kept), like), len(rows) - len(kept)


def without_labels(rows: Dataset, like: Dataset) -> Dataset:
    """Rows with a column ``labels``, in the form that it has in `like`, which says that there are none; or with an
    empty column ``label_map``, where `like` has maps."""
    if "label_map" in like.features:
        return rows.add_column("label_map", [None] * len(rows), feature=like.features["label_map"])
    feature = like.features["labels"]
    empty: Any = IGNORED
    if isinstance(feature, List | SequenceFeature):
        empty = [float("nan")] * len(like[0]["labels"])
    elif isinstance(feature, Value) and "float" in feature.dtype:
        empty = float("nan")
    return rows.add_column("labels", [empty] * len(rows), feature=feature)


def _keys(texts: Sequence[Sequence[str | None]]) -> list[tuple[str, ...]]:
    """What tells rows apart: their texts, normalised."""
    return [tuple(normalised_text(text or "") for text in row) for row in zip(*texts, strict=True)]


def viewed(rows: Dataset, views: int, seed: int) -> Dataset:
    """Each row as often as it has fixed views, with the column ``view`` that says which: first all rows in their first
    view, then all in their second, …"""
    numbers = [[seed, view, row] for view in range(views) for row in range(len(rows))]
    return joined([rows] * views).add_column(VIEW, numbers)


def joined(parts: Sequence[Dataset]) -> Dataset:
    """Rows one after the other."""
    return parts[0] if len(parts) == 1 else concatenate_datasets(list(parts))


def side_by_side(rows: Dataset, others: Dataset, names: Mapping[str, str]) -> Dataset:
    """Rows with some columns of the same rows as they stand elsewhere, under new names: {there: here}."""
    found = others.select_columns([name for name in names if name in others.column_names])
    return concatenate_datasets([rows, found.rename_columns({n: names[n] for n in found.column_names})], axis=1)


def in_order(rows: Dataset, names: Sequence[str], wanted: Sequence[str]) -> Dataset:
    """Rows whose class numbers (or multi-hot columns) follow `names`, renumbered to follow `wanted`; -100 stays."""
    if list(names) == list(wanted):
        return rows
    old_of_new = [list(names).index(name) for name in wanted]
    new_of_old = [list(wanted).index(name) for name in names]

    def renumbered(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {
            "labels": [
                [row[old] for old in old_of_new] if isinstance(row, list) else new_of_old[row] if row >= 0 else row
                for row in batch["labels"]
            ]
        }

    return rows.map(renumbered, batched=True, features=rows.features, desc="ordering classes")
