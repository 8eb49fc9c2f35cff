"""The losses of one block of positions with their gradients in closed form; `fused` goes from block to block.

Decisions:
- A gradient with respect to the softened logits z / T is handed back in pieces, on_student * p_S + on_teacher * p_T +
  factor * other, so that the terms of one step share a single pass for each of them, and a plain KL forms nothing else.
- Where log p - log q is asked for, the logits are subtracted, then the normalisers: one pass less than with both log p,
  and exactly 0 where both sides are equal. p comes from a softmax: one exponential a distribution, not two.
- A row's normaliser is kept in float64, and what float32 rounds off when it is subtracted is put back into the value:
  it is the same at all V classes, so that it would not average out as their own rounding does.
- Mixtures are formed from probabilities, where `bounded` forms them from logarithms: a class that both rule out has the
  mixture 0, which is raised to the smallest number, and adds 0 to value and gradient either way.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Distribution(NamedTuple):
    """p = softmax(logits) over V classes, or K + 1 outcomes, of b positions: [b, V] twice, and its normaliser, [b]."""

    logits: Tensor
    p: Tensor
    normaliser: Tensor  # log of the sum of exp(logits), in float64


class Block(NamedTuple):
    """Both distributions, room to work in, [b, V] three times, and whether gradients are asked for."""

    student: Distribution
    teacher: Distribution
    room: tuple[Tensor, ...]
    wanted: bool


class Found(NamedTuple):
    """Values [b] without T^2, and the gradient's pieces; `other` [b, V] lies in the block's room."""

    values: Tensor
    on_student: Tensor | float = 0.0  # [b], or one number
    on_teacher: float = 0.0
    other: Tensor | None = None
    factor: float = 0.0


Options = Mapping[str, float]
Form = Callable[[Block, Options], Found]


def distribution(logits: Tensor, out: Tensor) -> Distribution:
    """The softmax of finite logits [b, V], written into `out`, which must not be the logits' own memory."""
    p = torch.softmax(logits, -1, out=out)
    # At the likeliest class p = 1 / sum of exp(z - max z): a pass for the maximum is cheaper than one for the sum.
    return Distribution(logits, p, _exact(logits.amax(-1)) - _exact(p.amax(-1)).log())


def kl_divergence(block: Block, options: Options) -> Found:
    """sum of p_T * (log p_T - log p_S); its gradient is p_S - p_T."""
    apart, lack = log_ratio(block.teacher, block.student, block.room[0])
    return Found(apart.mul_(block.teacher.p).sum(-1) + lack, on_student=1.0, on_teacher=-1.0)


def soft_cross_entropy(block: Block, options: Options) -> Found:
    """-sum of p_T * log p_S; the gradient is that of `kl_divergence`."""
    log_student, lack = log_probability(block.student, block.room[0])
    return Found(-(log_student.mul_(block.teacher.p).sum(-1) + lack), on_student=1.0, on_teacher=-1.0)


def reverse_kl_divergence(block: Block, options: Options) -> Found:
    """R = sum of p_S * d with d = log p_S - log p_T; its gradient is p_S * (d - R)."""
    apart, lack = log_ratio(block.student, block.teacher, block.room[0])
    mean = apart.mul_(block.student.p).sum(-1)
    return Found(mean + lack, on_student=-mean, other=apart, factor=1.0)


def symmetric_kl_divergence(block: Block, options: Options) -> Found:
    """Half of `kl_divergence` and of `reverse_kl_divergence`, from one difference of the logarithms."""
    apart, _ = log_ratio(block.student, block.teacher, block.room[0])
    forward = torch.mul(apart, block.teacher.p, out=block.room[1]).sum(-1)
    reverse = apart.mul_(block.student.p).sum(-1)
    return Found(0.5 * (reverse - forward), 0.5 * (1.0 - reverse), -0.5, apart, 0.5)


def jensen_shannon(block: Block, options: Options) -> Found:
    """beta * KL(p_T || m) + (1 - beta) * KL(p_S || m); what the mixture adds to the gradient cancels, which leaves
    (1 - beta) * p_S * (d - R),  d = log p_S - log m,  R = sum of p_S * d."""
    beta, (student, teacher) = options["beta"], block[:2]
    log_mixture = _mixture(student.p, teacher.p, beta, block.room[0]).log_()
    apart, lack = log_probability(teacher, block.room[1])
    of_teacher = apart.sub_(log_mixture).mul_(teacher.p).sum(-1) + lack
    apart, lack = log_probability(student, block.room[1])
    mean = apart.sub_(log_mixture).mul_(student.p).sum(-1)
    values = beta * of_teacher + (1 - beta) * (mean + lack)
    return Found(values, -(1 - beta) * mean, other=apart, factor=1 - beta)


def skewed_kl_divergence(block: Block, options: Options) -> Found:
    """KL(p_T || m), m = alpha * p_T + (1 - alpha) * p_S; its gradient is (1 - alpha) * (p_S * sum of c - c),
    c = p_S * p_T / m."""
    alpha, (student, teacher) = options["alpha"], block[:2]
    mixture = _mixture(student.p, teacher.p, alpha, block.room[0])
    shared = torch.div(teacher.p, mixture, out=block.room[1]).mul_(student.p) if block.wanted else None
    log_teacher, lack = log_probability(teacher, block.room[2])
    values = log_teacher.sub_(mixture.log_()).mul_(teacher.p).sum(-1) + lack
    if shared is None:
        return Found(values)
    return Found(values, (1 - alpha) * shared.sum(-1), other=shared, factor=alpha - 1)


