"""A student that keeps some of a model's layers: the shape stays, the depth falls."""

import copy
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from potstill.checks import problem
from potstill.errors import ModelError
from potstill.knowledge.architectures import cast, layer_prefix, layers_of
from potstill.mappings import selection

#: Config fields that hold one entry a layer, and are cut with the layers.
PER_LAYER_FIELDS = ("layer_types", "mlp_layer_types", "no_rope_layers")


def cut_layers(model: PreTrainedModel, keep: Sequence[int]) -> PreTrainedModel:
    """A new model of the same class with the layers `keep` of `model`, and everything else copied from it.

    Embeddings, pooler, final norm and head are copied; layers are renumbered from 0, so that whatever depends on a
    layer's number (alternating attention, caches) is built for the new depth. `model` is left as it was.

    Args:
        keep: numbers of the layers to keep, from 0, ascending.

    Raises:
        ModelError: a kept layer's parameters don't fit the place that it moves to (ModernBERT's layer 0 has no norm, so
            it must stay layer 0).
        MappingError: numbers that aren't layers of the model.
    """
    kept = selection(list(keep), len(layers_of(model)))
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(kept)
    for name in PER_LAYER_FIELDS:
        entries = getattr(config, name, None)
        if isinstance(entries, list | tuple):
            setattr(config, name, [entries[layer] for layer in kept])
    if getattr(config, "stage_names", None):  # a backbone's stem and layers, of which it gives the last
        config.stage_names = config.stage_names[: len(kept) + 1]
        config.set_output_features_output_indices(None, None)
    with torch.random.fork_rng(devices=[]):  # all that is initialised at random here is overwritten
        student = cast(type(model)(config), model.dtype)
    prefix = layer_prefix(model)
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(prefix):
            number, rest = name[len(prefix) :].split(".", 1)
            if int(number) in kept:
                state[f"{prefix}{kept.index(int(number))}.{rest}"] = tensor
        else:
            state[name] = tensor
    loaded = student.load_state_dict(state, strict=False)
    if loaded.missing_keys or loaded.unexpected_keys:
        raise ModelError(
            problem(
                f"Layers {list(kept)} of {type(model).__name__} can't stand at other places",
                given=f"missing {loaded.missing_keys[:3]}, left over {loaded.unexpected_keys[:3]}",
                do="Keep layer 0 as the first layer",
            )
        )
    student.eval()  # type: ignore[no-untyped-call]
    return student
