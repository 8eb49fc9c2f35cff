"""Two processes for a test: a function is run by both under gloo, and what each gave comes back."""

import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

RANKS = 2
PATIENCE = 200.0  # seconds: ranks that wait for one another forever are ended, and the test fails


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def launcher(rank: int, port: int, world_size: int = RANKS) -> dict[str, str]:
    """The environment that torchrun gives to a process."""
    size = str(world_size)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {**place, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}


def _work(rank: int, port: int, work: Callable[..., Any], folder: Path, arguments: tuple[Any, ...]) -> None:
    os.environ.update(launcher(rank, port), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    torch.set_num_threads(1)
    try:
        found: Any = work(*arguments)
    except Exception as error:
        traceback.print_exc()
        found = error
    (folder / f"rank-{rank}.pickle").write_bytes(pickle.dumps(found))
    os._exit(0)  # a process that failed would wait for the others at its end


def on_two_ranks(work: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What `work(*arguments)` gave, or the exception that it raised, on each of two ranks.

    `work` stands at the top of a module, since new processes import it.
    """
    started = multiprocessing.spawn(_work, (free_port(), work, folder, arguments), nprocs=RANKS, join=False)
    ends = time.monotonic() + PATIENCE
    try:
        while not started.join(timeout=1):
            assert time.monotonic() < ends, f"two ranks did not end within {PATIENCE:.0f} s"
    finally:
        for process in started.processes:
            process.kill()
    return [pickle.loads((folder / f"rank-{rank}.pickle").read_bytes()) for rank in range(RANKS)]
