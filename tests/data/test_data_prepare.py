"""Columns, labels and the checks before training."""

import time
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from potstill.data.prepare import (
    Labels,
    TextColumns,
    check,
    encode_labels,
    guess_columns,
    infer_labels,
    normalised_text,
    token_statistics,
)
from potstill.errors import DataError

SINGLE = Labels("single_label", ("negative", "positive"))


def table(**columns: Any) -> Dataset:
    return Dataset.from_dict(columns)


def splits(**parts: Dataset) -> DatasetDict:
    return DatasetDict(parts)


def encoded(column: list[Any], labels: Labels, features: Any = None, split: str = "test") -> list[Any]:
    """The labels of one split; train has nothing but a first row that is well labelled where there is one."""
    rows = Dataset.from_dict({"y": column}, features=Features({"y": features}) if features else None)
    return encode_labels(splits(**{split: rows}), TextColumns("t", label="y"), labels)[split]["labels"][:]


def test_guesses_are_said() -> None:
    columns, notes = guess_columns(splits(train=table(idx=[1], sentence=["a"], label=[0])))
    assert columns == TextColumns("sentence", None, "label")
    assert notes == [
        "text column: 'sentence' (guessed; set data.columns.text to change it)",
        "label column: 'label' (guessed; set data.columns.label to change it)",
    ]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["text", "label"], ("text", None, "label")),
        (["Review", "Sentiment"], ("Review", None, "Sentiment")),
        (["premise", "hypothesis", "label"], ("premise", "hypothesis", "label")),
        (["sentence2", "sentence1", "score"], ("sentence1", "sentence2", "score")),
        (["question", "sentence", "label"], ("question", "sentence", "label")),
        (["tweet", "class"], ("tweet", None, "class")),
        (["utterance", "intent"], ("utterance", None, "intent")),
        (["id", "title", "content", "label"], ("content", None, "label")),
        (["quote", "target"], ("quote", None, "target")),
    ],
)
def test_usual_names(names: list[str], expected: tuple[str, str | None, str]) -> None:
    rows = table(**{name: [1] if name == "id" else ["x"] for name in names})
    columns, notes = guess_columns(rows)
    assert (columns.text, columns.text_pair, columns.label) == expected
    assert len(notes) == (3 if expected[1] else 2)


def test_what_is_named_is_not_guessed() -> None:
    rows = table(premise=["a"], hypothesis=["b"], gold=[0], label=[1])
    columns, notes = guess_columns(rows, {"text": "hypothesis", "text_pair": "premise", "label": "gold"})
    assert columns == TextColumns("hypothesis", "premise", "gold") and notes == []
    assert guess_columns(rows, {"text": "premise", "text_pair": None, "label": None})[0] == TextColumns(
        "premise", None, "label"
    )
    assert guess_columns(rows, {"text_pair": "hypothesis"})[0] == TextColumns("premise", "hypothesis", "label")
    assert guess_columns(rows, {"label": ["gold", "label"]})[0].label == ("gold", "label")
    assert guess_columns(rows, {"label": ["gold"]})[0].label == "gold"


def test_unlabelled_rows_need_no_label() -> None:
    columns, notes = guess_columns(table(text=["a"]), labelled=False)
    assert columns.label is None and columns.label_columns == () and columns.texts == ("text",) and len(notes) == 1


