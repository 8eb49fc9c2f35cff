"""Losses that compare how the rows of a batch lie to one another: [B, D], one vector a row, one value a row.

Decisions:
- A row's value is its share of a sum over pairs or triples, so that the mean over the n rows that count is the
  published mean over all n^2 pairs or n^3 triples, those of a row with itself among them.
- Rows look at each other within the batch that the loss is given: under accumulation those are micro-batches, and a
  micro-batch twice as large gives another loss, with four times the pairs.
- Gradients reach the student through the mean distance too, as in the published code.
- Equal rows have distance 0 and no direction between them: they add no NaN.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from potstill.checks import problem
from potstill.errors import ShapeError
from potstill.losses._inputs import full_precision, zeroed
from potstill.losses._vectors import cosines, counts, directions, vectors_and_mask
from potstill.reduce import Mask

_ROWS = "[B, D]"


def rkd_distance(
    student: Float[Tensor, "B D"],
    teacher: Float[Tensor, "B_t D_t"],
    *,
    mask: Mask | None = None,
) -> Float[Tensor, " B"]:
    """How far the distances between rows, relative to their mean, differ from the teacher's.

    rkd_distance = sum over rows j of huber(d_S[i, j] - d_T[i, j]) / n, for each row i,  d = ||x_i - x_j|| divided by
    the mean of those that are not 0, huber(x) = x^2 / 2 where |x| < 1, else |x| - 1/2

    Args:
        student: one vector a row, [B, D].
        teacher: one vector a row, [B, D_t]; the width may differ.
        mask: [B], true where a row counts.

    Returns:
        One value a row, [B]. Rows are compared within the batch given: a micro-batch, under accumulation.

    Raises:
        ShapeError: different numbers of rows.

    References:
        Park, Kim, Lu, Cho: Relational Knowledge Distillation, 2019, https://arxiv.org/abs/1904.05068 (weight 25 in
        published code)

    Prefer it with `rkd_angle` beside it; `similarity_preserving` where directions from the origin mean something.
    """
    student, teacher, valid = vectors_and_mask(student, teacher, mask, letters=_ROWS, caller="rkd_distance")
    pairs = valid.unsqueeze(1) & valid.unsqueeze(0)
    with full_precision(student):
        ours, theirs = (_relative_distances(vectors, pairs) for vectors in (student, teacher))
        return functional.smooth_l1_loss(ours, theirs, reduction="none").sum(-1) / counts(valid)


def rkd_angle(
    student: Float[Tensor, "B D"],
    teacher: Float[Tensor, "B_t D_t"],
    *,
    mask: Mask | None = None,
) -> Float[Tensor, " B"]:
    """How far the angles between rows, three at a time, differ from the teacher's.

    rkd_angle = sum over rows j, k of huber(c_S[i, j, k] - c_T[i, j, k]) / n^2, for each row i,  c = cosine of the angle
    at x_i between x_j and x_k, huber(x) = x^2 / 2 where |x| < 1, else |x| - 1/2

    Args:
        student: one vector a row, [B, D].
        teacher: one vector a row, [B, D_t]; the width may differ.
        mask: [B], true where a row counts.

    Returns:
        One value a row, [B]. Rows are compared within the batch given: a micro-batch, under accumulation. It takes
        memory for B^2 * D + B^3 numbers.

    Raises:
        ShapeError: different numbers of rows.

    References:
        Park, Kim, Lu, Cho: Relational Knowledge Distillation, 2019, https://arxiv.org/abs/1904.05068 (weight 50 in
        published code)

    Prefer it with `rkd_distance` beside it; `mgskd_samples` is this one in several heads.
    """
    student, teacher, valid = vectors_and_mask(student, teacher, mask, letters=_ROWS, caller="rkd_angle")
    with full_precision(student):
        return _angle_differences(student.unsqueeze(0), teacher.unsqueeze(0), valid)


def similarity_preserving(
    student: Float[Tensor, "B D"],
    teacher: Float[Tensor, "B_t D_t"],
    *,
    mask: Mask | None = None,
) -> Float[Tensor, " B"]:
    """Squared difference of how similar each row is to the others, in student and teacher.

    similarity_preserving = sum over rows j of (G_S[i, j] / ||G_S[i]|| - G_T[i, j] / ||G_T[i]||)^2 / n, for each row i,
    G = X X^T

    Args:
        student: one vector a row, [B, D].
        teacher: one vector a row, [B, D_t]; the width may differ.
        mask: [B], true where a row counts.

    Returns:
        One value a row, [B]. Rows are compared within the batch given: a micro-batch, under accumulation.

    Raises:
        ShapeError: different numbers of rows.

    References:
        Tung, Mori: Similarity-Preserving Knowledge Distillation, 2019, https://arxiv.org/abs/1907.09682

    Prefer it over `rkd_distance` where lengths of vectors mean little, as with activations behind a ReLU.
    """
    student, teacher, valid = vectors_and_mask(student, teacher, mask, letters=_ROWS, caller="similarity_preserving")
    with full_precision(student):
        ours, theirs = (directions(vectors @ vectors.transpose(0, 1)) for vectors in (student, teacher))
        return (ours - theirs).square().sum(-1) / counts(valid)


def mgskd_samples(
    student: Float[Tensor, "B D"],
    teacher: Float[Tensor, "B_t D_t"],
    *,
    mask: Mask | None = None,
    heads: int = 1,
) -> Float[Tensor, " B"]:
    """How far the angles between rows differ from the teacher's, in each of several parts of the vectors.

    mgskd_samples = mean over heads of rkd_angle, each on its own part of the vectors, for each row

    Args:
        student: one vector a row, [B, D]; in the publication the mean of a sequence's hidden states.
        teacher: one vector a row, [B, D_t]; the width may differ.
        mask: [B], true where a row counts.
        heads: how many equal parts both widths are cut into; 64 in published code for a width of 768.

    Returns:
        One value a row, [B]. Rows are compared within the batch given: a micro-batch, under accumulation.

    Raises:
        ShapeError: different numbers of rows, or a width that `heads` doesn't divide.

    References:
        Liu, Tao, Feng, Zhao: Multi-Granularity Structural Knowledge Distillation for Language Model Compression, 2022,
        https://aclanthology.org/2022.acl-long.71

    Prefer it on upper layers, with `mgskd_tokens` and `mgskd_spans` on lower ones.
    """
    student, teacher, valid = vectors_and_mask(student, teacher, mask, letters=_ROWS, caller="mgskd_samples")
    with full_precision(student):
        ours, theirs = (_cut(vectors, heads, student, teacher) for vectors in (student, teacher))
        return _angle_differences(ours, theirs, valid)


def _relative_distances(vectors: Tensor, pairs: Tensor) -> Tensor:
    """Distances between rows over the mean of those that are not 0, [B, B]; 0 where either row doesn't count."""
    # Without the matrix product, which loses the digits of small distances.
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist").masked_fill(~pairs, 0.0)
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / torch.where(mean == 0, torch.ones_like(mean), mean)


def _angle_differences(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Each row's share of the mean over heads and triples, [B], from [heads, B, D]."""
    ours, theirs = (cosines(x, x.unsqueeze(1).expand(-1, x.shape[1], -1, -1)) for x in (student, teacher))
    differences = functional.smooth_l1_loss(ours, theirs, reduction="none")
    pairs = valid.unsqueeze(1) & valid.unsqueeze(0)
    values = differences.masked_fill(~pairs, 0.0).sum(dim=(2, 3)).mean(0) / counts(valid).square()
    return zeroed(values, valid)


def _cut(vectors: Tensor, heads: int, student: Tensor, teacher: Tensor) -> Tensor:
    """[heads, B, D/heads] from [B, D]."""
    rows, width = vectors.shape
    if heads < 1 or width % heads:
        raise ShapeError(
            problem(
                "mgskd_samples cuts both widths into `heads` equal parts",
                given=f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}, heads={heads}",
                do="Take a number that divides both widths",
            )
        )
    return vectors.reshape(rows, heads, width // heads).transpose(0, 1)
