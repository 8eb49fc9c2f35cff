"""Losses on logits that are never formed: the head and the divergence together, a chunk of positions after another.

Decisions:
- The gradients are made in the forward pass, while a chunk's logits are at hand; the backward pass multiplies them by
  the number that comes from above, and hands them out. Nothing of size N x V is ever there, nor made twice.
- A part brings its own weights, which hold mask, count and the term's weight. So all terms on logits share the products
  of one step, of which the student's head needs three and the teacher's one.
- Positions that no part weighs are left out before the first product: half of a batch masked is half of the time.
- Values are those of the pure losses of the same name; what may be said to a part is what may be said to those.
- Chunks and blocks are sized for a processor's cache. Nothing here has been tried on a GPU, where Liger-Kernel's
  kernels do the same for a dense teacher: no choice between the two is made here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from potstill.losses._factored import FactoredLogits, SparseLogits, Teacher
from potstill.losses._fused_blocks import Term, Work, accumulate, chunk_rows
from potstill.losses._fused_checks import check_parts, check_student, check_teacher, options_of, powers
from potstill.losses._fused_terms import WRITING
from potstill.losses._inputs import full_precision
from potstill.losses.labels import IGNORED

__all__ = ["FactoredLogits", "FusedPart", "SparseLogits", "fused_loss"]


@dataclass(frozen=True)
class FusedPart:
    """One term of a fused loss.

    Attributes:
        loss: the name of a loss on logits: ``cross_entropy``, ``kl_divergence``, ``reverse_kl_divergence``,
            ``symmetric_kl_divergence``, ``jensen_shannon``, ``skewed_kl_divergence``, ``skewed_reverse_kl_divergence``,
            ``soft_cross_entropy``, ``total_variation`` or ``logit_mse``.
        weights: what each position's value is multiplied by, [*]: 0 where it doesn't count, else the term's weight over
            the count of positions. No gradient goes to them.
        temperature: T of a divergence, above 0.
        options: ``beta``, ``alpha`` or ``teacher_scale``, where the loss has one.
    """

    loss: str
    weights: Float[Tensor, "*positions"]
    temperature: float | int = 1.0
    options: Mapping[str, float | int] = field(default_factory=dict)


def fused_loss(
    student: FactoredLogits,
    parts: Sequence[FusedPart],
    *,
    teacher: Teacher | None = None,
    labels: Int[Tensor, "*positions_l"] | None = None,
    chunk: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " parts"]]:
    """Weighted sum of losses on the logits of a head, without the logits; its gradient is made along with it.

    fused_loss = sum over parts and positions of weights * loss(z_S, z_T),  z = scale * (states @ weight.T) + bias

    With a dense or factored teacher, `loss` is the pure loss of that name over all V classes. With a sparse one it is
    that loss over K + 1 outcomes, each of the teacher's K likeliest classes k, and any other:

    p_T = (p_1, ..., p_K, tail),  p_S = (q_1, ..., q_K, sum of q_j over all other classes j),  q = softmax(z_S / T)

    For a divergence that is a lower bound of the one over all classes, and equal to it at K = V. Every divergence is
    defined, `total_variation` and `soft_cross_entropy` (of the outcomes) too; `logit_mse` needs the logits, and is
    refused. Where the tail is empty, `reverse_kl_divergence` and `symmetric_kl_divergence` have no bound. p_T is
    normalised once more, against what a cache has rounded.

    Args:
        student: the student's head and what goes into it, N positions [*] of width D, V classes.
        parts: the terms, at least one.
        teacher: its head (of any width), its logits [*, V], or what a cache kept of them. No gradient goes there.
        labels: class numbers from 0 to V-1, or -100 for none, [*]; for ``cross_entropy``.
        chunk: positions whose logits are there at once; without it, about 32 MB of them. It changes the time, not the
            result.

    Returns:
        The sum, which carries the gradient to states, weight and bias, and each part's share of it, [parts], without
        one; float32 at least. A position whose weight is 0 in a part adds exactly 0 to it, whatever stands there, NaN
        too. Both are computed in the inputs' dtype (under autocast in that one's, as the head itself would) up to the
        logits, and in float32 from there. Backward can't itself be differentiated.

    Raises:
        ShapeError: another V than the student's, weights, labels or a teacher that are not one a position, a head whose
            width is not that of its states.
        ArgumentError: an unknown loss or option, a value outside its range, a part without the labels or the teacher
            that it needs, a temperature other than the one that a sparse teacher was cached at.

    References:
        Hsu, Dai, Kothapalli, Song, Tang, Zhu, Shimizu, Sahni, Ning, Chen: Liger Kernel: Efficient Triton Kernels for
        LLM Training, 2024, https://arxiv.org/abs/2410.10989 (the gradient of a chunk made in the forward pass)
        Wijmans, Huval, Hertzberg, Koltun, Krähenbühl: Cut Your Losses in Large-Vocabulary Language Models, 2024,
        https://arxiv.org/abs/2411.09009 (the label loss by tiles of the vocabulary too, which makes the logits twice)

    Prefer it over the pure losses where N x V is large: the logits of 4,096 tokens over 32,000 classes are 524 MB, and
    a divergence holds several such matrices. For a few hundred classes the pure losses are as fast, and can be
    differentiated twice.
    """
    positions = student.states.shape[:-1]
    check_student(student, chunk)
    check_parts(parts, positions, labels)
    check_teacher(student, teacher, [(part.loss, part.temperature) for part in parts])
    head = _flat(student)
    with torch.no_grad(), full_precision(student.states):
        weights, work = _work(head, parts, teacher, labels, chunk)
    tensors = (head.states, head.weight, head.bias)
    wanted = [torch.is_grad_enabled() and one is not None and one.requires_grad for one in tensors]
    if any(wanted):
        shares: Tensor
        total, shares = _Fused.apply(*tensors, head, work, weights)  # type: ignore[no-untyped-call]
        return total, shares
    with torch.no_grad(), full_precision(student.states):
        shares = _shares(accumulate(head, work, (False, False, False))[0], weights)
        return shares.sum(), shares


class _Fused(torch.autograd.Function):
    """Gradients that are there before they are asked for."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        states, weight, bias, head, work, weights = given
        ctx.save_for_backward(states, weight, bias)
        ctx.rest = head, work
        with full_precision(states):
            values, ctx.sums = accumulate(head, work, _wanted(ctx))
            shares = _shares(values, weights)
        ctx.mark_non_differentiable(shares)
        return shares.sum(), shares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _shares: Tensor) -> tuple[Tensor | None, ...]:
        # Handed out, not kept: so that the weight's becomes the parameter's own, where a copy would be as large again.
        sums, ctx.sums = ctx.sums, None
        if sums is None:  # a second time, with retain_graph
            _ = ctx.saved_tensors  # raises if they were freed, or changed since
            head, work = ctx.rest
            with full_precision(head.states):
                sums = accumulate(head, work, _wanted(ctx))[1]
        return *sums.scaled(upstream), None, None, None


