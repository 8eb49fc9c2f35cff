"""Small made-up pictures and folders of them, for tests of whatever reads images."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(seed: int = 0, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Image.Image:
    """Noise of a size (width, height)."""
    width, height = size
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def png(image: Image.Image, **options: Any) -> bytes:
    """The file of a picture, as PNG."""
    content = io.BytesIO()
    image.save(content, "PNG", **options)
    return content.getvalue()


def stored(image: Image.Image) -> dict[str, Any]:
    """A picture as a row keeps it."""
    return {"bytes": png(image), "path": None}


def put(path: Path, image: Image.Image | bytes) -> Path:
    """A file with a picture, or with these bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image if isinstance(image, bytes) else png(image))
    return path


def label_map(*rows: list[int]) -> Image.Image:
    """A grey map of these ids."""
    return Image.fromarray(np.array(rows, dtype=np.uint8))
