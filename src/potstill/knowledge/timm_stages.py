"""The stages of a timm model inside transformers' wrapper: timm's own list says which modules give its feature maps.

A row of the table of families names paths; timm has hundreds of families behind one wrapper, and each of its models
carries that list (`feature_info`: module, channels, by how much the image is smaller). Decisions:

- Stages are those at 1/4 of the image or less, so that they meet those of other families number by number; of several
  at one resolution all count in a vision transformer, where each layer is a stage.
- Swin and its like hold channels last, and vision transformers tokens: both become [B,C,H,W].
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

FINEST = 4  # a stage halves the image twice at least


@dataclass(frozen=True)
class TimmStage:
    """One stage: the module whose output is its map, and its channels."""

    module: nn.Module
    channels: int


def timm_stages(model: PreTrainedModel) -> list[TimmStage]:
    """The stages of a timm model, finest first; empty where it carries no list of them."""
    inner: Any = model.base_model
    listed = getattr(inner, "feature_info", None) or []
    infos = listed if isinstance(listed, list) else list(listed.info)
    kept = [info for info in infos if int(info["reduction"]) >= FINEST]
    return [TimmStage(inner.get_submodule(info["module"]), int(info["num_chs"])) for info in kept]


def patch_convolution(model: PreTrainedModel) -> nn.Module | None:
    """The convolution whose output has the grid of a vision transformer's patches; None in models of maps."""
    patches = getattr(model.base_model, "patch_embed", None)
    found = getattr(patches, "proj", None)
    return found if isinstance(found, nn.Conv2d) else None


def prefix_tokens(model: PreTrainedModel) -> int:
    """How many tokens of a vision transformer stand before those of its patches."""
    return int(getattr(model.base_model, "num_prefix_tokens", 0))


def channels_first(model: PreTrainedModel, value: Tensor) -> Tensor:
    """A map [B,C,H,W] of one as the model holds it."""
    last = getattr(model.base_model, "output_fmt", "NCHW") == "NHWC"
    return value.permute(0, 3, 1, 2) if last else value