def _wanted(ctx: Any) -> tuple[bool, bool, bool]:
    states, weight, bias = ctx.needs_input_grad[:3]
    return states, weight, bias


def _shares(values: Tensor, weights: Tensor) -> Tensor:
    """[parts], from values and weights [parts, n]."""
    return values.masked_fill_(weights == 0, 0.0).mul_(weights).sum(-1)


def _flat(head: FactoredLogits) -> FactoredLogits:
    """With one axis of positions."""
    states = head.states.reshape(-1, head.states.shape[-1])
    return FactoredLogits(states, head.weight, head.bias, head.scale, head.softcap)


def _work(
    head: FactoredLogits,
    parts: Sequence[FusedPart],
    teacher: FactoredLogits | SparseLogits | Tensor | None,
    labels: Tensor | None,
    chunk: int | None,
) -> tuple[Tensor, Work]:
    """The weights [parts, n] at the positions that any part weighs, and all that is looked at there."""
    dtype = _product_dtype(head)
    soft = torch.promote_types(dtype, torch.float32)
    weights = torch.stack([part.weights.detach().reshape(-1).to(soft) for part in parts])
    of_labels = [part.loss == "cross_entropy" for part in parts]
    by_label = torch.tensor(of_labels, device=weights.device)
    labels = labels.reshape(-1).long() if labels is not None and any(of_labels) else None
    if labels is not None:
        weights = weights.masked_fill(by_label.unsqueeze(-1) & (labels == IGNORED), 0.0)
    counted = (weights != 0).any(0)
    rows = None if bool(counted.all()) else counted.nonzero().squeeze(-1)
    if rows is not None:
        weights = weights.index_select(1, rows)
        labels = None if labels is None else labels.index_select(0, rows)
    if labels is not None:  # what stands where no label counts need not be a class
        labels = labels.masked_fill((weights[by_label] == 0).all(0), 0).unsqueeze(-1)
    unheard = (weights[~by_label] == 0).all(0)
    known = _at_rows(teacher, rows, unheard) if not all(of_labels) else None
    count = weights.shape[1]
    height = max(1, min(chunk or chunk_rows(count, len(head.weight)), count))
    unit = weights.abs().amax().clamp(min=1e-30) if dtype == torch.float16 and count else None
    terms = _terms(parts, weights if unit is None else weights / unit)
    return weights, Work(terms, known, labels, rows, unheard if bool(unheard.any()) else None, height, dtype, unit)


