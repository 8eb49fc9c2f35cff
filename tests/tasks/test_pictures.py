"""Stored images as RGB: every mode of Pillow that is met, upright, and whatever is broken named."""

import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageOps, TiffTags
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from potstill.errors import DataError
from potstill.tasks.pictures import as_rgb, decoded, opened, thumbnail


def png(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


RAMP = np.arange(0, 256, 51, dtype=np.uint8).reshape(2, 3)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_modes_of_eight_bits_keep_their_values(mode: str) -> None:
    image = Image.fromarray(RAMP).convert(mode)
    found = as_rgb(decoded({"bytes": png(image, "TIFF"), "path": None}))
    assert found.mode == "RGB"
    expected = np.asarray(Image.fromarray(RAMP).convert(mode).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    image = decoded({"bytes": png(Image.fromarray(values)), "path": None})
    assert image.mode == "I;16"
    assert np.asarray(as_rgb(image))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_transparency_is_dropped_and_a_palette_with_it_makes_no_warning() -> None:
    image = Image.fromarray(np.array([[[10, 20, 30, 0], [40, 50, 60, 255]]], dtype=np.uint8))
    assert np.asarray(as_rgb(image)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    palette = Image.fromarray(RAMP).convert("P")
    found = decoded({"bytes": png(palette, transparency=bytes([0, 255])), "path": None})
    assert as_rgb(found).mode == "RGB"


@pytest.mark.parametrize("values", [np.float32(0.5), np.int32(70000)])
def test_numbers_without_a_range_are_refused(values: np.generic) -> None:
    with pytest.raises(DataError, match="without a known range"):
        as_rgb(Image.fromarray(np.full((2, 2), values)))


def test_a_photograph_is_turned_upright() -> None:
    image = Image.fromarray(np.zeros((2, 5, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decoded({"bytes": png(image, "JPEG", exif=exif), "path": None}).size == (2, 5)
    assert decoded({"bytes": png(image, "JPEG"), "path": None}).size == (5, 2)


@pytest.mark.parametrize("orientation", range(10))
def test_every_way_to_hold_a_camera_is_pillows(orientation: int) -> None:
    image = Image.fromarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = png(image, exif=exif)
    found = decoded({"bytes": content, "path": None})
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    assert decoded(found).size == found.size, "turned a second time"


def test_a_photograph_whose_exif_cannot_be_written_again_is_turned() -> None:
    tags = ImageFileDirectory_v2()
    tags.tagtype[0x0112], tags[0x0112] = TiffTags.SHORT, 6
    tags.tagtype[0x011A], tags._tags_v2[0x011A] = TiffTags.ASCII, "abc"  # a resolution, which is a number elsewhere
    exif = io.BytesIO()
    tags.save(exif)
    image = Image.fromarray(np.zeros((2, 5, 3), dtype=np.uint8))
    content = png(image, "JPEG", exif=b"Exif\0\0" + exif.getvalue())
    assert decoded({"bytes": content, "path": None}).size == (2, 5)


def test_what_is_broken_says_so_with_its_name() -> None:
    whole = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)))
    for content, said in [
        (b"", "a.png: an empty file"),
        (b"hello", "a.png: no image that Pillow knows"),
        (whole[: len(whole) // 2], "a.png: "),
        (b"P5 0 3 255\n", "a.png: "),
    ]:
        with pytest.raises(DataError, match=said):
            decoded({"bytes": content, "path": "folder/a.png"})
    with pytest.raises(DataError, match=r"can't be read.*nowhere"):
        decoded({"bytes": None, "path": "nowhere/a.png"})
    with pytest.raises(DataError, match="neither bytes nor a path"):
        opened({"bytes": None, "path": None})


def test_a_picture_is_given_back() -> None:
    image = Image.fromarray(RAMP)
    assert decoded(image) is image


def test_thumbnails_are_small_and_tiny_pictures_exact() -> None:
    tiny = Image.fromarray(RAMP)
    kind, _, content = thumbnail(tiny).partition(";base64,")
    assert kind == "data:image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))[..., 0], RAMP)
    large = Image.fromarray(np.full((300, 600, 4), 128, dtype=np.uint8))
    kind, _, content = thumbnail(large).partition(";base64,")
    found = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == "data:image/jpeg" and found.size == (160, 80) and large.size == (600, 300)
