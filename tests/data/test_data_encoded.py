"""Encoded rows are known by their content, read back, and made again where they are damaged."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tiny import tiny_rows, tiny_tokenizer
from tiny_runs import tiny_recipe
from transformers import PreTrainedTokenizerFast

from potstill.data import encoded
from potstill.encoding import encoded as encode
from potstill.recipe import load_recipe
from potstill.tasks import TextClassification
from potstill.tasks.tokens import processes
from potstill.workbench import prepare_workbench

TASK = TextClassification()


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own, that takes rows however few."""
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoded, "LEAST_ROWS", 1)
    yield tmp_path / "cache" / "encoded"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each call of a tokenizer was given."""
    made: list[int] = []
    real = PreTrainedTokenizerFast._encode_plus

    def counted(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(len(text))
        return real(self, text, *args, **kwargs)

    monkeypatch.setattr(PreTrainedTokenizerFast, "_encode_plus", counted)
    return made


def go(rows: Dataset | None = None, tokenizer: Any = None, max_length: int = 16, task: Any = TASK) -> Dataset:
    texts = {"train": tiny_rows(20) if rows is None else rows}
    found: Dataset = encode(task, texts, tokenizer or tiny_tokenizer(), max_length, lambda _: None)["train"]
    return found


def test_a_second_time_encodes_nothing(calls: list[int], shelf: Path) -> None:
    fresh = TASK.encode(tiny_rows(20), tiny_tokenizer(), max_length=16)
    calls.clear()
    first = go()
    assert calls == [20]
    second = go()
    assert calls == [20]
    for found in (first, second):
        assert found.column_names == fresh.column_names and found.features == fresh.features
        assert found[:] == fresh[:]
    assert len(list(shelf.iterdir())) == 1


def test_a_second_run_of_a_recipe_encodes_nothing(tmp_path: Path, calls: list[int]) -> None:
    recipe = load_recipe(tiny_recipe(tmp_path), [])
    first = prepare_workbench(recipe, lambda _: None)
    assert sum(calls) == 120
    calls.clear()
    second = prepare_workbench(recipe, lambda _: None)
    assert calls == []
    assert first.digest == second.digest


def test_whatever_decides_the_result_is_part_of_the_key(calls: list[int], shelf: Path) -> None:
    rows, tokenizer = tiny_rows(20), tiny_tokenizer()
    go(rows, tokenizer)
    other_words = tiny_tokenizer()
    other_words.add_tokens(["lovely film"])
    changed = rows.map(lambda row: {"text": row["text"].replace("film", "plot", 1)})
    relabelled = rows.map(lambda row: {"labels": 1 - row["labels"]})
    turned = rows.select(range(19, -1, -1))
    paired = rows.add_column("text_pair", rows["text"])
    numbers = TextClassification("regression", ("score",))
    variants: list[tuple[Any, ...]] = [
        *((changed,), (relabelled,), (turned,), (paired,), (rows, tokenizer, 8), (rows, other_words)),
        (rows, tiny_tokenizer("left")),
        (rows, tokenizer, 16, numbers),
    ]
    for number, variant in enumerate(variants, 2):
        before = len(calls)
        found = go(*variant)
        assert len(calls) == before + 1 and len(list(shelf.iterdir())) == number, variant
        options = {"max_length": variant[2] if len(variant) > 2 else 16}
        assert found[:] == TASK.encode(variant[0], variant[1] if len(variant) > 1 else tiny_tokenizer(), **options)[:]
        calls.pop()


def test_what_a_tokenizer_was_called_with_before_is_not(calls: list[int]) -> None:
    tokenizer = tiny_tokenizer()
    go(tokenizer=tokenizer)
    tokenizer("a film", truncation=True, max_length=3, padding="max_length")
    calls.clear()
    go(tokenizer=tokenizer)
    assert calls == []


@pytest.mark.parametrize("damage", ["cut", "gone", "garbage"])
def test_a_damaged_folder_is_made_again(calls: list[int], shelf: Path, damage: str) -> None:
    first = go()[:]
    (place,) = shelf.iterdir()
    (arrow,) = place.glob("*.arrow")
    if damage == "cut":
        arrow.write_bytes(arrow.read_bytes()[:100])
    elif damage == "gone":
        arrow.unlink()
    else:
        (place / "dataset_info.json").write_text("{")
        (place / encoded.MANIFEST).write_text("{}")
    assert go()[:] == first and calls == [20, 20]
    assert go()[:] == first and calls == [20, 20]
    assert [path.name for path in shelf.iterdir()] == [place.name]


def test_several_at_once_leave_one_whole_folder(shelf: Path) -> None:
    rows, expected = tiny_rows(20), TASK.encode(tiny_rows(20), tiny_tokenizer(), max_length=16)
    place = shelf / "key"
    shelf.mkdir(parents=True)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: encoded._write(expected, shelf, place), range(8)))
    assert [path.name for path in shelf.iterdir()] == ["key"]
    found = encoded._read(place, len(rows))
    assert found is not None and found[:] == expected[:]


def test_a_cache_that_can_not_be_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "file"))
    assert len(go()) == 20
    assert len(go()) == 20 and calls == [20, 20]


def test_few_rows_are_not_kept(monkeypatch: pytest.MonkeyPatch, shelf: Path) -> None:
    monkeypatch.setattr(encoded, "LEAST_ROWS", 21)
    go()
    assert not shelf.exists()


def test_what_nobody_read_for_long_goes(shelf: Path) -> None:
    go()
    (old,) = shelf.iterdir()
    long_ago = time.time() - 31 * 24 * 3600
    os.utime(old / encoded.MANIFEST, (long_ago, long_ago))
    go(max_length=8)
    assert not old.exists() and len(list(shelf.iterdir())) == 1
    go()
    (shelf / ".partial-of-another").mkdir()
    go(max_length=9)
    assert (shelf / ".partial-of-another").exists(), "another process may be at work there"


def test_a_slow_tokenizer_takes_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        is_fast = False

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert processes(tiny_tokenizer(), 10**6) is None
    assert processes(Slow(), 9_999) is None  # type: ignore[arg-type]
    assert processes(Slow(), 10_000) == 2  # type: ignore[arg-type]
    assert processes(Slow(), 10**6) == 4  # type: ignore[arg-type]
