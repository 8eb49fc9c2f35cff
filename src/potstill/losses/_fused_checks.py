"""What may be said to `fused_loss`: names, options, temperatures, shapes, and which loss is defined for which teacher.

Decisions:
- Whether a temperature or an option is in range, the pure loss of that name says, on two classes: one place, one
  message.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from potstill.checks import problem, unknown_name
from potstill.errors import ArgumentError, ShapeError
from potstill.losses import bounded, divergence, labels, logits
from potstill.losses._distributions import VOCABULARIES
from potstill.losses._factored import FactoredLogits, SparseLogits

if TYPE_CHECKING:
    from potstill.losses.fused import FusedPart

# Loss: its pure form, the power of T that is inside, that of T in the gradient with respect to z / T, and its options.
LOSSES: dict[str, tuple[Any, int, int, Mapping[str, float]]] = {
    "cross_entropy": (labels.cross_entropy, 0, 0, {}),
    "jensen_shannon": (bounded.jensen_shannon, 2, 1, {"beta": 0.5}),
    "kl_divergence": (divergence.kl_divergence, 2, 1, {}),
    "logit_mse": (logits.logit_mse, 0, 0, {"teacher_scale": 1.0}),
    "reverse_kl_divergence": (divergence.reverse_kl_divergence, 2, 1, {}),
    "skewed_kl_divergence": (bounded.skewed_kl_divergence, 2, 1, {"alpha": 0.1}),
    "skewed_reverse_kl_divergence": (bounded.skewed_reverse_kl_divergence, 2, 1, {"alpha": 0.1}),
    "soft_cross_entropy": (divergence.soft_cross_entropy, 2, 1, {}),
    "symmetric_kl_divergence": (divergence.symmetric_kl_divergence, 2, 1, {}),
    "total_variation": (bounded.total_variation, 1, 0, {}),
}
WITHOUT_TEMPERATURE = {"cross_entropy", "logit_mse"}
CALLER = "fused_loss"


def powers(loss: str) -> tuple[int, int]:
    """The power of T that the value is multiplied by, and that of its gradient with respect to the logits."""
    return LOSSES[loss][1:3]


def options_of(loss: str, given: Mapping[str, float | int]) -> dict[str, float]:
    """The options, those that were left out at what the pure loss has."""
    return {key: float(given.get(key, usual)) for key, usual in LOSSES[loss][3].items()}


def check_student(student: FactoredLogits, chunk: int | None) -> None:
    """Raise `ShapeError` for a head that doesn't fit, `ArgumentError` for a chunk, scale or cap out of range."""
    _check_head(student, "student")
    if len(student.weight) < 2:
        raise ShapeError(
            problem(
                f"{CALLER} compares distributions over at least two classes",
                given=f"the student's weight {tuple(student.weight.shape)}",
                follows="A softmax over one is constant, so that the loss and its gradient would be 0 everywhere",
            )
        )
    if chunk is not None and chunk < 1:
        do = "Leave it out for the usual size"
        raise ArgumentError(problem(f"The chunk of {CALLER} is a number of positions, 1 or more", given=chunk, do=do))


def check_parts(parts: Sequence["FusedPart"], positions: torch.Size, given_labels: Tensor | None) -> None:
    """Raise `ArgumentError` for an unknown loss, option or temperature, `ShapeError` for weights or labels."""
    if not parts:
        raise ArgumentError(problem(f"{CALLER} adds up at least one part", given="none"))
    for part in parts:
        if part.loss not in LOSSES:
            raise ArgumentError(unknown_name(f"loss of {CALLER}", part.loss, LOSSES))
        _check_settings(part)
        if part.weights.shape != positions:
            raise ShapeError(
                problem(
                    f"The weights of a part of {CALLER} are one number a position",
                    given=f"{part.loss}: weights {tuple(part.weights.shape)}, positions {tuple(positions)}",
                    do="Give a tensor of exactly the positions' shape; it is never broadcast",
                )
            )
    if not any(part.loss == "cross_entropy" for part in parts):
        return
    if given_labels is None:
        raise ArgumentError(problem(f"cross_entropy in {CALLER} needs labels", given="none", do="Give labels=, [*]"))
    if given_labels.shape != positions:
        raise ShapeError(
            problem(
                f"The labels of {CALLER} are one class number a position",
                given=f"labels {tuple(given_labels.shape)}, positions {tuple(positions)}",
            )
        )


