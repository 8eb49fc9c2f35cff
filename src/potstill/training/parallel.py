"""What several ranks need that train one `Distiller`: how their gradients are exchanged."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import TrainingArguments

from potstill.tasks.base import Rows
from potstill.training.distiller import Distiller

TRIED_ROWS = 2


def parallel_arguments(
    arguments: TrainingArguments,
    distiller: Distiller,
    rows: Rows,
    collate: Callable[[Sequence[Any]], dict[str, Tensor]],
) -> TrainingArguments:
    """The arguments for several ranks, where they leave open how gradients are exchanged.

    DDP waits for a gradient of every parameter, unless it looks in each step for those that get none, which costs time.
    So that is asked for only where the objective leaves some of them out, as a term on hidden states does the head. The
    buffers of a memory are the same on all ranks by themselves, and aren't sent around.
    """
    made = copy.copy(arguments)
    if made.ddp_find_unused_parameters is None:
        tried = rows.select(range(min(TRIED_ROWS, len(rows))))
        made.ddp_find_unused_parameters = leaves_out(distiller, collate(tried.to_list()))
    if made.ddp_broadcast_buffers is None and distiller.objective.needs_rows:
        made.ddp_broadcast_buffers = False
    return made


def leaves_out(distiller: Distiller, batch: Mapping[str, Tensor]) -> bool:
    """Whether some parameters get no gradient: tried on a small batch, or since layers are dropped at random."""
    if any(getattr(member.student.config, "layerdrop", 0) for member in distiller.members):
        return True
    was_training = distiller.training
    distiller.eval()  # draws no dropout, and leaves memories as they are
    distiller(batch).total.backward()
    found = any(p.requires_grad and p.grad is None for p in distiller.parameters())
    distiller.zero_grad(set_to_none=True)
    distiller.train(was_training)
    return found
