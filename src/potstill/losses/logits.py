"""Losses that compare the student's logits with the teacher's.

Decisions:
- Logits are divided by the temperature in float32, not in the dtype in which they come.
- T^2 is inside: the gradient of a softened KL falls with 1/T^2, so without it the temperature would also be a weight.
- From two log-softmaxes, not from logits and logsumexps: that form cancels badly where logits are large.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from potstill.checks import problem, same_shape
from potstill.errors import ShapeError
from potstill.losses._inputs import at_least_float32, filled, require_temperature, zeroed
from potstill.reduce import Mask, position_mask

_VOCABULARIES = "Cut both to the classes or tokens that they share, in the same order, first"


def kl_divergence(
    student: Float[Tensor, "*positions V"],
    teacher: Float[Tensor, "*positions_t V_t"],
    *,
    mask: Mask | None = None,
    temperature: float | int = 1.0,
) -> Float[Tensor, "*positions"]:
    """Divergence of the student's distribution over classes or tokens from the teacher's, in nats, times T^2.

    kl_divergence = T^2 * sum over V of p_T * (log p_T - log p_S),  p = softmax(logits / T)

    Args:
        student: finite logits, [*, V].
        teacher: finite logits, [*, V], the same classes in the same order.
        mask: [*], true where a position counts.
        temperature: T, above 0; higher is softer.

    Returns:
        One value a position, [*]: 0 or more, and 0 where both distributions are equal.

    Raises:
        ShapeError: different shapes, or only one class.
        ArgumentError: a temperature that is not finite and above 0.

    References:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531

    Prefer `binary_kl_divergence` for several labels at once, and `logit_mse` for regression, or where the teacher is so
    sure that its softmax says little.
    """
    same_shape(student, teacher, caller="kl_divergence", hint=_VOCABULARIES)
    require_temperature(temperature, caller="kl_divergence")
    if student.ndim == 0 or student.shape[-1] == 1:
        raise ShapeError(
            problem(
                "kl_divergence compares distributions over at least two classes",
                given=f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}",
                follows="A softmax over one is constant, so that the loss and its gradient would be 0 everywhere",
                do="Take logit_mse for regression, binary_kl_divergence for a single yes or no",
            )
        )
    valid = position_mask(mask, student.shape[:-1], caller="kl_divergence")
    log_student = torch.log_softmax(_softened(filled(student, valid), temperature), dim=-1)
    log_teacher = torch.log_softmax(_softened(teacher, temperature), dim=-1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    return zeroed(divergence * temperature**2, valid)


def binary_kl_divergence(
    student: Float[Tensor, "*positions V"],
    teacher: Float[Tensor, "*positions_t V_t"],
    *,
    mask: Mask | None = None,
    temperature: float | int = 1.0,
) -> Float[Tensor, "*positions"]:
    """Divergence of the student's yes-or-no for each label from the teacher's, in nats, summed over labels, times T^2.

    binary_kl_divergence = T^2 * sum over V of [p_T * (log p_T - log p_S) + (1 - p_T) * (log(1 - p_T) - log(1 - p_S))],
    p = sigmoid(logits / T)

    Args:
        student: finite logits, [*, V].
        teacher: finite logits, [*, V], the same labels in the same order.
        mask: [*], true where a position counts.
        temperature: T, above 0; higher is softer.

    Returns:
        One value a position, [*]: 0 or more, and 0 where all probabilities are equal.

    Raises:
        ShapeError: different shapes.
        ArgumentError: a temperature that is not finite and above 0.

    References:
        Yang, Xie, Zong, Feng, Niu, Sugiyama, Huang: Multi-Label Knowledge Distillation, 2023,
        https://arxiv.org/abs/2308.06453 (its logit part)

    Prefer `kl_divergence` where exactly one class is right.
    """
    same_shape(student, teacher, caller="binary_kl_divergence", hint=_VOCABULARIES)
    require_temperature(temperature, caller="binary_kl_divergence")
    valid = position_mask(mask, student.shape[:-1], caller="binary_kl_divergence")
    soft_student = _softened(filled(student, valid), temperature)
    soft_teacher = _softened(teacher, temperature)
    yes = functional.logsigmoid(soft_teacher) - functional.logsigmoid(soft_student)
    no = functional.logsigmoid(-soft_teacher) - functional.logsigmoid(-soft_student)
    divergence = torch.sigmoid(soft_teacher) * yes + torch.sigmoid(-soft_teacher) * no
    return zeroed(divergence.sum(-1) * temperature**2, valid)


def logit_mse(
    student: Float[Tensor, "*positions V"],
    teacher: Float[Tensor, "*positions_t V_t"],
    *,
    mask: Mask | None = None,
) -> Float[Tensor, "*positions"]:
    """Mean squared difference of the logits themselves.

    logit_mse = mean over V of (z_S - z_T)^2

    Args:
        student: logits, [*, V]; V is 1 for regression.
        teacher: logits, [*, V], the same classes in the same order.
        mask: [*], true where a position counts.

    Returns:
        One value a position, [*], in squared units of the logits.

    Raises:
        ShapeError: different shapes.

    References:
        Ba, Caruana: Do Deep Nets Really Need to be Deep?, 2014, https://arxiv.org/abs/1312.6184
        Kim, Oh, Kim, Cho, Yun: Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge
        Distillation, 2021, https://arxiv.org/abs/2105.08919

    Prefer `kl_divergence` where logits may differ by a constant without meaning anything; this one teaches the constant
    too, and is the one for regression.
    """
    same_shape(student, teacher, caller="logit_mse", hint=_VOCABULARIES)
    valid = position_mask(mask, student.shape[:-1], caller="logit_mse")
    difference = at_least_float32(student) - at_least_float32(teacher)
    return filled(difference, valid).square().mean(-1)


def _softened(logits: Tensor, temperature: float | int) -> Tensor:
    logits = at_least_float32(logits)
    return logits if temperature == 1 else logits / temperature
