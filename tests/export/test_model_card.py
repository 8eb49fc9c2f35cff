"""The card carries the numbers as they are read, only what is known, and code that runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_classifiers import tiny

from potstill.export import write_model_card

CONVENTION = "A KL is a true KL, T^2 is inside the loss."
RECIPE = "task: text_classification\nstudent: {from: teacher, layers: 3}\n"


def entry(key: str, accuracy: float, **more: Any) -> dict[str, Any]:
    return {
        "key": key,
        "title": key.title(),
        "seeds": [0],
        "metrics": {"accuracy": {"mean": accuracy, "std": None, "per_seed": [accuracy]}},
        "cost": {"parameters": 22_713_216, "bytes": 91_000_000, "latency": {"1": {"p50_ms": 9.51, "p95_ms": 12.0}}},
        **more,
    }


RESULTS = {
    "run": {"name": "reviews", "title": "Reviews", "problem": "single_label"},
    "data": {
        "name": "reviews",
        "licence": "MIT",
        "splits": {"test": 2000},
        "evaluated_on": "test",
        "classes": ["negative", "positive"],
        "max_length": 32,
    },
    "metrics": {"accuracy": {"name": "Accuracy", "percent": True, "higher_is_better": True}},
    "primary": "accuracy",
    "models": [
        entry("teacher", 0.8861),
        entry("baseline", 0.8594, cost=None),
        entry("student", 0.8734, retained={"mean": 0.9857}),
    ],
    "exports": [{"key": "onnx-int8", "title": "ONNX int8", "bytes": 23_500_000, "metrics": {"accuracy": 0.8702}}],
    "verdict": {"headline": "Distillation helped by 1.4 points.", "sentences": ["On one seed."]},
}


def card(folder: Path, results: dict[str, Any], **more: Any) -> str:
    return write_model_card(folder, results, RECIPE, CONVENTION, **more).read_text(encoding="utf-8")


def front_matter(text: str) -> dict[str, Any]:
    _, head, _ = text.split("---\n", 2)
    loaded: dict[str, Any] = yaml.safe_load(head)
    return loaded


def test_numbers_as_they_are_read(tmp_path: Path) -> None:
    text = card(tmp_path, RESULTS)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows == [
        ["", "Accuracy", "Retained", "Parameters", "Size", "Batch 1, p50"],
        ["---", "---:", "---:", "---:", "---:", "---:"],
        ["Teacher", "88.6 %", "", "22.7 M", "91.0 MB", "9.5 ms"],
        ["Baseline", "85.9 %", "", "", "", ""],
        ["Student", "87.3 %", "98.6 %", "22.7 M", "91.0 MB", "9.5 ms"],
        ["ONNX int8", "87.0 %", "", "", "23.5 MB", ""],
    ]
    for said in (CONVENTION, RECIPE.strip(), "helped by 1.4 points. On one seed.", "2,000 rows", "negative, positive"):
        assert said in text


def test_front_matter_holds_only_what_is_known(tmp_path: Path) -> None:
    head = front_matter(card(tmp_path, RESULTS))
    assert head["library_name"] == "transformers"
    assert head["pipeline_tag"] == "text-classification"
    assert {"distillation", "potstill"} <= set(head["tags"])
    assert "license" not in head
    assert "No licence is stated" in card(tmp_path, RESULTS)
    assert front_matter(card(tmp_path, RESULTS, licence="apache-2.0"))["license"] == "apache-2.0"


def test_spread_over_seeds_and_plain_metrics(tmp_path: Path) -> None:
    student = entry("student", 0.8, seeds=[0, 1, 2])
    student["metrics"] = {"mse": {"mean": 0.12345, "std": 0.01, "per_seed": []}}
    results = {"metrics": {"mse": {"name": "MSE", "percent": False}}, "models": [student]}
    text = card(tmp_path, results)
    assert "0.123 ± 0.010" in text
    assert "means over 3 seeds" in text


def test_what_is_not_known_leaves_no_gaps(tmp_path: Path) -> None:
    text = card(tmp_path, {})
    assert "No numbers were measured." in text
    assert "None" not in text and "\n\n\n" not in text and "$" not in text


def test_dollars_and_braces_in_data_are_left_alone(tmp_path: Path) -> None:
    data = {**RESULTS["data"], "classes": ["$cheap", "{dear}"]}  # type: ignore[dict-item]
    assert "$cheap, {dear}" in card(tmp_path, {**RESULTS, "data": data})


def test_the_code_in_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "student"
    tiny("bert").save_pretrained(folder)
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "A", "text", "to", "classify"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    code = re.search(r"```python\n(.*?)```", card(folder, RESULTS), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code.group(1), names)
    assert names["logits"].shape == (1, 3)
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.pkl"))
