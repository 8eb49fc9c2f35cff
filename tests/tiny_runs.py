"""Recipes over tiny random models and files in a temporary folder: what the tests of whole runs build on, offline."""

import csv
import json
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

from tiny import save_folder, tiny_model, tiny_texts

from potstill.progress import Silent

SHORT = {"steps": 2, "batch_size": 8, "precision": "float32"}
FAST = {"evaluate": {"baseline": False, "cost": False}, "export": {"formats": []}}


class Told(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """Keep it."""
        self.lines.append(text)

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(self.lines)


def write_csv(path: Path, columns: dict[str, Iterable[Any]]) -> str:
    """A CSV file with a header; its path as text."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return str(path)


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """A JSON Lines file; its path as text."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def tiny_files(folder: Path, rows: int = 120, names: tuple[str, str] = ("bad", "good")) -> dict[str, str]:
    """train, validation and test with the columns text and label, no text in two of them."""
    texts, labels = tiny_texts(rows)
    cut = {
        "train": slice(0, rows // 2),
        "validation": slice(rows // 2, 3 * rows // 4),
        "test": slice(3 * rows // 4, rows),
    }
    named = [names[label] for label in labels]
    return {
        split: write_csv(folder / f"{split}.csv", {"text": texts[part], "label": named[part]})
        for split, part in cut.items()
    }


def tiny_teacher(folder: Path, family: str = "bert", **options: Any) -> str:
    """A random model with its tokenizer, and without class names; its path as text."""
    return str(save_folder(tiny_model(family, **options), folder))


def tiny_recipe(folder: Path, changes: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    """A recipe that takes two steps a stage: a BERT of four layers is trained and teaches one of two."""
    recipe: dict[str, Any] = {
        "task": "text_classification",
        "data": {"files": tiny_files(folder), "max_length": 32},
        "teacher": {"model": tiny_teacher(folder / "model", **model), "train": dict(SHORT)},
        "student": {"layers": 2},
        "distill": [{"terms": [{"knowledge": "logits"}], "train": dict(SHORT)}],
        **deepcopy(FAST),
    }
    return merged(recipe, changes or {})


def merged(recipe: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of a recipe with some keys of its sections replaced."""
    made = deepcopy(recipe)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(made.get(key), dict)
        made[key] = merged(made[key], value) if both else value
    return made
