"""Logits of every row in the rows' own order, whatever the batches, and predictions as files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from potstill.evaluation.predict import load_predictions, predict_logits, save_predictions
from potstill.tasks import TextClassification

TASK = TextClassification()


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return TASK.encode(tiny_rows(37), tiny_tokenizer(), max_length=32)


def one_by_one(model: Any, rows: Dataset) -> np.ndarray[Any, Any]:
    """The plain way: each row alone, without padding."""
    with torch.no_grad():
        found = [model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in rows]
    return torch.stack(found).numpy()


@pytest.mark.parametrize("family", ["bert", "mpnet", "llama"])
@pytest.mark.parametrize("batch_size", [1, 5, 128])
def test_order_and_padding(rows: Dataset, family: str, batch_size: int) -> None:
    model = tiny_model(family)
    found = predict_logits(model, rows, TASK.collator(tiny_tokenizer()), batch_size=batch_size)
    assert found.dtype == np.float32 and found.shape == (37, 2)
    np.testing.assert_allclose(found, one_by_one(model, rows), atol=2e-5)


def test_padding_on_the_left_changes_nothing(rows: Dataset) -> None:
    model = tiny_model("llama")
    right, left = (predict_logits(model, rows, TASK.collator(tiny_tokenizer(side))) for side in ("right", "left"))
    np.testing.assert_allclose(left, right, atol=2e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_put_back_and_dropout_is_off(rows: Dataset, training: bool) -> None:
    model = tiny_model().train(training)
    first, second = (predict_logits(model, rows, TASK.collator(tiny_tokenizer())) for _ in range(2))
    assert model.training is training
    np.testing.assert_array_equal(first, second)


def test_what_it_leaves_can_be_trained(rows: Dataset) -> None:
    model = tiny_model().train()
    predict_logits(model, rows, TASK.collator(tiny_tokenizer()), bfloat16=True)
    model(input_ids=torch.tensor([[2, 5, 3]])).logits.sum().backward()
    assert model.classifier.weight.grad is not None


def test_bfloat16_is_near(rows: Dataset) -> None:
    model, collate = tiny_model(), TASK.collator(tiny_tokenizer())
    quick = predict_logits(model, rows, collate, bfloat16=True)
    exact = predict_logits(model, rows, collate)
    assert quick.dtype == np.float32
    assert 0 < np.abs(quick - exact).max() < 0.2 * np.abs(exact).max()


def test_progress_counts_rows(rows: Dataset) -> None:
    told: list[tuple[int, int, float | None]] = []
    predict_logits(
        tiny_model(), rows, TASK.collator(tiny_tokenizer()), batch_size=16, progress=lambda *step: told.append(step)
    )
    assert told == [(16, 37, None), (32, 37, None), (37, 37, None)]


@pytest.mark.parametrize("columns", [1, 2, 7])
def test_predictions_come_back_as_they_were(tmp_path: Path, columns: int) -> None:
    random = np.random.default_rng(0)
    logits = {
        split: random.normal(size=(n, columns)).astype(np.float32) for split, n in (("train", 5), ("a", 3), ("test", 9))
    }
    save_predictions(tmp_path / "deep" / "file.parquet", logits)
    found = load_predictions(tmp_path / "deep" / "file.parquet")
    assert list(found) == ["train", "a", "test"], "in the order in which they were written"
    for split, values in logits.items():
        assert found[split].dtype == np.float32
        np.testing.assert_array_equal(found[split], values)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file.parquet"]
