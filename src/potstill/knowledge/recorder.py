"""`Recorder`: what one forward pass has given so far, filled by the taps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from potstill.knowledge.types import Layer, Needs


@dataclass
class Recorder:
    """Kind -> layer -> tensor. The first call of a layer counts: the backward pass of a checkpointed model calls it
    again, and DeBERTa-v2 projects its positions with the modules that projected its tokens before."""

    needs: Needs
    layer_of: dict[int, Layer]  # id of a module -> the layer that it computes the attention of
    found: dict[str, dict[Any, Tensor]] = field(default_factory=dict)
    through: Callable[..., Any] = sdpa_attention_forward  # the attention that the model runs itself

    def keep(self, kind: str, layer: Layer | None, value: Tensor) -> None:
        """Keep a tensor if it was asked for."""
        if layer is not None and layer in getattr(self.needs, kind):
            self.found.setdefault(kind, {}).setdefault(layer, value)
