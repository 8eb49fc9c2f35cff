"""Losses that compare attention maps, head by head: probabilities after the softmax, one value a query position.

Decisions:
- A mean over valid keys, not over all: with all, the same sentence would lose less in a longer batch.
- Maps come from a model with eager attention and without attention dropout, or the rows don't sum to 1.
- Heads are paired by number, so both need as many; `relation_kl` regroups them.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.checks import problem, same_shape
from potstill.errors import ShapeError
from potstill.losses._inputs import at_least_float32, require_axes
from potstill.reduce import Mask, position_mask

FLOOR = 1e-12
"""The least probability inside a logarithm: a key that the student rules out costs 28 nats, not infinity."""


def attention_mse(
    student: Float[Tensor, "B H S S"],
    teacher: Float[Tensor, "B_t H_t S_t S_t"],
    *,
    mask: Mask | None = None,
) -> Float[Tensor, "B S"]:
    """Mean squared difference of two attention maps, over heads and valid keys.

    attention_mse = mean over H, mean over valid keys k of (A_S[q, k] - A_T[q, k])^2, for each query q

    Args:
        student: attention probabilities, [B, H, S, S], queries before keys.
        teacher: attention probabilities, [B, H, S, S].
        mask: [B, S], true where a position counts, as query and as key.

    Returns:
        One value a query position, [B, S].

    Raises:
        ShapeError: different shapes, different numbers of heads among them.

    References:
        Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu: TinyBERT: Distilling BERT for Natural Language Understanding,
        2020, https://arxiv.org/abs/1909.10351 (which takes the scores before the softmax)

    Prefer `attention_kl` in general: most probabilities are small, so squared differences see only the few large ones.
    """
    valid = _valid(student, teacher, mask, caller="attention_mse")
    difference = at_least_float32(student) - at_least_float32(teacher)
    if valid is None:
        return difference.square().mean(dim=(1, 3))
    difference = difference.masked_fill(~_pairs(valid), 0.0)
    keys = valid.sum(-1, keepdim=True).clamp(min=1)
    return difference.square().sum(-1).mean(1) / keys


def attention_kl(
    student: Float[Tensor, "B H S S"],
    teacher: Float[Tensor, "B_t H_t S_t S_t"],
    *,
    mask: Mask | None = None,
) -> Float[Tensor, "B S"]:
    """Divergence of the student's attention from the teacher's, in nats, averaged over heads.

    attention_kl = mean over H of sum over valid keys k of A_T[q, k] * (log A_T[q, k] - log A_S[q, k]), for each
    query q, with both logarithms of at least 1e-12 and 0 * log 0 = 0

    Args:
        student: attention probabilities, [B, H, S, S], queries before keys, each row summing to 1 over valid keys.
        teacher: attention probabilities, [B, H, S, S], likewise.
        mask: [B, S], true where a position counts, as query and as key.

    Returns:
        One value a query position, [B, S]: 0 where both maps are equal. Below the floor the student gets no gradient.

    Raises:
        ShapeError: different shapes, different numbers of heads among them.

    References:
        Wang, Wei, Dong, Bao, Yang, Zhou: MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of
        Pre-Trained Transformers, 2020, https://arxiv.org/abs/2002.10957
        Sun, Yu, Song, Liu, Yang, Zhou: MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices, 2020,
        https://arxiv.org/abs/2004.02984

    Prefer `relation_kl` on queries and keys where heads differ in number, or where fused attention should stay.
    """
    valid = _valid(student, teacher, mask, caller="attention_kl")
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    if valid is not None:
        outside = ~_pairs(valid)
        student, teacher = student.masked_fill(outside, 0.0), teacher.masked_fill(outside, 0.0)
    # The floor is on both sides, so that equal maps give exactly 0 below it too.
    log_ratio = teacher.clamp(min=FLOOR).log() - student.clamp(min=FLOOR).log()
    return (teacher * log_ratio).sum(-1).mean(1)


def _valid(student: Tensor, teacher: Tensor, mask: Mask | None, *, caller: str) -> Tensor | None:
    require_axes(student, teacher, axes=4, letters="[B, H, S, S]", caller=caller)
    heads, heads_t = student.shape[1], teacher.shape[1]
    if heads != heads_t:
        raise ShapeError(
            problem(
                f"{caller} pairs heads by their number, so student and teacher need as many",
                given=f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}: {heads} and {heads_t} heads",
                do="Take relation_kl on queries and keys with `heads`, which regroups them",
            )
        )
    same_shape(student, teacher, caller=caller, hint="Both need the same inputs, padded to the same length")
    if student.shape[-1] != student.shape[-2]:
        raise ShapeError(
            problem(
                f"{caller} takes self-attention, with as many keys as queries",
                given=f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}",
            )
        )
    return position_mask(mask, torch.Size((student.shape[0], student.shape[-1])), caller=caller)


def _pairs(valid: Tensor) -> Tensor:
    """True where query and key both count, [B, 1, S, S], from [B, S]."""
    return valid[:, None, :, None] & valid[:, None, None, :]
