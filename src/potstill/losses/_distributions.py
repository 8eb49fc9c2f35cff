"""What the losses on logits share: temperatures, softened log-probabilities, and their errors.

Decisions:
- Logits are divided by the temperature in float32, not in the dtype in which they come.
- A temperature is a setting: no gradient goes through it, and the values of a tensor are not looked at, since that
  would make the host wait for the device in every step.
- No log-probability is below -1e30. Logits may hold the lowest finite number, or minus infinity, for a class that is
  ruled out: its log-probability would be minus infinity, and 0 * (inf - inf) is NaN. Here it is 0 * 0. A NaN stays one:
  a loss must not hide a model that has gone wrong.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.checks import problem, same_shape
from potstill.errors import ShapeError
from potstill.losses._inputs import at_least_float32, filled, require_temperature, zeroed
from potstill.reduce import Mask, position_mask

Temperature = float | int | Float[Tensor, "..."]
"""One number, or a tensor with one number a position. Its shape is checked in the function's body."""

FLOOR = -1e30
VOCABULARIES = "Cut both to the classes or tokens that they share, in the same order, first"


def check_temperature(temperature: Temperature, positions: torch.Size, *, caller: str) -> None:
    """Raise `ArgumentError` unless a number is above 0, `ShapeError` unless a tensor has one number a position."""
    if not isinstance(temperature, Tensor):
        require_temperature(temperature, caller=caller)
    elif temperature.shape != positions:
        raise ShapeError(
            problem(
                f"The temperature of {caller} is a number, or a tensor with one a position",
                given=f"temperature {tuple(temperature.shape)}, positions {tuple(positions)}",
                do="Give a tensor of exactly the positions' shape; it is never broadcast",
            )
        )


def check_classes(student: Tensor, teacher: Tensor, *, caller: str) -> None:
    """Raise `ShapeError` unless both are logits over the same number of classes, of which there are at least two."""
    same_shape(student, teacher, caller=caller, hint=VOCABULARIES)
    if student.ndim == 0 or student.shape[-1] == 1:
        raise ShapeError(
            problem(
                f"{caller} compares distributions over at least two classes",
                given=f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}",
                follows="A softmax over one is constant, so that the loss and its gradient would be 0 everywhere",
                do="Take logit_mse for regression, binary_kl_divergence for a single yes or no",
            )
        )


def softened(logits: Tensor, temperature: Temperature) -> Tensor:
    """Logits [*, V] over the temperature, in float32 at least."""
    logits = at_least_float32(logits)
    if isinstance(temperature, Tensor):
        return logits / temperature.detach().to(logits.dtype).unsqueeze(-1)
    return logits if temperature == 1 else logits / temperature


def rescaled(values: Tensor, temperature: Temperature, valid: Tensor | None, *, power: int = 2) -> Tensor:
    """Values [*] times T^power, and 0 at the positions that don't count."""
    if isinstance(temperature, Tensor):
        return zeroed(values * temperature.detach().to(values.dtype) ** power, valid)
    return zeroed(values if temperature == 1 else values * temperature**power, valid)


def log_probabilities(logits: Tensor) -> Tensor:
    """log softmax over V of [*, V], at least `FLOOR`, so that no product with it is NaN."""
    return torch.log_softmax(logits, dim=-1).clamp(min=FLOOR)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) = sum over V of p * (log p - log q), [*], from log-probabilities [*, V]."""
    # From two log-probabilities, not from logits and logsumexps: that form cancels badly where logits are large.
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def compared(
    student: Tensor, teacher: Tensor, mask: Mask | None, temperature: Temperature, *, caller: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probabilities of student and teacher, [*, V], and the positions that count, after every check."""
    check_classes(student, teacher, caller=caller)
    check_temperature(temperature, student.shape[:-1], caller=caller)
    valid = position_mask(mask, student.shape[:-1], caller=caller)
    log_student = log_probabilities(softened(filled(student, valid), temperature))
    return log_student, log_probabilities(softened(teacher, temperature)), valid
