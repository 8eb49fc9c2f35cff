"""Tiny pictures of shapes with label maps, in files and recipes: what the tests of segmentation build on, offline."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image
from tiny import IMAGE
from tiny_runs import FAST, SHORT, merged

from potstill.tasks.label_maps import MapClasses

COLOURS = ((90, 90, 90), (220, 40, 40), (40, 60, 230))
CLASSES = MapClasses(("ground", "box", "disc"), void=(255,), palette=COLOURS)
SIZES = {"hidden_sizes": [8, 16], "decoder_hidden_size": 16}
SEGFORMER: dict[str, Any] = {
    **{"model_type": "segformer", "num_encoder_blocks": 2, "depths": [1, 1], "num_attention_heads": [1, 2]},
    **{"sr_ratios": [4, 2], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2], **SIZES},
}


def tiny_shapes(
    rows: int, seed: int = 0, size: tuple[int, int] = (40, 56)
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Noisy pictures of a red box and a blue disc, and their maps of ids, with a strip of void along the top."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    pictures, maps = [], []
    for _ in range(rows):
        ids = np.zeros(size, dtype=np.uint8)
        top, left = random.integers(4, size[0] - 16), random.integers(0, size[1] - 20)
        ids[top : top + 12, left : left + 16] = 1
        middle = random.integers(10, size[0] - 8), random.integers(8, size[1] - 8)
        ids[(y - middle[0]) ** 2 + (x - middle[1]) ** 2 <= 49] = 2
        pixels = np.asarray(COLOURS)[ids] + random.integers(-30, 31, (*size, 3))
        ids[:2] = 255
        pictures.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
        maps.append(Image.fromarray(ids))
    return pictures, maps


def segmentation_rows(rows: int, seed: int = 0) -> Dataset:
    """The columns image and label_map."""
    pictures, maps = tiny_shapes(rows, seed)
    features = Features({"image": ImageFeature(), "label_map": ImageFeature()})
    return Dataset.from_dict({"image": pictures, "label_map": maps}, features=features)


def segmentation_folder(folder: Path, rows: int = 24) -> str:
    """A saved data set of train, validation and test; its path as text."""
    sizes = {"train": rows // 2, "validation": rows // 4, "test": rows // 4}
    made = DatasetDict({split: segmentation_rows(n, seed) for seed, (split, n) in enumerate(sizes.items())})
    made.save_to_disk(str(folder))
    return str(folder)


def tiny_segformer(labels: int = 3, seed: int = 0, **changes: Any) -> Any:
    """A random SegFormer of two stages, in eval mode."""
    config = transformers.AutoConfig.for_model(**{**SEGFORMER, **changes}, num_labels=labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModelForSemanticSegmentation.from_config(config).eval()


def segmentation_recipe(folder: Path, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """A recipe that takes two steps a stage: a SegFormer is trained and teaches a narrower one."""
    recipe: dict[str, Any] = {
        "task": "semantic_segmentation",
        "data": {
            "name": segmentation_folder(folder / "data"),
            "names": list(CLASSES.names),
            "void": [255],
            "palette": [list(colour) for colour in COLOURS],
            "image_size": list(IMAGE),
        },
        "teacher": {"config": {**SEGFORMER, "hidden_sizes": [16, 32]}, "train": dict(SHORT)},
        "student": {"config": dict(SEGFORMER)},
        "distill": [{"terms": [{"knowledge": "labels"}, {"knowledge": "logits"}], "train": dict(SHORT)}],
        **deepcopy(FAST),
    }
    return merged(recipe, changes or {})
