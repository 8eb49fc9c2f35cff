"""Taps: forward hooks that collect what is asked for, and always come off again.

Queries, keys, values and maps come from one seam, an attention function registered with transformers. The tap switches
the model to it for one forward pass and back. For queries, keys and values it passes through to PyTorch's fused kernel,
so that they cost nothing but a reference. Maps exist only in eager attention, so `tapped` refuses them of a model that
runs a fused kernel (such a kernel gives an empty tuple, and the loss is silently zero); the probabilities are recorded
before dropout, as no published loss compares noise.

A hidden state is recorded as its layer returned it, before any final norm, in teacher and student alike.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from potstill.checks import problem
from potstill.errors import ModelError
from potstill.knowledge.architectures import AttentionModules, architecture, layers_of
from potstill.knowledge.types import Needs
from potstill.mappings import EMBEDDINGS

FUSED, EAGER = "potstill_sdpa", "potstill_eager"


@dataclass
class Recorder:
    """What one forward pass has given so far: kind -> layer -> tensor. The first call of a layer counts."""

    needs: Needs
    layer_of: dict[int, int]  # id of a module -> its layer
    found: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    through: Callable[..., Any] = sdpa_attention_forward  # the attention that the model runs itself

    def keep(self, kind: str, layer: int | None, value: Tensor) -> None:
        """Keep a tensor if it was asked for."""
        if layer is not None and layer in getattr(self.needs, kind):
            self.found.setdefault(kind, {}).setdefault(layer, value)


_recorder: ContextVar[Recorder | None] = ContextVar("potstill_recorder", default=None)


def _record_inputs(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Recorder | None, int | None]:
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
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T scaling + mask) V written out, with scores and probabilities recorded, before dropout."""
    recorder, layer = _record_inputs(module, query, key, value)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
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


def check_attention_maps(model: PreTrainedModel) -> None:
    """Raise `ModelError` if attention maps can't be observed in this model as it was loaded."""
    own = architecture(model).modules is not None
    implementation = model.config._attn_implementation
    if not own and implementation != "eager":
        raise ModelError(
            problem(
                "Attention maps can be observed in eager attention only",
                given=f"{type(model).__name__} with attn_implementation='{implementation}'",
                follows="A fused kernel never forms the maps, and a loss on them would silently be zero",
                do="Load the model with attn_implementation='eager', or call model.set_attn_implementation('eager')",
            )
        )


@contextmanager
def tapped(model: PreTrainedModel, needs: Needs) -> Iterator[dict[str, dict[int, Tensor]]]:
    """Collect `needs` from the forward passes made inside the context: kind -> layer -> tensor."""
    layers = list(layers_of(model)) if needs.hidden or needs.maps or needs.relations else []
    recorder = Recorder(needs, {id(module): i for i, layer in enumerate(layers) for module in layer.modules()})
    with ExitStack() as stack:
        if needs.hidden:
            _tap_hidden(layers, recorder, stack)
        if needs.maps or needs.relations:
            modules = architecture(model).modules
            if modules is not None:
                _tap_modules(layers, modules, model.config.num_attention_heads, recorder, stack)
            else:
                _tap_interface(model, recorder, stack)
        yield recorder.found


def _tap_hidden(layers: list[nn.Module], recorder: Recorder, stack: ExitStack) -> None:
    def after(index: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            recorder.keep("hidden", index, output[0] if isinstance(output, tuple) else output)

        return hook

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorder.keep("hidden", EMBEDDINGS, args[0] if args else kwargs["hidden_states"])

    if EMBEDDINGS in recorder.needs.hidden:
        stack.callback(layers[0].register_forward_pre_hook(before, with_kwargs=True).remove)
    for index, layer in enumerate(layers):
        if index in recorder.needs.hidden:
            stack.callback(layer.register_forward_hook(after(index)).remove)


def _tap_interface(model: PreTrainedModel, recorder: Recorder, stack: ExitStack) -> None:
    if recorder.needs.maps:
        check_attention_maps(model)
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = EAGER if before == "eager" else FUSED
    if before in ALL_MASK_ATTENTION_FUNCTIONS and ALL_MASK_ATTENTION_FUNCTIONS[before] is sdpa_mask:
        recorder.through = ALL_ATTENTION_FUNCTIONS[before]  # sdpa, or what takes its place while training
    stack.callback(setattr, config, "_attn_implementation", before)
    token = _recorder.set(recorder)
    stack.callback(_recorder.reset, token)


class LastSoftmax(TorchFunctionMode):
    """Remembers the last softmax: the scores of a family that forms them inside its own forward, where no hook is."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: Tensor | None = None
        self.output: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`, and remember what it got and gave if it is a softmax."""
        output = func(*args, **(kwargs or {}))
        if func is nn.functional.softmax:
            self.scores, self.output = args[0], output
        return output


def _tap_modules(
    layers: list[nn.Module], paths: AttentionModules, heads: int, recorder: Recorder, stack: ExitStack
) -> None:
    def projected(kind: str, index: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            batch, length, width = output.shape
            recorder.keep(kind, index, output.view(batch, length, heads, width // heads).transpose(1, 2))

        return hook

    def maps(index: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            recorder.keep("attention", index, args[0])
            if softmax.output is args[0] and softmax.scores is not None:
                recorder.keep("scores", index, softmax.scores)

        return hook

    softmax = LastSoftmax()
    if recorder.needs.scores:
        stack.enter_context(softmax)
    kinds = {"queries": paths.query, "keys": paths.key, "values": paths.value}
    for index, layer in enumerate(layers):
        for kind, path in kinds.items():
            if index in getattr(recorder.needs, kind):
                stack.callback(layer.get_submodule(path).register_forward_hook(projected(kind, index)).remove)
        if index in recorder.needs.maps:
            dropout = layer.get_submodule(paths.dropout)
            stack.callback(dropout.register_forward_pre_hook(maps(index)).remove)
