"""Taps on families that compute their attention themselves (MPNet, DeBERTa-v2, PVTv2): hooks on their modules.

Queries, keys and values are what the projections give. Probabilities are what enters the dropout. Scores stand between
two lines of the forward, where no hook reaches: the softmax before the dropout tells what it was taken of.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from potstill.knowledge.architectures import AttentionModules
from potstill.knowledge.recorder import Recorder
from potstill.knowledge.types import Layer


class LastSoftmax(TorchFunctionMode):
    """Remembers what the last softmax got and gave, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: Tensor | None = None
        self.output: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`, and remember it if it is a softmax."""
        output = func(*args, **(kwargs or {}))
        if func is nn.functional.softmax:
            self.scores, self.output = args[0], output
        return output


def tap_own_attention(
    layers: Mapping[Layer, nn.Module], paths: AttentionModules, recorder: Recorder, stack: ExitStack
) -> None:
    """Hook the modules that `paths` names in each layer of which something is asked."""

    def projected(kind: str, layer: Layer, heads: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            batch, length, width = output.shape
            recorder.keep(kind, layer, output.view(batch, length, heads, width // heads).transpose(1, 2))

        return hook

    def maps(layer: Layer) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            recorder.keep("attention", layer, args[0])
            if softmax.output is args[0] and softmax.scores is not None:
                recorder.keep("scores", layer, softmax.scores)

        return hook

    softmax = LastSoftmax()
    if recorder.needs.scores:
        stack.enter_context(softmax)
    kinds = {"queries": paths.query, "keys": paths.key, "values": paths.value}
    for number, layer in layers.items():
        heads = int(layer.get_submodule(paths.query.rpartition(".")[0]).num_attention_heads)  # type: ignore[arg-type]
        for kind, path in kinds.items():
            if number in getattr(recorder.needs, kind):
                hook = projected(kind, number, heads)
                stack.callback(layer.get_submodule(path).register_forward_hook(hook).remove)
        if number in recorder.needs.maps:
            dropout = layer.get_submodule(paths.dropout)
            stack.callback(dropout.register_forward_pre_hook(maps(number)).remove)
