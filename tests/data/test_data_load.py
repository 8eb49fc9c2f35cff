"""Data from files, folders, samples and the hub; missing splits; texts in two splits."""

import time
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from potstill.data import load as module
from potstill.data.columns import TextColumns
from potstill.data.load import (
    Source,
    load,
    load_with_notes,
    missing_splits,
    overlap,
    overlap_warnings,
    without_unlabelled,
)
from potstill.errors import DataError

JSONL = '{"text": "good", "label": "positive"}\n{"text": "bad", "label": "negative"}\n'


def write(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return str(path)


def refused(source: Source) -> str:
    with pytest.raises(DataError) as caught:
        load(source)
    return str(caught.value)


def test_files_of_several_formats(tmp_path: Path) -> None:
    files = {
        "train": [write(tmp_path / "a.csv", "text,label\ngood,positive\n"), write(tmp_path / "b.jsonl", JSONL)],
        "test": write(tmp_path / "c.tsv", "text\tlabel\nfine\tpositive\n"),
        "unlabelled": write(tmp_path / "d.txt", "one\n\ntwo\n"),
    }
    dataset, notes = load_with_notes(Source(files=files))
    assert {name: len(rows) for name, rows in dataset.items()} == {"train": 3, "test": 1, "unlabelled": 2}
    assert dataset["train"]["text"][:] == ["good", "good", "bad"] and notes == []


def test_aliases_are_said(tmp_path: Path) -> None:
    files = {"training": write(tmp_path / "a.jsonl", JSONL), "dev": write(tmp_path / "b.jsonl", JSONL)}
    dataset, notes = load_with_notes(Source(files=files))
    assert list(dataset) == ["train", "validation"]
    assert notes == [
        "train: the split that is called 'training' there",
        "validation: the split that is called 'dev' there",
    ]
    assert "Two splits mean validation" in refused(Source(files={"dev": files["dev"], "val": files["dev"]}))


def test_splits_in_capitals_are_ours() -> None:
    rows = Dataset.from_dict({"text": ["a"]})
    dataset, notes = module._renamed(DatasetDict({"TRAIN": rows, "Dev": rows, "Test": rows, "Other": rows}))
    assert list(dataset) == ["train", "validation", "test", "Other"]
    assert notes[2] == "test: the split that is called 'Test' there" and len(notes) == 3


def test_every_problem_of_files_at_once(tmp_path: Path) -> None:
    files = {
        "train": [str(tmp_path / "gone.csv"), write(tmp_path / "a.doc", "x")],
        "tset": write(tmp_path / "b.jsonl", '{"text": "a"}\n{"text": \n'),
    }
    lines = refused(Source(files=files)).splitlines()
    assert len(lines) == 4
    assert "no file" in lines[0] and ".doc" in lines[1] and "Did you mean 'test'" in lines[2] and "line 2" in lines[3]


def test_other_columns_and_types_are_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", '{"text": "a", "label": 1, "extra": 1}\n')
    test = write(tmp_path / "test.jsonl", '{"text": "a", "label": "one", "other": 1}\n')
    lines = refused(Source(files={"train": train, "test": test})).splitlines()
    assert "without extra and with other" in lines[0]
    assert "int64 in train, string in test" in lines[1]


def test_integers_and_floats_become_floats(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "text,score\na,1.5\n")
    test = write(tmp_path / "test.csv", "score,text\n2,b\n")
    dataset = load(Source(files={"train": train, "test": test}))
    assert dataset["test"].features == dataset["train"].features
    assert dataset["test"][0] == {"text": "b", "score": 2.0}


def test_hidden_test_labels_are_left_out_and_said(tmp_path: Path) -> None:
    rows = [{"sentence": "a", "label": 0}, {"sentence": "b", "label": 1}]
    hidden = [{"sentence": "c", "label": -1}]
    saved = DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(hidden)})
    saved.save_to_disk(str(tmp_path / "glue"))
    dataset, notes = load_with_notes(Source(name=str(tmp_path / "glue")))
    assert list(dataset) == ["train"] and notes == ["test: left out, since none of its 1 rows has a label"]
    assert list(without_unlabelled(saved, "sentence")[0]) == ["train", "test"]
    nothing = DatasetDict({"validation": Dataset.from_dict({"y": [None, None]})})
    assert list(without_unlabelled(nothing, "y")[0]) == []


