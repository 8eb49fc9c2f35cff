"""Where each model family keeps its layers, its attention and its feature maps: a table of data, read by taps and by
student building.

Most families of transformers call a registered attention function, so a row is the path to the layers and nothing more.
MPNet, DeBERTa-v2 and PVTv2 compute their attention themselves: their rows name the modules to hook. What enters layer 0
is the embedding output in every family, so no row has to name the embeddings. A new family is one row here and one id
in the table of tests/tiny.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from potstill.checks import problem, unknown_name
from potstill.errors import ModelError
from potstill.knowledge.timm_stages import timm_stages
from potstill.knowledge.types import Layer
from potstill.mappings import EMBEDDINGS

ENCODER, DECODER, CROSS = "encoder", "decoder", "cross"
WITH_TEACHER = "ForImageClassificationWithTeacher"  # the classes with a token that learns from a teacher: DeiT, LeViT
#: Their classifiers, and where the logits of each come out.
CLASSIFIERS = {"class": "cls_logits", "distillation": "distillation_logits"}


@dataclass(frozen=True)
class AttentionModules:
    """Paths inside a layer, for families that don't call a registered attention function."""

    query: str
    key: str
    value: str
    dropout: str  # the module that gets the attention probabilities as its input


@dataclass(frozen=True)
class Features:
    """Where a family's feature maps come from: the members of a list, one a stage. Paths are below the base model."""

    stages: str
    ends: tuple[int, ...] | None = None  # the members that end a stage; None: all
    blocks: str | None = None  # the list inside a member whose last entry gives the map; None: the member itself
    grid: str | None = None  # the convolution whose output has the grid of the tokens, {} is the stage; None: no tokens
    prefix: int = 0  # tokens before those of the patches
    given: bool = False  # the maps are what this one module is given, the head of a model with a backbone
    listed: bool = False  # the model lists its stages itself, as those of timm do


@dataclass(frozen=True)
class Architecture:
    """One family: the path of its `ModuleList` of layers below the base model, and its attention."""

    layers: str | Mapping[str, str] | None  # stack -> path in encoder-decoders; None: no layers of tokens
    modules: AttentionModules | None = None  # None: the family calls the registered attention function
    cross: str | None = None  # the cross-attention inside a layer of the decoder
    blocks: str | None = None  # the layers inside each entry of the list, where that is a list of stages
    features: Features | None = None
    backbone: str | None = None  # a model of another family inside this one, which has the layers


IN_ENCODER = Architecture("encoder.layer")
PLAIN = Architecture("layers")
PATCHES = "embeddings.patch_embeddings.projection"

ARCHITECTURES: dict[str, Architecture] = {
    "bert": IN_ENCODER,
    "roberta": IN_ENCODER,
    "xlm-roberta": IN_ENCODER,
    "electra": IN_ENCODER,
    "camembert": IN_ENCODER,
    "mobilebert": IN_ENCODER,
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
    "modernbert": PLAIN,
    "gpt2": Architecture("h"),
    "llama": PLAIN,
    "mistral": PLAIN,
    "qwen2": PLAIN,
    "qwen3": PLAIN,
    "t5": Architecture({ENCODER: "encoder.block", DECODER: "decoder.block"}, cross="layer.1"),
    "bart": Architecture({ENCODER: "encoder.layers", DECODER: "decoder.layers"}, cross="encoder_attn"),
    "marian": Architecture({ENCODER: "encoder.layers", DECODER: "decoder.layers"}, cross="encoder_attn"),
    "vit": Architecture("layers", features=Features("layers", grid=PATCHES, prefix=1)),
    "deit": Architecture("layers", features=Features("layers", grid=PATCHES, prefix=2)),
    "beit": Architecture("layers", features=Features("layers", grid=PATCHES, prefix=1)),
    "dinov2": Architecture("encoder.layer", features=Features("encoder.layer", grid=PATCHES, prefix=1)),
    "swin": Architecture(
        "encoder.layers", blocks="blocks", features=Features("encoder.layers", blocks="blocks", grid=PATCHES)
    ),
    "segformer": Architecture(
        "stages", blocks="blocks", features=Features("stages", grid="stages.{}.patch_embeddings.proj")
    ),
    "pvt_v2": Architecture(
        "encoder.layers",
        AttentionModules("attention.query", "attention.key", "attention.value", "attention.attn_drop"),
        blocks="blocks",
        features=Features("encoder.layers", grid="encoder.layers.{}.patch_embedding.proj"),
    ),
    "mobilenet_v2": Architecture(None, features=Features("layer", ends=(1, 4, 11, 15))),
    "resnet": Architecture(None, features=Features("encoder.stages")),
    "convnext": Architecture(None, features=Features("encoder.stages")),
    "timm_wrapper": Architecture(None, features=Features("feature_info", listed=True)),
    "upernet": Architecture(None, features=Features("decode_head", given=True), backbone="backbone"),
}


