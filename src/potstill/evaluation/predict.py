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


def fastest_device() -> torch.device:
    """The accelerator, if there is one, else the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def predict_logits(
    model: PreTrainedModel,
    rows: Any,
    collate: Collate,
    *,
    batch_size: int = 128,
    bfloat16: bool = False,
    progress: Callable[[int, int, float | None], None] | None = None,
) -> Logits:
    """Logits [N,V] of a model, float32, in the order of the rows.

    Args:
        model: used where it is, in eval mode; its mode is put back.
        rows: encoded rows with a column ``length``.
        collate: pads a list of rows to a batch.
        batch_size: rows of a batch.
        bfloat16: under autocast, for a quick look while training; a final number is float32.
        progress: called with (rows done, rows, None).
    """
    lengths = np.asarray(rows["length"])
    order = np.argsort(-lengths, kind="stable")
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    device = model.device
    found: list[torch.Tensor] = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size].tolist()
            batch = {k: v.to(device) for k, v in collate(rows.select(chosen).to_list()).items()}
            found.append(model(**inputs_for(model, batch)).logits.float().cpu())
            if progress is not None:
                progress(min(start + batch_size, len(order)), len(order), None)
    model.train(was_training)
    logits = torch.cat(found).numpy()
    result = np.empty_like(logits)
    result[order] = logits
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
