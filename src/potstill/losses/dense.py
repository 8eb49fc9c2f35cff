"""Losses on maps, one vector a pixel, [B, C, H, W]: logits of a segmentation, or features of one stage.

Decisions:
- Both maps have one size. Resizing is the task's, which knows how logits and labels fit; a loss that resized would hide
  which of the two was made up.
- A void pixel is no pixel: 0 where values are by pixel, and left out of the softmax where it runs over pixels.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.checks import problem, same_shape
from potstill.errors import ShapeError
from potstill.losses._distributions import (
    Temperature,
    check_temperature,
    compared,
    divergence,
    log_probabilities,
    rescaled,
    softened,
)
from potstill.losses._inputs import require_axes
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


def _log_over_pixels(maps: Tensor, void: Tensor | None, temperature: Temperature) -> Tensor:
    """log softmax over the pixels [B, C, N] that are not void."""
    maps = softened(maps, temperature)
    # The lowest finite number, not minus infinity, of which a row of void pixels only would have no softmax.
    return log_probabilities(maps if void is None else maps.masked_fill(void, torch.finfo(maps.dtype).min))


def _check_maps(student: Tensor, teacher: Tensor, *, caller: str) -> None:
    require_axes(student, teacher, axes=4, letters="[B, C, H, W]", caller=caller)
    same_shape(student, teacher, caller=caller, hint=_SIZES)
