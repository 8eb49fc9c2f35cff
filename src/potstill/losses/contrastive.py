"""Losses that ask which of many rows a vector belongs to: [B, E], one vector a row, one value a row.

Decisions:
- Neither is 0 at equality: they ask that a row be nearer to its own than to others, and equal vectors of different rows
  can't be told apart however good the student.
- Vectors are brought to length 1 inside; entries of a memory are so already (`potstill.contrast.ContrastiveMemory`).
- The critic of CRD is computed as a logistic loss of log-odds, which it is: published code divides and adds 1e-7.
- A memory's vectors are given as the whole bank and the numbers of the rows taken: [B, N] numbers come of it instead of
  the published [B, K, E], which is E * K / N times as much: 128 times at a width of 128 and as many negatives as rows.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from potstill.checks import problem, same_shape
from potstill.errors import ShapeError
from potstill.losses._inputs import full_precision, require_temperature, zeroed
from potstill.losses._vectors import directions, vectors_and_mask
from potstill.reduce import Mask

_ROWS = "[B, E]"


def info_nce(
    student: Float[Tensor, "B E"],
    teacher: Float[Tensor, "B_t E_t"],
    *,
    mask: Mask | None = None,
    temperature: float = 0.07,
) -> Float[Tensor, " B"]:
    """Negative log-probability that a student's row is matched with the teacher's same row, among those of the batch.

    info_nce = -log softmax over rows j of (s_i . t_j / T)[i], for each row i,  s and t of length 1

    Args:
        student: one vector a row, [B, E], projected to the teacher's width where it differs.
        teacher: one vector a row, [B, E].
        mask: [B], true where a row counts, as a row and as one to be taken for it.
        temperature: T, above 0; lower looks at the nearest wrong rows only. No factor T^2: it is no softened KL.

    Returns:
        One value a row, [B], in nats; not 0 at equality, but log(n) where all n rows are alike. 0, with no gradient, in
        a batch of one row. Rows are compared within the batch given: a micro-batch, under accumulation.

    Raises:
        ShapeError: different shapes.
        ArgumentError: a temperature that is not finite and above 0.

    References:
        van den Oord, Li, Vinyals: Representation Learning with Contrastive Predictive Coding, 2018,
        https://arxiv.org/abs/1807.03748

    Prefer `crd` where batches are small: it takes its wrong rows from a memory of the whole data set.
    """
    require_temperature(temperature, caller="info_nce")
    same_shape(student, teacher, caller="info_nce", hint="Different widths need a projection (project: linear)")
    student, teacher, valid = vectors_and_mask(student, teacher, mask, letters=_ROWS, caller="info_nce")
    with full_precision(student):
        scores = directions(student) @ directions(teacher).transpose(0, 1) / temperature
    scores = scores.masked_fill(~valid.unsqueeze(0), torch.finfo(scores.dtype).min)
    return zeroed(-torch.log_softmax(scores, dim=-1).diagonal(), valid)


def crd(
    student: Float[Tensor, "B E"],
    teacher: Float[Tensor, "B_t E_t"],
    *,
    student_bank: Float[Tensor, "N E_s"],
    teacher_bank: Float[Tensor, "N_t E_n"],
    candidates: Int[Tensor, "B_c K"],
    constants: Float[Tensor, "2"] | None = None,
    mask: Mask | None = None,
    temperature: float = 0.07,
) -> Float[Tensor, " B"]:
    """Noise-contrastive loss of telling a row's own vector in the other model's memory from those of other rows.

    crd = c(s, teacher's bank, Z_S) + c(t, student's bank, Z_T), for each row,  c(x, M, Z) = -log P_0 / (P_0 + K/N) -
    sum over k = 1..K of log (K/N) / (P_k + K/N),  P_k = exp(x . M[candidates[k]] / T) / Z, x of length 1

    Args:
        student: one embedding a row, [B, E].
        teacher: one embedding a row, [B, E], from an embedding head of its own; that head learns from the second part.
        student_bank: the student's embeddings of all N rows of the data, remembered, [N, E], each of length 1.
        teacher_bank: likewise of the teacher, [N, E].
        candidates: [B, 1 + K] numbers of rows in the banks: the row's own first, then K that are not it.
        constants: Z_S and Z_T, [2]; None takes N times the mean of exp over this batch's candidates, as is done once,
            at the first batch.
        mask: [B], true where a row counts.
        temperature: T, above 0.

    Returns:
        One value a row, [B], in nats: 0 or more, and not 0 at equality. Rows don't look at each other where `constants`
        are given.

    Raises:
        ShapeError: different shapes; banks of other widths or of different numbers of rows; no negative.
        ArgumentError: a temperature that is not finite and above 0.

    References:
        Tian, Krishnan, Isola: Contrastive Representation Distillation, 2020, https://arxiv.org/abs/1910.10699

    Prefer `info_nce` where batches are large: it needs no memory of the data.
    """
    require_temperature(temperature, caller="crd")
    same_shape(student, teacher, caller="crd", hint="Each model has an embedding head of its own, to one width")
    _require_banks(student, student_bank, teacher_bank, candidates)
    student, teacher, valid = vectors_and_mask(student, teacher, mask, letters=_ROWS, caller="crd")
    pairs = ((student, teacher_bank), (teacher, student_bank))
    logits = torch.stack([bank_logits(vectors, bank, candidates, temperature) for vectors, bank in pairs])
    rows = student_bank.shape[0]
    normalisers = log_constants(logits.detach(), rows, valid) if constants is None else constants.to(logits.dtype).log()
    # The log-odds of "from the data" against "noise": K draws from 1/N each.
    negatives = candidates.shape[1] - 1
    odds = logits - normalisers[:, None, None] - math.log(negatives / rows)
    values = functional.softplus(-odds[..., 0]) + functional.softplus(odds[..., 1:]).sum(-1)
    return zeroed(values.sum(0), valid)


def bank_logits(vectors: Tensor, bank: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    """Each row's direction times its candidates in the bank, over the temperature, [B, 1 + K]."""
    with full_precision(vectors):
        scores = directions(vectors) @ bank.detach().to(vectors.dtype).transpose(0, 1)
    return scores.gather(1, candidates.long()) / temperature


def log_constants(logits: Tensor, rows: int, valid: Tensor | None = None) -> Tensor:
    """log Z of both models, [2]: N times the mean of exp over the candidates of rows that count, from [2, B, 1 + K]."""
    if valid is None:
        valid = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    scores = logits.masked_fill(~valid[None, :, None], -math.inf).flatten(1)
    count = (valid.sum() * logits.shape[-1]).clamp(min=1)
    found = scores.logsumexp(-1) - count.log() + math.log(rows)
    return torch.where(valid.any(), found, torch.zeros_like(found))


def _require_banks(student: Tensor, student_bank: Tensor, teacher_bank: Tensor, candidates: Tensor) -> None:
    shapes = {"student": student, "student_bank": student_bank, "teacher_bank": teacher_bank, "candidates": candidates}
    given = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in shapes.items())
    if student_bank.shape != teacher_bank.shape or student_bank.shape[1:] != student.shape[1:]:
        raise ShapeError(problem("crd takes two banks [N, E] of the embeddings' width", given=given))
    if candidates.ndim != 2 or candidates.shape[0] != student.shape[0] or candidates.shape[1] < 2:
        raise ShapeError(
            problem("crd takes candidates [B, 1 + K]: each row's own number, then at least one other", given=given)
        )
