"""How many processes read ahead, and that evaluation gets from them what it would have read itself."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny_model
from tiny_images import NAMES, tiny_image_rows, tiny_reader

from potstill.data import ahead
from potstill.errors import DataError
from potstill.evaluation import predict
from potstill.tasks import ImageClassification


@pytest.mark.parametrize(
    ("column", "accelerator", "method", "beside", "free", "expected"),
    [
        ("image", True, "fork", "1", 1e10, 5),
        ("image", True, "fork", "2", 1e10, 2),
        ("image", True, "fork", "6", 1e10, 1),
        ("image", True, "fork", "1", 6e8, 2),
        ("image", True, "fork", "1", 6.4e7, 0),  # what a container often has
        ("image", True, "spawn", "1", 1e10, 0),
        ("image", False, "fork", "1", 1e10, 0),
        ("input_ids", True, "fork", "1", 1e10, 0),
    ],
)
def test_images_are_read_ahead_for_an_accelerator(
    monkeypatch: pytest.MonkeyPatch,
    column: str,
    accelerator: bool,
    method: str,
    beside: str,
    free: float,
    expected: int,
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    monkeypatch.setattr(ahead, "get_start_method", lambda allow_none: method)
    monkeypatch.setattr(ahead.shutil, "disk_usage", lambda _: SimpleNamespace(free=int(free)))
    monkeypatch.setattr(ahead.os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", beside)
    assert ahead.loader_workers([column, "labels"]) == expected


def test_evaluation_from_a_process_that_reads_ahead_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, model = ImageClassification(names=NAMES), tiny_model("vit")
    model.save_pretrained(tmp_path)
    reader = tiny_reader(tmp_path)
    rows, collate = task.encode(tiny_image_rows(9).rename_column("label", "labels"), reader), task.collator(reader)
    before = torch.get_rng_state()
    own = predict.predict_logits(model, rows, collate, tokens=8)
    asked: list[list[str]] = []
    monkeypatch.setattr(predict, "loader_workers", lambda columns: asked.append(columns) or 1)
    np.testing.assert_array_equal(predict.predict_logits(model, rows, collate, tokens=8), own)
    assert "image" in asked[0]
    assert torch.equal(torch.get_rng_state(), before)  # a look while training changes nothing in what follows
    broken = rows.map(lambda row: {"image": {"bytes": b"none", "path": None}}, features=rows.features)
    with pytest.raises(DataError) as raised:
        predict.predict_logits(model, broken, collate)
    assert "Traceback" not in str(raised.value)
