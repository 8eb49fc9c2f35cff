"""Where each model family keeps its layers and its attention: a table of data, read by taps and by student building.

Most families of transformers call a registered attention function, so a row is the path to the layers and nothing more.
MPNet and DeBERTa-v2 compute their attention themselves: their rows name the modules to hook. What enters layer 0 is the
embedding output in every family, so no row has to name the embeddings. A new family is one row here and one id in the
table of tests/knowledge/test_taps.py.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from potstill.checks import problem
from potstill.errors import ModelError


@dataclass(frozen=True)
class AttentionModules:
    """Paths inside a layer, for families that don't call a registered attention function."""

    query: str
    key: str
    value: str
    dropout: str  # the module that gets the attention probabilities as its input


@dataclass(frozen=True)
class Architecture:
    """One family: the path of its `ModuleList` of layers below the base model, and its attention."""

    layers: str
    modules: AttentionModules | None = None  # None: the family calls the registered attention function


ENCODER = Architecture("encoder.layer")
DECODER = Architecture("layers")

ARCHITECTURES: dict[str, Architecture] = {
    "bert": ENCODER,
    "roberta": ENCODER,
    "xlm-roberta": ENCODER,
    "electra": ENCODER,
    "camembert": ENCODER,
    "distilbert": Architecture("transformer.layer"),
    "mpnet": Architecture(
        "encoder.layer",
        AttentionModules("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.dropout"),
    ),
    "deberta-v2": Architecture(
        "encoder.layer",
        AttentionModules(
            "attention.self.query_proj",
            "attention.self.key_proj",
            "attention.self.value_proj",
            "attention.self.dropout",
        ),
    ),
    "modernbert": DECODER,
    "gpt2": Architecture("h"),
    "llama": DECODER,
    "mistral": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER,
}


@dataclass(frozen=True)
class ModelShape:
    """The sizes that decide what fits what."""

    family: str
    layers: int
    width: int
    heads: int
    vocabulary: int


def architecture(model: PreTrainedModel) -> Architecture:
    """The row of a model's family. Raises `ModelError` for a family that the table doesn't hold."""
    family = model.config.model_type
    if family not in ARCHITECTURES:
        raise ModelError(
            problem(
                "The layers of this model family are not known",
                given=f"'{family}'",
                follows="Logits and labels can be distilled, but no layers or attention, and no student can be cut",
                do=f"Use one of {', '.join(sorted(ARCHITECTURES))}, or add a row to potstill.knowledge.architectures",
            )
        )
    return ARCHITECTURES[family]


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The list of layers of a model, bottom first."""
    layers = model.base_model.get_submodule(architecture(model).layers)
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(f"'{architecture(model).layers}' of {type(model).__name__} is no list of layers.")
    return layers


def layer_prefix(model: PreTrainedModel) -> str:
    """The prefix of the layers' names in the state dict, such as ``bert.encoder.layer.``."""
    path = architecture(model).layers
    return f"{path}." if model.base_model is model else f"{model.base_model_prefix}.{path}."


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """`model` itself with its parameters in `dtype`. Buffers stay as they are: rotary frequencies rounded to bfloat16
    would turn positions by more the further they are, which ``model.to(dtype)`` does in silence."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def longest_input(model: PreTrainedModel) -> int | None:
    """The most tokens that a model has positions for; None when it has no table of them and names no limit.

    A table with a padding index (RoBERTa, MPNet) begins to count behind it, so it holds that many fewer.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    limit = getattr(model.config, "max_position_embeddings", None)
    return None if limit is None else int(limit)


def describe(model: PreTrainedModel) -> ModelShape:
    """The sizes of a model, from its config; unknown families are described too."""
    config = model.config.get_text_config()
    return ModelShape(
        family=model.config.model_type,
        layers=int(config.num_hidden_layers),
        width=int(config.hidden_size),
        heads=int(config.num_attention_heads),
        vocabulary=int(config.vocab_size),
    )
