"""`Needs` says what an objective asks of a model; `Knowledge` holds what was observed.

Both are frozen records. Left of them code knows models, right of them only tensors.

How layers are named (`Layer`):

- Models with one stack number their layers from 0. Hierarchical models (Swin, SegFormer, PVTv2) number their blocks
  through all stages.
- Encoder-decoders name the stack: ``("encoder", 0)``, ``("decoder", 0)``; the cross-attention of a decoder layer is
  ``("cross", 0)``, and has attention, scores, queries, keys and values, but no hidden states.
- What enters layer 0, the output of the embeddings, is layer `mappings.EMBEDDINGS`, or ``("encoder", EMBEDDINGS)``. It
  exists for hidden states alone.
- Features are numbered by stage, from 0. Where all stages have one resolution (ViT), each layer is a stage. So are
  patch embeddings, which a model of one resolution has once.

Logits come in three forms: dense; factored, where a vocabulary is large (`FactoredLogits`: what goes into the head, and
its weights); and sparse, from a cache (`SparseLogits`: the largest, and the mass of the rest).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from torch import Tensor

from potstill.losses.fused import FactoredLogits, SparseLogits

Logits = Tensor | FactoredLogits | SparseLogits

Layer = int | tuple[str, int]
"""A layer's number, or its stack and number in encoder-decoders."""

NO_LAYERS: frozenset[Layer] = frozenset()

#: The kinds of knowledge that are asked layer by layer.
LAYERED = ("hidden", "attention", "scores", "queries", "keys", "values", "features", "patches")
#: Those of them that are asked stage by stage.
STAGED = ("features", "patches")


@dataclass(frozen=True)
class Needs:
    """What to observe, layer by layer. Nothing else is collected, and nothing else costs anything.

    `factored` asks for the logits in their factored form, where the model's head has one; `classifiers` for those of
    single classifiers, where a model has several.
    """

    logits: bool = False
    hidden: frozenset[Layer] = NO_LAYERS
    attention: frozenset[Layer] = NO_LAYERS
    scores: frozenset[Layer] = NO_LAYERS
    queries: frozenset[Layer] = NO_LAYERS
    keys: frozenset[Layer] = NO_LAYERS
    values: frozenset[Layer] = NO_LAYERS
    features: frozenset[int] = frozenset()
    patches: frozenset[int] = frozenset()
    factored: bool = False
    classifiers: frozenset[str] = frozenset()

    def __or__(self, other: "Needs") -> "Needs":
        """The union of two needs."""
        return Needs(**{f.name: getattr(self, f.name) | getattr(other, f.name) for f in fields(self)})

    @property
    def relations(self) -> frozenset[Layer]:
        """The layers of which queries, keys or values are asked."""
        return self.queries | self.keys | self.values

    @property
    def maps(self) -> frozenset[Layer]:
        """The layers of which attention probabilities or scores are asked: what only eager attention forms."""
        return self.attention | self.scores


@dataclass(frozen=True)
class Knowledge:
    """What was observed in one forward pass.

    Shapes:
        logits: [B,V] (one answer a row), [B,S,V] (one a token) or [B,V,H,W] (one a pixel), in one of three forms.
        hidden[layer]: [B,S,D], as the layer returned it, before any final norm.
        attention[layer]: [B,H,S,S], probabilities before dropout; queries come first, so cross-attention gives
            [B,H,S_decoder,S_encoder], and spatial reduction (SegFormer, PVTv2) fewer keys than queries.
        scores[layer]: as attention; what it takes the softmax of, scaled as the family scales (T5 doesn't), position
            bias and mask included (a masked key holds about the lowest number of the dtype).
        queries, keys, values[layer]: [B,H,S,D/H] after rotary embedding and norms, grouped heads still grouped.
        features[stage]: [B,C,H,W], rows of pixels from top to bottom.
        patches[stage]: [B,N,C], what enters the first block of a stage, row by row of the image, without the tokens
            that stand before them.
        mask: [B,S], True at tokens that are not padding; the encoder's in encoder-decoders, None for images.
        decoder_mask: [B,S_decoder], True at positions of the decoder that count; None in models with one stack.
        classifiers[name]: [B,V], the logits of one of several classifiers, whose mean `logits` are (DeiT).

    Swin attends within windows: its attention, scores, queries, keys and values have B times the number of windows
    where others have B, row by row of the image, and S is what one window holds.
    """

    logits: Logits | None = None
    hidden: Mapping[Layer, Tensor] = field(default_factory=dict)
    attention: Mapping[Layer, Tensor] = field(default_factory=dict)
    scores: Mapping[Layer, Tensor] = field(default_factory=dict)
    queries: Mapping[Layer, Tensor] = field(default_factory=dict)
    keys: Mapping[Layer, Tensor] = field(default_factory=dict)
    values: Mapping[Layer, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    features: Mapping[int, Tensor] = field(default_factory=dict)
    decoder_mask: Tensor | None = None
    patches: Mapping[int, Tensor] = field(default_factory=dict)
    classifiers: Mapping[str, Tensor] = field(default_factory=dict)

    def logits_of(self, classifier: str | None) -> Logits | None:
        """The logits of one classifier, or those of the whole model for None."""
        return self.logits if classifier is None else self.classifiers[classifier]

    def with_logits(self, logits: Tensor) -> "Knowledge":
        """The same record with other logits."""
        return replace(self, logits=logits)

    def with_dense_logits(self) -> "Knowledge":
        """The same record with factored logits multiplied out; sparse ones can't be, and stay."""
        return replace(self, logits=self.logits.dense()) if isinstance(self.logits, FactoredLogits) else self

    def shared_logits(self, vocabulary: int) -> "Knowledge":
        """The same record with logits of the first `vocabulary` tokens alone, whatever their form.

        Models of one family differ in the rows by which their vocabularies are padded. No token of a text has those
        numbers, and filled up with zeros they would hold a share of the mass.
        """
        logits = self.logits
        if isinstance(logits, Tensor):
            return replace(self, logits=logits[..., :vocabulary])
        if isinstance(logits, FactoredLogits) and len(logits.weight) > vocabulary:
            bias = None if logits.bias is None else logits.bias[:vocabulary]
            return replace(self, logits=replace(logits, weight=logits.weight[:vocabulary], bias=bias))
        return self