@pytest.mark.parametrize(
    ("rows", "given", "said"),
    [
        (table(sentence=["a"], label=[1]), {"text": "sentense"}, "Did you mean 'sentence'.*Columns: sentence, label"),
        (table(a=["a"], b=["b"], label=[1]), {}, "holds the text can't be told.*columns a, b, label"),
        (table(text=["a"], n=[1]), {}, "holds the label can't be told"),
        (table(text=["a"]), {"text": "text", "label": "text"}, "two roles"),
        (table(text=["a"], label=[1]), {"text": ["text", "label"]}, "is one column"),
    ],
)
def test_columns_that_are_not_there(rows: Dataset, given: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        guess_columns(rows, given)


def test_every_missing_column_at_once() -> None:
    with pytest.raises(DataError) as caught:
        guess_columns(table(x=[1]), {"text": "a", "label": ["b", "c"]})
    assert len(str(caught.value).splitlines()) == 3
    with pytest.raises(DataError, match="no split"):
        guess_columns(DatasetDict())


CLASSES = ClassLabel(names=["no", "yes"])


@pytest.mark.parametrize(
    ("values", "feature", "expected"),
    [
        (["b", "a", None, "b", ""], None, Labels("single_label", ("a", "b"))),
        ([10, 9, -1, 9], None, Labels("single_label", ("9", "10"))),
        ([True, False], None, Labels("single_label", ("false", "true"))),
        ([0, 1, -1], CLASSES, Labels("single_label", ("no", "yes"))),
        ([0.5, 1.0], None, Labels("regression", ("y",))),
        ([["b"], [], ["a", "b"]], None, Labels("multi_label", ("a", "b"))),
        ([[2], [0, 11]], None, Labels("multi_label", ("0", "2", "11"))),
        ([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]], None, Labels("multi_label", ("0", "1", "2"))),
        ([[0, 1, 1], [0, 0, 0]], None, Labels("multi_label", ("0", "1", "2"))),
        ([[1], [0, 1]], List(CLASSES), Labels("multi_label", ("no", "yes"))),
    ],
)
def test_labels_are_inferred(values: list[Any], feature: Any, expected: Labels) -> None:
    rows = Dataset.from_dict({"y": values}, features=Features({"y": feature}) if feature else None)
    assert infer_labels(rows, "y") == expected


def test_labels_after_a_selection() -> None:
    rows = table(y=["a", "b", "c"]).select([2, 0])
    assert infer_labels(rows, "y").names == ("a", "c")
    assert encode_labels(rows, TextColumns("t", label="y"), Labels("single_label", ("a", "c")))["labels"][:] == [1, 0]


def test_what_is_said_goes() -> None:
    assert infer_labels(table(y=[1, 2]), "y", "regression") == Labels("regression", ("y",))
    assert infer_labels(table(y=[1.0, 0.0, float("nan")]), "y", "single_label") == Labels("single_label", ("0", "1"))
    assert infer_labels(table(y=[0, 1]), "y", names=["bad", "good"]).names == ("bad", "good")
    assert infer_labels(table(a=[0, 1], b=[1, 1]), ["a", "b"]) == Labels("multi_label", ("a", "b"))
    assert infer_labels(table(y=[0.5]), "y", names=["score"]) == Labels("regression", ("score",))


