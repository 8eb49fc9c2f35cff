"""Losses that compare two distributions over classes or tokens by a Kullback-Leibler divergence.

Decisions:
- T^2 is inside: the gradient of a softened KL falls with 1/T^2, so without it the temperature would also be a weight.
- KL(p_T || p_S) makes the student cover whatever the teacher holds possible, KL(p_S || p_T) makes it keep to what the
  teacher holds likely. Each is a name of its own, never a flag.
- Divergences that stay bounded where the student rules out what the teacher says are in `bounded`.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from potstill.checks import same_shape
from potstill.losses._distributions import (
    FLOOR,
    VOCABULARIES,
    Temperature,
    check_classes,
    check_temperature,
    compared,
    divergence,
    log_probabilities,
    rescaled,
    softened,
)
from potstill.losses._inputs import at_least_float32, filled
from potstill.reduce import Mask, position_mask

_LARGE = 1e12
_VARIANCE_FLOOR = 1e-6


def kl_divergence(
    student: Float[Tensor, "*positions V"],
    teacher: Float[Tensor, "*positions_t V_t"],
    *,
    mask: Mask | None = None,
    temperature: Temperature = 1.0,
) -> Float[Tensor, "*positions"]:
    """Divergence of the student's distribution over classes or tokens from the teacher's, in nats, times T^2.

    kl_divergence = T^2 * sum over V of p_T * (log p_T - log p_S),  p = softmax(logits / T)

    Args:
        student: logits, [*, V].
        teacher: logits, [*, V], the same classes in the same order.
        mask: [*], true where a position counts.
        temperature: T, above 0; higher is softer. A number, or one a position, [*].

    Returns:
        One value a position, [*]: 0 or more, and 0 where both distributions are equal.

    Raises:
        ShapeError: different shapes, only one class, or a temperature that is not one a position.
        ArgumentError: a temperature that is not finite and above 0.

    References:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531

    Prefer `binary_kl_divergence` for several labels at once, `logit_mse` for regression, or where the teacher is so
    sure that its softmax says little, and `reverse_kl_divergence` where a small student writes text.
    """
    log_student, log_teacher, valid = compared(student, teacher, mask, temperature, caller="kl_divergence")
    return rescaled(divergence(log_teacher, log_student), temperature, valid)


def reverse_kl_divergence(
    student: Float[Tensor, "*positions V"],
    teacher: Float[Tensor, "*positions_t V_t"],
    *,
    mask: Mask | None = None,
    temperature: Temperature = 1.0,
) -> Float[Tensor, "*positions"]:
    """Divergence of the teacher's distribution over classes or tokens from the student's, in nats, times T^2.

    reverse_kl_divergence = T^2 * sum over V of p_S * (log p_S - log p_T),  p = softmax(logits / T)

    Args:
        student: logits, [*, V].
        teacher: logits, [*, V], the same classes in the same order.
        mask: [*], true where a position counts.
        temperature: T, above 0; higher is softer. A number, or one a position, [*].

    Returns:
        One value a position, [*]: 0 or more, and 0 where both distributions are equal.

    Raises:
        ShapeError: different shapes, only one class, or a temperature that is not one a position.
        ArgumentError: a temperature that is not finite and above 0.

    References:
        Gu, Dong, Wei, Huang: MiniLLM: Knowledge Distillation of Large Language Models, 2023,
        https://arxiv.org/abs/2306.08543 (which takes it of whole sequences; this is one position)

    Prefer it over `kl_divergence` where the student is too small for all that the teacher knows and should not put mass
    between the teacher's peaks, as when it writes text. Where the teacher rules a class out it has no bound, nor has
    its gradient; prefer `skewed_reverse_kl_divergence` then.
    """
    log_student, log_teacher, valid = compared(student, teacher, mask, temperature, caller="reverse_kl_divergence")
    return rescaled(divergence(log_student, log_teacher), temperature, valid)


def symmetric_kl_divergence(
    student: Float[Tensor, "*positions V"],
    teacher: Float[Tensor, "*positions_t V_t"],
    *,
    mask: Mask | None = None,
    temperature: Temperature = 1.0,
) -> Float[Tensor, "*positions"]:
    """Mean of the divergences of two distributions over classes or tokens from each other, in nats, times T^2.

    symmetric_kl_divergence = T^2 * 1/2 * sum over V of (p_T - p_S) * (log p_T - log p_S)
    = (kl_divergence + reverse_kl_divergence) / 2,  p = softmax(logits / T)

    Args:
        student: logits, [*, V].
        teacher: logits, [*, V], the same classes in the same order.
        mask: [*], true where a position counts.
        temperature: T, above 0; higher is softer. A number, or one a position, [*].

    Returns:
        One value a position, [*]: 0 or more, and 0 where both distributions are equal. It is the same either way round.

    Raises:
        ShapeError: different shapes, only one class, or a temperature that is not one a position.
        ArgumentError: a temperature that is not finite and above 0.

    References:
        Ko, Kim, Chen, Yun: DistiLLM: Towards Streamlined Distillation for Large Language Models, 2024,
        https://arxiv.org/abs/2402.03898 (a baseline there, in which the forward part may weigh more)

    Prefer `jensen_shannon`, which is symmetric too (at beta 1/2) and bounded, unless the student stays near the
    teacher; two terms, `kl_divergence` and `reverse_kl_divergence`, where they should weigh differently.
    """
    log_student, log_teacher, valid = compared(student, teacher, mask, temperature, caller="symmetric_kl_divergence")
    values = 0.5 * ((log_teacher.exp() - log_student.exp()) * (log_teacher - log_student)).sum(-1)
    return rescaled(values, temperature, valid)


def soft_cross_entropy(
    student: Float[Tensor, "*positions V"],
    teacher: Float[Tensor, "*positions_t V_t"],
    *,
    mask: Mask | None = None,
    temperature: Temperature = 1.0,
) -> Float[Tensor, "*positions"]:
    """Cross-entropy of the student's distribution under the teacher's, in nats, times T^2.

    soft_cross_entropy = -T^2 * sum over V of p_T * log p_S,  p = softmax(logits / T)

    Args:
        student: logits, [*, V].
        teacher: logits, [*, V], the same classes in the same order.
        mask: [*], true where a position counts.
        temperature: T, above 0; higher is softer. A number, or one a position, [*].

    Returns:
        One value a position, [*]. It is not 0 where both distributions are equal, but T^2 times the teacher's entropy,
        which is as small as it gets: `kl_divergence` plus a number that the student can't change.

    Raises:
        ShapeError: different shapes, only one class, or a temperature that is not one a position.
        ArgumentError: a temperature that is not finite and above 0.

    References:
        Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu: TinyBERT: Distilling BERT for Natural Language Understanding,
        2020, https://arxiv.org/abs/1909.10351

    Prefer `kl_divergence`: the gradient is the same, and its value says how far the student is from the teacher. This
    is for numbers that are to be compared with a publication's.
    """
    log_student, log_teacher, valid = compared(student, teacher, mask, temperature, caller="soft_cross_entropy")
    return rescaled(-(log_teacher.exp() * log_student).sum(-1), temperature, valid)


def binary_kl_divergence(
    student: Float[Tensor, "*positions V"],
    teacher: Float[Tensor, "*positions_t V_t"],
    *,
    mask: Mask | None = None,
    temperature: Temperature = 1.0,
) -> Float[Tensor, "*positions"]:
    """Divergence of the student's yes-or-no for each label from the teacher's, in nats, summed over labels, times T^2.

    binary_kl_divergence = T^2 * sum over V of [p_T * (log p_T - log p_S) + (1 - p_T) * (log(1 - p_T) - log(1 - p_S))],
    p = sigmoid(logits / T)

    Args:
        student: finite logits, [*, V].
        teacher: finite logits, [*, V], the same labels in the same order.
        mask: [*], true where a position counts.
        temperature: T, above 0; higher is softer. A number, or one a position, [*].

    Returns:
        One value a position, [*]: 0 or more, and 0 where all probabilities are equal.

    Raises:
        ShapeError: different shapes, or a temperature that is not one a position.
        ArgumentError: a temperature that is not finite and above 0.

    References:
        Yang, Xie, Zong, Feng, Niu, Sugiyama, Huang: Multi-Label Knowledge Distillation, 2023,
        https://arxiv.org/abs/2308.06453 (its logit part)

    Prefer `kl_divergence` where exactly one class is right.
    """
    same_shape(student, teacher, caller="binary_kl_divergence", hint=VOCABULARIES)
    check_temperature(temperature, student.shape[:-1], caller="binary_kl_divergence")
    valid = position_mask(mask, student.shape[:-1], caller="binary_kl_divergence")
    soft_student = softened(filled(student, valid), temperature)
    soft_teacher = softened(teacher, temperature)
    yes = _log_sigmoid(soft_teacher) - _log_sigmoid(soft_student)
    no = _log_sigmoid(-soft_teacher) - _log_sigmoid(-soft_student)
    values = (torch.sigmoid(soft_teacher) * yes + torch.sigmoid(-soft_teacher) * no).sum(-1)
    return rescaled(values, temperature, valid)


def standardised_kl_divergence(
    student: Float[Tensor, "*positions V"],
    teacher: Float[Tensor, "*positions_t V_t"],
    *,
    mask: Mask | None = None,
    temperature: Temperature = 1.0,
) -> Float[Tensor, "*positions"]:
    """`kl_divergence` of logits that were shifted and scaled to mean 0 and standard deviation 1, in nats, times T^2.

    standardised_kl_divergence = T^2 * sum over V of p_T * (log p_T - log p_S),  p = softmax(z / T),
    z = (logits - mean) / std over V

    Args:
        student: logits, [*, V].
        teacher: logits, [*, V], the same classes in the same order.
        mask: [*], true where a position counts.
        temperature: T, above 0; higher is softer. A number, or one a position, [*].

    Returns:
        One value a position, [*]: 0 or more, and 0 where the teacher's logits are the student's times a number above 0
        plus a number. Where all logits of either are equal, its distribution counts as even.

    Raises:
        ShapeError: different shapes, only one class, or a temperature that is not one a position.
        ArgumentError: a temperature that is not finite and above 0.

    References:
        Sun, Ren, Li, Wang, Cao: Logit Standardization in Knowledge Distillation, 2024, https://arxiv.org/abs/2403.01427
        (std with V - 1 below, as in the published code)

    Prefer it over `kl_divergence` where the student is too small to reach the teacher's range of logits, with another
    term that fixes the range, such as the labels. No class can get a logit above sqrt(V - 1) / T, so with few classes
    neither distribution is ever sure.
    """
    name = "standardised_kl_divergence"
    check_classes(student, teacher, caller=name)
    check_temperature(temperature, student.shape[:-1], caller=name)
    valid = position_mask(mask, student.shape[:-1], caller=name)
    log_student = log_probabilities(softened(_standardised(filled(student, valid)), temperature))
    log_teacher = log_probabilities(softened(_standardised(teacher), temperature))
    return rescaled(divergence(log_teacher, log_student), temperature, valid)


def _standardised(logits: Tensor) -> Tensor:
    """(logits - mean) / std over V, of [*, V], in float32 at least; 0 where all logits are equal."""
    logits = at_least_float32(logits)
    # Only numbers whose square would be infinite are made smaller; the result is the same at every scale.
    logits = logits / (logits.detach().abs().amax(-1, keepdim=True) / _LARGE).clamp(min=1.0)
    centred = logits - logits.mean(-1, keepdim=True)
    variance = centred.square().sum(-1, keepdim=True) / (logits.shape[-1] - 1)
    # Inside the root: the gradient of a root is infinite at 0, where a student with a new head may start.
    return centred * (variance + _VARIANCE_FLOOR).rsqrt()


def _log_sigmoid(logits: Tensor) -> Tensor:
    return functional.logsigmoid(logits).clamp(min=FLOOR)
