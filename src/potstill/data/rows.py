"""Rows under the names that tasks know (``text``, ``text_pair``, ``labels``), and rows without labels beside them."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Sequence as SequenceFeature, Value, concatenate_datasets

from potstill.data.columns import TextColumns, normalised_text

IGNORED = -100
STANDARD = ("text", "text_pair", "labels")


def standard_columns(dataset: DatasetDict, columns: TextColumns) -> dict[str, Dataset]:
    """Each split with the columns ``text``, ``text_pair`` (if there is one) and ``labels``, and no others."""
    return {split: _standard(rows, columns) for split, rows in dataset.items()}


def _standard(rows: Dataset, columns: TextColumns) -> Dataset:
    wanted = {columns.text: "text", "labels": "labels"}
    if columns.text_pair is not None:
        wanted[columns.text_pair] = "text_pair"
    rows = rows.select_columns(list(wanted))
    return rows.rename_columns({old: new for old, new in wanted.items() if old != new})


def unlabelled_rows(
    dataset: DatasetDict, columns: TextColumns, like: Dataset, held_out: Sequence[Dataset]
) -> tuple[Dataset, int]:
    """All splits of `dataset` as one, with labels that say there are none, and with no text of an evaluated split.

    Args:
        like: rows whose ``labels`` give the form: -100 for class numbers, NaN for numbers and multi-hot rows.
        held_out: the evaluated splits, whose texts are left out.

    Returns:
        The rows, and how many were left out.
    """
    rows = concatenate_datasets([part.select_columns([columns.text]) for part in dataset.values()])
    if columns.text != "text":
        rows = rows.rename_column(columns.text, "text")
    evaluated = {normalised_text(text) for part in held_out for text in part["text"]}
    texts = [text for text in rows["text"] if text and normalised_text(text) not in evaluated]
    feature = like.features["labels"]
    empty: Any = IGNORED
    if isinstance(feature, List | SequenceFeature):
        empty = [float("nan")] * len(like[0]["labels"])
    elif isinstance(feature, Value) and "float" in feature.dtype:
        empty = float("nan")
    features = Features({"text": Value("string"), "labels": feature})
    made = Dataset.from_dict({"text": texts, "labels": [empty] * len(texts)}, features=features)
    return made, len(rows) - len(made)


def joined(parts: Sequence[Dataset]) -> Dataset:
    """Rows one after the other."""
    return parts[0] if len(parts) == 1 else concatenate_datasets(list(parts))