@dataclass(frozen=True)
class ModelShape:
    """The sizes that decide what fits what.

    `layers` counts all layers, of all stacks and stages; `width` and `heads` are those of the last. Families whose
    layers differ list them layer by layer, encoder first; `width_at` and `heads_at` look up.
    """

    family: str
    layers: int
    width: int
    heads: int  # 0 where there is no attention
    vocabulary: int | None  # None where no tokens of text come in
    stacks: Mapping[str, int] = field(default_factory=dict)  # stack -> its layers, in encoder-decoders
    layer_widths: tuple[int, ...] = ()  # empty: all as `width`
    layer_heads: tuple[int, ...] = ()  # empty: all as `heads`
    channels: tuple[int, ...] = ()  # of the feature maps, stage by stage; empty: there are none
    classifiers: tuple[str, ...] = ()  # by name, where the logits are the mean of several; empty: there is one
    patches: tuple[int, ...] = ()  # widths of the patch embeddings, stage by stage; empty: there are none

    def width_at(self, layer: Layer) -> int:
        """The width of a layer's hidden states; of what enters layer 0 for `EMBEDDINGS`."""
        return self.layer_widths[self._place(layer)] if self.layer_widths else self._checked(layer, self.width)

    def heads_at(self, layer: Layer) -> int:
        """The number of query heads of a layer's attention; ``("cross", i)`` is the decoder's."""
        return self.layer_heads[self._place(layer)] if self.layer_heads else self._checked(layer, self.heads)

    def _checked(self, layer: Layer, value: int) -> int:
        self._place(layer)
        return value

    def _place(self, layer: Layer) -> int:
        """The number of a layer through all stacks."""
        stack, number = layer if isinstance(layer, tuple) else ("", layer)
        own = DECODER if stack == CROSS else stack
        sizes = self.stacks or {"": self.layers}
        if own not in sizes or not EMBEDDINGS <= number < sizes[own]:
            raise ModelError(no_such_layer(self.family, layer, self.stacks, self.layers))
        return max(number, 0) + (sizes.get(ENCODER, 0) if own == DECODER else 0)


def no_such_layer(name: str, layer: Layer, stacks: Mapping[str, int], layers: int) -> str:
    """The message that says how the layers of a model are named."""
    has = " and ".join(f"{size} in the stack '{stack}'" for stack, size in stacks.items()) or str(layers)
    if not stacks:
        way = "Number layers from 0" if isinstance(layer, int) else "Give plain numbers: it has one stack"
    else:
        cross = ", and ('cross', 0) for the cross-attention of a decoder layer" if DECODER in stacks else ""
        way = f"Name stack and number: {', '.join(repr((stack, 0)) for stack in stacks)}{cross}"
    return problem(f"{name} has no layer {layer!r}", given=f"{has} layers", do=way)


