"""Tiny pictures that two classes tell apart, in files and recipes: what the tests of images build on, offline."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image
from tiny import IMAGE, tiny_model
from tiny_runs import FAST, SHORT, merged

from potstill.tasks.images import ImageReader, default_reader

NAMES = ("dark", "light")


def tiny_pictures(rows: int, seed: int = 0, size: tuple[int, int] = (20, 28)) -> tuple[list[Image.Image], list[int]]:
    """Noisy pictures, dark and light by turns."""
    random = np.random.default_rng(seed)
    labels = [number % 2 for number in range(rows)]
    pixels = [random.integers(0, 128, (*size, 3)) + 127 * label for label in labels]
    return [Image.fromarray(one.astype(np.uint8)) for one in pixels], labels


def tiny_image_rows(rows: int, seed: int = 0) -> Dataset:
    """The columns image and label."""
    pictures, labels = tiny_pictures(rows, seed)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(NAMES))})
    return Dataset.from_dict({"image": pictures, "label": labels}, features=features)


def tiny_image_folder(folder: Path, rows: int = 48) -> str:
    """A saved data set of train, validation and test; its path as text."""
    sizes = {"train": rows // 2, "validation": rows // 4, "test": rows // 4}
    made = DatasetDict({split: tiny_image_rows(n, seed) for seed, (split, n) in enumerate(sizes.items())})
    made.save_to_disk(str(folder))
    return str(folder)


def tiny_image_model(folder: Path, family: str = "vit", **options: Any) -> str:
    """A random model with its image processor; its path as text."""
    model = tiny_model(family, **options)
    model.save_pretrained(folder)
    tiny_reader(folder).save_pretrained(folder)
    return str(folder)


def tiny_reader(folder: Path) -> ImageReader:
    """The reader of a model's folder that has no processor, at the size of the tiny models."""
    return default_reader(folder, size=IMAGE)


def tiny_image_recipe(folder: Path, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """A recipe that takes two steps a stage: a ViT of four layers is trained and teaches one of two."""
    recipe: dict[str, Any] = {
        "task": "image_classification",
        "data": {"name": tiny_image_folder(folder / "data")},
        "teacher": {"model": tiny_image_model(folder / "model"), "train": dict(SHORT)},
        "student": {"layers": 2},
        "distill": [{"terms": [{"knowledge": "logits"}], "train": dict(SHORT)}],
        **deepcopy(FAST),
    }
    return merged(recipe, changes or {})
