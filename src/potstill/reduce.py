"""The one reduction. Losses give one value a position; only `masked_mean` makes one number of them.

Decisions:
- The denominator comes from outside: the count over the whole accumulation window and all ranks. A mean of means weighs
  the positions of a short batch more than those of a long one, and differs between 1 and 4 accumulation steps.
- Masked values are replaced, never multiplied: 0 * NaN is NaN.
- A mask is boolean, or integers in which 0 is masked (the tokenizer's `attention_mask`). A float mask is refused: in an
  additive one 0 means *valid*, and reading it the other way would train on the padding in silence.
"""

import math

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from potstill.checks import problem
from potstill.errors import ArgumentError, ShapeError

Mask = Bool[Tensor, "..."] | Integer[Tensor, "..."]
"""True (or not 0) where a position counts. Its shape is checked in the function's body, which raises `ShapeError`."""


def masked_mean(
    values: Float[Tensor, "*positions"],
    mask: Mask | None = None,
    denominator: float | int | Tensor | None = None,
) -> Float[Tensor, ""]:
    """Sum of the unmasked values over a count: the only reduction in potstill.

    masked_mean = sum over positions with mask of values / denominator

    Args:
        values: one loss a position, [*].
        mask: [*], true (or not 0) where a position counts; without it, all do. Masked values may be anything, NaN too.
        denominator: the number of positions that count in the whole batch (all micro-batches of the accumulation
            window, all ranks), as a number or a tensor of one element. Without it, the count of this mask.

    Returns:
        One number, at least float32. Where no position counts it is 0 with a gradient of 0, not NaN.

    Raises:
        ShapeError: `mask` has another shape than `values`, or `denominator` more than one element.
        ArgumentError: a float mask, or a denominator that is negative or not finite.

    References:
        TorchTitan: losses are summed, then divided once by the global count, https://github.com/pytorch/torchtitan

    Prefer a denominator from outside whenever there is more than one micro-batch or rank; leave it out to look at one
    batch alone.
    """
    valid = position_mask(mask, values.shape, caller="masked_mean")
    kept = values if valid is None else values.masked_fill(~valid, 0.0)
    total = kept.sum(dtype=torch.promote_types(values.dtype, torch.float32))
    if denominator is None:
        return total / max(values.numel(), 1) if valid is None else total / valid.sum().clamp(min=1)
    if isinstance(denominator, Tensor):
        if denominator.numel() != 1:
            raise ShapeError(
                problem(
                    "The denominator of masked_mean is one number",
                    given=f"a tensor of shape {tuple(denominator.shape)}",
                    do="Give the count of positions, for instance mask.sum()",
                )
            )
        # No look at its value: that would make the host wait for the device in every step.
        count = denominator.detach().reshape(()).to(total)
        return total / torch.where(count == 0, torch.ones_like(count), count)
    if not math.isfinite(denominator) or denominator < 0:
        raise ArgumentError(
            problem(
                "The denominator of masked_mean is a count of positions",
                given=denominator,
                do="Give a finite number that is not negative",
            )
        )
    return total / (denominator or 1)


def position_weights(mask: Mask, denominator: float | int | Tensor | None = None) -> Float[Tensor, "..."]:
    """What `masked_mean` multiplies each position's value by, for a loss that takes its weights along.

    position_weights = 1 / denominator where the mask is true, else 0

    Args:
        mask: [*], true (or not 0) where a position counts.
        denominator: as in `masked_mean`; without it, the count of this mask.

    Returns:
        float32, [*]. The sum of these weights times the values is the masked mean.

    Raises:
        ShapeError: a denominator of more than one element.
        ArgumentError: a float mask, or a denominator that is negative or not finite.
    """
    valid = position_mask(mask, mask.shape, caller="position_weights")
    assert valid is not None
    one = torch.ones((), device=valid.device)
    return valid.float() * masked_mean(one, denominator=valid.sum() if denominator is None else denominator)


def position_mask(mask: Mask | None, positions: torch.Size, *, caller: str) -> Bool[Tensor, "..."] | None:
    """The mask as booleans, after the check that it has one entry a position; None stays None.

    Args:
        mask: true (or not 0) where a position counts.
        positions: the shape that the mask must have.
        caller: the name for the error message.

    Raises:
        ShapeError: another shape than `positions`.
        ArgumentError: a float mask.
    """
    if mask is None:
        return None
    if mask.dtype.is_floating_point:
        raise ArgumentError(
            problem(
                f"The mask of {caller} is boolean or of integers, not 0 where a position counts",
                given=f"{mask.dtype}",
                follows="In an additive mask of floats 0 means the opposite",
                do="Give the tokenizer's attention_mask, or mask == 0 for an additive one",
            )
        )
    if mask.shape != positions:
        raise ShapeError(
            problem(
                f"The mask of {caller} has one entry a position",
                given=f"mask {tuple(mask.shape)}, positions {tuple(positions)}",
                do="Give a mask of exactly the positions' shape; it is never broadcast",
            )
        )
    return mask if mask.dtype == torch.bool else mask != 0
