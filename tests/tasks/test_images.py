"""`ImageReader` makes the pixels that the image processor of transformers makes, and is saved as one."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import IMAGE, tiny_model
from transformers import AutoImageProcessor

from potstill.errors import ModelError
from potstill.tasks import ImageClassification
from potstill.tasks.images import ImageReader, default_reader, load_image_reader, reader_of

TASK = ImageClassification("single_label", ("dark", "light"))
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit", {"size": {"height": 40, "width": 56}}),
    "bicubic": ("vit", {"size": {"height": 24, "width": 24}, "resample": 3, **IMAGENET}),
    "shorter edge, then cut": (
        "mobilenet_v2",
        {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}},
    ),
    "cut out of what is too small": ("deit", {"do_resize": False, "crop_size": {"height": 60, "width": 48}}),
    "not scaled": ("vit", {"size": {"height": 16, "width": 16}, "do_rescale": False, "do_normalize": False}),
    "more than a reader does": ("convnext", {"size": {"shortest_edge": 48}, "crop_pct": 0.875}),
}
SIZES = ((53, 37), (37, 53), (64, 64), (23, 90), (300, 211))


def processor_of(name: str) -> Any:
    family, settings = PROCESSORS[name]
    module = importlib.import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    return next(getattr(module, kind) for kind in module.__all__)(**settings)


def picture(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def by_processor(processor: Any, image: Image.Image) -> torch.Tensor:
    return torch.as_tensor(np.asarray(processor(image)["pixel_values"][0]), dtype=torch.float32)


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_reader_does_what_the_processor_does(name: str, tmp_path: Path) -> None:
    processor = processor_of(name)
    reader = reader_of(processor)
    assert (reader.processor is not None) == (name == "more than a reader does")
    for size in SIZES:
        made = reader(picture(*size))
        assert made.dtype == torch.float32 and made.shape == (3, *reader.size)
        torch.testing.assert_close(made, by_processor(processor, picture(*size)), atol=1e-5, rtol=1e-6)
    reader.save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    torch.testing.assert_close(by_processor(again, picture(53, 37)), by_processor(processor, picture(53, 37)))
    assert load_image_reader(tmp_path).digest == reader.digest


def test_every_image_is_rgb_and_tensors_are_images() -> None:
    reader = reader_of(processor_of("vit"))
    grey = picture(50, 40).convert("L")
    assert torch.equal(reader(grey), reader(grey.convert("RGB")))
    pixels = torch.from_numpy(np.array(grey))
    assert torch.equal(reader(pixels), reader(grey))
    assert torch.equal(reader(torch.from_numpy(np.array(picture(9, 7))).permute(2, 0, 1)), reader(picture(9, 7)))


def test_a_size_that_is_asked_for_takes_the_place_of_resizing_and_cutting(tmp_path: Path) -> None:
    processor_of("shorter edge, then cut").save_pretrained(tmp_path)
    reader = load_image_reader(tmp_path, size=(20, 30))
    assert reader.size == reader.resize == (20, 30) and reader(picture(64, 64)).shape == (3, 20, 30)
    reader.save_pretrained(tmp_path / "own")
    again = AutoImageProcessor.from_pretrained(tmp_path / "own", backend="pil")
    torch.testing.assert_close(by_processor(again, picture(64, 64)), reader(picture(64, 64)), atol=1e-5, rtol=0)


def test_a_model_without_a_processor_is_read_at_the_size_of_its_config(tmp_path: Path) -> None:
    tiny_model("vit").save_pretrained(tmp_path)
    reader = load_image_reader(tmp_path)
    assert reader.size == IMAGE and reader.digest == default_reader(tmp_path).digest
    assert float(reader(Image.new("RGB", (8, 8))).min()) == -1.0
    with pytest.raises(ModelError, match="Neither an image processor nor a config"):
        load_image_reader(tmp_path / "nowhere")


def test_images_of_several_sizes_are_refused() -> None:
    processor = processor_of("shorter edge, then cut")
    processor.do_center_crop = False
    with pytest.raises(ModelError, match=r"gives images of several sizes.*data.image_size"):
        reader_of(processor)


def test_a_model_that_cannot_take_the_size_is_refused(tmp_path: Path) -> None:
    model = tiny_model("vit")
    model.save_pretrained(tmp_path)
    TASK.check_rows("student", model, default_reader(tmp_path), {})
    with pytest.raises(ModelError, match=r"The student can't take images.*3 x 40 x 40.*data.image_size"):
        TASK.check_rows("student", model, default_reader(tmp_path, size=40), {})


def test_readers_are_compared_by_what_they_make(tmp_path: Path) -> None:
    ours, theirs = reader_of(processor_of("vit")), reader_of(processor_of("bicubic"))
    assert isinstance(ours, ImageReader) and TASK.same(ours, reader_of(processor_of("vit")))
    with pytest.raises(ModelError, match=r"The student reads images otherwise than the teacher.*40 x 56.*24 x 24"):
        TASK.require_same(ours, theirs, "The student", "teacher")