def no_such_classifier(shape: ModelShape, name: str) -> str:
    """The message that says which classifiers a model has."""
    if shape.classifiers:
        return unknown_name(f"classifier of {shape.family}", name, shape.classifiers)
    return problem(
        "A term names one of several classifiers of the student",
        given=f"classifier: {name}, and {shape.family} with one",
        do="Remove the key, or take a DeiT with a token for its teacher: architectures: [DeiT" + WITH_TEACHER + "]",
    )


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


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model that has the layers: the backbone inside one that is composed (UperNet), else the model itself."""
    row = ARCHITECTURES.get(model.config.model_type)
    if row is None or row.backbone is None:
        return model
    found = model.get_submodule(row.backbone)
    assert isinstance(found, PreTrainedModel)
    return found


def layers_of(model: PreTrainedModel, stack: str | None = None) -> nn.ModuleList:
    """The list of layers of a model, bottom first.

    Args:
        stack: ``encoder`` or ``decoder`` in encoder-decoders; None in models with one stack.

    Raises:
        ModelError: the family is unknown, has no one list of layers (its blocks stand in stages, or are no
            transformer's), or has several and `stack` names none.
    """
    model = encoder_of(model)
    row, name = architecture(model), type(model).__name__
    if row.layers is None or row.blocks is not None:
        given = "its layers stand in stages of different widths" if row.blocks else "it is a convolutional network"
        raise ModelError(problem(f"{name} has no list of layers of one kind", given=given))
    if isinstance(row.layers, str):
        if stack is not None:
            raise ModelError(problem(f"{name} has one stack of layers", given=f"stack '{stack}'", do="Name none"))
        return _list_at(model, row.layers)
    stacks = dict(_stacks(model, row))
    if stack is None or stack not in stacks:
        given = "no stack" if stack is None else f"stack '{stack}'"
        known = " or ".join(f"'{name}'" for name in stacks)
        raise ModelError(problem(f"{name} has its layers in stacks", given=given, do=f"Name {known}"))
    return _list_at(model, stacks[stack])


def layer_modules(model: PreTrainedModel) -> dict[Layer, nn.Module]:
    """The layers of a model by their names, bottom first; empty where there are no layers of tokens."""
    model = encoder_of(model)
    row = architecture(model)
    if row.layers is None:
        return {}
    if not isinstance(row.layers, str):
        return {(stack, i): m for stack, path in _stacks(model, row) for i, m in enumerate(_list_at(model, path))}
    listed: Any = _list_at(model, row.layers)
    if row.blocks is not None:
        listed = [block for stage in listed for block in stage.get_submodule(row.blocks)]
    return dict(enumerate(listed))


def cross_attentions(model: PreTrainedModel) -> dict[Layer, nn.Module]:
    """The cross-attention of each decoder layer, by its name; empty in models without."""
    path = architecture(model).cross
    if path is None:
        return {}
    found = layer_modules(model).items()
    return {(CROSS, k[1]): m.get_submodule(path) for k, m in found if isinstance(k, tuple) and k[0] == DECODER}


def stage_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that give a model's feature maps, stage by stage, or the one that is given all; empty where there are
    none."""
    features = architecture(model).features
    if features is None:
        return []
    if features.listed:
        return [stage.module for stage in timm_stages(model)]
    if features.given:
        return [model.get_submodule(features.stages)]
    members = list(_list_at(model, features.stages))
    if features.ends is not None:
        members = [members[number] for number in features.ends]
    if features.blocks is not None:
        members = [list(member.get_submodule(features.blocks))[-1] for member in members]  # type: ignore[call-overload]
    return members


def _list_at(model: PreTrainedModel, path: str) -> nn.ModuleList:
    found = model.base_model.get_submodule(path)
    if not isinstance(found, nn.ModuleList):
        raise ModelError(f"'{path}' of {type(model).__name__} is no list of layers.")
    return found


def _stacks(model: PreTrainedModel, row: Architecture) -> Iterator[tuple[str, str]]:
    """Stack and path of each stack that the model has: some classes hold one half (`T5EncoderModel`)."""
    assert isinstance(row.layers, Mapping)
    for stack, path in row.layers.items():
        if hasattr(model.base_model, path.partition(".")[0]):
            yield stack, path


def layer_prefix(model: PreTrainedModel) -> str:
    """The prefix of the layers' names in the state dict, such as ``bert.encoder.layer.``; one stack only."""
    layers_of(model)
    path = architecture(model).layers
    return f"{path}." if model.base_model is model else f"{model.base_model_prefix}.{path}."


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """`model` itself with its parameters in `dtype`. Buffers stay as they are: rotary frequencies rounded to bfloat16
    would turn positions by more the further they are, which ``model.to(dtype)`` does in silence. Batch norms are
    float32 as a whole: their weights have to be in the precision of their statistics."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.float()
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
    """The sizes of a model, from its config and its lists of layers; unknown families are described too."""
    encoder, family = encoder_of(model), model.config.model_type
    if encoder is not model:
        channels: Any = encoder.channels
        return replace(describe(encoder), family=family, channels=tuple(map(int, channels)))
    config = model.config.get_text_config()
    row = ARCHITECTURES.get(family)
    of_images = row is not None and row.features is not None  # BEiT's vocabulary is that of its pre-training
    vocabulary = None if of_images else getattr(config, "vocab_size", None)
    made: dict[str, Any] = {"family": family, "vocabulary": None if vocabulary is None else int(vocabulary)}
    if type(model).__name__.endswith(WITH_TEACHER):
        made["classifiers"] = tuple(CLASSIFIERS)
    if row is None:
        names = {"layers": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads"}
        made |= {ours: int(getattr(config, theirs, 0)) for ours, theirs in names.items()}
        return ModelShape(**made)
    if row.features is not None and row.features.listed:
        channels = tuple(stage.channels for stage in timm_stages(model))
        return ModelShape(**made, layers=0, width=channels[-1] if channels else 0, heads=0, channels=channels)
    if row.layers is None:
        channels = tuple(_channels(stage) for stage in stage_modules(model))
        return ModelShape(**made, layers=0, width=channels[-1], heads=0, channels=channels)
    layers = layer_modules(model)
    if row.blocks is not None:
        return _hierarchical(config, made)
    heads = int(config.num_attention_heads)
    made |= {"layers": len(layers), "width": int(config.hidden_size), "heads": heads}
    if not isinstance(row.layers, str):
        own = {DECODER: int(getattr(config, "decoder_attention_heads", heads))}
        made["stacks"] = {stack: len(_list_at(model, path)) for stack, path in _stacks(model, row)}
        made["layer_heads"] = tuple(own.get(layer[0], heads) for layer in layers if isinstance(layer, tuple))
        made["heads"] = made["layer_heads"][-1]
    of_patches = row.features is not None
    channels, patches = ((made["width"],) * count if of_patches else () for count in (len(layers), 1))
    return ModelShape(**made, channels=channels, patches=patches)


def _hierarchical(config: Any, made: dict[str, Any]) -> ModelShape:
    depths = [int(depth) for depth in config.depths]
    widths = getattr(config, "hidden_sizes", None) or [config.embed_dim * 2**stage for stage in range(len(depths))]
    stages = list(zip(depths, map(int, widths), map(int, config.num_attention_heads), strict=False))
    return ModelShape(
        **made,
        layers=sum(depths),
        width=stages[-1][1],
        heads=stages[-1][2],
        layer_widths=tuple(width for depth, width, _ in stages for _ in range(depth)),
        layer_heads=tuple(heads for depth, _, heads in stages for _ in range(depth)),
        channels=tuple(width for _, width, _ in stages),
        patches=tuple(width for _, width, _ in stages),
    )


def _channels(stage: nn.Module) -> int:
    return [module.out_channels for module in stage.modules() if isinstance(module, nn.Conv2d)][-1]
