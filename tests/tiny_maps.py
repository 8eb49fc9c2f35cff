"""Tiny pictures of shapes with their label maps, in folders and recipes: what the tests of segmentation build on."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from tiny import IMAGE, tiny_model
from tiny_images import tiny_reader
from tiny_runs import FAST, SHORT, merged
from transformers import AutoModelForSemanticSegmentation

CLASSES = ("ground", "square", "disc")
VOID_ID = 3
FOUR_STAGES: dict[str, Any] = {
    **{"num_encoder_blocks": 4, "depths": [1, 2, 1, 1], "hidden_sizes": [8, 8, 16, 24], "decoder_hidden_size": 16},
    **{"num_attention_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2], "sr_ratios": [8, 4, 2, 1]},
    **{"patch_sizes": [7, 3, 3, 3], "strides": [4, 2, 2, 2]},
}
"""The sizes of a SegFormer of four stages, as the published ones have."""
COLOURS = ((40, 90, 40), (200, 60, 40), (50, 90, 220), (0, 0, 0))


def shapes(seed: int, size: tuple[int, int] = IMAGE) -> tuple[Image.Image, Image.Image]:
    """A picture of a square and a disc on the ground, and its map of ids; the square has a void edge."""
    random = np.random.default_rng(seed)
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    ids = np.zeros(size, dtype=np.uint8)
    side = height // 3
    top, left = random.integers(1, height - side - 1), random.integers(1, width // 2 - side)
    ids[top - 1 : top + side + 1, left - 1 : left + side + 1] = VOID_ID
    ids[top : top + side, left : left + side] = 1
    centre = random.integers(height // 3, 2 * height // 3), random.integers(2 * width // 3, width - height // 6)
    ids[(rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < (height / 5) ** 2] = 2
    pixels = np.array(COLOURS)[ids] + random.integers(-30, 31, (*size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), Image.fromarray(ids)


def tiny_map_rows(rows: int, seed: int = 0) -> Dataset:
    """The columns image and label_map."""
    pairs = [shapes(1000 * seed + number) for number in range(rows)]
    return Dataset.from_dict({"image": [image for image, _ in pairs], "label_map": [ids for _, ids in pairs]})


def tiny_map_folder(folder: Path, rows: int = 32, size: tuple[int, int] = IMAGE) -> str:
    """Folders of images and label maps, train, validation and test, with the names of the classes; its path."""
    for part, (split, count) in enumerate({"train": rows // 2, "validation": rows // 4, "test": rows // 4}.items()):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
        for number in range(count):
            for kind, picture in zip(("images", "labels"), shapes(1000 * part + number, size), strict=True):
                picture.save(folder / split / kind / f"{number:03}.png")
    found = {"names": CLASSES, "void": [VOID_ID], "palette": COLOURS}
    (folder / "classes.json").write_text(json.dumps(found), encoding="utf-8")
    return str(folder)


def tiny_segmenter(folder: Path, **options: Any) -> str:
    """A random SegFormer with its image processor; its path as text."""
    model = tiny_segformer(**options)
    model.save_pretrained(folder)
    tiny_reader(folder).save_pretrained(folder)
    return str(folder)


def tiny_segformer(labels: int = len(CLASSES), seed: int = 0, **options: Any) -> Any:
    """A random SegFormer that segments, of two stages with three blocks and one; its weights are spread as in
    `tiny_model`, so that its answers differ from pixel to pixel."""
    classifier = tiny_model("segformer", labels=labels, seed=seed, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = AutoModelForSemanticSegmentation.from_config(classifier.config).eval()
        with torch.no_grad():
            for parameter in made.decode_head.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3)
    made.segformer.load_state_dict(classifier.segformer.state_dict())
    return made


def tiny_map_recipe(folder: Path, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """A recipe that takes two steps a stage: a SegFormer of four blocks is trained and teaches one of two."""
    recipe: dict[str, Any] = {
        "task": "semantic_segmentation",
        "data": {"name": tiny_map_folder(folder / "data")},
        "teacher": {"model": tiny_segmenter(folder / "model"), "train": dict(SHORT)},
        "student": {"config": {"hidden_sizes": [8, 16], "depths": [1, 1], "decoder_hidden_size": 16}},
        "distill": [{"terms": [{"knowledge": "labels"}, {"knowledge": "logits"}], "train": dict(SHORT)}],
        **deepcopy(FAST),
    }
    return merged(recipe, changes or {})
