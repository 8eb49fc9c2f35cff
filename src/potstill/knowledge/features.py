"""Taps on feature maps, [B,C,H,W] by stage: what a stage hands on, as the family's own segmentation heads read it.

- SegFormer and PVTv2: after the stage's norm. Swin: before patches are merged. ResNet: the stage's output.
- MobileNetV2: the last block of each resolution, so that stage s is at 1/4, 1/8, 1/16, 1/32 of the image as in ResNet,
  Swin, SegFormer and PVTv2, and stages of different families meet number by number.
- ConvNeXt: the stage's output. UperNet: what its head is given, whatever the backbone, after the norms between them.
- timm: what its own list of stages names, see `timm_stages`.
- ViT, DeiT, BEiT, DINOv2: the patches of each layer's output, without the tokens before them; stage = layer.

Tokens come back as maps by the grid that the patch convolution gave, so images need not be square.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.checks import problem
from potstill.errors import ModelError
from potstill.knowledge.architectures import Features, stage_modules
from potstill.knowledge.recorder import Recorder
from potstill.knowledge.timm_stages import channels_first, patch_convolution, prefix_tokens


def tap_features(model: PreTrainedModel, features: Features, recorder: Recorder, stack: ExitStack) -> None:
    """Hook each stage of which features are asked, and the convolution that gives its grid."""
    if features.given:
        stack.callback(stage_modules(model)[0].register_forward_pre_hook(given(recorder)).remove)
        return
    grids: dict[int, tuple[int, int]] = {}

    def laid_out(stage: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            grids[stage] = (output.shape[-2], output.shape[-1])

        return hook

    def after(stage: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            while isinstance(output, tuple):
                output = output[0]
            prefix = prefix_tokens(model) if features.listed else features.prefix
            if output.ndim != 4 and stage not in grids:
                what = "The stages of this model are tokens whose grid isn't known"
                raise ModelError(problem(what, given=type(model).__name__, do="Distil its logits"))
            value = output if output.ndim == 4 else as_map(output[:, prefix:], grids[stage])
            recorder.keep("features", stage, channels_first(model, value) if output.ndim == 4 else value)

        return hook

    for stage, module in enumerate(stage_modules(model)):
        if stage not in recorder.needs.features:
            continue
        convolution = _patch_convolution(model, features, stage)
        if convolution is not None:
            stack.callback(convolution.register_forward_hook(laid_out(stage)).remove)
        stack.callback(module.register_forward_hook(after(stage)).remove)


def _patch_convolution(model: PreTrainedModel, features: Features, stage: int) -> nn.Module | None:
    """The convolution whose output has the grid of a stage's tokens; None where there are no tokens."""
    if features.listed:
        return patch_convolution(model)
    return None if features.grid is None else model.base_model.get_submodule(features.grid.format(stage))


def given(recorder: Recorder) -> Callable[..., None]:
    """A hook that keeps the maps that a segmentation head is given, stage by stage."""

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
        for stage, value in enumerate(args[0]):
            recorder.keep("features", stage, value)

    return hook


def as_map(tokens: Float[Tensor, "B N C"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    """Tokens [B,H*W,C], row by row, as a map [B,C,H,W].

    Args:
        tokens: the tokens of patches, and no others.
        grid: rows and columns of the patches; halved, rounding up, as often as patches were merged two by two.

    Raises:
        ModelError: as many tokens come from no such grid.
    """
    height, width = grid
    while height * width > tokens.shape[1] and height * width > 1:
        height, width = (height + 1) // 2, (width + 1) // 2
    if height * width != tokens.shape[1]:
        raise ModelError(
            problem("Tokens don't cover the grid of patches", given=f"{tokens.shape[1]} tokens, grid {grid}")
        )
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], height, width)
