"""Rows of images: which column holds them, what tells them apart, and what is wrong with them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature

from potstill.checks import problem
from potstill.data.columns import find_label, first_split, guess_note, missing_column
from potstill.errors import DataError
from potstill.tasks.images import image_bytes

IMAGES = ("image", "img", "picture", "photo", "pixel_values", "jpg", "png", "file")
_SHOWN = 5
_BATCH = 1000


@dataclass(frozen=True)
class ImageColumns:
    """The columns of an image classification. Several label columns (0 or 1 each) make a multi-label problem."""

    image: str
    label: str | tuple[str, ...] | None = None

    what: ClassVar[str] = "an image"

    @property
    def inputs(self) -> tuple[str, ...]:
        """The column of the image."""
        return (self.image,)

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The label columns; none for unlabelled data."""
        return (self.label,) if isinstance(self.label, str) else self.label or ()

    def keys(self, rows: Dataset) -> list[str]:
        """What tells rows apart: a digest of each image's file."""
        return [hashlib.sha256(image_bytes(one)).hexdigest() for one in stored_images(rows, self.image)]

    def problems(self, split: str, rows: Dataset, name: str) -> list[str]:
        """A column that holds no images, and rows without one."""
        column = rows.with_format("arrow")[:0].column(name)
        if not holds_images(rows, name):
            given = str(column.type)
            return [
                problem(f"The column '{name}' of {split} holds no images", given=given, do="Set data.columns.image")
            ]
        empty = [
            number
            for number, one in enumerate(stored_images(rows, name))
            if one is None or (one.get("bytes") is None and not one.get("path"))
        ]
        if not empty:
            return []
        shown = ", ".join(map(str, empty[:_SHOWN])) + (", …" if len(empty) > _SHOWN else "")
        given = f"rows {shown} (counted from 0)"
        return [problem(f"{len(empty)} rows of {split} have no image in '{name}'", given=given, do="Remove them")]

    def standard(self, rows: Dataset, kept: Sequence[str]) -> Dataset:
        """``image``, decoded to a Pillow image when it is asked for, and the columns `kept`."""
        rows = rows.select_columns([self.image, *kept]).cast_column(self.image, ImageFeature())
        return rows if self.image == "image" else rows.rename_column(self.image, "image")


def guess_image_columns(
    dataset: Dataset | DatasetDict,
    given: Mapping[str, str | list[str] | None] | None = None,
    *,
    labelled: bool = True,
) -> tuple[ImageColumns, list[str]]:
    """The columns of image and label.

    Args:
        dataset: of a dict of splits, train (or else the first one) is looked at.
        given: what the recipe names, under ``image`` and ``label`` (a list: several label columns).
        labelled: False for transfer images, which need no label column.

    Returns:
        the columns, and a note for each that was guessed.

    Raises:
        DataError: a named column isn't there, or none could be guessed; every problem at once.
    """
    train = first_split(dataset)
    named = {role: names for role, names in (given or {}).items() if names}
    problems: list[str] = []
    notes: list[str] = []
    image = named.get("image")
    if isinstance(image, str) and image not in train.column_names:
        problems.append(missing_column("image", image, train.column_names))
    elif image is None:
        holding = [name for name in train.column_names if holds_images(train, name)]
        image = next((name for name in IMAGES if name in holding), holding[0] if len(holding) == 1 else None)
        if image is None:
            given_columns = f"columns {', '.join(train.column_names)}"
            what = "Which column holds the images can't be told"
            problems.append(problem(what, given=given_columns, do="Set data.columns.image"))
        else:
            notes.append(guess_note("image", image))
    label, said, wrong = find_label(train, named.get("label"), {str(image)}, labelled=labelled)
    if problems or wrong:
        raise DataError("\n".join([*problems, *wrong]))
    return ImageColumns(str(image), label), [*notes, *said]


def holds_images(rows: Dataset, name: str) -> bool:
    """Whether a column holds images: an Image feature, or the bytes and paths that one is stored as."""
    if isinstance(rows.features[name], ImageFeature):
        return True
    kind = rows.with_format("arrow")[:0].column(name).type
    return bool(pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"})


def stored_images(rows: Dataset, name: str) -> Any:
    """The images of a column as they are stored, one after the other: {"bytes", "path"} or None."""
    table = rows.select_columns([name]).with_format("arrow")
    for batch in table.iter(batch_size=_BATCH):
        yield from batch.column(name).to_pylist()


def digest_of_images(rows: Dataset, name: str) -> bytes:
    """A digest of the images of a column, in their order, by content."""
    found = hashlib.sha256()
    for one in stored_images(rows, name):
        found.update(hashlib.sha256(image_bytes(one)).digest())
    return found.digest()
