"""Losses that compare the student's logits with the teacher's otherwise than by one divergence.

Decisions:
- T or T^2 is inside only where the gradient would otherwise fall with the temperature (`universal_logit_distance` with
  1/T, `decoupled_kl_divergence` with 1/T^2). A correlation does not change with the scale of what it compares, so
  `dist` takes no factor.
- `dist` compares rows of the batch with one another: that part of it is one number for the micro-batch, given to every
  position that counts.
- A vector that is constant but for rounding has no correlation: no gradient goes through it, where a division by its
  length would blow rounding up.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from potstill.checks import problem, same_shape
from potstill.errors import ArgumentError, ShapeError
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
from potstill.losses._inputs import at_least_float32, filled, zeroed
from potstill.losses.labels import IGNORED
from potstill.reduce import Mask, position_mask


def logit_mse(
    student: Float[Tensor, "*positions V"],
    teacher: Float[Tensor, "*positions_t V_t"],
    *,
    mask: Mask | None = None,
    teacher_scale: float | int = 1.0,
) -> Float[Tensor, "*positions"]:
    """Mean squared difference of the logits themselves.

    logit_mse = mean over V of (z_S - teacher_scale * z_T)^2

    Args:
        student: logits, [*, V]; V is 1 for regression.
        teacher: logits, [*, V], the same classes in the same order.
        mask: [*], true where a position counts.
        teacher_scale: what the teacher's logits are multiplied by, 0 or more: Phi of annealing distillation, which
            grows from 1 / stages to 1.

    Returns:
        One value a position, [*], in squared units of the logits.

    Raises:
        ShapeError: different shapes.
        ArgumentError: a scale that is negative or not finite.

    References:
        Ba, Caruana: Do Deep Nets Really Need to be Deep?, 2014, https://arxiv.org/abs/1312.6184
        Kim, Oh, Kim, Cho, Yun: Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge
        Distillation, 2021, https://arxiv.org/abs/2105.08919
        Jafari, Rezagholizadeh, Sharma, Ghodsi: Annealing Knowledge Distillation, 2021, https://arxiv.org/abs/2104.07163

    Prefer `kl_divergence` where logits may differ by a constant without meaning anything; this one teaches the constant
    too, and is the one for regression.
    """
    same_shape(student, teacher, caller="logit_mse", hint=VOCABULARIES)
    if not math.isfinite(teacher_scale) or teacher_scale < 0:
        what = "The teacher_scale of logit_mse is a finite number, 0 or more"
        raise ArgumentError(problem(what, given=teacher_scale, do="Take 1.0 for the teacher's logits as they are"))
    valid = position_mask(mask, student.shape[:-1], caller="logit_mse")
    teacher = at_least_float32(teacher)
    target = teacher if teacher_scale == 1 else teacher * teacher_scale
    return filled(at_least_float32(student) - target, valid).square().mean(-1)


def decoupled_kl_divergence(
    student: Float[Tensor, "*positions V"],
    teacher: Float[Tensor, "*positions_t V_t"],
    *,
    labels: Int[Tensor, "..."],
    mask: Mask | None = None,
    temperature: Temperature = 1.0,
    alpha: float | int = 1.0,
    beta: float | int = 8.0,
) -> Float[Tensor, "*positions"]:
    """`kl_divergence` in its two parts, each with a weight: how sure of the right class, and the other classes' shares.

    decoupled_kl_divergence = T^2 * [alpha * KL(b_T || b_S) + beta * KL(o_T || o_S)],  p = softmax(z / T),
    b = (p[label], 1 - p[label]),  o = softmax over the other classes of z / T,  and 0 where the label is -100

    Args:
        student: logits, [*, V].
        teacher: logits, [*, V], the same classes in the same order.
        labels: the right class, from 0 to V-1, or -100 for none, [*].
        mask: [*], true where a position counts.
        temperature: T, above 0; higher is softer. A number, or one a position, [*].
        alpha: weight of the part on the right class against all others.
        beta: weight of the part among the others, which `kl_divergence` weighs by 1 - p_T[label]: nearly nothing where
            the teacher is sure. With two classes there is one other class, and this part is 0.

    Returns:
        One value a position, [*]: 0 or more, and 0 where both distributions are equal.

    Raises:
        ShapeError: different shapes, only one class, labels or a temperature that are not one a position.
        ArgumentError: a temperature that is not finite and above 0.

    References:
        Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation, 2022, https://arxiv.org/abs/2203.08679

    Prefer it over `kl_divergence` where rows are labelled, classes are many and the teacher is very sure of them.
    """
    name = "decoupled_kl_divergence"
    check_classes(student, teacher, caller=name)
    check_temperature(temperature, student.shape[:-1], caller=name)
    _check_labels(labels, student, caller=name)
    valid = position_mask(mask, student.shape[:-1], caller=name)
    valid = labels != IGNORED if valid is None else valid & (labels != IGNORED)
    student, teacher = softened(filled(student, valid), temperature), softened(teacher, temperature)
    classes = torch.arange(student.shape[-1], device=labels.device)
    gold = classes == labels.masked_fill(~valid, 0).unsqueeze(-1)
    right = divergence(_right_or_not(teacher, gold), _right_or_not(student, gold))
    among = divergence(_among_others(teacher, gold), _among_others(student, gold))
    return rescaled(alpha * right + beta * among, temperature, valid)


def dist(
    student: Float[Tensor, "*positions V"],
    teacher: Float[Tensor, "*positions_t V_t"],
    *,
    mask: Mask | None = None,
    temperature: Temperature = 1.0,
    beta: float | int = 1.0,
    gamma: float | int = 1.0,
) -> Float[Tensor, "*positions"]:
    """One minus the correlation of two sets of probabilities, over the classes of a position and over the positions.

    dist = beta * (1 - corr over V of (p_S, p_T)) + gamma * mean over V of (1 - corr over positions of (p_S, p_T)),
    p = softmax(logits / T),  corr = Pearson's correlation

    Args:
        student: logits, [*, V].
        teacher: logits, [*, V], the same classes in the same order.
        mask: [*], true where a position counts.
        temperature: T, above 0; higher is softer. A number, or one a position, [*]. No factor T^2 is inside: a
            correlation, and its gradient, doesn't shrink with T.
        beta: weight of the first part, between the classes of one position.
        gamma: weight of the second part, within a class over all positions of the micro-batch that count.

    Returns:
        One value a position, [*], from 0 (the same up to shift and scale) to 2 * (beta + gamma). The second part is the
        micro-batch's, given to every position that counts, so gradient accumulation is then of micro-batches. A vector
        of the teacher's that is constant has nothing to match: 0; where only the student's is constant it is 1. No
        gradient goes through either.

    Raises:
        ShapeError: different shapes, only one class, or a temperature that is not one a position.
        ArgumentError: a temperature that is not finite and above 0.

    References:
        Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher, 2022,
        https://arxiv.org/abs/2205.10536

    Prefer it over `kl_divergence` where the teacher is much stronger than the student can become, with a batch of many
    rows. With two classes the first part is constant, since any two points lie on a line: set beta to 0 there.
    """
    log_student, log_teacher, valid = compared(student, teacher, mask, temperature, caller="dist")
    p_student, p_teacher = log_student.exp(), log_teacher.exp()
    between = beta * _one_minus_correlation(p_student, p_teacher, None)
    rows_student, rows_teacher = (p.reshape(-1, p.shape[-1]).T for p in (p_student, p_teacher))  # [V, N]
    within = gamma * _one_minus_correlation(rows_student, rows_teacher, None if valid is None else valid.reshape(-1))
    return zeroed(between + within.mean(), valid)


def universal_logit_distance(
    student: Float[Tensor, "*positions V"],
    teacher: Float[Tensor, "*positions_t V_t"],
    *,
    mask: Mask | None = None,
    temperature: Temperature = 1.0,
) -> Float[Tensor, "*positions"]:
    """Distance of two sets of probabilities, each sorted: for vocabularies that have nothing to do with each other.

    universal_logit_distance = T * sum over ranks of |p_S sorted - p_T sorted|,  p = softmax(logits / T), the largest
    first, the shorter of the two filled with zeros

    Args:
        student: logits, [*, V].
        teacher: logits, [*, V_t]; V_t may differ from V.
        mask: [*], true where a position counts.
        temperature: T, above 0; higher is softer. A number, or one a position, [*].

    Returns:
        One value a position, [*], from 0 to 2 T. It is 0 where the sorted probabilities are equal, whichever classes
        they belong to. Times T, not T^2, which keeps the size of the gradient, as in `total_variation`.

    Raises:
        ShapeError: different positions, or a temperature that is not one a position.
        ArgumentError: a temperature that is not finite and above 0.

    References:
        Boizard, El Haddad, Hudelot, Colombo: Towards Cross-Tokenizer Distillation: the Universal Logit Distillation
        Loss for LLMs, 2024, https://arxiv.org/abs/2402.12030

    Prefer any other loss where classes or tokens can be matched: this one teaches how sure to be, not of what, so it
    goes beside one on labels.
    """
    name = "universal_logit_distance"
    if student.ndim == 0 or teacher.ndim == 0 or student.shape[:-1] != teacher.shape[:-1]:
        raise ShapeError(
            problem(
                f"{name} compares the same positions, [*, V] and [*, V_t]",
                given=f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}",
                do="Align the positions of both tokenizers first",
            )
        )
    check_temperature(temperature, student.shape[:-1], caller=name)
    valid = position_mask(mask, student.shape[:-1], caller=name)
    ranked = [
        torch.softmax(softened(logits, temperature), dim=-1).sort(dim=-1, descending=True).values
        for logits in (filled(student, valid), teacher)
    ]
    ranks = max(student.shape[-1], teacher.shape[-1])
    of_student, of_teacher = (functional.pad(p, (0, ranks - p.shape[-1])) for p in ranked)
    return rescaled((of_student - of_teacher).abs().sum(-1), temperature, valid, power=1)


def pseudo_label_cross_entropy(
    student: Float[Tensor, "*positions V"],
    teacher: Float[Tensor, "*positions_t V_t"],
    *,
    mask: Mask | None = None,
    confidence: float | int = 0.0,
) -> Float[Tensor, "*positions"]:
    """Negative log-probability of the class that the teacher holds likeliest, in nats.

    pseudo_label_cross_entropy = -log softmax(z_S)[argmax z_T], and 0 where max softmax(z_T) < confidence

    Args:
        student: logits, [*, V].
        teacher: logits, [*, V], the same classes in the same order.
        mask: [*], true where a position counts.
        confidence: the least probability of the teacher's class, from 0 to 1, with which a position teaches. Those
            below it still count in a mean over `mask`, as in FixMatch: a batch of which the teacher knows little weighs
            little.

    Returns:
        One value a position, [*]. Where both are equal it is 0 only if they are sure: a probability p costs -log p.

    Raises:
        ShapeError: different shapes, or only one class.
        ArgumentError: a confidence outside of 0 to 1.

    References:
        Lee: Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks, 2013
        Touvron, Cord, Douze, Massa, Sablayrolles, Jegou: Training data-efficient image transformers & distillation
        through attention, 2021, https://arxiv.org/abs/2012.12877 (hard-label distillation)

    Prefer `kl_divergence` where the teacher's probabilities are to be had; this one where they are badly calibrated, or
    the student has a second head for the teacher's choice, as DeiT has.
    """
    name = "pseudo_label_cross_entropy"
    check_classes(student, teacher, caller=name)
    if not 0 <= confidence <= 1:
        raise ArgumentError(problem(f"The confidence of {name} is a probability, from 0 to 1", given=confidence))
    valid = position_mask(mask, student.shape[:-1], caller=name)
    log_student = log_probabilities(at_least_float32(filled(student, valid)))
    values = -log_student.gather(-1, teacher.argmax(-1, keepdim=True)).squeeze(-1)
    if confidence > 0:
        sure = torch.softmax(at_least_float32(teacher), dim=-1).amax(-1) >= confidence
        values = zeroed(values, sure)
    return zeroed(values, valid)


def probability_shifted(
    teacher: Float[Tensor, "*positions V"], labels: Int[Tensor, "..."]
) -> Float[Tensor, "*positions V"]:
    """The teacher's logits, in which the right class has changed places with the likeliest one where the teacher errs.

    Not a loss, but something to do to the teacher before one.

    Args:
        teacher: logits, [*, V].
        labels: the right class, from 0 to V-1, or -100 for none, [*]. Without one nothing is changed.

    Returns:
        Logits [*, V] of the same set of values, with the largest on the label.

    Raises:
        ShapeError: labels that are not one a position.

    References:
        Wen, Lai, Qian: Preparing Lessons: Improve Knowledge Distillation with Better Supervision, 2019,
        https://arxiv.org/abs/1911.07471
        Lu, Zhang, Feng, Lin, Wu: Knowledge Distillation of Transformer-based Language Models Revisited, 2022,
        https://arxiv.org/abs/2206.14366
    """
    _check_labels(labels, teacher, caller="probability_shifted")
    top = teacher.argmax(-1, keepdim=True)
    known = (labels != IGNORED).unsqueeze(-1)
    gold = torch.where(known, labels.unsqueeze(-1).to(top.dtype), top)
    shifted = teacher.scatter(-1, top, teacher.gather(-1, gold))
    return shifted.scatter(-1, gold, teacher.gather(-1, top))


def _check_labels(labels: Tensor, logits: Tensor, *, caller: str) -> None:
    if logits.ndim == 0 or labels.shape != logits.shape[:-1]:
        raise ShapeError(
            problem(
                f"{caller} takes logits [*, V] and one class number a position [*]",
                given=f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}",
            )
        )


def _right_or_not(soft: Tensor, gold: Tensor) -> Tensor:
    """(log p[label], log(1 - p[label])), [*, 2], from softened logits and the label as booleans, both [*, V]."""
    log_p = log_probabilities(soft)
    right = log_p.masked_fill(~gold, 0.0).sum(-1)
    # Summed in the logarithm: 1 - p is 0 in float32 where the model is sure.
    others = log_p.masked_fill(gold, FLOOR).logsumexp(-1)
    return torch.stack([right, others], dim=-1)


def _among_others(soft: Tensor, gold: Tensor) -> Tensor:
    """log softmax over all classes but the label, [*, V], with `FLOOR` at the label."""
    return log_probabilities(soft.masked_fill(gold, -math.inf))


def _one_minus_correlation(student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
    """1 - Pearson's correlation over the last axis, of which the `valid` [N] count, [...] from [..., N]."""
    (student, varies), (teacher, varies_t) = _unit(student, valid), _unit(teacher, valid)
    correlation = (student * teacher).sum(-1)
    both = varies & varies_t
    return torch.where(both, 1 - correlation, varies_t.to(correlation.dtype))


def _unit(vectors: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Vectors [..., N] centred and of length 1 over what is valid, and whether they vary at all, [...]."""
    kept = vectors if valid is None else vectors.masked_fill(~valid, 0.0)
    count = vectors.shape[-1] if valid is None else valid.sum().clamp(min=1)
    centred = kept - kept.sum(-1, keepdim=True) / count
    centred = centred if valid is None else centred.masked_fill(~valid, 0.0)
    square = centred.square().sum(-1, keepdim=True)
    rounding = (8 * torch.finfo(vectors.dtype).eps) ** 2 * kept.detach().square().sum(-1, keepdim=True)
    varies = square > rounding
    # Replaced before the root, whose gradient at 0 is infinite.
    unit = centred * torch.where(varies, square, 1.0).rsqrt()
    return unit, varies.squeeze(-1)
