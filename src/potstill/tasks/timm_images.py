"""How a timm model reads images, from its config: transformers reads that with torchvision alone.

As timm evaluates: resized, by the shorter edge or whole, to size / crop_pct, then the centre is cut out.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import PreTrainedConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from potstill.checks import problem
from potstill.errors import ModelError
from potstill.tasks.base import quiet_transformers

TIMM = "timm_wrapper"


def timm_processor(path: str | Path) -> Any:
    """The image processor that a timm model's config describes; None for any other model, and where it says nothing.

    Raises:
        ModelError: it asks for a way to cut images that isn't known here.

    References:
        timm, data/config.py (`resolve_data_config`, its defaults) and data/transforms_factory.py (evaluation).
    """
    try:
        with quiet_transformers():
            config, _ = PreTrainedConfig.get_config_dict(path)  # transformers reads it as a config with timm alone
    except (OSError, ValueError):
        return None
    given: Mapping[str, Any] | None = config.get("pretrained_cfg")
    if config.get("model_type", TIMM) != TIMM or not given:
        return None
    height, width = (int(edge) for edge in given.get("input_size", (3, 224, 224))[1:])
    share, mode = float(given.get("crop_pct") or 0.875), given.get("crop_mode") or "center"
    edges = math.floor(height / share), math.floor(width / share)
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        raise ModelError(
            problem(
                f"How '{path}' cuts images isn't known",
                given=f"crop_mode {mode}, {height} x {width}",
                do="Save an image processor beside the model, with save_pretrained",
            )
        )
    whole = {"height": edges[0], "width": edges[1]}
    filters = Image.Resampling.__members__
    interpolation = str(given.get("interpolation") or "bicubic").upper()
    return CLIPImageProcessorPil(
        size={"shortest_edge": edges[0]} if mode == "center" else whole,
        crop_size={"height": height, "width": width},
        resample=int(filters.get(interpolation, Image.Resampling.BICUBIC)),
        image_mean=list(given.get("mean", IMAGENET_DEFAULT_MEAN)),
        image_std=list(given.get("std", IMAGENET_DEFAULT_STD)),
    )