def skewed_reverse_kl_divergence(block: Block, options: Options) -> Found:
    """KL(p_S || m), m = alpha * p_S + (1 - alpha) * p_T; its gradient is p_S * (g - sum of p_S * g),
    g = log p_S - log m - alpha * p_S / m."""
    alpha, (student, teacher) = options["alpha"], block[:2]
    mixture = _mixture(teacher.p, student.p, alpha, block.room[0])
    ratio = torch.div(student.p, mixture, out=block.room[1]).mul_(student.p) if block.wanted else None
    apart, lack = log_probability(student, block.room[2])
    mean = apart.sub_(mixture.log_()).mul_(student.p).sum(-1)
    if ratio is None:
        return Found(mean + lack)
    slope = apart.sub_(ratio, alpha=alpha)
    return Found(mean + lack, -slope.sum(-1), other=slope, factor=1.0)


def total_variation(block: Block, options: Options) -> Found:
    """Half of the sum of |p_S - p_T|; its gradient is p_S * (g - sum of p_S * g), g = sign(p_S - p_T) / 2."""
    apart = torch.sub(block.student.p, block.teacher.p, out=block.room[0])
    values = 0.5 * torch.abs(apart, out=block.room[1]).sum(-1)
    if not block.wanted:
        return Found(values)
    slope = apart.sign_().mul_(block.student.p)
    return Found(values, -0.5 * slope.sum(-1), other=slope, factor=0.5)


FORMS: dict[str, Form] = {
    form.__name__: form
    for form in (
        jensen_shannon,
        kl_divergence,
        reverse_kl_divergence,
        skewed_kl_divergence,
        skewed_reverse_kl_divergence,
        soft_cross_entropy,
        symmetric_kl_divergence,
        total_variation,
    )
}


def log_ratio(above: Distribution, below: Distribution, out: Tensor) -> tuple[Tensor, Tensor]:
    """log p - log q, [b, V], but for a rounding error that is the same at all classes, and that error's correction."""
    return torch.sub(above.logits, below.logits, out=out), less(out, above.normaliser - below.normaliser)


def log_probability(one: Distribution, out: Tensor) -> tuple[Tensor, Tensor]:
    """log p, [b, V], but for a rounding error that is the same at all classes, and that error's correction, [b]."""
    rounded = one.normaliser.to(out.dtype)
    torch.sub(one.logits, rounded.unsqueeze(-1), out=out)
    return out, (_exact(rounded) - one.normaliser).to(out.dtype)


def less(tensor: Tensor, rows: Tensor) -> Tensor:
    """Subtract one number a row from [b, V], in place; what is still to be added, since it was rounded, [b]."""
    rounded = rows.to(tensor.dtype)
    tensor.sub_(rounded.unsqueeze(-1))
    return (_exact(rounded) - rows).to(tensor.dtype)


def _exact(rows: Tensor) -> Tensor:
    # Apple's GPUs know no float64; there the value is a rounding error less exact.
    return rows if rows.device.type == "mps" else rows.double()


WRITING = frozenset(FORMS) - {"kl_divergence", "soft_cross_entropy"} | {"logit_mse"}
"""The losses whose gradient has a matrix of its own; in each block they come after the others."""


class Gradient:
    """What the terms of a block add up to, with respect to its softened logits: written into `into` [b, V] at once."""

    def __init__(self, into: Tensor, started: bool = False) -> None:
        self.into = into
        self._started = started
        self._on_student: Tensor | None = None
        self._on_teacher: Tensor | None = None

    def add(self, found: Found, weights: Tensor) -> None:
        """Take in what a form has found, times its weights [b]."""
        if isinstance(found.on_student, Tensor) or found.on_student:
            self._on_student = _plus(self._on_student, weights * found.on_student)
        if found.on_teacher:
            self._on_teacher = _plus(self._on_teacher, weights * found.on_teacher)
        if found.other is not None:
            self.write(found.other, weights * found.factor)

    def finish(self, student: Tensor, teacher: Tensor | None) -> Tensor:
        """[b, V], with the multiples of both distributions in it."""
        if self._on_student is not None:
            self.write(student, self._on_student)
        if self._on_teacher is not None and teacher is not None:
            self.write(teacher, self._on_teacher)
        return self.into

    def write(self, tensor: Tensor, rows: Tensor) -> None:
        """Add a tensor [b, V] times one number a row."""
        if self._started:
            self.into.addcmul_(tensor, rows.unsqueeze(-1))
        else:
            torch.mul(tensor, rows.unsqueeze(-1), out=self.into)
        self._started = True


def _plus(sum_so_far: Tensor | None, more: Tensor) -> Tensor:
    return more if sum_so_far is None else sum_so_far + more


def _mixture(start: Tensor, end: Tensor, share: float, out: Tensor) -> Tensor:
    """(1 - share) * start + share * end, and never 0, so that it has a logarithm."""
    return torch.lerp(start, end, share, out=out).clamp_(min=torch.finfo(out.dtype).tiny)
