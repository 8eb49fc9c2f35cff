"""Taps on patch embeddings, [B,N,C] by stage: what enters the first block of a stage.

- SegFormer, PVTv2: the stage's overlapping patches after their norm. Swin: the embeddings, then the merged patches.
- ViT, DeiT, DINOv2: the embeddings with their positions, without the tokens before them; there is one stage.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from potstill.knowledge.architectures import architecture, encoder_of, layer_modules
from potstill.knowledge.recorder import Recorder


def tap_patches(model: PreTrainedModel, recorder: Recorder, stack: ExitStack) -> None:
    """Hook the first block of each stage of which patch embeddings are asked."""
    features = architecture(encoder_of(model)).features
    prefix = 0 if features is None else features.prefix

    def before(stage: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entering = args[0] if args else kwargs["hidden_states"]
            recorder.keep("patches", stage, entering[:, prefix:])

        return hook

    for stage, block in enumerate(first_blocks(model)):
        if stage in recorder.needs.patches:
            stack.callback(block.register_forward_pre_hook(before(stage), with_kwargs=True).remove)


def first_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The first block of each stage of a vision transformer; the first layer, where there is one resolution."""
    model = encoder_of(model)
    blocks = list(layer_modules(model).values())
    if architecture(model).blocks is None:
        return blocks[:1]
    starts = [0]
    for depth in model.config.depths[:-1]:
        starts.append(starts[-1] + int(depth))
    return [blocks[start] for start in starts]
