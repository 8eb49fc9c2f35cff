"""Which parameter of a model has which axis: a table of data, read by the width cut.

A row names a module, below a layer or outside the layers, and the axes of its weight, output first; its bias has the
weight's first axis. A module that no row names is refused by the cut, so that nothing is ever carried over by guess.
A norm is a row with `HIDDEN` alone: what it gives out is the residual stream, where channels are weighed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from transformers import PreTrainedModel

from potstill.checks import problem
from potstill.errors import ModelError

HIDDEN = "hidden"  # channels of the residual stream
INNER = "intermediate"  # neurons of a feed-forward block
HEADS = "heads"  # query heads, head_dim entries each
GROUPS = "groups"  # key and value heads, head_dim entries each
HEAD = "head"  # query heads, one entry each
WHOLE = "whole"  # never cut: words, positions, classes, the entries of one head

Axes = tuple[str, ...]


@dataclass(frozen=True)
class Widths:
    """One family.

    Args:
        layer: module below a layer -> axes of its weight.
        outside: module outside the layers, below the base model or beside it -> axes of its weight; or a parameter that
            is no module's weight.
        inner: the module of a layer that reads the feed-forward neurons after the nonlinearity.
        output: the module of a layer that reads all heads, side by side.
        fields: axis -> the field of the config with its size.
        own_head_size: whether the config has a size of one head; else it is hidden / heads.
        shared_heads: whether a parameter is shared by the heads of all layers, which then keep the same ones.
    """

    layer: Mapping[str, Axes]
    outside: Mapping[str, Axes]
    inner: str
    output: str
    fields: Mapping[str, str]
    own_head_size: bool = False
    shared_heads: bool = False

    def axes(self, parameter: str, *, in_layer: bool) -> Axes | None:
        """The axes of a parameter, by its name without the path to its layer or base model; None for an unknown one."""
        table = self.layer if in_layer else self.outside
        if parameter in table:  # one that is no weight of a module, as the tokens of a ViT
            return table[parameter]
        module, _, kind = parameter.rpartition(".")
        found = table.get(module)
        return found if found is None or kind == "weight" else found[:1]


NORM: Axes = (HIDDEN,)
TABLE: Axes = (WHOLE, HIDDEN)
SQUARE: Axes = (HIDDEN, HIDDEN)
FIELDS = MappingProxyType({HIDDEN: "hidden_size", INNER: "intermediate_size", HEADS: "num_attention_heads"})

_FEED_FORWARD: dict[str, Axes] = {
    "intermediate.dense": (INNER, HIDDEN),
    "output.dense": (HIDDEN, INNER),
    "output.LayerNorm": NORM,
}
_BERT_LAYER: dict[str, Axes] = {
    **{f"attention.self.{name}": (HEADS, HIDDEN) for name in ("query", "key", "value")},
    "attention.output.dense": (HIDDEN, HEADS),
    "attention.output.LayerNorm": NORM,
    **_FEED_FORWARD,
}
_EMBEDDINGS: dict[str, Axes] = {
    "embeddings.word_embeddings": TABLE,
    "embeddings.position_embeddings": TABLE,
    "embeddings.token_type_embeddings": TABLE,
    "embeddings.LayerNorm": NORM,
}
_POOLED: dict[str, Axes] = {"pooler.dense": SQUARE, "classifier": TABLE}
_DENSE_HEAD: dict[str, Axes] = {"pooler.dense": SQUARE, "classifier.dense": SQUARE, "classifier.out_proj": TABLE}
_PROJECTED: dict[str, Axes] = {  # ELECTRA's embeddings, where they have a width of their own
    **{name: tuple(WHOLE for _ in axes) for name, axes in _EMBEDDINGS.items()},
    "embeddings_project": (HIDDEN, WHOLE),
}

_BERT = Widths(_BERT_LAYER, {**_EMBEDDINGS, **_POOLED}, "output.dense", "attention.output.dense", FIELDS)
_ROBERTA = Widths(_BERT_LAYER, {**_EMBEDDINGS, **_DENSE_HEAD}, "output.dense", "attention.output.dense", FIELDS)
_ELECTRA = Widths(
    _BERT_LAYER, {**_EMBEDDINGS, **_PROJECTED, **_DENSE_HEAD}, "output.dense", "attention.output.dense", FIELDS
)
_DISTILBERT = Widths(
    {
        **{f"attention.{name}_lin": (HEADS, HIDDEN) for name in "qkv"},
        "attention.out_lin": (HIDDEN, HEADS),
        "sa_layer_norm": NORM,
        "ffn.lin1": (INNER, HIDDEN),
        "ffn.lin2": (HIDDEN, INNER),
        "output_layer_norm": NORM,
    },
    {**_EMBEDDINGS, "pre_classifier": SQUARE, "classifier": TABLE},
    "ffn.lin2",
    "attention.out_lin",
    {HIDDEN: "dim", INNER: "hidden_dim", HEADS: "n_heads"},
)
_MPNET = Widths(
    {
        **{f"attention.attn.{name}": (HEADS, HIDDEN) for name in "qkv"},
        "attention.attn.o": (HIDDEN, HEADS),
        "attention.LayerNorm": NORM,
        **_FEED_FORWARD,
    },
    {**_EMBEDDINGS, "encoder.relative_attention_bias": (WHOLE, HEAD), **_DENSE_HEAD},
    "output.dense",
    "attention.attn.o",
    FIELDS,
    shared_heads=True,
)
_LLAMA = Widths(
    {
        "self_attn.q_proj": (HEADS, HIDDEN),
        "self_attn.k_proj": (GROUPS, HIDDEN),
        "self_attn.v_proj": (GROUPS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS),
        "self_attn.q_norm": (WHOLE,),
        "self_attn.k_norm": (WHOLE,),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
        "input_layernorm": NORM,
        "post_attention_layernorm": NORM,
    },
    {"embed_tokens": TABLE, "norm": NORM, "score": TABLE, "lm_head": TABLE},
    "mlp.down_proj",
    "self_attn.o_proj",
    {**FIELDS, GROUPS: "num_key_value_heads"},
    own_head_size=True,
)

_VIT = Widths(
    {
        **{f"attention.{name}_proj": (HEADS, HIDDEN) for name in "qkv"},
        "attention.o_proj": (HIDDEN, HEADS),
        "mlp.fc1": (INNER, HIDDEN),
        "mlp.fc2": (HIDDEN, INNER),
        "layernorm_before": NORM,
        "layernorm_after": NORM,
    },
    {
        "embeddings.cls_token": (WHOLE, WHOLE, HIDDEN),
        "embeddings.distillation_token": (WHOLE, WHOLE, HIDDEN),
        "embeddings.position_embeddings": (WHOLE, WHOLE, HIDDEN),
        "embeddings.patch_embeddings.projection": (HIDDEN, WHOLE, WHOLE, WHOLE),
        "layernorm": NORM,
        **dict.fromkeys(("classifier", "cls_classifier", "distillation_classifier"), TABLE),
    },
    "mlp.fc2",
    "attention.o_proj",
    FIELDS,
)

WIDTHS: dict[str, Widths] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": _ELECTRA,
    "distilbert": _DISTILBERT,
    "mpnet": _MPNET,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "vit": _VIT,
    "deit": _VIT,
}


def widths_of(model: PreTrainedModel) -> Widths:
    """The row of a model's family. Raises `ModelError` for a family that the table doesn't hold."""
    family = model.config.model_type
    if family not in WIDTHS:
        raise ModelError(
            problem(
                "The width of this model family can't be cut",
                given=f"'{family}'",
                follows="Which of its parameters have which axis is not known",
                do=f"Leave out width, or use one of {', '.join(sorted(WIDTHS))}",
            )
        )
    if family == "electra" and model.config.embedding_size == model.config.hidden_size:
        return _ROBERTA  # no projection stands between the embeddings and the layers
    return WIDTHS[family]
