"""Which columns hold the text and the label: what the recipe names, else a guess by name that is said.

A guess is never silent: each one comes back as a note that tells which key of the recipe changes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Value

from potstill.checks import nearest, problem
from potstill.errors import DataError

_SHOWN = 5

# First name, second name. The first pair that a table has is taken, before any single column.
PAIRS = (
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("sentence_a", "sentence_b"),
    ("text1", "text2"),
    ("text_1", "text_2"),
    ("text_a", "text_b"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "answer"),
    ("query", "document"),
    ("query", "passage"),
    ("text", "text_pair"),
)
TEXTS = (
    *(
        "text",
        "sentence",
        "review",
        "review_body",
        "content",
        "tweet",
        "comment",
        "comment_text",
        "document",
        "question",
    ),
    *("query", "utterance", "message", "body", "headline", "title", "sms", "premise", "sentence1", "text1"),
)
LABELS = (
    *("label", "labels", "target", "class", "category", "sentiment", "intent", "emotion", "topic", "label-coarse"),
    *("coarse_label", "score", "rating", "stars", "similarity_score", "gold_label", "y"),
)


class Columns(Protocol):
    """The columns of a task, whatever comes in."""

    what: ClassVar[str]
    """What a row shows, in words: a text, an image."""

    @property
    def label(self) -> str | tuple[str, ...] | None:
        """The column of the label, or the label columns of a multi-label problem."""

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The label columns; none for unlabelled data."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that a model is given."""

    def looked_at(self, dataset: DatasetDict) -> tuple[DatasetDict, list[str]]:
        """The data after all that takes a look at every row has been done, and what the user has to know of it."""

    def keys(self, rows: Dataset) -> list[str]:
        """What tells rows apart, one text a row: two rows with the same show the same."""

    def problems(self, split: str, rows: Dataset, name: str) -> list[str]:
        """What would spoil a training in one of the `inputs`, a line each."""

    def standard(self, rows: Dataset, kept: Sequence[str]) -> Dataset:
        """The `inputs` under the names that tasks know, the columns `kept`, and no others."""


@dataclass(frozen=True)
class TextColumns:
    """The columns of a text classification. Several label columns (0 or 1 each) make a multi-label problem."""

    text: str
    text_pair: str | None = None
    label: str | tuple[str, ...] | None = None

    what: ClassVar[str] = "a text"

    @property
    def texts(self) -> tuple[str, ...]:
        """The text columns, one or two."""
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that a model is given: the texts."""
        return self.texts

    def looked_at(self, dataset: DatasetDict) -> tuple[DatasetDict, list[str]]:
        """Texts as they are."""
        return dataset, []

    def keys(self, rows: Dataset) -> list[str]:
        """What tells rows apart: their texts, normalised."""
        return text_keys(rows, self.texts)

    def problems(self, split: str, rows: Dataset, name: str) -> list[str]:
        """Texts that are missing, empty or none."""
        return text_problems(split, rows, name, may_be_empty=name == self.text_pair)

    def standard(self, rows: Dataset, kept: Sequence[str]) -> Dataset:
        """``text``, ``text_pair`` (if there is one), and the columns `kept`."""
        names = {self.text: "text", **({} if self.text_pair is None else {self.text_pair: "text_pair"})}
        rows = rows.select_columns([*names, *kept])
        return rows.rename_columns({old: new for old, new in names.items() if old != new})

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The label columns; none for unlabelled data."""
        return _as_tuple(self.label)


def text_keys(rows: Dataset, names: Sequence[str]) -> list[str]:
    """What tells rows apart, one a row: the texts of some columns, normalised."""
    table = rows.select_columns(list(names)).with_format("arrow")[:]
    texts = [table.column(name).to_pylist() for name in names]
    return ["\0".join(normalised_text(str(text)) for text in row) for row in zip(*texts, strict=True)]


def text_problems(split: str, rows: Dataset, name: str, *, may_be_empty: bool) -> list[str]:
    """What is wrong with a column of texts: not of text, missing, empty."""
    column = rows.select_columns([name]).with_format("arrow")[:].column(name)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return [
            problem(f"The column '{name}' of {split} holds no text", given=str(column.type), do="Set data.columns.text")
        ]
    empty = column.is_null()
    if not may_be_empty:
        empty = pc.or_(empty, pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), False))
    places = np.flatnonzero(empty.to_numpy())
    if not len(places):
        return []
    shown = ", ".join(str(place) for place in places[:_SHOWN])
    return [
        problem(
            f"{len(places)} rows of {split} have no text in '{name}'",
            given=f"rows {shown}{', …' if len(places) > _SHOWN else ''} (counted from 0)",
            do="Remove them",
        )
    ]


def normalised_text(text: str) -> str:
    """A text without case and with single spaces: two texts that are equal so count as the same."""
    return " ".join(text.casefold().split())


