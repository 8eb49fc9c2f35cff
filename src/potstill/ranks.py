"""Several processes that do one run together. Each is a rank; rank 0 decides, writes and speaks.

Decisions:
- What only one may do (writing, deciding whether a stage is done) is done by rank 0 inside `on_main`, and what it gives
  is sent to the others, which wait. Inside of it rank 0 is alone: `world_size` is 1, and a nested `on_main` just works.
- Ranks talk about such things in a group of their own, over gloo on any hardware, with a timeout of weeks: one that
  waits while rank 0 evaluates must not give up. Gradients go through the default group.
- A rank that ends takes the others along: its connections break, and whoever waits for it sees an error at once. The
  first rank with an error of its own leaves its message in the launcher's store, and the others raise `RankError` with
  that message, so that it is said once, and is the cause rather than a consequence.
- With one process nothing of this happens, and no process group is made.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from potstill.checks import problem
from potstill.errors import RankError

T = TypeVar("T")

PATIENCE = timedelta(weeks=4)
GRACE = 10.0  # seconds in which the rank that failed first may say why
LISTENING = 2.0  # seconds in which others that fail at the same time may hear of it
FAILED = "potstill/failed"

_control: Any = None  # the group in which ranks talk; None where there is one process
_alone = False  # while this process works by itself, inside of `on_main` or `main_first`


def launched() -> int:
    """How many processes a launcher (torchrun, ``accelerate launch``) started for this run; 1 without one.

    Raises:
        RankError: ``accelerate launch --cpu`` was asked for several processes, and started one.
    """
    alone = "WORLD_SIZE" not in os.environ and "MASTER_ADDR" in os.environ
    if alone and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        raise RankError(
            problem(
                "`accelerate launch --cpu` was asked for several processes, and started a single one",
                follows="It leaves processes on the CPU to MPI",
                do="Use torchrun: `torchrun --nproc-per-node 2 -m potstill run RECIPE`",
            )
        )
    return int(os.environ.get("WORLD_SIZE", "1"))


def world_size() -> int:
    """How many ranks work together here; 1 inside of `on_main` and `main_first`."""
    return 1 if _alone or not _joined() else dist.get_world_size()


def rank() -> int:
    """The number of this process among those that work together, from 0."""
    return dist.get_rank() if _joined() else 0


def is_main() -> bool:
    """Whether this is rank 0, which decides, writes and speaks."""
    return rank() == 0


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def together() -> Iterator[None]:
    """Join the other processes that the launcher started, for as long as the context lasts; an error ends all.

    Inside of another such context, and with one process, it does nothing. A process group that is there already is
    taken, and left as it is.

    Raises:
        RankError: another rank failed, or is gone.
    """
    global _control
    if _control is not None or (launched() == 1 and not _joined()):
        yield
        return
    ours = not _joined()
    if ours:
        dist.init_process_group(_backend(), timeout=PATIENCE)
    _control = dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield
        dist.barrier(_control)
    except Exception as error:
        cause = _first_failure(error)
        if cause is None:
            raise
        raise cause from error
    else:
        if ours:
            dist.destroy_process_group()
    finally:
        _control = None


def _backend() -> str:
    """The backend of the default group; each process takes the device of its local rank."""
    if not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        return "gloo"
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return "cpu:gloo,cuda:nccl"


def _first_failure(error: Exception) -> RankError | None:
    """None where this rank is the first with an error of its own, which is then told to the others."""
    if isinstance(error, RankError):
        return error
    store = dist.distributed_c10d._get_default_store()
    key = f"{FAILED}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    with suppress(RuntimeError):  # the store is gone with the rank that held it
        if _is_consequence(error):
            ends = time.monotonic() + GRACE
            while time.monotonic() < ends and not store.check([key]):
                time.sleep(0.1)
            said = store.get(key).decode() if store.check([key]) else None
        else:
            mine = f"{rank()}: {type(error).__name__}: {error}"
            said = store.compare_set(key, "", mine).decode()
            _let_all_hear(store, key)
            if said == mine:
                return None
        if said is not None:
            return RankError(problem("Another process of this run failed", given=f"rank {said}"), said=True)
    if not _is_consequence(error):
        return None
    return RankError(
        problem(
            "Another process of this run is gone",
            given=str(error).splitlines()[0],
            follows="Nothing that was saved is lost",
            do="See the launcher's messages; the same command goes on from the last checkpoint",
        )
    )


def _let_all_hear(store: Any, key: str) -> None:
    """Stay for the others that fail at the same time: the store goes with the rank that holds it."""
    ends = time.monotonic() + LISTENING
    heard = store.add(f"{key}/heard", 1)
    while heard < dist.get_world_size() and time.monotonic() < ends:
        time.sleep(0.05)
        heard = store.add(f"{key}/heard", 0)


def _is_consequence(error: BaseException) -> bool:
    """Whether an error says that a rank can't be reached, rather than what is wrong."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "Connection closed", "NCCL"))


def on_main(work: Callable[[], T]) -> T:
    """What `work` gives on rank 0, on every rank; the others wait for it, however long it takes.

    Args:
        work: called on rank 0 alone; gives plain data, or what else can be pickled.

    Raises:
        RankError: on the other ranks, where rank 0 failed.
    """
    if world_size() == 1:
        return work()
    if not is_main():
        found: list[Any] = [None, None]
        dist.broadcast_object_list(found, src=0, group=_control)
        if found[1] is not None:
            raise RankError(problem("Another process of this run failed", given=f"rank 0: {found[1]}"), said=True)
        return found[0]  # type: ignore[no-any-return]
    try:
        with _by_itself():
            value = work()
    except Exception as error:
        dist.broadcast_object_list([None, f"{type(error).__name__}: {error}"], src=0, group=_control)
        raise
    dist.broadcast_object_list([value, None], src=0, group=_control)
    return value


@contextmanager
def _by_itself() -> Iterator[None]:
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def main_first(work: Callable[[], T]) -> T:
    """What `work` gives on each rank, after rank 0 has done it alone: it finds what rank 0 fetched and kept on disk."""
    mine: list[T] = []
    on_main(lambda: mine.append(work()))
    if mine:
        return mine[0]
    with _by_itself():
        return work()


def everyone(value: bool) -> bool:
    """Whether `value` is true on every rank."""
    return all(of_all(value))


def wait() -> None:
    """Go on when every rank has come here."""
    everyone(True)


def of_all(value: T) -> list[T]:
    """The values of all ranks, in their order; plain data, or what else can be pickled."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value, group=_control)
    return found


def same(value: Any) -> bool:
    """Whether all ranks have an equal `value`."""
    found = of_all(value)
    return all(one == found[0] for one in found)


def gathered(rows: Tensor) -> list[Tensor]:
    """The `rows` of every rank, in their order, without gradients; ranks may have different numbers of them.

    Args:
        rows: [B, ...]; all but B is the same on every rank.
    """
    if world_size() == 1:
        return [rows.detach()]
    sizes = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    counts = [int(size) for size in sizes]
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded)
    return [part[:count] for part, count in zip(found, counts, strict=True)]
