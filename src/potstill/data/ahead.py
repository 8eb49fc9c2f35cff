"""Images read ahead by processes while an accelerator computes: decoding and augmenting would keep it waiting."""

import os
import shutil
from collections.abc import Callable, Sequence
from multiprocessing import get_all_start_methods, get_start_method
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import get_worker_info

from potstill.errors import PotstillError

MOST_WORKERS = 8  # that read images for one rank
SHARED_MEMORY, MEMORY_OF_A_WORKER = Path("/dev/shm"), 250_000_000  # two batches of 32 images of 512 x 640 in float32


def loader_workers(columns: Sequence[str]) -> int:
    """How many processes read rows of these columns ahead.

    None for texts, which are encoded beforehand; none where a processor trains, which has no cores to spare; none where
    processes don't begin as a copy of this one (fork), since tasks hold what can't be sent to another; and no more
    than there is shared memory for, through which they hand over their batches (containers often have 64 MB).
    """
    if "image" not in columns or not torch.accelerator.is_available():
        return 0
    if (get_start_method(allow_none=True) or get_all_start_methods()[0]) != "fork" or not SHARED_MEMORY.is_dir():
        return 0
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    room = shutil.disk_usage(SHARED_MEMORY).free // (beside * MEMORY_OF_A_WORKER)
    return min(MOST_WORKERS, room, max(1, len(os.sched_getaffinity(0)) // beside - 1))


def handing_back(collate: Callable[[Sequence[Any]], Any]) -> Callable[[Sequence[Any]], Any]:
    """A collator that gives an error of ours in a batch's place where a process beside the training makes the batches:
    raised there, it would arrive as the text of a traceback."""

    def made(rows: Sequence[Any]) -> Any:
        try:
            return collate(rows)
        except PotstillError as error:
            if get_worker_info() is None:
                raise
            return error

    return made