def guess_columns(
    dataset: Dataset | DatasetDict,
    given: Mapping[str, str | list[str] | None] | None = None,
    *,
    labelled: bool = True,
) -> tuple[TextColumns, list[str]]:
    """The columns of text, second text and label.

    Args:
        dataset: of a dict of splits, train (or else the first one) is looked at.
        given: what the recipe names, under ``text``, ``text_pair`` and ``label`` (a list: several label columns); None
            is not named. Where ``text`` is named, a second text is never guessed.
        labelled: False for transfer text, which needs no label column.

    Returns:
        the columns, and a note for each that was guessed.

    Raises:
        DataError: a named column isn't there, or none could be guessed; every problem at once.
    """
    train = first_split(dataset)
    given = {role: names for role, names in (given or {}).items() if names}
    known = train.column_names
    roles = [(role, name) for role, name in _named(given) if role != "label"]
    problems = [missing_column(role, name, known) for role, name in roles if name not in known]
    text, pair = _one("text", given), _one("text_pair", given)
    named = {name for _, name in _named(given)}
    label, notes, wrong = find_label(train, given.get("label"), named, labelled=labelled)
    problems += wrong
    if text is None:
        text, second = _guess_text(train, named | {*_as_tuple(label)})
        if second is not None and pair is None:
            pair = second
            notes.insert(0, f"{guess_note('text_pair', pair)[:-1]}; name data.columns.text for one text only)")
        notes[:0] = [guess_note("text", text)] if text else []
        problems += [] if text else [_none_found("text", known)]
    found = [name for name in (text, pair, *_as_tuple(label)) if name]
    if len(set(found)) < len(found):
        problems.append(
            problem("One column can't have two roles", given=f"text {text}, text_pair {pair}, label {label}")
        )
    if problems or text is None:
        raise DataError("\n".join(problems))
    return TextColumns(text, pair, label), notes


def first_split(dataset: Dataset | DatasetDict) -> Dataset:
    """The split that columns are found in: train, or else the first."""
    if isinstance(dataset, Dataset):
        return dataset
    if not dataset:
        raise DataError(problem("The data holds no split", do="Give at least a train split"))
    return dataset["train"] if "train" in dataset else next(iter(dataset.values()))


def _named(given: Mapping[str, str | list[str] | None]) -> list[tuple[str, str]]:
    """(role, column) for every column that is named."""
    pairs: list[tuple[str, str]] = []
    for role, names in given.items():
        columns = [names] if isinstance(names, str) else list(names or [])
        pairs += [(role, name) for name in columns]
    return pairs


def _as_label(names: str | list[str] | None) -> str | tuple[str, ...] | None:
    if names is None or isinstance(names, str):
        return names
    return names[0] if len(names) == 1 else tuple(names) or None


def _as_tuple(label: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (label,) if isinstance(label, str) else label or ()


def _one(role: str, given: Mapping[str, str | list[str] | None]) -> str | None:
    names = given.get(role)
    if isinstance(names, list):
        if len(names) != 1:
            raise DataError(problem(f"data.columns.{role} is one column", given=", ".join(names)))
        return names[0]
    return names


def _is_text(train: Dataset, name: str) -> bool:
    feature = train.features[name]
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _match(train: Dataset, wanted: str, taken: set[str]) -> str | None:
    """The column of this name, whatever its case."""
    fitting = [name for name in train.column_names if name.casefold() == wanted and name not in taken]
    return fitting[0] if fitting else None


def _guess_text(train: Dataset, taken: set[str]) -> tuple[str | None, str | None]:
    for first, second in PAIRS:
        columns = [_match(train, name, taken) for name in (first, second)]
        if all(name is not None and _is_text(train, name) for name in columns):
            return columns[0], columns[1]
    for wanted in TEXTS:
        name = _match(train, wanted, taken)
        if name is not None and _is_text(train, name):
            return name, None
    texts = [name for name in train.column_names if name not in taken and _is_text(train, name)]
    return (texts[0], None) if len(texts) == 1 else (None, None)


def find_label(
    train: Dataset, given: str | list[str] | None, taken: set[str], *, labelled: bool
) -> tuple[str | tuple[str, ...] | None, list[str], list[str]]:
    """The label column or columns, named or guessed; what is said of a guess, and what is wrong.

    Args:
        given: what the recipe names.
        taken: columns that are something else.
        labelled: whether there has to be one.
    """
    label = _as_label(given)
    known = train.column_names
    if label is not None or not labelled:
        return label, [], [missing_column("label", name, known) for name in _as_tuple(label) if name not in known]
    label = _guess_label(train, taken)
    return (label, [guess_note("label", label)], []) if label else (None, [], [_none_found("label", known)])


def _guess_label(train: Dataset, taken: set[str]) -> str | None:
    for wanted in LABELS:
        name = _match(train, wanted, taken)
        if name is not None:
            return name
    classes = [name for name, feature in train.features.items() if isinstance(feature, ClassLabel)]
    return classes[0] if len(classes) == 1 else None


def guess_note(role: str, name: str) -> str:
    """What is said of a column that was guessed."""
    return f"{role} column: '{name}' (guessed; set data.columns.{role} to change it)"


def missing_column(role: str, name: str, known: Sequence[str]) -> str:
    """What is said of a column that was named and isn't there."""
    return f"The {role} column '{name}' isn't there.{nearest(name, known)} Columns: {', '.join(known)}."


def _none_found(role: str, known: Sequence[str]) -> str:
    return problem(
        f"Which column holds the {role} can't be told from the names",
        given=f"columns {', '.join(known)}",
        do=f"Set data.columns.{role}",
    )
