"""Divergences that stay bounded where the student rules out what the teacher says, or the other way round.

Decisions:
- Mixtures of the two distributions are computed from log-probabilities, never by adding probabilities: a mixture of two
  that are 0 in float32 still has a logarithm.
- T^2 is inside, as in `divergence`, for all that are quadratic near equality; `total_variation` is linear there, so
  that its gradient falls with 1/T, and T is inside.
- Ends of a range at which a loss becomes another one (or 0 everywhere) are refused, with that one's name.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.checks import problem
from potstill.errors import ArgumentError
from potstill.losses._distributions import Temperature, compared, divergence, rescaled
from potstill.reduce import Mask

_ENDS_OF_BETA = "At both ends it is 0 everywhere; instead of 0 take kl_divergence, instead of 1 reverse_kl_divergence"


def jensen_shannon(
    student: Float[Tensor, "*positions V"],
    teacher: Float[Tensor, "*positions_t V_t"],
    *,
    mask: Mask | None = None,
    temperature: Temperature = 1.0,
    beta: float | int = 0.5,
) -> Float[Tensor, "*positions"]:
    """Generalised Jensen-Shannon divergence of two distributions over classes or tokens, in nats, times T^2.

    jensen_shannon = T^2 * [beta * KL(p_T || m) + (1 - beta) * KL(p_S || m)],  m = beta * p_T + (1 - beta) * p_S,
    p = softmax(logits / T)

    Args:
        student: logits, [*, V].
        teacher: logits, [*, V], the same classes in the same order.
        mask: [*], true where a position counts.
        temperature: T, above 0; higher is softer. A number, or one a position, [*].
        beta: the teacher's share of the mixture, above 0 and below 1.

    Returns:
        One value a position, [*]: 0 where both distributions are equal, never more than T^2 * ln 2. Near the ends of
        beta it vanishes: it is about beta * `kl_divergence` as beta goes to 0, (1 - beta) * `reverse_kl_divergence` as
        beta goes to 1. The weight of the term has to make up for that.

    Raises:
        ShapeError: different shapes, only one class, or a temperature that is not one a position.
        ArgumentError: a temperature that is not finite and above 0, or a beta outside its range.

    References:
        Agarwal, Vieillard, Zhou, Stanczyk, Ramos, Geist, Bachem: On-Policy Distillation of Language Models: Learning
        from Self-Generated Mistakes, 2023, https://arxiv.org/abs/2306.13649

    Prefer it over `kl_divergence` where student and teacher are far apart, as on text that the student wrote: it is
    bounded, and so is its gradient.
    """
    _check_share("beta", beta, _ENDS_OF_BETA, caller="jensen_shannon")
    log_student, log_teacher, valid = compared(student, teacher, mask, temperature, caller="jensen_shannon")
    log_mixture = _log_mixture(log_teacher, log_student, beta)
    values = beta * divergence(log_teacher, log_mixture) + (1 - beta) * divergence(log_student, log_mixture)
    return rescaled(values, temperature, valid)


def skewed_kl_divergence(
    student: Float[Tensor, "*positions V"],
    teacher: Float[Tensor, "*positions_t V_t"],
    *,
    mask: Mask | None = None,
    temperature: Temperature = 1.0,
    alpha: float | int = 0.1,
) -> Float[Tensor, "*positions"]:
    """Divergence from the teacher's distribution of the student's mixed with a little of it, in nats, times T^2.

    skewed_kl_divergence = T^2 * KL(p_T || alpha * p_T + (1 - alpha) * p_S),  p = softmax(logits / T)

    Args:
        student: logits, [*, V].
        teacher: logits, [*, V], the same classes in the same order.
        mask: [*], true where a position counts.
        temperature: T, above 0; higher is softer. A number, or one a position, [*].
        alpha: the teacher's share of the mixture, above 0 and below 1.

    Returns:
        One value a position, [*]: 0 where both distributions are equal, never more than T^2 * ln(1 / alpha). Near
        equality it is (1 - alpha)^2 of `kl_divergence`.

    Raises:
        ShapeError: different shapes, only one class, or a temperature that is not one a position.
        ArgumentError: a temperature that is not finite and above 0, or an alpha outside its range.

    References:
        Ko, Kim, Chen, Yun: DistiLLM: Towards Streamlined Distillation for Large Language Models, 2024,
        https://arxiv.org/abs/2402.03898

    Prefer it over `kl_divergence` where the student starts far from the teacher: its gradient stays small where the
    student gives nearly nothing to what the teacher says.
    """
    name = "skewed_kl_divergence"
    _check_share("alpha", alpha, "At 1 it is 0 everywhere; instead of 0 take kl_divergence", caller=name)
    log_student, log_teacher, valid = compared(student, teacher, mask, temperature, caller=name)
    return rescaled(divergence(log_teacher, _log_mixture(log_teacher, log_student, alpha)), temperature, valid)


def skewed_reverse_kl_divergence(
    student: Float[Tensor, "*positions V"],
    teacher: Float[Tensor, "*positions_t V_t"],
    *,
    mask: Mask | None = None,
    temperature: Temperature = 1.0,
    alpha: float | int = 0.1,
) -> Float[Tensor, "*positions"]:
    """Divergence from the student's distribution of the teacher's mixed with a little of it, in nats, times T^2.

    skewed_reverse_kl_divergence = T^2 * KL(p_S || alpha * p_S + (1 - alpha) * p_T),  p = softmax(logits / T)

    Args:
        student: logits, [*, V].
        teacher: logits, [*, V], the same classes in the same order.
        mask: [*], true where a position counts.
        temperature: T, above 0; higher is softer. A number, or one a position, [*].
        alpha: the student's share of the mixture, above 0 and below 1.

    Returns:
        One value a position, [*]: 0 where both distributions are equal, never more than T^2 * ln(1 / alpha). Near
        equality it is (1 - alpha)^2 of `reverse_kl_divergence`.

    Raises:
        ShapeError: different shapes, only one class, or a temperature that is not one a position.
        ArgumentError: a temperature that is not finite and above 0, or an alpha outside its range.

    References:
        Ko, Kim, Chen, Yun: DistiLLM: Towards Streamlined Distillation for Large Language Models, 2024,
        https://arxiv.org/abs/2402.03898

    Prefer it over `reverse_kl_divergence`, which has no bound where the teacher rules out what the student says.
    """
    name = "skewed_reverse_kl_divergence"
    _check_share("alpha", alpha, "At 1 it is 0 everywhere; instead of 0 take reverse_kl_divergence", caller=name)
    log_student, log_teacher, valid = compared(student, teacher, mask, temperature, caller=name)
    return rescaled(divergence(log_student, _log_mixture(log_student, log_teacher, alpha)), temperature, valid)


def total_variation(
    student: Float[Tensor, "*positions V"],
    teacher: Float[Tensor, "*positions_t V_t"],
    *,
    mask: Mask | None = None,
    temperature: Temperature = 1.0,
) -> Float[Tensor, "*positions"]:
    """Half of the absolute difference of two distributions over classes or tokens, times T.

    total_variation = T * 1/2 * sum over V of |p_T - p_S|,  p = softmax(logits / T)

    Args:
        student: logits, [*, V].
        teacher: logits, [*, V], the same classes in the same order.
        mask: [*], true where a position counts.
        temperature: T, above 0; higher is softer. A number, or one a position, [*].

    Returns:
        One value a position, [*], from 0 (equal) to T (nothing in common). Times T, not T^2: that keeps the size of the
        gradient, which is steady however near the two are.

    Raises:
        ShapeError: different shapes, only one class, or a temperature that is not one a position.
        ArgumentError: a temperature that is not finite and above 0.

    References:
        Wen, Li, Du, Mou: f-Divergence Minimization for Sequence-Level Knowledge Distillation, 2023,
        https://arxiv.org/abs/2307.15190

    Prefer `kl_divergence` in general: this one's gradient vanishes where the student is surely wrong. Prefer this one
    where the teacher is often wrong itself, since no position can weigh more than T.
    """
    log_student, log_teacher, valid = compared(student, teacher, mask, temperature, caller="total_variation")
    return rescaled(0.5 * (log_teacher.exp() - log_student.exp()).abs().sum(-1), temperature, valid, power=1)


def _log_mixture(log_p: Tensor, log_q: Tensor, share: float | int) -> Tensor:
    """log(share * p + (1 - share) * q), from log-probabilities."""
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def _check_share(key: str, share: float | int, at_ends: str, *, caller: str) -> None:
    """Raise `ArgumentError` unless the share lies between 0 and 1, saying what the loss would be at its ends."""
    if not 0 < share < 1:
        what = f"The {key} of {caller} is a number above 0 and below 1"
        raise ArgumentError(problem(what, given=share, do=at_ends))
