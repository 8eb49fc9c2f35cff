"""A model's logits for every row, in large batches of like length, in the rows' own order."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel

from potstill.knowledge import inputs_for

Logits = npt.NDArray[np.float32]
Collate = Callable[[Sequence[Any]], dict[str, torch.Tensor]]
CPU_TOKENS, DEVICE_TOKENS = 4096, 32768
"""Padded tokens of a batch: on a CPU, what its caches still hold; on an accelerator, what fills it."""


def fastest_device() -> torch.device:
    """The accelerator, if there is one, else the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def token_batches(lengths: npt.NDArray[np.int64], tokens: int) -> list[npt.NDArray[np.int64]]:
    """Row numbers in batches of at most so many tokens, padding counted, from the longest rows to the shortest.

    A row that is longer than the budget is a batch of its own. Short rows thus come in hundreds and long ones in
    dozens, and a batch takes about the same memory whatever its lengths.
    """
    order = np.argsort(-lengths, kind="stable")
    found, start = [], 0
    while start < len(order):
        rows = max(1, tokens // max(1, int(lengths[order[start]])))
        found.append(order[start : start + rows])
        start += rows
    return found


def predict_logits(
    model: PreTrainedModel,
    rows: Any,
    collate: Collate,
    *,
    tokens: int | None = None,
    bfloat16: bool = False,
    progress: Callable[[int, int, float | None], None] | None = None,
) -> Logits:
    """Logits [N,V] of a model, float32, in the order of the rows.

    Args:
        model: used where it is, in eval mode; its mode is put back.
        rows: encoded rows with a column ``length``.
        collate: pads a list of rows to a batch.
        tokens: of a batch, padding counted; None: as suits the model's device. It decides time and memory alone.
        bfloat16: under autocast, for a quick look while training; a final number is float32.
        progress: called with (rows done, rows, None).
    """
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    device = model.device
    budget = tokens or (CPU_TOKENS if device.type == "cpu" else DEVICE_TOKENS)
    batches = token_batches(np.asarray(rows["length"]), budget)
    found: list[torch.Tensor] = []
    done = 0
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        for chosen in batches:
            batch = {k: v.to(device) for k, v in collate(rows.select(chosen).to_list()).items()}
            found.append(model(**inputs_for(model, batch)).logits.float().cpu())
            done += len(chosen)
            if progress is not None:
                progress(done, len(rows), None)
    model.train(was_training)
    logits = torch.cat(found).numpy()
    result = np.empty_like(logits)
    result[np.concatenate(batches)] = logits
    return result


def save_predictions(path: Path, logits: dict[str, Logits]) -> None:
    """Write the logits of each split to one Parquet file: split, row, logits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tables = [
        pa.table({"split": [split] * len(z), "row": np.arange(len(z)), "logits": list(z.astype(np.float32))})
        for split, z in logits.items()
    ]
    beside = path.with_name(f".{path.name}")
    pq.write_table(pa.concat_tables(tables), beside)
    beside.replace(path)


def load_predictions(path: Path) -> dict[str, Logits]:
    """The logits of each split, as `save_predictions` wrote them."""
    table = pq.read_table(path)
    splits = np.asarray(table["split"].to_pylist())
    logits = np.asarray(table["logits"].to_pylist(), dtype=np.float32)
    return {str(split): logits[splits == split] for split in dict.fromkeys(splits.tolist())}
