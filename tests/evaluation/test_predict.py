"""Logits of every row in the rows' own order, whatever the batches, and predictions as files."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from potstill.evaluation.predict import load_predictions, predict_logits, save_predictions, token_batches
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
@pytest.mark.parametrize("tokens", [1, 50, 4096, None])
def test_order_and_padding(rows: Dataset, family: str, tokens: int | None) -> None:
    model = tiny_model(family)
    found = predict_logits(model, rows, TASK.collator(tiny_tokenizer()), tokens=tokens)
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
        tiny_model(), rows, TASK.collator(tiny_tokenizer()), tokens=200, progress=lambda *step: told.append(step)
    )
    counts = [len(chosen) for chosen in token_batches(np.asarray(rows["length"]), 200)]
    assert told == [(sum(counts[: number + 1]), 37, None) for number in range(len(counts))]
    assert told[-1][0] == 37 and len(told) > 2


@pytest.mark.parametrize("tokens", [1, 16, 100, 10_000])
def test_batches_keep_to_their_tokens(tokens: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 300)
    batches = token_batches(lengths, tokens)
    assert sorted(np.concatenate(batches).tolist()) == list(range(300))
    for chosen in batches:
        padded = len(chosen) * lengths[chosen].max()
        assert padded <= tokens or len(chosen) == 1
    for chosen, following in pairwise(batches):  # none could have held one row more
        assert (len(chosen) + 1) * lengths[chosen].max() > tokens
        assert lengths[chosen].min() >= lengths[following].max()


def test_the_model_sees_no_larger_batch(rows: Dataset) -> None:
    sizes: list[int] = []
    collate = TASK.collator(tiny_tokenizer())

    def counted(some: Any) -> dict[str, torch.Tensor]:
        batch = collate(some)
        sizes.append(batch["input_ids"].numel())
        return batch

    predict_logits(tiny_model(), rows, counted, tokens=100)
    assert max(sizes) <= 100 and len(sizes) > 5


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
