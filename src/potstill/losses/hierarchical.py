"""Losses on maps at several sizes at once: [B, C, H, W] as they are, and pooled to a few rows and columns.

Decisions:
- A place of a pooled map counts where any pixel under it does, and is the mean over those that do.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from potstill.checks import same_shape
from potstill.losses._inputs import at_least_float32, full_precision, require_axes
from potstill.reduce import Mask, position_mask

LEVELS = (4, 2, 1)  # rows and columns of the pooled maps; each counts half of the one before it


def hcl(
    student: Float[Tensor, "B C H W"],
    teacher: Float[Tensor, "B_t C_t H_t W_t"],
    *,
    mask: Mask | None = None,
) -> Float[Tensor, " B"]:
    """Squared difference of two maps, as they are and on the whole (hierarchical context loss).

    hcl = (mse(S, T) + sum over l of w_l * mse(pool_l(S), pool_l(T))) / (1 + sum over l of w_l),  mse a mean over
    channels and pixels, pool_l the means over l x l parts; of l = 4, 2, 1 those below H, with w = 1/2, 1/4, 1/8 in turn

    Args:
        student: features, [B, C, H, W], projected to the teacher's channels where they differ.
        teacher: features, [B, C, H, W].
        mask: [B, H, W], true where a pixel counts.

    Returns:
        One value a row, [B]; 0 where no pixel counts. The publication's loss of several stages is the sum of theirs.

    Raises:
        ShapeError: different shapes.

    References:
        Chen, Liu, Zhao, Jia: Distilling Knowledge via Knowledge Review, 2021, https://arxiv.org/abs/2104.09044

    Prefer `hidden_mse` where each place should count alone: it is this one's first part.
    """
    require_axes(student, teacher, axes=4, letters="[B, C, H, W]", caller="hcl")
    same_shape(student, teacher, caller="hcl", hint="Resize the student's map, and project its channels, first")
    valid = position_mask(mask, torch.Size((student.shape[0], *student.shape[2:])), caller="hcl")
    difference = at_least_float32(student) - at_least_float32(teacher)
    with full_precision(student):
        counted = None if valid is None else valid.unsqueeze(1).to(difference.dtype)
        if valid is not None:
            difference = difference.masked_fill(~valid.unsqueeze(1), 0.0)
        total, weights, weight = _mean_square(difference, counted), 1.0, 1.0
        for size in LEVELS:
            if size < student.shape[2]:
                weight /= 2
                total = total + weight * _mean_square(*_pooled(difference, counted, size))
                weights += weight
        return total / weights


def _pooled(difference: Tensor, counted: Tensor | None, size: int) -> tuple[Tensor, Tensor | None]:
    """The difference of two pooled maps, which is the pooled difference; and where any pixel under a place counts."""
    pooled = functional.adaptive_avg_pool2d(difference, size)
    if counted is None:
        return pooled, None
    share = functional.adaptive_avg_pool2d(counted, size)
    any_counts = share > 0
    return pooled / torch.where(any_counts, share, 1.0), any_counts.to(difference.dtype)


def _mean_square(difference: Tensor, counted: Tensor | None) -> Tensor:
    """The mean over channels and the places that count, [B]; what doesn't count is 0 in `difference`."""
    squares = difference.square().flatten(1)
    if counted is None:
        return squares.mean(1)
    return squares.sum(1) / (difference.shape[1] * counted.flatten(1).sum(1)).clamp(min=1)