@pytest.mark.parametrize(
    ("values", "problem", "names", "said"),
    [
        (["a", "b"], "regression", None, "can't be a regression problem"),
        (["a", "b"], "multi_label", None, "several classes a row are a list"),
        ([["a"]], "single_label", None, "can't be a single_label problem"),
        ([0.5, 1.0], "single_label", None, "fractions"),
        ([0, 1], None, ["a", "a"], "stands twice"),
        ([0, 1], "classification", None, "single_label, multi_label or regression"),
        ([[0.5, 0.5]], None, None, "hold 0 or 1 for each class"),
        ([{"a": 1}], None, None, "can't hold labels"),
    ],
)
def test_labels_that_do_not_fit(values: list[Any], problem: Any, names: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        infer_labels(table(y=values), "y", problem, names)


def test_several_columns_need_a_name_each() -> None:
    with pytest.raises(DataError, match="2 columns, 1 names"):
        infer_labels(table(a=[0], b=[1]), ["a", "b"], names=["x"])


@pytest.mark.parametrize(
    ("values", "feature", "names", "expected"),
    [
        (["b", "a", None, ""], None, ("a", "b"), [1, 0, -100, -100]),
        ([10, 9, -1, None], None, ("9", "10"), [1, 0, -100, -100]),
        ([1, 0, -1], None, ("bad", "good"), [1, 0, -100]),
        ([True, None, False], None, ("false", "true"), [1, -100, 0]),
        ([True, False], None, ("dull", "bright"), [1, 0]),
        ([0, 1, -1], CLASSES, ("no", "yes"), [0, 1, -100]),
        ([0, 1], CLASSES, ("yes", "no"), [1, 0]),
        ([0, 1], CLASSES, ("refused", "granted"), [0, 1]),
        ([None, None], None, ("a", "b"), [-100, -100]),
        ([1.0, 0.0], None, ("0", "1"), [1, 0]),
    ],
)
def test_single_labels(values: list[Any], feature: Any, names: tuple[str, ...], expected: list[int]) -> None:
    assert encoded(values, Labels("single_label", names), feature) == expected


@pytest.mark.parametrize(
    ("values", "feature", "names", "expected"),
    [
        ([["b"], [], None, ["a", "b"]], None, ("a", "b"), [[0, 1], [0, 0], None, [1, 1]]),
        ([[2], [0, 2]], None, ("0", "2"), [[0, 1], [1, 1]]),
        ([[1], [0, 1]], None, ("x", "y"), [[0, 1], [1, 1]]),
        ([[0, 1, 1], None], None, ("x", "y", "z"), [[0, 1, 1], None]),
        ([[0.0, 1.0], [1.0, 1.0]], None, ("x", "y"), [[0, 1], [1, 1]]),
        ([[1], [0, 1]], List(CLASSES), ("yes", "no"), [[1, 0], [1, 1]]),
        ([[0, 1]], List(Value("int64"), length=2), ("x", "y"), [[0, 1]]),
    ],
)
def test_multi_labels(values: list[Any], feature: Any, names: tuple[str, ...], expected: list[Any]) -> None:
    nan = [float("nan")] * len(names)
    found = np.array(encoded(values, Labels("multi_label", names), feature))
    np.testing.assert_array_equal(found, np.array([nan if row is None else row for row in expected], dtype=float))


def test_several_label_columns() -> None:
    rows = table(t=["x"] * 4, a=[0, 1, -1, None], b=[1.0, 1.0, 0.0, 0.0])
    made = encode_labels(splits(test=rows), TextColumns("t", label=("a", "b")), Labels("multi_label", ("a", "b")))[
        "test"
    ]
    nan = float("nan")
    np.testing.assert_array_equal(np.array(made["labels"][:]), [[0, 1], [1, 1], [nan, nan], [nan, nan]])
    assert made.features["labels"] == List(Value("float32"))
    with pytest.raises(DataError, match=r"'2 in a' \(1 rows\)"):
        encode_labels(table(a=[2], b=[0]), TextColumns("t", label=("a", "b")), Labels("multi_label", ("a", "b")))


def test_numbers() -> None:
    labels = Labels("regression", ("y",))
    assert encoded([1, -1], labels) == [1.0, -1.0]
    np.testing.assert_array_equal(encoded([0.5, None], labels), [0.5, float("nan")])
    assert encoded(["0.5", " 2e1 "], labels) == [0.5, 20.0]
    with pytest.raises(DataError, match=r"among numbers. Got: 'x' \(1 rows\)"):
        encoded(["0.5", "x"], labels)


def test_types_of_labels_and_other_columns() -> None:
    rows = splits(train=table(text=["a", "b"], labels=["positive", "negative"]), unlabelled=table(text=["c"]))
    made = encode_labels(rows, TextColumns("text", label="labels"), SINGLE)
    assert made["train"].features["labels"] == Value("int64") and made["train"]["labels"][:] == [1, 0]
    assert made["unlabelled"]["labels"][:] == [-100] and made["train"]["text"][:] == ["a", "b"]
    assert rows["train"]["labels"][:] == ["positive", "negative"]
    numbers = encode_labels(table(text=["c"]), TextColumns("text"), Labels("regression", ("y",)))
    assert numbers.features["labels"] == Value("float32") and np.isnan(numbers["labels"][0])


def test_unknown_and_missing_labels_are_counted() -> None:
    rows = splits(
        train=table(y=["positive", None, "", "good", "good", "bad"]),
        test=table(y=["neutral", "positive", None]),
    )
    with pytest.raises(DataError) as caught:
        encode_labels(rows, TextColumns("t", label="y"), SINGLE)
    unknown, missing, test = str(caught.value).splitlines()
    assert (
        "3 labels in train are not among the classes negative, positive. Got: 'good' (2 rows), 'bad' (1 rows)"
        in unknown
    )
    assert "2 of 6 rows in train have no label" in missing and "row 1" in missing
    assert "1 labels in test" in test and "'neutral' (1 rows)" in test


def test_lists_of_another_length() -> None:
    with pytest.raises(DataError, match="lists of 3 instead of 2"):
        encoded([[0, 1, 1]], Labels("multi_label", ("a", "b")))


def good() -> DatasetDict:
    rows = table(text=["a", "b", "c"], other=["", "x", "y"], y=["positive", "negative", "positive"])
    return splits(train=rows, test=rows)


COLUMNS = TextColumns("text", "other", "y")


def complaints(
    dataset: DatasetDict, columns: TextColumns = COLUMNS, labels: Labels = SINGLE, **options: int
) -> list[str]:
    with pytest.raises(DataError) as caught:
        check(dataset, columns, labels, **options)
    return str(caught.value).splitlines()


def test_good_data_passes() -> None:
    check(good(), COLUMNS, SINGLE)
    check(splits(**good(), unlabelled=table(text=["d"], other=["e"])), COLUMNS, SINGLE, min_rows=1)


def test_every_problem_at_once() -> None:
    dataset = splits(
        train=table(text=["a", " ", None, "d"], other=["", None, "x", "y"], y=["positive", "positive", None, "odd"]),
        validation=good()["test"].select([]),
        test=table(text=[1, 2], y=["positive", "negative"]),
    )
    found = complaints(dataset)
    expected = [
        "2 rows of train have no text in 'text'. Got: rows 1, 2",
        "1 rows of train have no text in 'other'",
        "1 labels in train are not among",
        "1 of 4 rows in train have no label",
        "fewer than two classes. Got: positive",
        "The split validation has 0 rows",
        "The split test has no column 'other'",
        "The column 'text' of test holds no text. Got: int64",
    ]
    assert [part for part, line in zip(expected, found, strict=True) if part not in line] == []


def test_one_class_and_classes_without_rows() -> None:
    one = splits(train=table(text=["a"], y=["positive"]))
    assert "fewer than two classes. Got: positive" in complaints(one, TextColumns("text", label="y"))[0]
    three = Labels("single_label", ("negative", "neutral", "positive"))
    assert "1 of 3 classes have no training row. Got: neutral" in complaints(good(), labels=three)[0]
    lists = splits(train=table(text=["a", "b"], y=[["x"], []]))
    many = complaints(lists, TextColumns("text", label="y"), Labels("multi_label", ("x", *"abcdefg")))
    assert "7 of 8 classes" in many[0] and "and 2 more" in many[0]


def test_numbers_that_are_not_finite() -> None:
    rows = splits(train=table(text=["a", "b", "c"], y=[1.0, float("nan"), float("inf")]))
    found = complaints(rows, TextColumns("text", label="y"), Labels("regression", ("y",)))
    assert found == ["2 labels in train are NaN or infinite. Correct or remove these rows."]


def test_missing_train_missing_label_column_and_few_rows() -> None:
    assert "no split train" in complaints(splits(test=good()["test"]))[0]
    assert complaints(splits(train=good()["train"].remove_columns("y"))) == ["The split train has no column 'y'."]
    assert "has 3 rows. At least 4 are needed" in complaints(good(), min_rows=4)[0]


def test_token_statistics() -> None:
    assert token_statistics(list(range(1, 101))) == {"mean": 50.5, "p95": pytest.approx(95.05), "max": 100.0}
    with pytest.raises(DataError):
        token_statistics([])


def test_normalised_text() -> None:
    assert normalised_text("  Straße\tIST \n") == "strasse ist"


@pytest.mark.parametrize("kind", ["text", "list"])
def test_a_hundred_thousand_rows_take_seconds(kind: str) -> None:
    count, classes = 100_000, [f"class {number}" for number in range(100)]
    values: list[Any] = [classes[row % 100] for row in range(count)]
    rows = table(text=["some text"] * count, y=values if kind == "text" else [[value] for value in values])
    columns = TextColumns("text", label="y")
    start = time.monotonic()
    labels = infer_labels(rows, "y")
    check(splits(train=rows), columns, labels)
    assert len(encode_labels(splits(train=rows), columns, labels)["train"]) == count
    assert time.monotonic() - start < 10
