"""Two processes under gloo: they give the losses and gradients of one process with the same batches.

The processes are started once, and train every case in turn; each case is then compared with one process here. With
plain gradient descent and a rate of 1 the weights after a step say what the gradients were: Adam's first step is the
sign of a gradient, and that of a 0 is rounding.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import tiny_model, tiny_rows, tiny_tokenizer
from tiny_ranks import RANKS, on_two_ranks
from torch import Tensor, nn
from transformers import TrainingArguments

from potstill import ranks
from potstill.cache import (
    CachedTeacher,
    Identity,
    Storage,
    caches,
    open_cache,
    row_keys,
    teacher_digest,
    tokenizer_digest,
    write_cache,
)
from potstill.objective import Objective
from potstill.tasks import TextClassification
from potstill.training import DistillationTrainer, Distiller

TASK = TextClassification()
LABELS, LOGITS = {"knowledge": "labels", "weight": 0.5}, {"knowledge": "logits", "temperature": 2.0}
HIDDEN = {"knowledge": "hidden", "layers": "uniform"}  # with projections: the teacher is wider
ATTENTION, VALUES = {"knowledge": "attention"}, {"knowledge": "values", "loss": "relation_kl", "heads": 4}
CRD = {"knowledge": "hidden", "loss": "crd", "pool": "first", "layers": "last"}

CASES: dict[str, dict[str, Any]] = {
    "logits": {"terms": [LABELS, LOGITS]},
    "hidden states with projections": {"terms": [LOGITS, HIDDEN]},
    "attention and relations": {"terms": [LOGITS, ATTENTION, VALUES]},
    "partly labelled": {"terms": [LABELS, LOGITS], "unlabelled": (1, 4, 5, 6, 7)},
    "accumulation": {"terms": [LABELS, LOGITS, HIDDEN], "accumulation": 3},
    "a last smaller batch": {"terms": [LABELS, LOGITS, HIDDEN], "rows": 21, "steps": 3},
    "a head that nothing trains": {"terms": [HIDDEN]},
    "two epochs": {"terms": [LOGITS], "rows": 16, "steps": 4},
    "a term of weight 0": {"terms": [LOGITS, {**HIDDEN, "weight": 0}]},
    "contrast": {"terms": [LOGITS, {**CRD, "negatives": 5}], "steps": 3, "rows": 21},
    "contrast with all other rows": {"terms": [LOGITS, CRD], "steps": 2},
    "a cached teacher": {"terms": [LABELS, LOGITS, HIDDEN, VALUES], "cached": True},
    "a cached teacher over epochs": {"terms": [LABELS, LOGITS, HIDDEN], "cached": True, "rows": 21, "steps": 5},
    "a cached teacher, accumulation": {"terms": [LOGITS, ATTENTION], "cached": True, "accumulation": 3},
}
BATCH = 8


def rows(count: int, unlabelled: tuple[int, ...]) -> Dataset:
    """Encoded rows of differing lengths, some without a label."""
    encoded = TASK.encode(tiny_rows(count), tiny_tokenizer(), max_length=32)
    labels = [-100 if row in unlabelled else label for row, label in enumerate(encoded["labels"])]
    return encoded.remove_columns("labels").add_column("labels", labels)


def still(model: nn.Module) -> Any:
    """No dropout: each process draws its own."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def trained(
    folder: Path,
    terms: list[dict[str, Any]],
    rows_: int = 24,
    unlabelled: tuple[int, ...] = (),
    accumulation: int = 1,
    steps: int = 1,
    caches: Path | None = None,
) -> dict[str, Any]:
    """What a few steps leave: the weights, what was logged, and whether DDP looked for parameters without gradients."""
    size = ranks.world_size()
    arguments = {"eager": "eager"} if any(term["knowledge"] == "attention" for term in terms) else {}
    models = [still(tiny_model(layers=2, seed=1)), still(tiny_model(layers=4, width=64, seed=2))]
    for model in models if arguments else ():
        model.set_attn_implementation("eager")
    teacher, written = models[1], 0
    if caches is not None:
        teacher, written = remembered(models, terms, rows(rows_, unlabelled), caches)
    made = DistillationTrainer(
        models[0],
        Objective(terms),
        TASK,
        tiny_tokenizer(),
        rows(rows_, unlabelled),
        teacher=teacher,
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=BATCH // size,
            gradient_accumulation_steps=accumulation,
            learning_rate=1.0 if steps == 1 else 0.05,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            optim="sgd",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            logging_nan_inf_filter=False,
        ),
    )
    made.train()
    logged = [{k: v for k, v in e.items() if k == "loss" or k.startswith("part/")} for e in made.state.log_history]
    weights = {name: tensor.clone() for name, tensor in made.distiller.state_dict().items()}
    sought = made.args.ddp_find_unused_parameters
    return {"weights": weights, "logged": logged[:-1], "sought": sought, "written": written}


