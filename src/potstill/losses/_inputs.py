"""What every loss does with its inputs before the mathematics: axes, precision, masked positions, temperature.

Decisions:
- Masked positions of the student are filled *before* the mathematics, not only after: the gradient of a NaN that is
  dropped at the end is 0 * NaN, and would reach every weight. Positions that don't look at each other need it for the
  student only, since no gradient goes to the teacher.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from potstill.checks import problem
from potstill.errors import ArgumentError, ShapeError


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is float32 or float64 already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """A context without autocast, which would turn a float32 matrix product back into bfloat16."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def filled(tensor: Tensor, valid: Tensor | None) -> Tensor:
    """The tensor [*, D] with zeros at the positions [*] that don't count."""
    return tensor if valid is None else tensor.masked_fill(~valid.unsqueeze(-1), 0.0)


def zeroed(values: Tensor, valid: Tensor | None) -> Tensor:
    """The values [*] with zeros at the positions [*] that don't count."""
    return values if valid is None else values.masked_fill(~valid, 0.0)


def require_axes(student: Tensor, teacher: Tensor, *, axes: int, letters: str, caller: str) -> None:
    """Raise `ShapeError`, naming both shapes, unless both tensors have so many axes."""
    if student.ndim != axes or teacher.ndim != axes:
        raise ShapeError(
            problem(
                f"{caller} takes tensors of shape {letters}",
                given=f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}",
            )
        )


def require_temperature(temperature: float | int, *, caller: str) -> None:
    """Raise `ArgumentError` unless the temperature is a finite number above 0."""
    if not math.isfinite(temperature) or temperature <= 0:
        raise ArgumentError(
            problem(
                f"The temperature of {caller} is a finite number above 0",
                given=temperature,
                do="Take 1.0 for the plain distribution; 2.0 to 5.0 are usual",
            )
        )
