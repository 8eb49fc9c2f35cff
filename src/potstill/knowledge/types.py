"""`Needs` says what an objective asks of a model; `Knowledge` holds what was observed.

Both are frozen records. Left of them code knows models, right of them only tensors. Layers are numbered from 0; the
output of the embeddings (what enters layer 0) is layer `mappings.EMBEDDINGS`, and exists for hidden states alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from torch import Tensor

NO_LAYERS: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Needs:
    """What to observe, layer by layer. Nothing else is collected, and nothing else costs anything."""

    logits: bool = False
    hidden: frozenset[int] = NO_LAYERS
    attention: frozenset[int] = NO_LAYERS
    scores: frozenset[int] = NO_LAYERS
    queries: frozenset[int] = NO_LAYERS
    keys: frozenset[int] = NO_LAYERS
    values: frozenset[int] = NO_LAYERS

    def __or__(self, other: "Needs") -> "Needs":
        """The union of two needs."""
        return Needs(**{f.name: getattr(self, f.name) | getattr(other, f.name) for f in fields(self)})

    @property
    def relations(self) -> frozenset[int]:
        """The layers of which queries, keys or values are asked."""
        return self.queries | self.keys | self.values

    @property
    def maps(self) -> frozenset[int]:
        """The layers of which attention probabilities or scores are asked: what only eager attention forms."""
        return self.attention | self.scores


@dataclass(frozen=True)
class Knowledge:
    """What was observed in one forward pass.

    Shapes: logits [B,V] (one answer a row) or [B,S,V]; hidden[layer] [B,S,D]; attention[layer] [B,H,S,S], probabilities
    before dropout; scores[layer] [B,H,S,S], what attention takes the softmax of, scaled as the family scales, position
    bias and mask included (a masked key holds about the lowest number of the dtype); queries, keys, values [B,H,S,D/H]
    after rotary embedding and norms, grouped heads still grouped; mask [B,S], True at tokens that are not padding.
    """

    logits: Tensor | None = None
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    attention: Mapping[int, Tensor] = field(default_factory=dict)
    scores: Mapping[int, Tensor] = field(default_factory=dict)
    queries: Mapping[int, Tensor] = field(default_factory=dict)
    keys: Mapping[int, Tensor] = field(default_factory=dict)
    values: Mapping[int, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