def _terms(parts: Sequence[FusedPart], weights: Tensor) -> dict[float, list[Term]]:
    """The parts by temperature, those that write a gradient of their own last."""
    found: dict[float, list[Term]] = {}
    for index in sorted(range(len(parts)), key=lambda i: parts[i].loss in WRITING):
        part, temperature = parts[index], float(parts[index].temperature)
        inside, slope = powers(part.loss)
        slopes = weights[index] * temperature**slope
        term = Term(index, part.loss, temperature**inside, slopes, options_of(part.loss, part.options))
        found.setdefault(temperature, []).append(term)
    return found


def _at_rows(
    teacher: FactoredLogits | SparseLogits | Tensor | None, rows: Tensor | None, unheard: Tensor
) -> FactoredLogits | SparseLogits | Tensor | None:
    """The teacher with one axis of positions, without gradients; a sparse one at the rows that count."""
    if teacher is None:
        return None
    if isinstance(teacher, Tensor):
        return teacher.detach().reshape(-1, teacher.shape[-1])
    if isinstance(teacher, FactoredLogits):
        bias = None if teacher.bias is None else teacher.bias.detach()
        given = FactoredLogits(teacher.states.detach(), teacher.weight.detach(), bias, teacher.scale, teacher.softcap)
        return _flat(given)
    width = teacher.values.shape[-1]
    values, ids = teacher.values.detach().reshape(-1, width), teacher.ids.reshape(-1, width).long()
    tail = teacher.tail.detach().reshape(-1)
    if rows is not None:
        values, ids, tail = (one.index_select(0, rows) for one in (values, ids, tail))
    # Whatever stands where no part asks for the teacher, the classes there must be different ones.
    ids = torch.where(unheard.unsqueeze(-1), torch.arange(width, device=ids.device), ids)
    return SparseLogits(values.masked_fill(unheard.unsqueeze(-1), 0.0), ids, tail.masked_fill(unheard, 0.0))


def _product_dtype(head: FactoredLogits) -> torch.dtype:
    """The dtype of the matrix products: that of the inputs, or autocast's, as for the head itself."""
    dtype = torch.promote_types(head.states.dtype, head.weight.dtype)
    device = head.states.device.type
    if dtype != torch.float64 and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return dtype
