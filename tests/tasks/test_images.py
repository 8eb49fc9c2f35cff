"""`ImageReader` makes the pixels that the image processor of transformers makes, and is saved as one."""

import importlib
import json
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


TIMM = {"input_size": [3, 24, 24], "crop_pct": 0.8, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}


def timm_folder(folder: Path, **given: Any) -> Path:
    described = {"model_type": "timm_wrapper", "architecture": "resnet10t", "pretrained_cfg": TIMM | given}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize(("mode", "filter"), [("center", "bilinear"), ("squash", "bicubic")])
def test_timm_says_in_its_config_how_images_are_read(mode: str, filter: str, tmp_path: Path) -> None:
    """The shorter edge, or both, at floor(24 / 0.8) = 30, then the centre."""
    reader = load_image_reader(timm_folder(tmp_path, crop_mode=mode, interpolation=filter))
    size = (45, 30) if mode == "center" else (30, 30)
    small = picture(60, 90).resize(size, Image.Resampling[filter.upper()])
    left, top = (size[0] - 24) // 2, (size[1] - 24) // 2
    cut = np.asarray(small.crop((left, top, left + 24, top + 24)), dtype=np.float32)
    expected = (cut / 255 - np.array(TIMM["mean"])) / np.array(TIMM["std"])
    made = reader(picture(60, 90))
    np.testing.assert_allclose(made.permute(1, 2, 0), expected, atol=1e-5)
    reader.save_pretrained(tmp_path / "student")
    again = AutoImageProcessor.from_pretrained(tmp_path / "student", backend="pil")
    torch.testing.assert_close(by_processor(again, picture(60, 90)), made, atol=1e-5, rtol=0)


def test_an_image_processor_beside_a_timm_model_comes_before_its_config(tmp_path: Path) -> None:
    """A student that was trained at another size, or by its teacher's mean, is read so again, without timm."""
    folder = timm_folder(tmp_path)
    trained = load_image_reader(folder, size=(20, 30))
    trained.save_pretrained(folder)
    assert load_image_reader(folder).digest == trained.digest
    processor_of("bicubic").save_pretrained(folder)
    assert load_image_reader(folder).digest == reader_of(processor_of("bicubic")).digest


def test_what_timm_asks_and_is_not_known_is_refused(tmp_path: Path) -> None:
    for given in ({"crop_mode": "border"}, {"input_size": [3, 24, 48]}):
        with pytest.raises(ModelError, match=r"How .* cuts images isn't known"):
            load_image_reader(timm_folder(tmp_path, **given))


def test_a_processor_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    tiny_model("vit").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{not JSON")
    with pytest.raises(ModelError, match=r"The image processor of .* can't be read.*preprocessor_config.json"):
        load_image_reader(tmp_path)


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
