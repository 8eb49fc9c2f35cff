"""Losses on maps, one vector a pixel, [B, C, H, W]: logits of a segmentation, or features of one stage.

Decisions:
- Both maps have one size. Resizing is the task's, which knows how logits and labels fit; a loss that resized would hide
  which of the two was made up.
- A void pixel is no pixel: 0 where values are by pixel, and left out of the softmax where it runs over pixels, and of
  the nodes where pixels are pooled.
- Structural distillation has three parts: the pixel-wise one, the pair-wise one, and a holistic one, in which a network
  that only trains judges whole label maps. The third is adversarial, needs an optimiser of its own, and is left out.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from potstill.checks import problem, same_shape
from potstill.errors import ArgumentError, ShapeError
from potstill.losses._distributions import (
    Temperature,
    check_temperature,
    compared,
    divergence,
    log_probabilities,
    rescaled,
    softened,
)
from potstill.losses._inputs import at_least_float32, full_precision, require_axes
from potstill.losses._vectors import directions
from potstill.reduce import Mask, position_mask

_SIZES = "Resize the student's map to the teacher's size, or both to the labels', first"


def pixel_kl_divergence(
    student: Float[Tensor, "B C H W"],
    teacher: Float[Tensor, "B_t C_t H_t W_t"],
    *,
    mask: Mask | None = None,
    temperature: Temperature = 1.0,
) -> Float[Tensor, "B H W"]:
    """Divergence of the student's distribution over classes from the teacher's, pixel by pixel, in nats, times T^2.

    pixel_kl_divergence = T^2 * sum over C of p_T * (log p_T - log p_S),  p = softmax over C of (logits / T)

    Args:
        student: logits, [B, C, H, W].
        teacher: logits, [B, C, H, W], the same classes in the same order.
        mask: [B, H, W], true where a pixel counts.
        temperature: T, above 0; higher is softer. A number, or one a pixel, [B, H, W].

    Returns:
        One value a pixel, [B, H, W]: 0 or more, and 0 where both distributions are equal.

    Raises:
        ShapeError: different shapes, only one class, or a temperature that is not one a pixel.
        ArgumentError: a temperature that is not finite and above 0.

    References:
        Liu, Chen, Liu, Qin, Luo, Wang: Structured Knowledge Distillation for Semantic Segmentation, 2019,
        https://arxiv.org/abs/1903.04197 (its pixel-wise part)

    Prefer `channel_kl_divergence` where most pixels are background, of which this one is mostly a mean.
    """
    _check_maps(student, teacher, caller="pixel_kl_divergence")
    by_pixel = student.movedim(1, -1), teacher.movedim(1, -1)
    log_student, log_teacher, valid = compared(*by_pixel, mask, temperature, caller="pixel_kl_divergence")
    return rescaled(divergence(log_teacher, log_student), temperature, valid)


def channel_kl_divergence(
    student: Float[Tensor, "B C H W"],
    teacher: Float[Tensor, "B_t C_t H_t W_t"],
    *,
    mask: Mask | None = None,
    temperature: Temperature = 1.0,
) -> Float[Tensor, " B"]:
    """Divergence of where the student sees each channel from where the teacher does, in nats, times T^2.

    channel_kl_divergence = T^2 * mean over C of sum over pixels of phi_T * (log phi_T - log phi_S),
    phi = softmax over the valid pixels of (map / T), for each channel

    Args:
        student: logits or features, [B, C, H, W]; features are projected to the teacher's channels where they differ.
        teacher: logits or features, [B, C, H, W].
        mask: [B, H, W], true where a pixel counts.
        temperature: T, above 0; higher is softer. A number, or one a row, [B].

    Returns:
        One value a row, [B]: 0 or more, and 0 where both are equal up to a constant for each channel. A row without a
        valid pixel is 0; `mask.flatten(1).any(1)` is the mask of rows for `masked_mean`.

    Raises:
        ShapeError: different shapes, only one pixel, or a temperature that is not one a row.
        ArgumentError: a temperature that is not finite and above 0.

    References:
        Shu, Liu, Gao, Yan, Shen: Channel-wise Knowledge Distillation for Dense Prediction, 2021,
        https://arxiv.org/abs/2011.13256

    Prefer `pixel_kl_divergence` where the classes of a pixel matter more than where a class is, and beside it: this one
    says nothing of which class a pixel has.
    """
    _check_maps(student, teacher, caller="channel_kl_divergence")
    if student.shape[2:].numel() == 1:
        raise ShapeError(
            problem(
                "channel_kl_divergence compares distributions over pixels, and these maps have one pixel",
                given=f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}",
                follows="A softmax over one is constant, so that the loss and its gradient would be 0 everywhere",
            )
        )
    check_temperature(temperature, student.shape[:1], caller="channel_kl_divergence")
    pixels = torch.Size((student.shape[0], *student.shape[2:]))
    valid = position_mask(mask, pixels, caller="channel_kl_divergence")
    void = None if valid is None else ~valid.flatten(1).unsqueeze(1)
    by_channel = temperature.unsqueeze(-1).expand(student.shape[:2]) if isinstance(temperature, Tensor) else temperature
    log_student, log_teacher = (_log_over_pixels(x.flatten(2), void, by_channel) for x in (student, teacher))
    values = divergence(log_teacher, log_student).mean(1)
    return rescaled(values, temperature, None if valid is None else valid.flatten(1).any(1))


def pairwise_affinity_mse(
    student: Float[Tensor, "B C H W"],
    teacher: Float[Tensor, "B_t C_t H_t W_t"],
    *,
    mask: Mask | None = None,
    patch: int = 2,
) -> Float[Tensor, " B"]:
    """Mean squared difference of how alike the parts of an image are, in student and teacher.

    pairwise_affinity_mse = mean over pairs of nodes i, j of (a_S[i, j] - a_T[i, j])^2,  a[i, j] the cosine of nodes i
    and j,  a node the mean over the pixels that count of a part of patch x patch pixels

    Args:
        student: features or logits, [B, C, H, W].
        teacher: features or logits, [B, C_t, H, W]; the channels may differ, no projection is needed.
        mask: [B, H, W], true where a pixel counts.
        patch: the side of a node's part, in pixels; parts at the lower and right edge may be smaller. Of n nodes n^2
            numbers are held for each image: 4 million where 64 x 128 pixels are pooled 2 x 2.

    Returns:
        One value a row, [B], from 0 to 4: 0 where all affinities are equal, so that turning all of a map's vectors, or
        lengthening one, changes nothing. Nodes without a pixel that counts are in no pair; a row without any is 0.

    Raises:
        ShapeError: different batches or sizes, or one channel, of which a cosine is 1 or -1 whatever it holds.
        ArgumentError: a patch that is not a whole number above 0.

    References:
        Liu, Chen, Liu, Qin, Luo, Wang: Structured Knowledge Distillation for Semantic Segmentation, 2019,
        https://arxiv.org/abs/1903.04197 (its pair-wise part; the authors' code takes the maximum of each part, the
        paper the mean, which is followed)

    Prefer `similarity_mse` where the sizes of activations should count too, `pixel_kl_divergence` beside it on logits.
    """
    caller = "pairwise_affinity_mse"
    require_axes(student, teacher, axes=4, letters="[B, C, H, W]", caller=caller)
    pixels = torch.Size((student.shape[0], *student.shape[2:]))
    alike = (teacher.shape[0], *teacher.shape[2:]) == pixels
    if not alike or 1 in (student.shape[1], teacher.shape[1]):
        raise ShapeError(
            problem(
                f"{caller} compares maps of one size, with two channels or more each",
                given=f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}",
                do="Of a single channel every cosine is 1 or -1" if alike else _SIZES,
            )
        )
    if isinstance(patch, bool) or not isinstance(patch, int) or patch < 1:
        raise ArgumentError(problem(f"The patch of {caller} is a whole number of pixels above 0", given=patch))
    valid = position_mask(mask, pixels, caller=caller)
    with full_precision(student):
        ours, theirs = (_affinities(x, valid, patch) for x in (student, teacher))
        squares = (ours - theirs).square()
        if valid is None:
            return squares.mean(dim=(1, 2))
        nodes = functional.max_pool2d(valid.to(squares.dtype), patch, ceil_mode=True).flatten(1).sum(1)
        return squares.sum(dim=(1, 2)) / nodes.clamp(min=1).square()


def _affinities(maps: Tensor, valid: Tensor | None, patch: int) -> Tensor:
    """The cosine of each two nodes, [B, N, N], from [B, C, H, W]; 0 where a node has no pixel that counts."""
    maps = at_least_float32(maps if valid is None else maps.masked_fill(~valid.unsqueeze(1), 0.0))
    # Sums: a direction has no length, so that the mean's is the same, however many pixels counted.
    sums = functional.avg_pool2d(maps, patch, ceil_mode=True, divisor_override=1)
    nodes = directions(sums.flatten(2).transpose(1, 2))
    return nodes @ nodes.transpose(1, 2)


def _log_over_pixels(maps: Tensor, void: Tensor | None, temperature: Temperature) -> Tensor:
    """log softmax over the pixels [B, C, N] that are not void."""
    maps = softened(maps, temperature)
    # The lowest finite number, not minus infinity, of which a row of void pixels only would have no softmax.
    return log_probabilities(maps if void is None else maps.masked_fill(void, torch.finfo(maps.dtype).min))


def _check_maps(student: Tensor, teacher: Tensor, *, caller: str) -> None:
    require_axes(student, teacher, axes=4, letters="[B, C, H, W]", caller=caller)
    same_shape(student, teacher, caller=caller, hint=_SIZES)
