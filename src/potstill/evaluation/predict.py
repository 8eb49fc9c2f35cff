"""A model's logits for every row, in large batches of like length, in the rows' own order.

What is kept of a model's outputs is one array with an entry a row: logits, or counts of pixels
(`evaluation.segmentation`). It is written and read here, whatever its shape.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from potstill.data.ahead import handing_back, loader_workers
from potstill.errors import PotstillError
from potstill.knowledge import inputs_for

Logits = npt.NDArray[np.float32]
Collate = Callable[[Sequence[Any]], dict[str, torch.Tensor]]
Step = Callable[[int, int, float | None], None]
SHAPE = b"shape"  # of one row's entry, beside the table
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
    progress: Step | None = None,
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
    numbers: list[npt.NDArray[np.int64]] = []
    found: list[torch.Tensor] = []
    done = 0
    for chosen, _, _, logits in logits_of_batches(model, rows, collate, tokens=tokens, bfloat16=bfloat16):
        numbers.append(chosen)
        found.append(logits.float().cpu())
        done += len(chosen)
        if progress is not None:
            progress(done, len(rows), None)
    unordered = torch.cat(found).numpy()
    result = np.empty_like(unordered)
    result[np.concatenate(numbers)] = unordered
    return result


def logits_of_batches(
    model: PreTrainedModel, rows: Any, collate: Collate, *, tokens: int | None = None, bfloat16: bool = False
) -> Iterator[tuple[npt.NDArray[np.int64], list[dict[str, Any]], dict[str, torch.Tensor], torch.Tensor]]:
    """Batch by batch: the numbers of its rows, the rows, the batch that they make, and the model's logits [B,V,...].

    The last two are where the model is.

    Args: as of `predict_logits`.
    """
    was_training, device = model.training, model.device
    model.eval()  # type: ignore[no-untyped-call]
    budget = tokens or (CPU_TOKENS if device.type == "cpu" else DEVICE_TOKENS)
    try:
        batches = _Batches(rows, token_batches(np.asarray(rows["length"]), budget), handing_back(collate))
        for chosen, own, read in DataLoader(
            batches,
            batch_size=None,
            num_workers=loader_workers(rows.column_names),
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # training's own random numbers stay where they are
        ):
            if isinstance(read, PotstillError):
                raise read
            batch = {name: value.to(device) for name, value in read.items()}
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                logits = model(**inputs_for(model, batch)).logits
            yield chosen, own, batch, logits
    finally:
        model.train(was_training)


def _as_it_is(item: Any) -> Any:
    return item


class _Batches(Dataset[Any]):
    """Batches by their number: which rows, the rows, and what they are collated to."""

    def __init__(self, rows: Any, numbers: Sequence[npt.NDArray[np.int64]], collate: Collate) -> None:
        self.rows, self.numbers, self.collate = rows, numbers, collate

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, at: int) -> tuple[npt.NDArray[np.int64], list[dict[str, Any]], dict[str, torch.Tensor]]:
        own = self.rows.select(self.numbers[at]).to_list()
        return self.numbers[at], own, self.collate(own)


def save_predictions(path: Path, outputs: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write what is kept of a model's outputs on each split, [N,...], to one Parquet file.

    Its columns are split, row and ``logits`` (float32) or, of integers, ``counts``; what has more axes is flattened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    first = next(iter(outputs.values()))
    column, kind = ("counts", first.dtype) if np.issubdtype(first.dtype, np.integer) else ("logits", np.float32)
    tables = [
        pa.table(
            {"split": [split] * len(z), "row": np.arange(len(z)), column: list(z.reshape(len(z), -1).astype(kind))}
        )
        for split, z in outputs.items()
    ]
    table = pa.concat_tables(tables).replace_schema_metadata({SHAPE: json.dumps(first.shape[1:]).encode()})
    beside = path.with_name(f".{path.name}")
    pq.write_table(table, beside)
    beside.replace(path)


def load_predictions(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The outputs [N,...] on each split, as `save_predictions` wrote them."""
    table = pq.read_table(path)
    splits = np.asarray(table["split"].to_pylist())
    values = table["counts" if "counts" in table.column_names else "logits"].combine_chunks().flatten().to_numpy()
    found = values.reshape(len(splits), *json.loads((table.schema.metadata or {}).get(SHAPE, b"[-1]")))
    return {str(split): found[splits == split] for split in dict.fromkeys(splits.tolist())}
