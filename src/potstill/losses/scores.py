"""Losses that compare attention scores, before the softmax: one value a query position.

Decisions:
- Scores hold the model's own mask: where it rules a pair out (a later token, for a causal model) there is no score, but
  a number near the lowest that the model's precision has. A pair that either model rules out is left out, of the sum
  and of the count; what counts as ruled out is below. Padding is known from `mask`, and never guessed from values.
- A mean over the keys that are left, not over all, as in `attention`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.losses._inputs import at_least_float32
from potstill.losses._maps import map_positions, pairs, reduced_heads
from potstill.reduce import Mask

RULED_OUT = torch.finfo(torch.float16).min / 2
"""A score at or below this (-32752) is no score: the lowest of float16, bfloat16 and float32, -1e9, minus infinity.

TinyBERT draws the line at -100 and OFA-Compress at -0.001, which also drops scores that are merely negative.
"""


def score_mse(
    student: Float[Tensor, "B H S S"],
    teacher: Float[Tensor, "B_t H_t S_t S_t"],
    *,
    mask: Mask | None = None,
    reduce_heads: str = "none",
) -> Float[Tensor, "B S"]:
    """Mean squared difference of two models' attention scores, over heads and the keys that both may see.

    score_mse = mean over H, mean over keys k of (Z_S[q, k] - Z_T[q, k])^2, for each query q,  Z = Q K^T / sqrt(d)
    plus position bias; the keys are those that count, and that neither model rules out for this query

    Args:
        student: attention scores, [B, H, S, S], queries before keys; pairs that the model rules out hold a number of
            at most -32752, minus infinity included.
        teacher: attention scores, [B, H_t, S, S], likewise.
        mask: [B, S], true where a position counts, as query and as key.
        reduce_heads: ``none`` pairs heads by number; ``sum`` or ``mean`` compares one map, of all heads together, and
            lets the numbers of heads differ. Sums of other numbers of heads differ in size by themselves.

    Returns:
        One value a query position, [B, S], in squared units of the scores. A query that sees no key: 0.

    Raises:
        ShapeError: different shapes; different numbers of heads without `reduce_heads`.
        ArgumentError: an unknown `reduce_heads`.

    References:
        Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu: TinyBERT: Distilling BERT for Natural Language Understanding,
        2020, https://arxiv.org/abs/1909.10351

    Prefer `attention_kl` or `relation_kl` in general: a constant on all scores of a query changes nothing in the model,
    and costs here. Prefer this one where the student's layers are the teacher's own, or to follow TinyBERT.
    """
    valid = map_positions(student, teacher, mask, reduce_heads, caller="score_mse")
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    kept = _scored(student, reduce_heads) & _scored(teacher, reduce_heads)
    if valid is not None:
        kept = kept & pairs(valid)
    # What is no score may sum to minus infinity here: it is out of the difference, and no gradient goes through it.
    student, teacher = reduced_heads(student, reduce_heads), reduced_heads(teacher, reduce_heads)
    difference = (student - teacher).masked_fill(~kept, 0.0)
    return (difference.square().sum(-1) / kept.sum(-1).clamp(min=1)).mean(1)


def _scored(scores: Tensor, reduce_heads: str) -> Tensor:
    """True where a pair has a score: [B, H, S, S], or in all heads, [B, 1, S, S]. NaN counts as one, to be seen."""
    scored = ~(scores <= RULED_OUT)
    return scored if reduce_heads == "none" else scored.all(1, keepdim=True)
