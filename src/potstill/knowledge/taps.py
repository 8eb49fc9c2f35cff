"""Taps: forward hooks that collect what is asked for, and always come off again.

Queries, keys, values and maps come from one seam, an attention function registered with transformers. The tap switches
the model to it for one forward pass and back. For queries, keys and values it passes through to PyTorch's fused kernel,
so that they cost nothing but a reference. Maps exist only in eager attention, so `tapped` refuses them of a model that
runs a fused kernel (such a kernel gives an empty tuple, and the loss is silently zero); the probabilities are recorded
before dropout, as no published loss compares noise.

A hidden state is recorded as its layer returned it, before any final norm, in teacher and student alike.
"""

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from potstill.checks import problem
from potstill.errors import ModelError
from potstill.knowledge.architectures import (
    architecture,
    cross_attentions,
    describe,
    encoder_of,
    layer_modules,
    no_such_layer,
)
from potstill.knowledge.features import tap_features
from potstill.knowledge.own_attention import tap_own_attention
from potstill.knowledge.patches import tap_patches
from potstill.knowledge.recorder import Recorder
from potstill.knowledge.types import LAYERED, STAGED, Layer, Needs
from potstill.mappings import EMBEDDINGS

FUSED, EAGER = "potstill_sdpa", "potstill_eager"


_recorder: ContextVar[Recorder | None] = ContextVar("potstill_recorder", default=None)


def _record_inputs(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Recorder | None, Layer | None]:
    recorder = _recorder.get()
    layer = recorder.layer_of.get(id(module)) if recorder else None
    if recorder is not None:
        recorder.keep("queries", layer, query)
        recorder.keep("keys", layer, key)
        recorder.keep("values", layer, value)
    return recorder, layer


def fused_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The model's own attention, with queries, keys and values recorded on the way in."""
    recorder, _ = _record_inputs(module, query, key, value)
    through = sdpa_attention_forward if recorder is None else recorder.through
    return through(module, query, key, value, attention_mask, **kwargs)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T scaling + position bias + mask) V written out; scores and probabilities before dropout recorded."""
    recorder, layer = _record_inputs(module, query, key, value)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    if recorder is not None:
        recorder.keep("scores", layer, scores)
        recorder.keep("attention", layer, probabilities)
    dropped = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    return (dropped @ value).transpose(1, 2).contiguous(), probabilities


AttentionInterface.register(FUSED, fused_attention)
AttentionInterface.register(EAGER, eager_attention)
AttentionMaskInterface.register(FUSED, sdpa_mask)
AttentionMaskInterface.register(EAGER, eager_mask)


def check_needs(model: PreTrainedModel, needs: Needs) -> None:
    """Raise `ModelError` if something that is asked for can't be observed in this model as it was loaded."""
    if not any(getattr(needs, kind) for kind in LAYERED):
        return
    name = type(model).__name__
    if architecture(encoder_of(model)).layers is None and (needs.hidden or needs.maps or needs.relations):
        asked = [kind for kind in LAYERED if getattr(needs, kind) and kind not in STAGED]
        given = f"{', '.join(asked)} of {name}"
        way = "Distil its logits or its features"
        raise ModelError(
            problem("A convolutional network has neither hidden states nor attention", given=given, do=way)
        )
    if needs.features and architecture(model).features is None:
        way = "Distil its hidden states"
        raise ModelError(problem("Only models of images have features", given=f"features of {name}", do=way))
    layers, shape = layer_modules(model), describe(model)
    if needs.patches and not shape.patches:
        way = "Distil its features, or its logits"
        raise ModelError(problem("Only vision transformers have patch embeddings", given=f"patches of {name}", do=way))
    attending = layers.keys() | cross_attentions(model).keys()
    known: dict[str, Set[Layer]] = dict.fromkeys(LAYERED, attending)
    known["hidden"] = layers.keys() | {below(layer) for layer in layers}
    stages = {"features": len(shape.channels), "patches": len(shape.patches)}
    known |= {kind: set(range(count)) for kind, count in stages.items()}
    for kind in LAYERED:
        for layer in sorted(getattr(needs, kind) - known[kind], key=str):
            count = stages.get(kind, shape.layers)
            raise ModelError(no_such_layer(f"The {kind} of {name}", layer, shape.stacks, count))
    if needs.maps:
        check_attention_maps(model)


