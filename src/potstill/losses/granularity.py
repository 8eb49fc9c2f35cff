"""Losses that compare the structure of a sequence, between tokens and between spans of them (MGSKD): [B, S, D].

Decisions:
- Pairs are compared by scaled products of their vectors, in heads, as the published code has it and attention does.
- Triples are too many for all, S^3: the angle is compared at the `vertices` tokens that receive most weight, between
  the `neighbours` that each gives most weight to, by the *teacher's* softmax over its own scaled products. Both numbers
  are 20 as published.
- Spans are runs of a fixed number of consecutive tokens. The publication takes phrases found by a chunker, which no
  loss can know; a span's value is given to each of its tokens.
- A sequence's triples are averaged over that sequence, and given to each of its tokens: published code averages over
  the batch, which weighs by length and depends on the micro-batch.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from potstill.checks import problem
from potstill.errors import ArgumentError, ShapeError
from potstill.losses._inputs import full_precision, zeroed
from potstill.losses._vectors import cosines, counts, vectors_and_mask
from potstill.reduce import Mask

_TOKENS = "[B, S, D]"


def mgskd_tokens(
    student: Float[Tensor, "B S D"],
    teacher: Float[Tensor, "B_t S_t D_t"],
    *,
    mask: Mask | None = None,
    heads: int = 1,
    vertices: int = 20,
    neighbours: int = 20,
) -> Float[Tensor, "B S"]:
    """How far the relations between tokens differ from the teacher's: products of two, and angles between three.

    mgskd_tokens = mean over heads and tokens k that count of (p_S[q, k] - p_T[q, k])^2, for each token q, plus for each
    sequence the mean over triples of huber(c_S[i, j, k] - c_T[i, j, k]),  p = X X^T / sqrt(D / heads), c = cosine of
    the angle at token i between tokens j and k, huber(x) = x^2 / 2 where |x| < 1, else |x| - 1/2

    Args:
        student: hidden states, [B, S, D].
        teacher: hidden states, [B, S, D_t]; the width may differ.
        mask: [B, S], true where a token counts.
        heads: how many equal parts both widths are cut into, for the products; 64 in published code for a width of 768.
        vertices: how many tokens of a sequence have their angles compared: those that the teacher gives most weight.
        neighbours: between how many others at each of them.

    Returns:
        One value a token, [B, S].

    Raises:
        ShapeError: different batches or lengths, or a width that `heads` doesn't divide.
        ArgumentError: fewer than 1 of `vertices`, or 2 of `neighbours`, which make no angle.

    References:
        Liu, Tao, Feng, Zhao: Multi-Granularity Structural Knowledge Distillation for Language Model Compression, 2022,
        https://aclanthology.org/2022.acl-long.71

    Prefer it on lower layers, with `mgskd_samples` on upper ones; `relation_mse` for products of attention's own heads.
    """
    _require_counts("mgskd_tokens", vertices=(vertices, 1), neighbours=(neighbours, 2))
    student, teacher, valid = vectors_and_mask(student, teacher, mask, letters=_TOKENS, caller="mgskd_tokens")
    _require_heads(student, teacher, heads, caller="mgskd_tokens")
    with full_precision(student):
        return _structure(student, teacher, valid, heads, vertices, neighbours)


def mgskd_spans(
    student: Float[Tensor, "B S D"],
    teacher: Float[Tensor, "B_t S_t D_t"],
    *,
    mask: Mask | None = None,
    span: int = 3,
    heads: int = 1,
    vertices: int = 20,
    neighbours: int = 20,
) -> Float[Tensor, "B S"]:
    """How far the relations between spans of tokens differ from the teacher's: products of two, angles between three.

    mgskd_spans = mgskd_tokens on the means of each `span` consecutive tokens that count, a span's value at each of its
    tokens

    Args:
        student: hidden states, [B, S, D].
        teacher: hidden states, [B, S, D_t]; the width may differ.
        mask: [B, S], true where a token counts. Spans run over those that do; the last of a sequence may be shorter.
        span: how many tokens make a span.
        heads: how many equal parts both widths are cut into, for the products; 64 in published code for a width of 768.
        vertices: how many spans of a sequence have their angles compared: those that the teacher gives most weight.
        neighbours: between how many others at each of them.

    Returns:
        One value a token, [B, S]: a mean over tokens weighs spans by their length.

    Raises:
        ShapeError: different batches or lengths, or a width that `heads` doesn't divide.
        ArgumentError: fewer than 1 of `span` or `vertices`, or 2 of `neighbours`.

    References:
        Liu, Tao, Feng, Zhao: Multi-Granularity Structural Knowledge Distillation for Language Model Compression, 2022,
        https://aclanthology.org/2022.acl-long.71

    Prefer it beside `mgskd_tokens` on lower layers; with `span` 1 it is that one.
    """
    _require_counts("mgskd_spans", span=(span, 1), vertices=(vertices, 1), neighbours=(neighbours, 2))
    student, teacher, valid = vectors_and_mask(student, teacher, mask, letters=_TOKENS, caller="mgskd_spans")
    _require_heads(student, teacher, heads, caller="mgskd_spans")
    # Which span a token is in: its place among those that count, whichever side the padding is on.
    number = (valid.cumsum(-1) - 1).clamp(min=0) // span
    spans = torch.arange(-(-valid.shape[1] // span), device=number.device)
    members = (number.unsqueeze(1) == spans.unsqueeze(-1)) & valid.unsqueeze(1)  # [B, N, S]
    with full_precision(student):
        shares = members / counts(members)
        means = [shares.to(states.dtype) @ states for states in (student, teacher)]
        values = _structure(means[0], means[1], members.any(-1), heads, vertices, neighbours)
    return zeroed(values.gather(1, number), valid)


def _structure(student: Tensor, teacher: Tensor, valid: Tensor, heads: int, vertices: int, neighbours: int) -> Tensor:
    """Pairs and triples of N vectors, one value a vector, [B, N], from [B, N, D]."""
    ours, theirs = _products(student, heads), _products(teacher, heads)
    # Vectors that don't count are zeros on both sides, and so are their products.
    pairs = (ours - theirs).square().sum(-1).mean(1) / counts(valid)
    with torch.no_grad():
        at, others, counted = _triples(theirs, valid, vertices, neighbours)
    angles = [_angles(vectors, at, others) for vectors in (student, teacher)]
    differences = functional.smooth_l1_loss(angles[0], angles[1], reduction="none").masked_fill(~counted, 0.0)
    triples = differences.sum(dim=(1, 2, 3)) / counted.sum(dim=(1, 2, 3)).clamp(min=1)
    return zeroed(pairs + triples.unsqueeze(-1), valid)


def _products(vectors: Tensor, heads: int) -> Tensor:
    """X X^T / sqrt(D / heads), [B, heads, N, N], from [B, N, D]."""
    batch, positions, width = vectors.shape
    parts = vectors.reshape(batch, positions, heads, width // heads).transpose(1, 2)
    return (parts * math.sqrt(heads / width)) @ parts.transpose(-1, -2)


def _triples(products: Tensor, valid: Tensor, vertices: int, neighbours: int) -> tuple[Tensor, Tensor, Tensor]:
    """Vertices [B, I], the neighbours of each [B, I, K], and which triples count [B, I, K, K]."""
    pairs = valid.unsqueeze(1) & valid.unsqueeze(2)
    scores = products.masked_fill(~valid[:, None, None, :], torch.finfo(products.dtype).min)
    weights = scores.softmax(-1).sum(1).masked_fill(~pairs, 0.0)  # [B, query, key]
    received = weights.sum(1).masked_fill(~valid, -1.0)
    at = received.topk(min(vertices, valid.shape[1])).indices
    # No vector is its own neighbour: -1 comes after every weight, and is known again by being below 0.
    itself = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    given = _rows_at(weights.masked_fill(~pairs | itself, -1.0), at)
    most, others = given.topk(min(neighbours, valid.shape[1]))
    counted = (most >= 0).unsqueeze(-1) & (most >= 0).unsqueeze(-2)
    twice = torch.eye(others.shape[-1], dtype=torch.bool, device=valid.device)
    return at, others, counted & ~twice


def _angles(vectors: Tensor, at: Tensor, others: Tensor) -> Tensor:
    """Cosines at the vertices [B, I] between the neighbours [B, I, K] of each: [B, I, K, K]."""
    ends = _rows_at(vectors, others.flatten(1)).reshape(*others.shape, vectors.shape[-1])
    return cosines(_rows_at(vectors, at), ends)


def _rows_at(rows: Tensor, index: Tensor) -> Tensor:
    """[B, I, D], the rows [B, N, D] at the index [B, I]."""
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def _require_counts(caller: str, **given: tuple[int, int]) -> None:
    for name, (value, least) in given.items():
        if value < least:
            raise ArgumentError(problem(f"{caller} needs `{name}` of at least {least}", given=f"{name}={value}"))


def _require_heads(student: Tensor, teacher: Tensor, heads: int, *, caller: str) -> None:
    if heads < 1 or student.shape[-1] % heads or teacher.shape[-1] % heads:
        raise ShapeError(
            problem(
                f"{caller} cuts both widths into `heads` equal parts",
                given=f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}, heads={heads}",
                do="Take a number that divides both widths",
            )
        )
