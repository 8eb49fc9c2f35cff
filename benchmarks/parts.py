"""What each part of our speed saves, alone: an int8 teacher, batches of like length, evaluation by tokens, kept
encodings, and dropout on a CPU.

    python benchmarks/parts.py
    python benchmarks/parts.py --only dropout    # the others keep their numbers

The packaged MiniLM on reviews. Both sides of a ratio are taken in turns, and the median of the paired ratios is
reported. Writes results/parts.json, which docs/speed.md quotes.
"""

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step import setup

from potstill.data import encoded
from potstill.data.samples import fetch_model, load_sample_data
from potstill.evaluation.predict import CPU_TOKENS, predict_logits
from potstill.evaluation.reduced import reduced_fidelity
from potstill.shipping import hardware, versions
from potstill.tasks import load_tokenizer
from potstill.tasks.base import bars_on_a_terminal, quiet_transformers
from potstill.training import teacher_at
from potstill.training.dropout import cheap_dropout
from potstill.training.sampler import LengthGroupedSampler

BATCH = 32


def paired(new: Callable[[], Any], old: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """The median of the ratios of times, new over old, each pair taken in turns after one of each to warm up."""
    ratios = []
    for repeat in range(repeats + 1):
        seconds = []
        for work in (new, old) if repeat % 2 else (old, new):
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
        if repeat:
            ratios.append(seconds[0] / seconds[1] if repeat % 2 else seconds[1] / seconds[0])
    return {"median": statistics.median(ratios), "all": ratios}


def batches_of(made: dict[str, Any], count: int) -> list[dict[str, torch.Tensor]]:
    """The inputs of the first batches of training."""
    rows, collate = made["rows"], made["task"].collator(made["tokenizer"])
    order = list(LengthGroupedSampler(rows["length"], BATCH, 0))
    batches = [collate(rows.__getitems__(order[i * BATCH : (i + 1) * BATCH])) for i in range(count)]
    for batch in batches:
        batch.pop("labels")
    return batches


def teacher(made: dict[str, Any], repeats: int) -> dict[str, Any]:
    """The forward pass of the teacher in int8 over that in float32, on batches as training has them."""
    lower, rows = teacher_at(made["teacher"], "int8"), made["rows"]
    collate, batches = made["task"].collator(made["tokenizer"]), batches_of(made, 12)

    def forward(model: Any) -> None:
        with torch.no_grad():
            for batch in batches:
                model(**batch)

    ratio = paired(partial(forward, lower), partial(forward, made["teacher"]), repeats)
    fidelity = reduced_fidelity(made["teacher"], "int8", rows, collate, "single_label").as_dict()
    return {"ratio": ratio, "untrained_head": fidelity}


def grouping(made: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Forward and backward of an epoch's first batches, grouped by length over plainly shuffled, for each row."""
    rows, lengths = made["rows"], np.asarray(made["rows"]["length"])
    collate, model = made["task"].collator(made["tokenizer"]), made["teacher"]
    orders = [
        np.asarray(list(LengthGroupedSampler(known, BATCH, 0, rows=len(rows)))) for known in (lengths.tolist(), None)
    ]
    whole = len(rows) // BATCH * BATCH
    padded = [int(lengths[order[:whole]].reshape(-1, BATCH).max(1).sum()) * BATCH for order in orders]
    chosen = np.random.default_rng(0).permutation(whole // BATCH)[:12]

    def step(order: Any) -> None:
        for number in chosen:
            batch = collate(rows.__getitems__(order[number * BATCH : (number + 1) * BATCH].tolist()))
            batch.pop("labels")
            model(**batch).logits.sum().backward()
            model.zero_grad(set_to_none=True)

    ratio = paired(partial(step, orders[0]), partial(step, orders[1]), repeats)
    return {"ratio": ratio, "padded_tokens_of_an_epoch": padded[0] / padded[1]}


def evaluation(made: dict[str, Any], repeats: int) -> dict[str, Any]:
    """A thousand rows in batches of tokens over the same in batches of 128 rows."""
    rows = made["rows"].select(range(1000))
    collate, model = made["task"].collator(made["tokenizer"]), made["teacher"]
    lengths = np.asarray(rows["length"])
    order = np.argsort(-lengths, kind="stable")

    def by_rows() -> None:
        with torch.inference_mode():
            for start in range(0, len(order), 128):
                batch = collate(rows.select(order[start : start + 128].tolist()).to_list())
                batch.pop("labels")
                model(**batch)

    return {"ratio": paired(partial(predict_logits, model, rows, collate), by_rows, repeats), "tokens": CPU_TOKENS}


def encoding(made: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Reading ten thousand encoded rows back over encoding them."""
    texts = load_sample_data("reviews", {})["train"].select_columns(["text"])
    tokenizer = load_tokenizer(fetch_model("minilm-l6"))
    encode = partial(made["task"].encode, texts, tokenizer, max_length=128)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["POTSTILL_CACHE"] = folder
        read = partial(encoded.kept, texts, tokenizer, "", encode)
        read()
        return {"ratio": paired(read, encode, repeats), "rows": len(texts)}


def dropout(made: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Forward and backward of a student with our dropout over the same with PyTorch's."""
    model, batches = copy.deepcopy(made["teacher"]).train(), batches_of(made, 8)

    def step(context: Any) -> None:
        with context:
            for batch in batches:
                model(**batch).logits.sum().backward()
                model.zero_grad(set_to_none=True)

    return {"ratio": paired(lambda: step(cheap_dropout(model)), lambda: step(nullcontext()), repeats)}


PARTS = {part.__name__: part for part in (teacher, grouping, evaluation, encoding, dropout)}


def main() -> None:
    """Measure all parts and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "parts.json")
    given = parser.parse_args()
    with quiet_transformers(), bars_on_a_terminal():
        made = setup()
        found = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
        for name in given.only:
            where = {"threads": torch.get_num_threads(), "hardware": hardware(), "versions": versions()}
            found[name] = PARTS[name](made, given.repeats) | where
            print(f"{name}: {found[name]['ratio']['median']:.3f}", flush=True)
    setting = {"model": "minilm-l6", "rows": "reviews", "batch": BATCH}
    text = json.dumps({**found, "setting": setting}, indent=1)  # each part with what it was measured on
    given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