def below(layer: Layer) -> Layer:
    """The name of what enters the stack that a layer is in."""
    return (layer[0], EMBEDDINGS) if isinstance(layer, tuple) else EMBEDDINGS


def check_attention_maps(model: PreTrainedModel) -> None:
    """Raise `ModelError` if attention maps can't be observed in this model as it was loaded."""
    if architecture(encoder_of(model)).modules is not None:
        return
    for implementation in {config._attn_implementation for config in _configs(model)} - {"eager"}:
        raise ModelError(
            problem(
                "Attention maps can be observed in eager attention only",
                given=f"{type(model).__name__} with attn_implementation='{implementation}'",
                follows="A fused kernel never forms the maps, and a loss on them would silently be zero",
                do="Load the model with attn_implementation='eager', or call model.set_attn_implementation('eager')",
            )
        )


@contextmanager
def tapped(model: PreTrainedModel, needs: Needs) -> Iterator[dict[str, dict[Any, Tensor]]]:
    """Collect `needs` from the forward passes made inside the context: kind -> layer -> tensor.

    Raises:
        ModelError: something that is asked for can't be observed in this model.
    """
    check_needs(model, needs)
    layers = layer_modules(model) if needs.hidden or needs.maps or needs.relations else {}
    recorder = Recorder(needs, {})
    with ExitStack() as stack:
        if needs.hidden:
            _tap_hidden(layers, recorder, stack)
        if needs.maps or needs.relations:
            row = architecture(encoder_of(model))
            if row.modules is not None:
                tap_own_attention(layers, row.modules, recorder, stack)
            else:
                attending = {**layers, **cross_attentions(model)}  # a cross-attention is inside a layer: it comes last
                recorder.layer_of |= {id(part): layer for layer, m in attending.items() for part in m.modules()}
                _tap_interface(model, recorder, stack)
        if needs.features:
            features = architecture(model).features
            assert features is not None
            tap_features(model, features, recorder, stack)
        if needs.patches:
            tap_patches(model, recorder, stack)
        yield recorder.found


def _tap_hidden(layers: Mapping[Layer, nn.Module], recorder: Recorder, stack: ExitStack) -> None:
    def after(layer: Layer) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            recorder.keep("hidden", layer, output[0] if isinstance(output, tuple) else output)

        return hook

    def before(layer: Layer) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            recorder.keep("hidden", layer, args[0] if args else kwargs["hidden_states"])

        return hook

    for layer, module in layers.items():
        first = (layer[1] if isinstance(layer, tuple) else layer) == 0
        if first and below(layer) in recorder.needs.hidden:
            stack.callback(module.register_forward_pre_hook(before(below(layer)), with_kwargs=True).remove)
        if layer in recorder.needs.hidden:
            stack.callback(module.register_forward_hook(after(layer)).remove)


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """The configs that a model's parts read, outermost first: each stack of T5 has a copy of its own."""
    parts = (part for part in model.modules() if isinstance(part, PreTrainedModel))
    return list({id(part.config): part.config for part in parts}.values())


def _tap_interface(model: PreTrainedModel, recorder: Recorder, stack: ExitStack) -> None:
    configs = _configs(model)
    before = [config._attn_implementation for config in configs]
    stack.callback(_set_attention, configs, before)
    _set_attention(configs, [EAGER if name == "eager" else FUSED for name in before])
    for name in before:
        if name in ALL_MASK_ATTENTION_FUNCTIONS and ALL_MASK_ATTENTION_FUNCTIONS[name] is sdpa_mask:
            recorder.through = ALL_ATTENTION_FUNCTIONS[name]  # sdpa, or what takes its place while training
    token = _recorder.set(recorder)
    stack.callback(_recorder.reset, token)


def _set_attention(configs: list[PreTrainedConfig], names: list[str | None]) -> None:
    for config, name in zip(configs, names, strict=True):  # outermost first, since a config sets its parts too
        config._attn_implementation = name
