"""How images are read: what a model's image processor does to each of them, in a form that is fast and can be compared.

Decisions:
- A reader does what the processor's configuration says: resize (to one size, or by the shorter edge), cut out the
  centre, scale, subtract the mean, divide by the standard deviation. Resizing is Pillow's, as in transformers' own
  back end without torchvision; the rest is one multiplication and one addition.
- The processors of some families do more. Each reader is therefore tried on a made-up image when it is loaded: where
  its result isn't the processor's, the processor itself is called for each image, which is slower and exact.
- Every image is RGB first: grey ones are repeated, transparency is dropped, palettes are looked up.
- Images of a batch have one size, so a reader has one. A processor that keeps each image's shape has none, and needs
  `data.image_size`.
- A model without a processor, such as one made from a config, is read at the size that its config names, or else at
  224 x 224; resized bilinearly, scaled to -1 … 1.
- Rows keep their images as they are stored (``{"bytes", "path"}``) and are read when they become a batch: decoded
  pixels would take up to a hundred times the room, and augmentation stands between storing and reading.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel

from potstill.augment.image import Augmentation
from potstill.checks import problem
from potstill.errors import DataError, ModelError
from potstill.knowledge import Knowledge, inputs_for
from potstill.tasks.base import Batch, Rows, Sample, Words, bars_on_a_terminal, quiet_transformers
from potstill.tasks.pictures import as_rgb, decoded, thumbnail
from potstill.tasks.timm_images import timm_processor

Size: TypeAlias = tuple[int, int]
"""Height and width."""

DEFAULT_SIZE = 224
PATCH = 16 * 16
"""Pixels that count as one token where work is estimated: what a ViT makes one of."""

STORED = "preprocessor_config.json"
SAME = 1e-5  # what float32 leaves between the order of two products


@dataclass(frozen=True)
class ImageReader:
    """A picture -> float32 [3,H,W], as a model takes it.

    Args:
        size: height and width of what comes out.
        resize: to which size, or to which length of the shorter edge, the image is brought first; None leaves it.
        resample: Pillow's filter, by number: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic.
        scale: what pixels are multiplied by.
        mean, std: of each channel, after scaling.
        stored: the configuration of the processor, as it is saved beside a model.
        processor: called in place of all this, where a family's processor does more.
    """

    size: Size
    resize: Size | int | None
    resample: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stored: Mapping[str, Any]
    processor: Any = None

    model_input_names: ClassVar[list[str]] = ["pixel_values"]

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """[3,H,W] float32 of a Pillow image, or of a uint8 tensor [3,h,w], [1,h,w] or [h,w]."""
        picture = as_rgb(image)
        if self.processor is not None:
            return torch.as_tensor(self.processor(picture, return_tensors="pt")["pixel_values"][0])
        if self.resize is not None:
            picture = _resized(picture, self.resize, self.resample)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        pixels = _centre(pixels, self.size)
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (self.mean, self.std))
        return pixels * (self.scale / std) - mean / std

    @property
    def digest(self) -> str:
        """A digest of all that decides what comes out."""
        what = (self.size, self.resize, self.resample, self.scale, self.mean, self.std)
        more = () if self.processor is None else (json.dumps(dict(self.stored), sort_keys=True, default=str),)
        return hashlib.sha256(repr((*what, *more)).encode()).hexdigest()

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write what `AutoImageProcessor.from_pretrained` makes the same processor from."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STORED).write_text(json.dumps(dict(self.stored), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_image_reader(
    path: str | Path, *, size: int | Size | None = None, trust_remote_code: bool = False
) -> ImageReader:
    """The reader of a model: of its processor, or, where it has none, of its config.

    Args:
        path: a model's folder or hub id.
        size: resize every image to exactly this, instead of what the processor does.

    Raises:
        ModelError: the processor is there and can't be read, neither it nor a config is there, or the processor gives
            images of several sizes and `size` isn't given.
    """
    stored = (Path(path) / STORED).is_file()
    described = None if stored else timm_processor(path)
    if described is not None:
        return reader_of(described, size=size)
    try:
        with quiet_transformers():
            load: Any = AutoImageProcessor.from_pretrained
            named = {"image_processor_filename": STORED} if stored else {}  # of a timm model's it would read the config
            processor = load(path, backend="pil", trust_remote_code=trust_remote_code, **named)
    except (OSError, ValueError, ImportError) as error:
        if stored:
            raise ModelError(
                problem(
                    f"The image processor of '{path}' can't be read",
                    given=f"{STORED}: {str(error).strip().splitlines()[0]}",
                    follows="Images would be read otherwise than the model was trained with",
                    do="Repair the file, or remove it to have images read at the size of the config, scaled to -1 … 1",
                )
            ) from error
        return default_reader(path, size=size, trust_remote_code=trust_remote_code)
    return reader_of(processor, size=size)


def default_reader(path: str | Path, *, size: int | Size | None = None, trust_remote_code: bool = False) -> ImageReader:
    """What reads images for a model without a processor: bilinear, -1 … 1, at the size of its config or 224 x 224."""
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            problem(
                f"Neither an image processor nor a config can be read from '{path}'",
                given=str(error).strip().splitlines()[0],
                do="Give a model's folder, as save_pretrained writes it, or a hub id within reach",
            )
        ) from error
    height, width = size_of(size if size is not None else getattr(config, "image_size", None) or DEFAULT_SIZE)
    stored = {
        "image_processor_type": "ViTImageProcessor",
        **{"do_resize": True, "do_rescale": True, "do_normalize": True},
        "size": {"height": height, "width": width},
        "resample": int(Image.Resampling.BILINEAR),
        "rescale_factor": 1 / 255,
        **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    }
    return ImageReader(
        (height, width), (height, width), int(Image.Resampling.BILINEAR), 1 / 255, (0.5,) * 3, (0.5,) * 3, stored
    )


def reader_of(processor: Any, *, size: int | Size | None = None) -> ImageReader:
    """The reader that does what an image processor of transformers does. Raises `ModelError` as `load_image_reader`."""
    if size is not None:
        height, width = size_of(size)
        processor.do_resize, processor.do_center_crop = True, False
        processor.size = {"height": height, "width": width}
    tried = [
        (picture, torch.as_tensor(processor(picture, return_tensors="pt")["pixel_values"][0])) for picture in _noise()
    ]
    sizes = {(int(theirs.shape[-2]), int(theirs.shape[-1])) for _, theirs in tried}
    if len(sizes) > 1:
        raise ModelError(
            problem(
                f"{type(processor).__name__} gives images of several sizes",
                given=", ".join(f"{height} x {width}" for height, width in sorted(sizes)),
                follows="They don't fit into one batch",
                do="Set data.image_size, such as [224, 224]",
            )
        )
    made = _as_configured(processor, sizes.pop())
    same = all(_close(made(picture), theirs) for picture, theirs in tried)
    return made if same else replace(made, processor=processor)


def _as_configured(processor: Any, size: Size) -> ImageReader:
    """The reader that does what a processor's configuration says, as far as a reader can."""
    given = processor.to_dict()
    rescaled, normalised = given.get("do_rescale", False), given.get("do_normalize", False)
    resample = given.get("resample")
    return ImageReader(
        size=size,
        resize=_edge_or_size(given.get("size")) if given.get("do_resize") else None,
        resample=int(Image.Resampling.BILINEAR if resample is None else resample),
        scale=float(given.get("rescale_factor", 1 / 255)) if rescaled else 1.0,
        mean=_channels(given.get("image_mean"), 0.0) if normalised else (0.0,) * 3,
        std=_channels(given.get("image_std"), 1.0) if normalised else (1.0,) * 3,
        stored=json.loads(processor.to_json_string()),
    )


