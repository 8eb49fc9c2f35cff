"""Stored images -> pictures in RGB: decoded once, the same way for every model, check and report.

Decisions:
- A photograph that says how it was held (EXIF) is turned upright, as datasets and transformers do. What it says is
  dropped then: Pillow's own turning writes the rest of it anew, and raises where a tag isn't of its usual type.
- Grey is repeated, palettes are looked up, transparency is dropped: what is under it becomes visible, as in
  transformers' own loading of images, so that a student sees the same after it was shipped.
- 16 bits are scaled to 8: v/257, rounded. Pillow's own conversion clips them, and nearly every pixel would be white.
- 32-bit integers and floats have no range that is known, so they are refused.
"""

import base64
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image
from torch import Tensor

from potstill.checks import problem
from potstill.errors import DataError

TINY = 64
RANGELESS = ("I", "F")
"""Pillow's modes whose values have no range that is known."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SAYS_HOW_HELD = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")


def image_bytes(stored: Mapping[str, Any]) -> bytes:
    """The file of an image, as a row holds it: its bytes, or else the content of its path.

    Raises:
        DataError: it is neither there nor at its path.
    """
    if stored.get("bytes") is not None:
        return bytes(stored["bytes"])
    if not stored.get("path"):
        raise DataError(problem("An image has neither bytes nor a path", do="Remove its row"))
    try:
        return Path(str(stored["path"])).read_bytes()
    except OSError as error:
        raise DataError(
            problem("An image can't be read", given=str(error), do="Put it back, or remove its row")
        ) from error


def opened(stored: Any) -> Image.Image:
    """The image of a row with its header read and its pixels not yet; one that is decoded already is given back.

    Raises:
        DataError: it can't be read, or is no image.
    """
    if isinstance(stored, Image.Image):
        return stored
    content = image_bytes(stored)
    if not content:
        raise _undecodable(stored, "an empty file")
    try:
        return Image.open(BytesIO(content))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "no image that Pillow knows" if "cannot identify" in str(error) else str(error)
        raise _undecodable(stored, reason) from error


def decoded(stored: Any) -> Image.Image:
    """The picture of a row, upright, in whatever mode it was stored; of an animation the first frame.

    Raises:
        DataError: it can't be read, is no image, is broken, or has no pixels.
    """
    picture = opened(stored)
    try:
        picture.load()
        picture = _upright(picture)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise _undecodable(stored, str(error)) from error
    if 0 in picture.size:
        raise _undecodable(stored, f"{picture.width} x {picture.height} pixels")
    return picture


def _upright(picture: Image.Image) -> Image.Image:
    """The picture turned as it says that it was held; it says so no more, so that nothing turns it again."""
    turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    for key in _SAYS_HOW_HELD:
        turned.info.pop(key, None)
    return turned


def as_rgb(picture: Image.Image | Tensor) -> Image.Image:
    """A picture in RGB with 8 bits a channel.

    Args:
        picture: a Pillow image, or a uint8 tensor [3,h,w], [1,h,w] or [h,w].

    Raises:
        DataError: it holds 32-bit integers or floats.
    """
    if isinstance(picture, Tensor):
        pixels = picture if picture.ndim == 3 else picture.unsqueeze(0)
        return Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
    if picture.mode == "RGB":
        return picture
    if picture.mode in RANGELESS:
        raise DataError(
            problem(
                "An image holds numbers without a known range",
                given=f"mode {picture.mode}",
                do="Save it with 8 or 16 bits a channel",
            )
        )
    if picture.mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.uint32)
        picture = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow warns where a palette with transparency goes straight to RGB
    return picture.convert("RGB")


def thumbnail(picture: Image.Image, longest: int = 160) -> str:
    """A small picture as a ``data:`` address, for a page that asks for no file: PNG where it is tiny, else JPEG of at
    most `longest` pixels a side."""
    small = as_rgb(picture)
    tiny = max(small.size) <= TINY
    if not tiny:
        small = small.copy()
        small.thumbnail((longest, longest))
    content = BytesIO()
    small.save(content, "PNG" if tiny else "JPEG", quality=85)
    return f"data:image/{'png' if tiny else 'jpeg'};base64,{base64.b64encode(content.getvalue()).decode()}"


def as_pixels(picture: Image.Image) -> UInt8[Tensor, "3 H W"]:
    """The pixels of a picture, in RGB."""
    return torch.from_numpy(np.array(as_rgb(picture))).permute(2, 0, 1)


def _undecodable(stored: Any, reason: str) -> DataError:
    name = Path(str(stored["path"])).name if stored.get("path") else "bytes without a name"
    return DataError(problem("An image can't be decoded", given=f"{name}: {reason}", do="Repair it, or remove its row"))
