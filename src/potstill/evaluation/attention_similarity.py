"""How alike a student's attention maps are to its teacher's, layer by layer and head by head.

Decided here:

* A map's row is what one token attends to. Rows of padding are left out, and so are columns of padding within a row.
* Heads are paired by number where both models have equally many, which a cut from the teacher keeps meaningful; where
  the counts differ, the mean over heads is compared with the mean over heads, as one head.
* Three measures, since each is blind to something: the mean squared error falls with the length of the text, whatever
  the maps are; the cosine is led by the one token that most is attended to; the Jensen-Shannon divergence is bounded by
  log 2 = 0.693 nats, weighs all of the distribution, and is the one to read first.
* Nothing is trained by it: for losses on maps see `losses.attention`.
* Source of the divergence: Lin, "Divergence Measures Based on the Shannon Entropy", 1991.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from potstill.checks import problem
from potstill.errors import ShapeError
from potstill.knowledge import Needs, observe

MEASURES = ("mse", "cosine", "jensen_shannon")
LARGEST = math.log(2)  # of the Jensen-Shannon divergence, in nats
Pairs = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Similarity:
    """The three measures of each row of each map, [B,H,S]: 0 in rows of padding."""

    mse: Tensor
    cosine: Tensor
    jensen_shannon: Tensor


def attention_similarity(
    student: Float[Tensor, "B H S S"], teacher: Float[Tensor, "B K S S"], *, mask: Bool[Tensor, "B S"]
) -> Similarity:
    """Attention maps beside attention maps, row by row.

    For a row's distributions p (teacher) and q (student) over the n unpadded tokens, and m = (p + q) / 2:

        mse = sum (p - q)^2 / n,  cosine = p.q / (|p| |q|),
        jensen_shannon = (sum p log(p / m) + sum q log(q / m)) / 2, in nats: 0 when equal, log 2 when apart

    Args:
        student: probabilities, each row summing to 1 over the unpadded tokens.
        teacher: the same, of the same rows and tokens.
        mask: True at tokens that are no padding.

    Returns:
        [B,H,S] each; [B,1,S] where the head counts H and K differ.

    Raises:
        ShapeError: maps of different rows or lengths, or a mask that doesn't fit.
    """
    if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
        raise ShapeError(
            problem(
                "Attention maps are compared on the same rows and tokens",
                given=f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}",
            )
        )
    if mask.shape != student.shape[::3]:
        given = f"mask {tuple(mask.shape)}, maps {tuple(student.shape)}"
        raise ShapeError(problem("The mask is one of the maps' tokens, [B,S]", given=given))
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    keys = mask[:, None, None, :]
    p, q = (maps.float().masked_fill(~keys, 0.0) for maps in (teacher, student))
    m = (p + q) / 2
    divergence = (torch.xlogy(p, p / m.where(m > 0, 1.0)) + torch.xlogy(q, q / m.where(m > 0, 1.0))).sum(-1) / 2
    count = mask.sum(-1).clamp(min=1)[:, None, None]
    rows = mask[:, None, :].expand_as(divergence)
    return Similarity(
        mse=((p - q).square().sum(-1) / count).where(rows, 0.0),
        cosine=torch.nn.functional.cosine_similarity(p, q, dim=-1).where(rows, 0.0),
        jensen_shannon=divergence.clamp(min=0.0).where(rows, 0.0),
    )


def compare_attention(
    student: PreTrainedModel, teacher: PreTrainedModel, batches: Iterable[Mapping[str, Any]], pairs: Pairs
) -> list[dict[str, Any]]:
    """The measures of every pair of layers over some batches, as plain data.

    Args:
        student: loaded with eager attention, in eval mode; see `knowledge.taps`.
        teacher: the same.
        batches: encoded rows, texts with an ``attention_mask``; of images every token counts.
        pairs: (student layer, teacher layer).

    Returns:
        One entry a pair: ``{"student": int, "teacher": int, "mse": [H], "cosine": [H], "jensen_shannon": [H]}``, each
        number a mean over all unpadded tokens, and ``mean``, the mean over heads of the divergence.

    Raises:
        ModelError: a model whose attention maps can't be observed.
    """
    ours, theirs = (Needs(attention=frozenset(pair[side] for pair in pairs)) for side in (0, 1))
    totals: dict[tuple[int, int], dict[str, Tensor]] = {}
    tokens = 0
    with torch.inference_mode():
        for batch in batches:
            on_device = {name: value.to(student.device) for name, value in batch.items()}
            seen, taught = observe(student, on_device, ours), observe(teacher, on_device, theirs)
            first = seen.attention[pairs[0][0]]
            mask = first.new_ones(first.shape[0], first.shape[-1], dtype=torch.bool) if seen.mask is None else seen.mask
            tokens += int(mask.sum())
            for pair in pairs:
                found = attention_similarity(seen.attention[pair[0]], taught.attention[pair[1]], mask=mask)
                sums = totals.setdefault(pair, {})
                for name in MEASURES:
                    added = getattr(found, name).sum((0, 2), dtype=torch.float64).cpu()
                    sums[name] = sums[name] + added if name in sums else added
    return [
        layer_entry(pair, {name: (sums[name] / tokens).tolist() for name in MEASURES}) for pair, sums in totals.items()
    ]


def layer_entry(pair: tuple[int, int], found: Mapping[str, list[float]]) -> dict[str, Any]:
    """One pair of layers, with the mean over heads of the divergence."""
    mean = sum(found["jensen_shannon"]) / len(found["jensen_shannon"])
    return {"student": pair[0], "teacher": pair[1], "mean": mean, **found}


def means(layers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each measure over layers and heads."""
    return {name: sum(sum(one[name]) / len(one[name]) for one in layers) / len(layers) for name in MEASURES}
