"""Losses that compare attention maps, head by head: probabilities after the softmax, one value a query position.

Decisions:
- A mean over valid keys, not over all: with all, the same sentence would lose less in a longer batch.
- Maps come from a model with eager attention and without attention dropout, or the rows don't sum to 1.
- Heads are paired by number, unless `reduce_heads` makes one map of them; `relation_kl` regroups them.
"""

from jaxtyping import Float
from torch import Tensor

from potstill.checks import problem
from potstill.errors import ArgumentError
from potstill.losses._inputs import at_least_float32
from potstill.losses._maps import map_positions, pairs, reduced_heads
from potstill.reduce import Mask

FLOOR = 1e-12
"""The least probability inside a logarithm: a key that the student rules out costs 28 nats, not infinity."""


def attention_mse(
    student: Float[Tensor, "B H S S"],
    teacher: Float[Tensor, "B_t H_t S_t S_t"],
    *,
    mask: Mask | None = None,
    reduce_heads: str = "none",
) -> Float[Tensor, "B S"]:
    """Mean squared difference of two attention maps, over heads and valid keys.

    attention_mse = mean over H, mean over valid keys k of (A_S[q, k] - A_T[q, k])^2, for each query q

    Args:
        student: attention probabilities, [B, H, S, S], queries before keys.
        teacher: attention probabilities, [B, H_t, S, S].
        mask: [B, S], true where a position counts, as query and as key.
        reduce_heads: ``none`` pairs heads by number; ``sum`` or ``mean`` compares one map, of all heads together, and
            lets the numbers of heads differ. Sums of other numbers of heads can't be equal: each row sums to H and H_t.

    Returns:
        One value a query position, [B, S].

    Raises:
        ShapeError: different shapes; different numbers of heads without `reduce_heads`.
        ArgumentError: an unknown `reduce_heads`.

    References:
        Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu: TinyBERT: Distilling BERT for Natural Language Understanding,
        2020, https://arxiv.org/abs/1909.10351 (which takes the scores before the softmax)

    Prefer `attention_kl` in general: most probabilities are small, so squared differences see only the few large ones.
    """
    valid = map_positions(student, teacher, mask, reduce_heads, caller="attention_mse")
    student, teacher = (reduced_heads(at_least_float32(maps), reduce_heads) for maps in (student, teacher))
    difference = student - teacher
    if valid is None:
        return difference.square().mean(dim=(1, 3))
    difference = difference.masked_fill(~pairs(valid), 0.0)
    keys = valid.sum(-1, keepdim=True).clamp(min=1)
    return difference.square().sum(-1).mean(1) / keys


def attention_kl(
    student: Float[Tensor, "B H S S"],
    teacher: Float[Tensor, "B_t H_t S_t S_t"],
    *,
    mask: Mask | None = None,
    reduce_heads: str = "none",
) -> Float[Tensor, "B S"]:
    """Divergence of the student's attention from the teacher's, in nats, averaged over heads.

    attention_kl = mean over H of sum over valid keys k of A_T[q, k] * (log A_T[q, k] - log A_S[q, k]), for each
    query q, with both logarithms of at least 1e-12 and 0 * log 0 = 0

    Args:
        student: attention probabilities, [B, H, S, S], queries before keys, each row summing to 1 over valid keys.
        teacher: attention probabilities, [B, H_t, S, S], likewise.
        mask: [B, S], true where a position counts, as query and as key.
        reduce_heads: ``none`` pairs heads by number; ``mean`` compares their mean, which is a distribution too, and
            lets the numbers of heads differ. ``sum`` is refused: it is no distribution.

    Returns:
        One value a query position, [B, S]: 0 where both maps are equal. Below the floor the student gets no gradient.

    Raises:
        ShapeError: different shapes; different numbers of heads without `reduce_heads`.
        ArgumentError: an unknown `reduce_heads`, or ``sum``.

    References:
        Wang, Wei, Dong, Bao, Yang, Zhou: MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of
        Pre-Trained Transformers, 2020, https://arxiv.org/abs/2002.10957
        Sun, Yu, Song, Liu, Yang, Zhou: MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices, 2020,
        https://arxiv.org/abs/2004.02984

    Prefer `relation_kl` on queries and keys where heads differ in number, or where fused attention should stay.
    """
    if reduce_heads == "sum":
        raise ArgumentError(
            problem(
                "attention_kl compares distributions, and a sum of heads is none: it sums to their number",
                given="reduce_heads: sum",
                do="Take reduce_heads: mean",
            )
        )
    valid = map_positions(student, teacher, mask, reduce_heads, caller="attention_kl")
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    if valid is not None:
        outside = ~pairs(valid)
        student, teacher = student.masked_fill(outside, 0.0), teacher.masked_fill(outside, 0.0)
    student, teacher = reduced_heads(student, reduce_heads), reduced_heads(teacher, reduce_heads)
    # The floor is on both sides, so that equal maps give exactly 0 below it too.
    log_ratio = teacher.clamp(min=FLOOR).log() - student.clamp(min=FLOOR).log()
    return (teacher * log_ratio).sum(-1).mean(1)
