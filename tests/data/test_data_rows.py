"""Rows under the tasks' names, and rows without labels that never show an evaluated text."""

from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from potstill.data.columns import TextColumns
from potstill.data.prepare import Labels, encode_labels
from potstill.data.rows import in_order, joined, standard_columns, unlabelled_rows, with_labels

PLAIN = Dataset.from_dict({"text": ["a"], "labels": [1]})


def of(**columns: list[Any]) -> DatasetDict:
    """A data set of one split."""
    return DatasetDict(train=Dataset.from_dict(columns))


def test_standard_columns() -> None:
    rows = of(review=["a"], second=["b"], labels=[1], other=[2])
    assert standard_columns(rows, TextColumns("review"))["train"].to_list() == [{"text": "a", "labels": 1}]
    pair = standard_columns(rows, TextColumns("review", "second"))["train"].to_list()
    assert pair == [{"text": "a", "labels": 1, "text_pair": "b"}]


def test_columns_that_change_places() -> None:
    rows = of(text=["second"], text_pair=["first"], labels=[0])
    found = standard_columns(rows, TextColumns("text_pair", "text"))["train"].to_list()
    assert found == [{"text": "first", "labels": 0, "text_pair": "second"}]


def test_evaluated_texts_and_empty_ones_are_left_out() -> None:
    texts = ["new", "  SEEN  here", "", "   ", None, "other"]
    held_out = [Dataset.from_dict({"text": ["seen here"], "labels": [0]})]
    rows, dropped = unlabelled_rows(of(body=texts), TextColumns("body"), PLAIN, held_out)
    assert rows["text"][:] == ["new", "other"]
    assert rows["labels"][:] == [-100, -100]
    assert dropped == 4


def test_all_splits_are_one() -> None:
    parts = DatasetDict(
        train=Dataset.from_dict({"text": ["a", "b"]}), test=Dataset.from_dict({"text": ["c"], "label": [1]})
    )
    rows, dropped = unlabelled_rows(parts, TextColumns("text"), PLAIN, [])
    assert (rows["text"][:], dropped) == (["a", "b", "c"], 0)


@pytest.mark.parametrize(
    ("labels", "names", "values"),
    [([[0], [0, 1]], ("x", "y"), 2), ([0.5, 1.0], ("score",), 1)],
    ids=["several", "number"],
)
def test_the_form_of_the_labels_is_kept(labels: Any, names: tuple[str, ...], values: int) -> None:
    problem = "multi_label" if values == 2 else "regression"
    named = [[names[i] for i in row] for row in labels] if values == 2 else labels
    columns = TextColumns("text", label="label")
    encoded = encode_labels(of(text=["a", "b"], label=named), columns, Labels(problem, names))
    like = standard_columns(encoded, columns)["train"]
    rows, _ = unlabelled_rows(of(text=["c", "d", "e"]), TextColumns("text"), like, [])
    assert rows.features["labels"] == like.features["labels"]
    assert np.isnan(np.asarray(rows["labels"][:])).all()
    assert np.asarray(rows["labels"][:]).size == 3 * values
    assert len(joined([like, rows])) == 5


def test_second_texts_stay() -> None:
    """A pair counts as evaluated only where both of its texts do."""
    like = Dataset.from_dict({"text": ["a"], "text_pair": ["b"], "labels": [1]})
    held_out = [Dataset.from_dict({"text": ["a"], "text_pair": ["b"], "labels": [1]})]
    rows, dropped = unlabelled_rows(of(p=["a", "A"], h=["x", "B"]), TextColumns("p", "h"), like, held_out)
    assert rows.to_list() == [{"text": "a", "text_pair": "x", "labels": -100}]
    assert dropped == 1
    alone, _ = unlabelled_rows(of(p=["q"], h=["x"]), TextColumns("p", "h"), PLAIN, [])
    assert alone.column_names == ["text", "labels"], "where the task has no second text"


@pytest.mark.parametrize(
    "labels", [[0, -100, 1], [0.5, float("nan"), 1.0], [[0.0, 1.0], [float("nan"), float("nan")], [1.0, 1.0]]]
)
def test_rows_with_labels(labels: list[Any]) -> None:
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "labels": labels})
    assert with_labels(rows)["text"][:] == ["a", "c"]
    whole = rows.select([0, 2])
    assert with_labels(whole) is whole


def test_class_numbers_follow_another_order_of_the_names() -> None:
    rows = Dataset.from_dict({"text": list("abcd"), "labels": [0, 1, 2, -100]})
    assert in_order(rows, ["x", "y", "z"], ["z", "x", "y"])["labels"][:] == [1, 2, 0, -100]
    assert in_order(rows, ["x", "y", "z"], ["x", "y", "z"]) is rows
    several = Dataset.from_dict({"text": ["a", "b"], "labels": [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]})
    assert in_order(several, ["x", "y", "z"], ["z", "x", "y"])["labels"][:] == [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
