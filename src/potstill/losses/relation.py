"""Losses that compare relations between positions, which have one shape [S, S] whatever the width of either model.

Decisions:
- One family for queries, keys and values: which of them is compared is the term's knowledge, not another loss.
- Scores are computed in float32, under autocast too: they are divided by sqrt(d), but not small.
- Masked keys get the lowest finite score, not minus infinity: 0 * (inf - inf) is NaN, 0 * (low - low) is 0.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.checks import problem
from potstill.errors import ShapeError
from potstill.losses._inputs import at_least_float32, full_precision, require_axes, zeroed
from potstill.reduce import Mask, position_mask


def relation_kl(
    student: Float[Tensor, "B H S d"],
    teacher: Float[Tensor, "B_t H_t S_t d_t"],
    *,
    mask: Mask | None = None,
    heads: int | None = None,
) -> Float[Tensor, "B S"]:
    """Divergence of the student's relations between positions from the teacher's, in nats, averaged over heads.

    relation_kl = mean over heads of sum over valid keys k of R_T[q, k] * (log R_T[q, k] - log R_S[q, k]), for each
    query q,  R = softmax over valid keys of X X^T / sqrt(d)

    Args:
        student: queries, keys or values, [B, H, S, d].
        teacher: the same kind, [B, H_t, S, d_t]; its width d_t may differ.
        mask: [B, S], true where a position counts, as query and as key.
        heads: number of relation heads: the model's own are put side by side and cut anew, as MiniLMv2 does. Needed
            where the models have different numbers of heads; without it each head is one relation.

    Returns:
        One value a query position, [B, S]: 0 or more, and 0 where the relations are equal.

    Raises:
        ShapeError: different batches or lengths; different numbers of heads without `heads`; a width that `heads`
            doesn't divide.

    References:
        Wang, Bao, Huang, Dong, Wei: MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing
        Pretrained Transformers, 2021, https://arxiv.org/abs/2012.15828

    Prefer it over `attention_kl` and `hidden_mse` where widths or heads differ: it needs neither projection nor eager
    attention. Prefer `hidden_mse` where the student's layers are the teacher's own.
    """
    student, teacher, valid = _comparable(student, teacher, mask, heads, caller="relation_kl")
    with full_precision(student):
        log_student, log_teacher = _log_relations(student, valid), _log_relations(teacher, valid)
        values = (log_teacher.exp() * (log_teacher - log_student)).sum(-1).mean(1)
    return zeroed(values, valid)


def relation_mse(
    student: Float[Tensor, "B H S d"],
    teacher: Float[Tensor, "B_t H_t S_t d_t"],
    *,
    mask: Mask | None = None,
    heads: int | None = None,
) -> Float[Tensor, "B S"]:
    """Mean squared difference of the student's scaled products between positions and the teacher's, over heads.

    relation_mse = mean over heads, mean over valid keys k of (P_S[q, k] - P_T[q, k])^2, for each query q,
    P = X X^T / sqrt(d)

    Args:
        student: queries, keys or values, [B, H, S, d].
        teacher: the same kind, [B, H_t, S, d_t]; its width d_t may differ.
        mask: [B, S], true where a position counts, as query and as key.
        heads: number of relation heads, as in `relation_kl`; without it each head is one relation.

    Returns:
        One value a query position, [B, S], in squared units of the products.

    Raises:
        ShapeError: different batches or lengths; different numbers of heads without `heads`; a width that `heads`
            doesn't divide.

    References:
        Liu, Tao, Feng, Zhao: Multi-Granularity Structural Knowledge Distillation for Language Model Compression, 2022,
        https://aclanthology.org/2022.acl-long.71 (its pairwise part, on hidden states)

    Prefer `relation_kl` in general: a few large products rule the squared difference. Prefer this one where the size of
    queries, keys or values should be kept too.
    """
    student, teacher, valid = _comparable(student, teacher, mask, heads, caller="relation_mse")
    with full_precision(student):
        difference = _products(student, valid) - _products(teacher, valid)
        # Masked positions are zeros in both, and so is their difference.
        keys = student.shape[2] if valid is None else valid.sum(-1, keepdim=True).clamp(min=1)
        return difference.square().sum(-1).mean(1) / keys


def _log_relations(vectors: Tensor, valid: Tensor | None) -> Tensor:
    """log softmax over valid keys of X X^T / sqrt(d), [B, H, S, S], from [B, H, S, d]."""
    scores = _products(vectors, valid)
    # Masked in place: [S, S] is large.
    if valid is not None:
        scores.masked_fill_(~valid[:, None, None, :], torch.finfo(scores.dtype).min)
    return torch.log_softmax(scores, dim=-1)


def _products(vectors: Tensor, valid: Tensor | None) -> Tensor:
    """X X^T / sqrt(d), [B, H, S, S], from [B, H, S, d]; 0 where a position doesn't count."""
    vectors = at_least_float32(vectors)
    if valid is not None:
        vectors = vectors.masked_fill(~valid[:, None, :, None], 0.0)
    # Scaled before the product: [S, d] is usually smaller than [S, S].
    return (vectors / math.sqrt(vectors.shape[-1])) @ vectors.transpose(-1, -2)


def _regrouped(vectors: Tensor, heads: int, whose: str, *, caller: str) -> Tensor:
    """[B, heads, S, H*d/heads] from [B, H, S, d]: heads side by side, then cut anew."""
    batch, own, positions, width = vectors.shape
    if heads < 1 or (own * width) % heads:
        raise ShapeError(
            problem(
                f"{caller} cuts the {whose}'s width of {own} x {width} = {own * width} into `heads` equal parts",
                given=f"{whose} {tuple(vectors.shape)}, heads={heads}",
                do="Take a number that divides both models' widths",
            )
        )
    if heads == own:
        return vectors
    return vectors.transpose(1, 2).reshape(batch, positions, heads, own * width // heads).transpose(1, 2)


def _comparable(
    student: Tensor, teacher: Tensor, mask: Mask | None, heads: int | None, *, caller: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both in as many heads, and the mask [B, S] as booleans, after the check that they can be compared."""
    require_axes(student, teacher, axes=4, letters="[B, H, S, d]", caller=caller)
    given = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
    if student.shape[0] != teacher.shape[0] or student.shape[2] != teacher.shape[2]:
        raise ShapeError(
            problem(
                f"{caller} compares the same positions: batch and length must agree",
                given=given,
                do="Both need the same inputs, padded to the same length",
            )
        )
    if heads is None and student.shape[1] != teacher.shape[1]:
        raise ShapeError(
            problem(
                f"{caller} pairs heads by their number, so without `heads` student and teacher need as many",
                given=given,
                do="Give `heads`, a number that divides both widths (48 for base models in MiniLMv2)",
            )
        )
    valid = position_mask(mask, torch.Size((student.shape[0], student.shape[2])), caller=caller)
    if heads is not None:
        student = _regrouped(student, heads, "student", caller=caller)
        teacher = _regrouped(teacher, heads, "teacher", caller=caller)
    return student, teacher, valid