def test_folder_of_files(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00002.jsonl", JSONL)
    write(tmp_path / "data" / "train-00001-of-00002.jsonl", JSONL)
    write(tmp_path / "valid.jsonl", JSONL)
    write(tmp_path / "trainer_state.json", "{}")
    write(tmp_path / "README.md", "x")
    dataset = load(Source(name=str(tmp_path)))
    assert {name: len(rows) for name, rows in dataset.items()} == {"validation": 2, "train": 4}


def test_folder_saved_as_one_dataset_and_a_single_file(tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["a"], "label": [1]}).save_to_disk(str(tmp_path / "one"))
    assert list(load(Source(name=str(tmp_path / "one")))) == ["train"]
    assert list(load(Source(name=write(tmp_path / "rows.jsonl", JSONL)))) == ["train"]


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere-at-all", "rows.csv"])
def test_a_path_that_is_not_there_is_no_hub_id(name: str) -> None:
    assert "There is no folder" in refused(Source(name=name))


def test_folder_without_data(tmp_path: Path) -> None:
    write(tmp_path / "notes.md", "x")
    assert "notes.md" in refused(Source(name=str(tmp_path)))


def test_saved_folder_that_is_broken(tmp_path: Path) -> None:
    write(tmp_path / "dataset_dict.json", '{"splits": ["train"]}')
    assert "can't be read" in refused(Source(name=str(tmp_path)))


def test_name_and_files_exclude_each_other() -> None:
    assert "neither" in refused(Source())
    assert "both" in refused(Source(name="x", files={"train": "a.csv"}))
    assert "names no file" in refused(Source(files={}))
    assert "data.options means nothing" in refused(Source(name="owner/name", options={"margin": 1}))
    assert "data.config" in refused(Source(name="reviews", config="x"))


def test_sample_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    made = DatasetDict({"train": Dataset.from_dict({"text": ["a"], "label": ["positive"]})})
    monkeypatch.setattr(module, "load_sample_data", lambda name, options: asked.append((name, options)) or made)
    assert load(Source(name="reviews", options={"margin": 1.0})) == made
    assert asked == [("reviews", {"margin": 1.0})]


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def loaded(name: str, config: str | None, revision: str | None) -> DatasetDict:
        asked.append((name, config, revision))
        rows = Dataset.from_dict({"premise": ["a"], "label": [0]})
        names = ("train", "validation_matched", "validation_mismatched")
        return DatasetDict(dict.fromkeys(names, rows))

    monkeypatch.setattr(module, "load_dataset", loaded)
    dataset = load(Source(name="nyu-mll/glue", config="mnli", revision="abc"))
    assert list(dataset) == ["train", "validation", "validation_mismatched"] and asked == [
        ("nyu-mll/glue", "mnli", "abc")
    ]


def test_hub_without_network() -> None:
    said = refused(Source(name="nobody/nothing-here"))
    assert "can't be loaded from the hub" in said and "Check the name" in said and "\n" not in said


