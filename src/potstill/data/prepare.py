"""The rows of a classification, from a loaded data set: columns, labels, and the checks before training.

What stands here is what the pipeline calls; the columns and the labels have a file each.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import DatasetDict

from potstill.checks import problem
from potstill.data.columns import Columns, TextColumns, guess_columns, normalised_text
from potstill.data.labels import Encoded, Labels, encode_labels, encoded_labels, infer_labels, label_problems
from potstill.errors import DataError

__all__ = [
    "Labels",
    "TextColumns",
    "check",
    "encode_labels",
    "guess_columns",
    "infer_labels",
    "normalised_text",
    "token_statistics",
]

_SHOWN = 5


def check(dataset: DatasetDict, columns: Columns, labels: Labels, min_rows: int = 1) -> None:
    """Everything that would spoil a training or an evaluation, before either starts.

    Empty splits, texts (or images) that are missing or none, labels that are missing in train or unknown anywhere, one
    class only, classes without a training row, numbers that aren't finite.

    Args:
        dataset: as loaded, before `encode_labels`.
        min_rows: the fewest rows that each split must have.

    Raises:
        DataError: one line for every problem.
    """
    problems: list[str] = []
    if "train" not in dataset:
        problems.append(problem("The data has no split train", given=", ".join(dataset) or "no split"))
    for split, rows in dataset.items():
        if len(rows) < max(min_rows, 1):
            problems.append(
                problem(f"The split {split} has {len(rows)} rows", follows=f"At least {max(min_rows, 1)} are needed")
            )
            continue
        missing = [name for name in columns.inputs if name not in rows.column_names]
        missing += [name for name in columns.label_columns if name not in rows.column_names and split == "train"]
        problems += [problem(f"The split {split} has no column '{name}'") for name in missing]
        for name in columns.inputs:
            if name not in missing:
                problems += columns.problems(split, rows, name)
        try:
            encoded = encoded_labels(rows, columns, labels)
        except DataError as error:
            problems.append(f"{split}: {error}")
            continue
        if columns.label is not None and not set(missing) & set(columns.label_columns):
            problems += label_problems(split, encoded, labels)
            problems += _value_problems(split, encoded, labels)
    if problems:
        raise DataError("\n".join(problems))


def token_statistics(lengths: Sequence[int] | np.ndarray[Any, Any]) -> dict[str, float]:
    """Mean, 95th percentile and maximum of lengths in tokens, under ``mean``, ``p95``, ``max``."""
    values = np.asarray(lengths)
    if not values.size:
        raise DataError(problem("There are no rows to take the lengths of"))
    return {"mean": float(values.mean()), "p95": float(np.percentile(values, 95)), "max": float(values.max())}


def _value_problems(split: str, encoded: Encoded, labels: Labels) -> list[str]:
    """What training would make nothing of: numbers that aren't finite, too few classes, classes without rows."""
    present = encoded.values[~encoded.missing]
    if labels.problem == "regression":
        odd = int((~np.isfinite(present.astype(np.float64))).sum())
        if odd and not encoded.unknown:
            return [problem(f"{odd} labels in {split} are NaN or infinite", do="Correct or remove these rows")]
        return []
    if split != "train":
        return []
    if labels.problem == "single_label":
        counts = np.bincount(present[present >= 0].astype(np.int64), minlength=len(labels.names))
    else:
        counts = np.nansum(present.reshape(-1, len(labels.names)), axis=0)
    without = [name for name, count in zip(labels.names, counts, strict=True) if count == 0]
    if labels.problem == "single_label" and len(labels.names) - len(without) < 2:
        only = [name for name, count in zip(labels.names, counts, strict=True) if count]
        return [
            problem(
                "The training rows show fewer than two classes",
                given=", ".join(only) or "none",
                follows="There is nothing to tell apart",
                do="Check data.columns.label",
            )
        ]
    if without:
        shown = ", ".join(without[:_SHOWN]) + (f" and {len(without) - _SHOWN} more" if len(without) > _SHOWN else "")
        return [
            problem(
                f"{len(without)} of {len(labels.names)} classes have no training row",
                given=shown,
                follows="No model can learn them",
                do="Add rows, or name in data.names only the classes that there are",
            )
        ]
    return []
