"""The packaged reviews: sentences with the mean rating of some twenty people, as labelled data.

Hutto, Gilbert: "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014.

- The label is the sign of the mean rating (-4 ... 4). Sentences rated nearer to 0 than `margin` are left out.
- Which split a sentence belongs to follows from a hash of its own text, nothing else. So it is the same for every
  choice of sources and margin: no choice puts a test sentence of another choice into train.
- The two thresholds give exactly 2,000 test and 1,000 validation rows for the default choice (15.3 % and 7.7 % of it);
  other choices get about the same shares.
- Of sentences that are equal but for case and white space, across all sources, the first one is kept.
- With four classes, a rating of 2 or more (of 4) in size is very negative or very positive: for methods that compare
  the classes besides the true one, which two classes don't have.
- HTML entities (``&amp;``) are what the collection of the texts left behind; they are turned into characters.
"""

import hashlib
import html
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict

from potstill.checks import problem, unknown_name
from potstill.data.columns import normalised_text
from potstill.errors import DataError

FILES = {
    "film": "movieReviewSnippets_GroundTruth.txt",
    "product": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
}
DEFAULT_SOURCES = ("film", "product")
DEFAULT_MARGIN = 0.5
DEFAULT_CLASSES = 2
CLASSES = (2, 4)
STRONG = 2.0  # the least size of a rating that is called very positive or very negative
TEST_BELOW = 0.15476
VALIDATION_BELOW = 0.23027
_SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("label", pa.string()),
        ("rating", pa.float64()),
        ("source", pa.string()),
        ("id", pa.string()),
    ]
)


def reviews_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check ``sources``, ``margin`` and ``classes`` and fill in the defaults; `DataError` lists every problem."""
    known = ("sources", "margin", "classes")
    problems = [unknown_name("option of the sample reviews", name, known) for name in options if name not in known]
    sources = options.get("sources", DEFAULT_SOURCES)
    sources = [sources] if isinstance(sources, str) else sources
    if not isinstance(sources, list | tuple):
        problems.append(problem("The sources of reviews are a list of names", given=repr(sources)))
        sources = DEFAULT_SOURCES
    problems += [unknown_name("source of reviews", str(name), FILES) for name in sources if name not in FILES]
    if not sources:
        problems.append(problem("The sample reviews needs at least one source", do=f"Take of: {', '.join(FILES)}"))
    margin = options.get("margin", DEFAULT_MARGIN)
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin < 4:
        problems.append(problem("The margin of reviews is a number from 0 to below 4", given=repr(margin)))
    classes = options.get("classes", DEFAULT_CLASSES)
    if classes not in CLASSES or isinstance(classes, bool):
        problems.append(problem("The classes of reviews are 2 or 4 in number", given=repr(classes)))
    if problems:
        raise DataError("\n".join(problems))
    return {"sources": tuple(sources), "margin": float(margin), "classes": classes}


def read_reviews(
    folder: Path,
    sources: Sequence[str] = DEFAULT_SOURCES,
    margin: float = DEFAULT_MARGIN,
    classes: int = DEFAULT_CLASSES,
) -> DatasetDict:
    """Rated sentences as train, validation and test.

    Args:
        folder: the files as published.
        sources: of film, product, tweets, editorials; in this order whatever the order given.
        margin: leave out sentences whose mean rating lies nearer to 0 than this, in points of the scale -4 ... 4. With
            0 only those rated exactly 0 are left out, which have no side.
        classes: 2, or 4 with "very negative" and "very positive" for strong ratings.

    Returns:
        columns text, label ("negative", "positive", …), rating, source, id. The rows of a split stand in the order of
        their hash, so that the first n of them are a fair sample.
    """
    splits: dict[str, list[tuple[float, dict[str, Any]]]] = {"train": [], "validation": [], "test": []}
    seen: set[str] = set()
    for name in FILES:
        for row in _rows(folder, name) if name in sources else ():
            key = normalised_text(row["text"])
            if not key or key in seen or abs(row["rating"]) < margin or row["rating"] == 0:
                continue
            seen.add(key)
            if classes == 4 and abs(row["rating"]) >= STRONG:
                row["label"] = f"very {row['label']}"
            place = draw(key)
            split = "test" if place < TEST_BELOW else "validation" if place < VALIDATION_BELOW else "train"
            splits[split].append((place, row))
    return DatasetDict(
        {
            split: Dataset(pa.Table.from_pylist([row for _, row in sorted(rows, key=lambda one: one[0])], _SCHEMA))
            for split, rows in splits.items()
        }
    )


def draw(key: str) -> float:
    """A number in [0, 1) that depends on the text alone, evenly spread over texts."""
    digest = hashlib.sha256(f"potstill reviews\n{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _rows(folder: Path, source: str) -> Iterator[dict[str, Any]]:
    """The rows of one file: id, mean rating and text, separated by tabs, in UTF-8."""
    path = folder / FILES[source]
    lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines, which also breaks at characters in a text
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = line.split("\t")
        rating = _number(parts[1]) if len(parts) == 3 else math.nan
        if math.isnan(rating):
            raise DataError(problem(f"{path.name}, line {number}, is not id, rating and text", given=repr(line[:80])))
        text = html.unescape(parts[2]).strip()
        label = "positive" if rating > 0 else "negative"
        yield {"text": text, "label": label, "rating": rating, "source": source, "id": f"{source}-{parts[0].strip()}"}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
