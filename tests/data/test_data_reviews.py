"""Rated sentences as labelled rows: labels, what is left out, and splits that don't depend on the choice."""

from pathlib import Path

import pytest

from potstill.data.columns import normalised_text
from potstill.data.reviews import DEFAULT_SOURCES, FILES, draw, read_reviews, reviews_options
from potstill.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, (source, file) in enumerate(FILES.items()):
        rows = [f"{row}\t{(row % 9 - 4) * 0.9 + 0.05:.3f}\tSentence {row} of {source}." for row in range(400)]
        rows += [
            f"900\t{2.0 - number}\tIn  all FILES.",
            "901\t1.0\tin all files.",
            f"902\t3\tCafé &lt;3 &amp; {source}",
        ]
        rows += [f"903\t0\tExactly nothing in {source}", "904\t2\t   "]
        (tmp_path / file).write_bytes("\r\n".join(rows).encode())
    return tmp_path


def texts(dataset, split):
    return {normalised_text(text) for text in dataset[split]["text"]}


def test_rows(folder: Path) -> None:
    dataset = read_reviews(folder)
    rows = [row for split in dataset.values() for row in split]
    assert set(dataset["train"].column_names) == {"text", "label", "rating", "source", "id"}
    assert {row["source"] for row in rows} == set(DEFAULT_SOURCES)
    assert all(row["label"] == ("positive" if row["rating"] > 0 else "negative") for row in rows)
    assert min(abs(row["rating"]) for row in rows) >= 0.5
    assert len({row["id"] for row in rows}) == len(rows)
    assert "Café <3 & film" in {row["text"] for row in rows}
    assert not any(row["text"].endswith("\r") or not row["text"] for row in rows)


def test_equal_sentences_are_kept_once(folder: Path) -> None:
    found = [
        row for split in read_reviews(folder, list(FILES)).values() for row in split if "FILES" in row["text"].upper()
    ]
    assert [row["id"] for row in found] == ["film-900"]


def test_margin(folder: Path) -> None:
    everything = [row for split in read_reviews(folder, margin=0).values() for row in split]
    assert min(abs(row["rating"]) for row in everything) == pytest.approx(0.05)
    assert not any(row["rating"] == 0 for row in everything)
    assert min(abs(row["rating"]) for split in read_reviews(folder, margin=2).values() for row in split) >= 2


def test_split_of_a_sentence_does_not_depend_on_the_choice(folder: Path) -> None:
    choices = [read_reviews(folder, sources, margin) for sources in (["film"], list(FILES)) for margin in (0, 0.5, 2)]
    for one in choices:
        for other in choices:
            for split in ("validation", "test"):
                rest = set().union(*(texts(other, name) for name in other if name != split))
                assert not texts(one, split) & rest


def test_splits_are_fixed(folder: Path) -> None:
    # Numbers that no other run, seed of Python's hash or order of sources may change.
    assert draw("a film.") == pytest.approx(0.8992224978671141, abs=1e-15)
    first, second = read_reviews(folder, ["film", "tweets"]), read_reviews(folder, ["tweets", "film"])
    assert all(first[split]["id"] == second[split]["id"] for split in first)
    total = sum(len(rows) for rows in first.values())
    assert len(first["test"]) / total == pytest.approx(0.155, abs=0.05)
    assert len(first["validation"]) / total == pytest.approx(0.0755, abs=0.04)


def test_rows_stand_in_a_mixed_order(folder: Path) -> None:
    sources = read_reviews(folder)["train"]["source"][:100]
    assert 20 < sources.count("film") < 80


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source": ["film"]}, "Did you mean 'sources'"),
        ({"sources": ["films"]}, "Did you mean 'film'"),
        ({"sources": []}, "at least one source"),
        ({"margin": -1}, "Got: -1"),
        ({"margin": "half"}, "Got: 'half'"),
        ({"margin": True}, "Got: True"),
        ({"margin": float("nan")}, "Got: nan"),
        ({"sources": 3}, "a list of names"),
    ],
)
def test_wrong_options(options, said) -> None:
    with pytest.raises(DataError, match=said):
        reviews_options(options)


def test_every_wrong_option_at_once() -> None:
    with pytest.raises(DataError) as caught:
        reviews_options({"sources": ["films", "tweet"], "margin": 9})
    assert len(str(caught.value).splitlines()) == 3


def test_options_have_defaults() -> None:
    assert reviews_options({}) == {"sources": DEFAULT_SOURCES, "margin": 0.5, "classes": 2}
    given = {"sources": "tweets", "margin": 1, "classes": 4}
    assert reviews_options(given) == {"sources": ("tweets",), "margin": 1.0, "classes": 4}


@pytest.mark.parametrize("classes", [3, True, "four", 2.5])
def test_other_numbers_of_classes_are_refused(classes: object) -> None:
    with pytest.raises(DataError, match="2 or 4 in number"):
        reviews_options({"classes": classes})


def test_four_classes_tell_strong_ratings_apart(folder: Path) -> None:
    two, four = (read_reviews(folder, classes=number) for number in (2, 4))
    for split, rows in four.items():
        assert rows["id"] == two[split]["id"]  # the splits stay
        for row, plain in zip(rows, two[split], strict=True):
            strong = abs(row["rating"]) >= 2
            assert row["label"] == (f"very {plain['label']}" if strong else plain["label"])
    assert len(set(four["train"]["label"])) == 4


@pytest.mark.parametrize("line", ["1\t2.0", "1\tgood\ttext", "1\t2.0\ta\tb"])
def test_a_line_of_another_form_is_named(folder: Path, line: str) -> None:
    path = folder / FILES["film"]
    path.write_text(f"1\t2.0\tfine\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2"):
        read_reviews(folder)