def remembered(models: Sequence[Any], terms: Any, encoded: Dataset, root: Path) -> tuple[CachedTeacher, int]:
    """What the teacher answers to the rows, on disk, and how many of them this rank wrote there: all write together."""
    needs = Distiller(models[0], Objective(terms), TASK, models[1]).asked["teacher"]
    storage = Storage("float32")
    identity = Identity(
        teacher_digest(models[1]), tokenizer_digest(tiny_tokenizer()), needs, max_length=32, storage=storage
    )
    part = ranks.rank(), ranks.world_size()
    found = write_cache(root, identity, models[1], encoded, TASK.collator(tiny_tokenizer()), part=part)
    ranks.wait()
    return CachedTeacher(found.cache.reopened()), found.rows


def case(name: str, folder: Path, caches: Path) -> dict[str, Any]:
    """One row of `CASES`, trained by all the ranks there are."""
    options = dict(CASES[name])
    kept = caches if options.pop("cached", False) else None
    return trained(folder, options.pop("terms"), options.pop("rows", 24), caches=kept, **options)


def all_cases(folder: Path, caches: Path) -> dict[str, Any]:
    """Every case, by two ranks."""
    with ranks.together():
        return {name: case(name, folder, caches) for name in CASES}


@pytest.fixture(scope="module")
def kept_at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks keep what teachers know, and one process reads it."""
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory, kept_at: Path) -> list[Mapping[str, Any]]:
    """What each of two ranks has after every case."""
    folder = tmp_path_factory.mktemp("ranks")
    return on_two_ranks(all_cases, folder, folder, kept_at)


def assert_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tolerance: float = 2e-5) -> None:
    """The same weights, but for the order of sums."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(
            ours[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one_process(
    by_two: list[Mapping[str, Any]], name: str, tmp_path: Path, kept_at: Path
) -> None:
    alone = case(name, tmp_path, kept_at)
    assert alone["written"] == 0, "it reads what the two have written"
    start = still(tiny_model(layers=2, seed=1)).state_dict()
    assert any(not torch.equal(alone["weights"][f"student.{n}"], tensor) for n, tensor in start.items())
    for rank in range(RANKS):
        found = by_two[rank][name]
        assert_equal(found["weights"], alone["weights"])
        assert len(found["logged"]) == len(alone["logged"])
        for ours, theirs in zip(found["logged"], alone["logged"], strict=True):
            assert ours == pytest.approx(theirs, rel=2e-5, abs=1e-6)


def test_two_ranks_write_one_cache_with_each_row_once(by_two: list[Mapping[str, Any]], kept_at: Path) -> None:
    for name in ("a cached teacher", "a cached teacher, accumulation"):
        assert all(found[name]["written"] > 0 for found in by_two), "each writes its share"
    keys = set(row_keys(rows(24, ())).tolist())
    found = [open_cache(folder) for folder in caches(kept_at)]
    assert len(found) == 2, "one that holds attention maps, and one that serves both others"
    for cache in found:
        written = np.concatenate([shard.keys for shard in cache.shards]).tolist()
        assert len(written) == len(set(written)) and set(written) <= keys
    written = sum(one["a cached teacher"]["written"] for one in by_two)
    assert written == max(cache.rows for cache in found) == len(keys)


def test_ddp_looks_for_unused_parameters_only_where_there_are_some(by_two: list[Mapping[str, Any]]) -> None:
    sought = {name: found["sought"] for name, found in by_two[0].items()}
    assert sought["a head that nothing trains"] is True
    assert [name for name, value in sought.items() if value] == ["a head that nothing trains"]