def rows_with_repeats(count: int) -> Dataset:
    texts = [f"Sentence {number % (count * 3 // 4)}" + (" " if number % 2 else "") for number in range(count)]
    return Dataset.from_dict(
        {"id": [str(number) for number in range(count)], "text": texts, "label": [0, 1] * (count // 2)}
    )


def test_missing_splits_are_cut_from_train() -> None:
    train = rows_with_repeats(1000)
    dataset, notes = missing_splits(DatasetDict({"train": train}))
    sizes = {name: len(rows) for name, rows in dataset.items()}
    assert sum(sizes.values()) == 1000 and len(notes) == 2 and "test: 100 of the 1000" in notes[0].replace("101", "100")
    assert 100 <= sizes["test"] <= 101 and 100 <= sizes["validation"] <= 101
    assert overlap(dataset, ["text"]) == {} and overlap(dataset, TextColumns("text")) == {}
    assert sorted(id for rows in dataset.values() for id in rows["id"]) == sorted(train["id"])
    assert dataset["train"]["id"][:] == sorted(dataset["train"]["id"], key=int)


def test_the_cut_is_fixed() -> None:
    train = rows_with_repeats(200)
    first = missing_splits(DatasetDict({"train": train}))[0]
    again = missing_splits(DatasetDict({"train": train.select(range(199, -1, -1))}))[0]
    other = missing_splits(DatasetDict({"train": train}), seed=1)[0]
    assert all(set(first[name]["id"]) == set(again[name]["id"]) for name in first)
    assert set(first["test"]["id"]) != set(other["test"]["id"])


def test_only_what_is_missing_is_cut() -> None:
    train, held = rows_with_repeats(100), rows_with_repeats(4)
    dataset, notes = missing_splits(DatasetDict({"train": train, "test": held}), validation=0.2)
    assert len(dataset["test"]) == 4 and 20 <= len(dataset["validation"]) <= 21 and len(notes) == 1
    assert missing_splits(DatasetDict({"train": train}), validation=0, test=0) == (DatasetDict({"train": train}), [])


def test_pairs_are_grouped_by_both_texts() -> None:
    rows = Dataset.from_dict({"premise": ["A"] * 50, "hypothesis": [f"h{number}" for number in range(50)]})
    dataset = missing_splits(DatasetDict({"train": rows}))[0]
    assert {name: len(one) for name, one in dataset.items()} == {"train": 40, "test": 5, "validation": 5}


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        (1, {}, "too few"),
        (20, {"validation": 0.5, "test": 0.5}, "between 0 and 1"),
        (20, {"validation": -0.1}, "validation -0.1"),
        (20, {"columns": []}, "no text column"),
    ],
)
def test_a_cut_that_is_not_possible(rows: int, options: dict[str, Any], said: str) -> None:
    train = Dataset.from_dict({"text": [f"t{number}" for number in range(rows)]})
    with pytest.raises(DataError, match=said):
        missing_splits(DatasetDict({"train": train}), **options)


def test_a_cut_needs_train() -> None:
    with pytest.raises(DataError, match="no split train"):
        missing_splits(DatasetDict({"test": rows_with_repeats(4)}))


def test_overlap_is_counted_and_said() -> None:
    dataset = DatasetDict(
        {
            "train": Dataset.from_dict({"text": ["A b", "c", "x"]}),
            "test": Dataset.from_dict({"text": ["a  B", "a b", "d"]}),
            "unlabelled": Dataset.from_dict({"text": ["C", "d"]}),
            "other": Dataset.from_dict({"words": ["C"]}),
        }
    )
    assert overlap(dataset, ["text"]) == {("train", "test"): 2, ("train", "unlabelled"): 1, ("unlabelled", "test"): 1}
    warnings = overlap_warnings(dataset, TextColumns("text"))
    assert len(warnings) == 2 and warnings[0].startswith("2 of the 3 rows of test") and "in train" in warnings[0]
    assert warnings[1].startswith("1 of the 3 rows of test") and "numbers on test" in warnings[1]


def test_class_labels_survive(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    DatasetDict({"train": Dataset.from_dict({"text": ["a"], "label": [1]}, features=features)}).save_to_disk(
        str(tmp_path)
    )
    assert load(Source(name=str(tmp_path)))["train"].features["label"].names == ["no", "yes"]


def test_a_hundred_thousand_rows_take_seconds(tmp_path: Path) -> None:
    path = write(
        tmp_path / "train.csv", "text,label\n" + "".join(f"sentence {row},{row % 3}\n" for row in range(100_000))
    )
    start = time.monotonic()
    dataset = missing_splits(load(Source(files={"train": path})))[0]
    overlap(dataset, ["text"])
    assert time.monotonic() - start < 20