def _noise() -> Iterator[Image.Image]:
    """An image that is larger than most are read at, and one that is smaller."""
    for height, width in ((301, 407), (23, 17)):
        yield Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and bool(
        (ours - theirs).abs().max() <= SAME * max(1.0, float(theirs.abs().max()))
    )


def size_of(size: Any) -> Size:
    """Height and width of a config's size: one number for a square, or two."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def _edge_or_size(size: Any) -> Size | int | None:
    """Height and width, or the length of the shorter edge; None for any other way to give a size."""
    if size is None:
        return None
    given = {name: value for name, value in dict(size).items() if value is not None}
    if given.keys() >= {"height", "width"}:
        return int(given["height"]), int(given["width"])
    return int(given["shortest_edge"]) if given.keys() == {"shortest_edge"} else None


def _channels(values: Any, default: float) -> tuple[float, ...]:
    """One value a channel."""
    if values is None:
        return (default,) * 3
    listed = [float(value) for value in (values if isinstance(values, list | tuple) else [values])]
    return tuple(listed * 3 if len(listed) == 1 else listed)


def _resized(picture: Image.Image, to: Size | int, resample: int) -> Image.Image:
    if isinstance(to, int):
        short, long = sorted(picture.size)
        edges = (to, int(to * long / short))
        width, height = edges if picture.width <= picture.height else edges[::-1]
    else:
        height, width = to
    return picture if picture.size == (width, height) else picture.resize((width, height), resample)


def _centre(pixels: Tensor, size: Size) -> Tensor:
    """The centre of [3,h,w], with black around it where it is smaller."""
    missing = [max(0, want - have) for want, have in zip(size, pixels.shape[1:], strict=True)]
    if any(missing):
        (top, bottom), (left, right) = ((-(-m // 2), m // 2) for m in missing)
        pixels = torch.nn.functional.pad(pixels, (left, right, top, bottom))
    top, left = ((have - want) // 2 for want, have in zip(size, pixels.shape[1:], strict=True))
    return pixels[:, top : top + size[0], left : left + size[1]]


# ---- images of rows


class ReadsImages:
    """The half of a `Task` that reads images with an `ImageReader`."""

    augmentation: Augmentation | None = None
    columns = ("image",)
    words = Words(
        row="image",
        rows="images",
        files="weights, config and image processor",
        batched="decoded and resized before",
        sized="at the size that the model reads images at",
        long="at that size",
    )
    reader_columns = ()  # each image is stored once, and read when it is batched

    def load_reader(
        self, path: str | Path, *, trust_remote_code: bool = False, size: int | Size | None = None
    ) -> ImageReader:
        """The reader of a model, at another size where one is given."""
        return load_image_reader(path, size=size, trust_remote_code=trust_remote_code)

    def same(self, reader: ImageReader, other: ImageReader) -> bool:
        """Whether two readers make the same pixels of every image."""
        return reader.digest == other.digest

    def require_same(self, reader: ImageReader, other: ImageReader, whose: str, kind: str) -> None:
        """Raise `ModelError` where two readers make other pixels of the same image."""
        if not self.same(reader, other):
            raise ModelError(
                problem(
                    f"{whose} reads images otherwise than the {kind}",
                    given=f"{reader_text(reader)}; the {kind} {reader_text(other)}",
                    follows="It would be given pixels that it was not trained on",
                    do=f"Use models with the {kind}'s image processor; only the student's may differ from all the "
                    "teachers'",
                )
            )

    def shown(self, rows: Dataset) -> list[Any]:
        """The name of each image's file, or its number in the split where it has none."""
        stored = rows.cast_column("image", ImageFeature(decode=False))["image"]
        return [Path(one["path"]).name if one["path"] else f"image {number}" for number, one in enumerate(stored)]

    def pictured(self, row: Mapping[str, Any]) -> str:
        """The image, made small."""
        return thumbnail(decoded(row["image"]))

    def limit(self, reader: ImageReader, asked: int, model: PreTrainedModel | None = None) -> None:
        """Images aren't cut to a number of tokens."""

    def encode(self, rows: Dataset, reader: ImageReader, *, max_length: int = 0) -> Dataset:
        """Rows with their images as they are stored, and a ``length`` that stands for the work that each is."""
        stored = rows.cast_column("image", ImageFeature(decode=False))
        if "length" in stored.column_names:
            stored = stored.remove_columns("length")
        with bars_on_a_terminal():  # rows that were drawn are put in their order for it
            return stored.add_column("length", np.full(len(rows), patches(reader), dtype=np.int64))

    def batch_of(
        self,
        reader: ImageReader,
        model: PreTrainedModel,
        files: Sequence[str | Image.Image],
        pairs: Sequence[str] | None = None,
    ) -> Mapping[str, Any]:
        """Files of images, or decoded ones, as one batch. Raises `DataError` for one that can't be read, and where
        there are pairs."""
        if pairs:
            raise DataError(problem("Images have no second text", given=f"{len(pairs)} texts", do="Leave out --pair"))
        stored = [file if isinstance(file, Image.Image) else {"path": str(file)} for file in files]
        return {"pixel_values": torch.stack([reader(decoded(one)) for one in stored])}

    def sample(self, reader: ImageReader, rows: Rows, count: int, *, long: bool = False) -> Sample:
        """All images have one size as they are read."""
        shape = (count, 3, *reader.size)
        return Sample({"pixel_values": shape}, " x ".join(map(str, shape)))

    def made_up(self, reader: ImageReader, model: PreTrainedModel) -> list[Batch]:
        """Batches of one, four and seven images of noise."""
        random = torch.Generator().manual_seed(0)
        return [{"pixel_values": torch.randn(rows, 3, *reader.size, generator=random)} for rows in (1, 4, 7)]

    def digest(self, reader: ImageReader) -> str:
        """The reader's own, and how training images are changed."""
        changed = "" if self.augmentation is None else self.augmentation.digest
        return reader.digest if not changed else hashlib.sha256((reader.digest + changed).encode()).hexdigest()

    def check_rows(self, name: str, model: PreTrainedModel, reader: ImageReader, rows: Mapping[str, Rows]) -> None:
        """Refuse images of a size, or with channels, that a model can't take: tried on one."""
        height, width = reader.size
        blank = torch.zeros(1, 3, height, width, device=model.device, dtype=model.dtype)
        was_training = model.training
        model.eval()  # type: ignore[no-untyped-call]
        try:
            with torch.no_grad():
                model(**inputs_for(model, {"pixel_values": blank}))
        except (ValueError, RuntimeError) as error:
            raise ModelError(
                problem(
                    f"The {name} can't take images as they are read for it",
                    given=f"3 x {height} x {width}; it says: {str(error).strip().splitlines()[0]}",
                    do="Set data.image_size to the size of its config, or use a model that takes this size",
                )
            ) from error
        finally:
            model.train(was_training)

    def two_readers(self, reader: ImageReader, teachers: ImageReader, terms: Sequence[str]) -> str:
        """How each of them reads the same images."""
        return f"images: the student reads them at {reader_text(reader)}; the teacher at {reader_text(teachers)}"

    def compared(self, known: Knowledge, batch: Mapping[str, Tensor]) -> Knowledge:
        """What was observed, as it is: outputs and labels have the same positions."""
        return known

    def unaligned(self, rows: Rows, reader: ImageReader, teachers: ImageReader) -> None:
        """Every place of an image shows the same to both readers, but for what one of them cuts off at the edges."""


def patches(reader: ImageReader) -> int:
    """The work that an image is, in patches of 16 x 16 pixels."""
    height, width = reader.size
    return max(1, height * width // PATCH)


def reader_text(reader: ImageReader) -> str:
    """``224 x 224, mean 0.5 0.5 0.5, std 0.5 0.5 0.5``."""
    mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (reader.mean, reader.std))
    first = "" if reader.resize in (None, reader.size) else f", resized to {reader.resize} before"
    return f"{reader.size[0]} x {reader.size[1]}{first}, mean {mean}, std {std}"
