"""What losses on attention maps [B, H, S, S] share, before the softmax and after: who is compared with whom.

Decisions:
- `reduce_heads` makes one map of all heads before two are compared, as TextBrewer does where student and teacher have
  different numbers of heads. Without it heads are paired by number.
"""

import torch
from torch import Tensor

from potstill.checks import problem, unknown_name
from potstill.errors import ArgumentError, ShapeError
from potstill.losses._inputs import require_axes
from potstill.reduce import Mask, position_mask

HEAD_REDUCTIONS = ("mean", "none", "sum")


def map_positions(
    student: Tensor, teacher: Tensor, mask: Mask | None, reduce_heads: str, *, caller: str
) -> Tensor | None:
    """The mask [B, S] as booleans, after the check that two maps can be compared under `reduce_heads`."""
    if reduce_heads not in HEAD_REDUCTIONS:
        raise ArgumentError(unknown_name(f"reduce_heads of {caller}", reduce_heads, HEAD_REDUCTIONS))
    require_axes(student, teacher, axes=4, letters="[B, H, S, S]", caller=caller)
    heads, heads_t = student.shape[1], teacher.shape[1]
    given = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
    if heads != heads_t and reduce_heads == "none":
        raise ShapeError(
            problem(
                f"{caller} pairs heads by their number, so student and teacher need as many",
                given=f"{given}: {heads} and {heads_t} heads",
                do="Take reduce_heads: mean, or relation_kl on queries and keys with `heads`, which regroups them",
            )
        )
    # One head of each stands for all: their number has been looked at.
    if student[:, 0].shape != teacher[:, 0].shape:
        raise ShapeError(
            problem(f"{caller} compares maps of one shape", given=given, do="Both need the same inputs, padded alike")
        )
    if student.shape[-1] != student.shape[-2]:
        raise ShapeError(problem(f"{caller} takes self-attention, with as many keys as queries", given=given))
    return position_mask(mask, torch.Size((student.shape[0], student.shape[-1])), caller=caller)


def pairs(valid: Tensor) -> Tensor:
    """True where query and key both count, [B, 1, S, S], from [B, S]."""
    return valid[:, None, :, None] & valid[:, None, None, :]


def reduced_heads(maps: Tensor, reduce_heads: str) -> Tensor:
    """The maps [B, H, S, S], or one of all heads, [B, 1, S, S]."""
    if reduce_heads == "none":
        return maps
    return maps.sum(1, keepdim=True) if reduce_heads == "sum" else maps.mean(1, keepdim=True)