def _check_settings(part: "FusedPart") -> None:
    pure, _, _, known = LOSSES[part.loss]
    if unknown := [key for key in part.options if key not in known]:
        raise ArgumentError(unknown_name(f"option of {part.loss} in {CALLER}", unknown[0], known))
    two = torch.zeros(1, 2)
    if part.loss not in WITHOUT_TEMPERATURE:
        pure(two, two, temperature=part.temperature, **part.options)
        return
    if part.temperature != 1:
        what = f"{part.loss} knows no temperature"
        raise ArgumentError(problem(what, given=part.temperature, do="Leave the part's temperature at 1.0"))
    if part.loss == "logit_mse":
        pure(two, two, **part.options)


def check_teacher(
    student: FactoredLogits,
    teacher: FactoredLogits | SparseLogits | Tensor | None,
    asked: Sequence[tuple[str, float | int]],
) -> None:
    """Raise unless the teacher has one entry a position over the student's classes, and allows each loss asked for.

    Args:
        student: the student's head.
        teacher: in any form, or None.
        asked: loss and temperature of each part.
    """
    needing = [(loss, temperature) for loss, temperature in asked if loss != "cross_entropy"]
    if teacher is None:
        if needing:
            what = f"{needing[0][0]} in {CALLER} needs a teacher"
            raise ArgumentError(problem(what, given="none", do="Give teacher=: its head, its logits, or a cache's"))
        return
    if isinstance(teacher, SparseLogits):
        _check_sparse(student, teacher, needing)
        return
    if isinstance(teacher, FactoredLogits):
        _check_head(teacher, "teacher")
        shape = (*teacher.states.shape[:-1], len(teacher.weight))
    else:
        shape = tuple(teacher.shape)
    wanted = (*student.states.shape[:-1], len(student.weight))
    if shape != wanted:
        given = f"student {wanted}, teacher {shape}"
        raise ShapeError(problem(f"{CALLER} compares logits of one shape", given=given, do=VOCABULARIES))


def _check_head(head: FactoredLogits, side: str) -> None:
    states, weight = head.states, head.weight
    if states.ndim == 0 or weight.ndim != 2 or states.shape[-1] != weight.shape[1]:
        raise ShapeError(
            problem(
                f"The {side} of {CALLER} has states [*, D] and a weight [V, D]",
                given=f"states {tuple(states.shape)}, weight {tuple(weight.shape)}",
                do="Give what goes into the head itself, after the model's last norm and projection",
            )
        )
    if head.bias is not None and head.bias.shape != weight.shape[:1]:
        given = f"bias {tuple(head.bias.shape)}, weight {tuple(weight.shape)}"
        raise ShapeError(problem(f"The bias of the {side} of {CALLER} is one number a class", given=given))
    if head.softcap is not None and not 0 < head.softcap < float("inf"):
        what = f"The softcap of the {side} of {CALLER} is a finite number above 0, or None"
        raise ArgumentError(problem(what, given=head.softcap, do="Leave it out where logits are not capped"))


def _check_sparse(student: FactoredLogits, teacher: SparseLogits, needing: Sequence[tuple[str, float | int]]) -> None:
    positions = student.states.shape[:-1]
    given = ", ".join(f"{name} {tuple(getattr(teacher, name).shape)}" for name in ("values", "ids", "tail"))
    if teacher.values.shape[:-1] != positions or teacher.ids.shape != teacher.values.shape:
        raise _of_positions(given, positions)
    if teacher.tail.shape != positions:
        raise _of_positions(given, positions)
    if teacher.values.shape[-1] > len(student.weight):
        given = f"student {(*positions, len(student.weight))}, teacher's classes {tuple(teacher.values.shape)}"
        raise ShapeError(problem(f"A sparse teacher of {CALLER} has no more classes than the student", given=given))
    for loss, temperature in needing:
        if loss == "logit_mse":
            what = "logit_mse compares logits, of which a sparse teacher has only the likeliest, up to a constant"
            raise ArgumentError(problem(what, do="Take kl_divergence, or a teacher with all of its logits"))
        if temperature != teacher.temperature:
            raise ArgumentError(
                problem(
                    "A sparse teacher has the temperature that it was cached at",
                    given=f"{loss} at temperature {temperature}, cached at {teacher.temperature}",
                    follows="The mass outside its likeliest classes is not known at another one",
                    do="Give the part the cached temperature, or make the cache anew at this one",
                )
            )


def _of_positions(given: str, positions: torch.Size) -> ShapeError:
    return ShapeError(
        problem(
            f"A sparse teacher of {CALLER} has values and ids [*, K] and a tail [*]",
            given=f"{given}, positions {tuple(positions)}",
        )
    )
