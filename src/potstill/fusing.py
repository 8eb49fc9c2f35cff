"""Terms on labels and logits computed together from a head, so that a large vocabulary never becomes a full matrix.

Decisions:
- A term can be fused where `fused_loss` knows its loss and it looks at each position alone, with a temperature that is
  a number at each moment of training. An adaptive one follows the logits themselves, and would need them first.
- One call a teacher, and the terms on labels go along with the first: the student's logits are then made once for all
  terms on labels and one teacher, which is the usual objective.
- Where the teacher's logits are sparse and the student's are not factored, both are put as distributions over the same
  K + 1 outcomes and compared by the pure loss: what `fused_loss` computes, in plain torch.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from potstill import losses
from potstill.checks import problem
from potstill.errors import ArgumentError
from potstill.kinds import LAYERLESS
from potstill.knowledge.types import Knowledge
from potstill.losses._distributions import FLOOR, log_probabilities, softened
from potstill.losses._fused_checks import LOSSES, WITHOUT_TEMPERATURE
from potstill.losses.fused import FactoredLogits, FusedPart, SparseLogits, fused_loss
from potstill.schedules import Adaptive
from potstill.terms import BoundTerm


def fusable(term: BoundTerm) -> bool:
    """Whether a term on labels or logits can be computed without a matrix of logits."""
    name = term.loss.__name__
    return (
        term.kind in LAYERLESS
        and name in LOSSES
        and term.loss is getattr(losses, name)  # no function of the user's of the same name
        and not term.shift
        and not isinstance(term.temperature, Adaptive)
    )


def fused_shares(
    terms: Sequence[BoundTerm],
    weights: Mapping[str, Tensor],
    student: FactoredLogits,
    teachers: Mapping[str, Knowledge],
    labels: Tensor | None,
    progress: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of some fusable terms, and each one's share of it, without gradient.

    Args:
        terms: at least one, each `fusable`.
        weights: by the term's name, what each position [B,S] is multiplied by: mask, count, the term's weight and the
            teacher's influence in one.
        student: its head and what goes into it.
        teachers: what is known of each, by name; logits in any form.
        labels: the label of each position, [B,S].
        progress: the share of training done, for temperatures and options that follow a schedule.
    """
    total, shares = student.states.new_zeros((), dtype=torch.float32), dict[str, Tensor]()
    for source, group in _by_teacher(terms).items():
        parts = [_part(term, weights[term.name], progress) for term in group]
        teacher = teachers[source].logits if source is not None else None
        found, each = fused_loss(student, parts, teacher=teacher, labels=labels)
        total = total + found
        shares |= dict(zip((term.name for term in group), each.unbind(), strict=True))
    return total, shares


def _by_teacher(terms: Sequence[BoundTerm]) -> dict[str | None, list[BoundTerm]]:
    """The terms of each teacher; those on labels beside the first one's, or under None where nobody teaches."""
    found: dict[str | None, list[BoundTerm]] = {}
    for term in terms:
        if term.kind != "labels":
            found.setdefault(term.source, []).append(term)
    for term in terms:
        if term.kind == "labels":
            found.setdefault(next(iter(found), None), []).append(term)
    return found


def _part(term: BoundTerm, weights: Tensor, progress: float) -> FusedPart:
    """A term as it is at this moment of training."""
    options = {**term.options, **{key: value(progress) for key, value in term.scheduled.items()}}
    name = term.loss.__name__
    if term.temperature is None or name in WITHOUT_TEMPERATURE:
        return FusedPart(name, weights, options=options)
    assert not isinstance(term.temperature, Adaptive), "a temperature that follows the logits can't be fused"
    return FusedPart(name, weights, term.temperature(progress), options)


def outcomes(student: Tensor, teacher: SparseLogits, term: BoundTerm, temperature: float) -> tuple[Tensor, Tensor]:
    """Both sides as logits over the teacher's K likeliest classes and any other, [*, K + 1], for the term's pure loss.

    Softened by the temperature they give log-probabilities at it: of the student (q_1, ..., q_K, the sum of all other
    q_j), of the teacher (p_1, ..., p_K, its tail).

    Raises:
        ArgumentError: a loss that isn't defined over outcomes, or another temperature than the cached one.
    """
    name = term.loss.__name__
    if not fusable(term) or name in WITHOUT_TEMPERATURE:
        raise ArgumentError(
            problem(
                f"'{name}' needs all of the teacher's logits, and a cache holds the largest",
                do="Use a divergence of a constant temperature, such as kl_divergence, or keep dense logits",
            )
        )
    if temperature != teacher.temperature:
        raise ArgumentError(
            problem(
                "The mass of the classes that a cache leaves out is known at one temperature alone",
                given=f"{name} at {temperature}, cached at {teacher.temperature}",
                do="Train with the temperature of the cache, or write another one",
            )
        )
    log_q, ids = log_probabilities(softened(student, temperature)), teacher.ids.long()
    others = log_q.scatter(-1, ids, FLOOR).logsumexp(-1, keepdim=True)
    ours = torch.cat([log_q.gather(-1, ids), others], dim=-1)
    theirs = torch.cat([teacher.values, teacher.tail.unsqueeze(-1)], dim=-1).to(ours).clamp(min=FLOOR)
    return ours * temperature, theirs * temperature
