"""Dropout that costs little on a CPU.

PyTorch draws one double for each element there, from a serial generator. Here a 64-bit draw decides four elements, 16
bits each, so that the probability is met to 1/65,536; the draws come from PyTorch's own generator, so that seeds and
resuming hold. That saves a sixteenth of a small encoder's forward and backward passes (`benchmarks/parts.py`). The
arithmetic is otherwise the same: x * keep / (1 - p).

In attention, PyTorch's fused CPU kernel knows no dropout, and falls back to plain products. `cheap_dropout` writes the
same products out, so that the draws are cheap there too. On any other device nothing is changed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

LEVELS = 2**16
ATTENTION = "potstill_cpu_dropout"


def dropout(values: Tensor, p: float) -> Tensor:
    """`values` with each element set to 0 with probability `p`, and the others divided by 1 - p; any shape.

    Prefer `torch.nn.functional.dropout` on any device but a CPU.
    """
    threshold = round(p * LEVELS) - LEVELS // 2
    words = torch.empty((values.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.int16)[: values.numel()].view(values.shape) >= threshold
    return values * kept.to(values.dtype).mul_(1.0 / (1.0 - p))


class CheapDropout(nn.Dropout):
    """`nn.Dropout` by `dropout`; what `cheap_dropout` makes of a plain one for a while."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop while training, else pass on."""
        if not self.training or self.p == 0 or self.p >= 1 or input.device.type != "cpu":
            return super().forward(input)
        return dropout(input, self.p)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention with cheap dropout where sdpa would fall back to plain products, and sdpa itself elsewhere."""
    causal_by_flag = attention_mask is None and getattr(module, "is_causal", False)
    plain = dropout > 0 and query.device.type == "cpu" and query.shape[1] == key.shape[1] and not causal_by_flag
    if not plain:
        found = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return found
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        allowed = attention_mask.dtype == torch.bool
        scores = (
            scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min) if allowed else scores + attention_mask
        )
    kept = _drop(torch.softmax(scores, dim=-1).to(value.dtype), dropout)
    return (kept @ value).transpose(1, 2).contiguous(), None


_drop = dropout  # `attention` has an argument of the same name, which transformers gives it
AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


@contextmanager
def cheap_dropout(model: PreTrainedModel) -> Iterator[None]:
    """Let a model on a CPU drop cheaply inside the context; on other devices nothing is changed."""
    if model.device.type != "cpu":
        yield
        return
    plain = [module for module in model.modules() if type(module) is nn.Dropout]
    implementation = model.config._attn_implementation
    for module in plain:
        module.__class__ = CheapDropout
    if implementation == "sdpa":
        model.config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        model.config._attn_implementation = implementation
        for module in plain:
            module.__class__ = nn.Dropout
