"""Rows of images: which column holds them, and what is found when each is decoded once, before anything is trained.

- Every image of every split is decoded, since a file that is cut off shows it only then; in threads, as Pillow leaves
  the interpreter's lock. Whatever is broken is told at once, with counts and the first names.
- What isn't RGB is converted (`tasks.pictures`), and that is said; of an animation, the first frame is taken.
- A row is known by its pixels: the hash of size and RGB values, in the column ``__pixels__``. Two files of one picture
  in different formats without loss are the same row, and stay together when splits are cut.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import xxhash
from datasets import Dataset, DatasetDict, Image, Value

from potstill.checks import first_few, problem
from potstill.data.columns import find_label, first_split, guess_note, missing_column
from potstill.errors import DataError
from potstill.tasks.base import bars_on_a_terminal
from potstill.tasks.pictures import RANGELESS, as_rgb, decoded, image_bytes, opened

IMAGES = ("image", "img", "picture", "photo", "pixel_values", "jpg", "png")
MAPS = (
    *("label_map", "annotation", "annotations", "segmentation", "semantic_segmentation", "segmentation_mask"),
    *("mask", "label", "labels", "seg", "gt"),
)
PIXELS = "__pixels__"  # a column of the data may well be called pixels
_BATCH = 64
_MODES = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with transparency, which is dropped",
    "P": "by a palette",
    "PA": "by a palette with transparency, which is dropped",
    "RGBA": "with transparency, which is dropped",
    "CMYK": "in printing colours",
}


@dataclass(frozen=True)
class ImageColumns:
    """The columns of rows of images: the image; and its label, several label columns (0 or 1 each), or label map."""

    image: str
    label: str | tuple[str, ...] | None = None
    label_map: str | None = None

    what: ClassVar[str] = "an image"

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that a model is given: the image."""
        return (self.image,)

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The label columns; none for label maps, and for unlabelled data."""
        return (self.label,) if isinstance(self.label, str) else self.label or ()

    def looked_at(self, dataset: DatasetDict) -> tuple[DatasetDict, list[str]]:
        """Every image is decoded here, once: see `decoded_once`."""
        return decoded_once(dataset, self)

    def keys(self, rows: Dataset) -> list[str]:
        """What tells rows apart: the hash of each one's pixels, which `looked_at` adds."""
        rows = rows if PIXELS in rows.column_names else _looked_at(rows, self.image)[0]
        return list(rows[PIXELS])

    def problems(self, split: str, rows: Dataset, name: str) -> list[str]:
        """A column that holds no images. What is wrong with one of them, `looked_at` has found."""
        if holds_images(rows, name):
            return []
        given = str(rows.features[name])
        return [problem(f"The column '{name}' of {split} holds no images", given=given, do="Set data.columns.image")]

    def standard(self, rows: Dataset, kept: Sequence[str]) -> Dataset:
        """``image``, decoded to a Pillow image when it is asked for, ``label_map`` and ``__pixels__`` where they are
        there, and the columns `kept`."""
        names = {self.image: "image", **({} if self.label_map is None else {self.label_map: "label_map"})}
        also = [PIXELS] if PIXELS in rows.column_names else []
        rows = rows.select_columns([*names, *also, *kept])
        return rows.rename_columns({old: new for old, new in names.items() if old != new})


@dataclass(frozen=True)
class Seen:
    """What was found in one image. `wrong` says why it can't be used."""

    mode: str = ""
    pixels: str = ""
    animated: bool = False
    wrong: str = ""


def guess_image_columns(
    dataset: Dataset | DatasetDict,
    given: Mapping[str, str | list[str] | None] | None = None,
    *,
    labelled: bool = True,
    maps: bool = False,
) -> tuple[ImageColumns, list[str]]:
    """The columns of image and label, or of image and label map.

    Args:
        dataset: of a dict of splits, train (or else the first one) is looked at.
        given: what the recipe names, under ``image``, ``label`` (a list: several label columns) and ``label_map``.
        labelled: False for rows that need neither.
        maps: whether the label is a map, one class for each pixel.

    Returns:
        the columns, and a note for each that was guessed.

    Raises:
        DataError: a named column isn't there or holds no images, or none could be guessed; every problem at once.
    """
    train = first_split(dataset)
    named = {role: name for role, name in (given or {}).items() if name}
    problems: list[str] = []
    notes: list[str] = []
    found: dict[str, str] = {}
    for role, usual in (("image", IMAGES), ("label_map", MAPS))[: 2 if labelled and maps else 1]:
        name = named.get(role)
        if isinstance(name, str):
            problems += _misnamed(train, role, name)
        else:
            name = _guess(train, usual, [*found.values()])
            notes += [guess_note(role, name)] if name else []
            problems += [] if name else [_none_found(role, train)]
        found[role] = str(name)
    pictures = {name for name in train.column_names if holds_images(train, name)}
    given_label = None if maps else named.get("label")
    label, said, wrong = find_label(train, given_label, pictures, labelled=labelled and not maps)
    if problems or wrong:
        raise DataError("\n".join([*problems, *wrong]))
    return ImageColumns(found["image"], label, found.get("label_map")), [*notes, *said]


def just_images(dataset: DatasetDict, most: int) -> Dataset:
    """A fixed draw of at most so many images of train, or else of the first split, checked, in a column ``image``.
    Raises `DataError` for none."""
    columns, _ = guess_image_columns(dataset, labelled=False)
    rows = first_split(dataset)
    drawn = rows.shuffle(seed=0).select(range(min(most, len(rows))))
    with bars_on_a_terminal():  # rows that were drawn are put in their order
        seen, _ = columns.looked_at(DatasetDict({"train": drawn}))
    return columns.standard(seen["train"], ())


def _misnamed(train: Dataset, role: str, name: str) -> list[str]:
    if name not in train.column_names:
        return [missing_column(role, name, train.column_names)]
    if holds_images(train, name):
        return []
    given = _kind(train.features[name])
    return [problem(f"The column '{name}' holds no images", given=given, do=f"Set data.columns.{role}")]


def _guess(train: Dataset, usual: Sequence[str], taken: Sequence[str]) -> str | None:
    """The column of images by its name, or the only one."""
    fitting: list[str] = [name for name in train.column_names if name not in taken and holds_images(train, name)]
    for wanted in usual:
        for name in fitting:
            if name.casefold() == wanted:
                return name
    return fitting[0] if len(fitting) == 1 else None


def _none_found(role: str, train: Dataset) -> str:
    pictures = [name for name in train.column_names if holds_images(train, name)]
    if role == "image" and not pictures:
        return problem(
            "No column holds images",
            given=", ".join(f"{name} ({_kind(kind)})" for name, kind in train.features.items()),
            do="Give a folder of images, or Parquet or a data set with a column of image files (bytes)",
        )
    return problem(
        f"Which column holds the {role} can't be told from the names",
        given=f"columns {', '.join(train.column_names)}; images in {', '.join(pictures) or 'none'}",
        do=f"Set data.columns.{role}",
    )


def _kind(feature: Any) -> str:
    return str(feature.dtype) if isinstance(feature, Value) else type(feature).__name__


def holds_images(rows: Dataset, name: str) -> bool:
    """Whether a column holds images: an Image feature, or the bytes and paths that one is stored as."""
    if isinstance(rows.features[name], Image):
        return True
    kind = rows.with_format("arrow")[:0].column(name).type
    return bool(pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"})


def with_image_columns(dataset: DatasetDict) -> DatasetDict:
    """The data with columns of image files as images: those of bytes and a path, as Parquet keeps images, and those of
    plain bytes whose first value is an image."""
    first = next(iter(dataset.values()), None)
    if first is None:
        return dataset
    for name, kind in first.features.items():
        pair = isinstance(kind, dict) and "bytes" in kind and kind.keys() <= {"bytes", "path"}
        if pair or (isinstance(kind, Value) and "binary" in kind.dtype and _starts_as_image(first, name)):
            dataset = DatasetDict(
                {
                    split: rows.cast_column(name, Image()) if name in rows.column_names else rows
                    for split, rows in dataset.items()
                }
            )
    return dataset


def _starts_as_image(rows: Dataset, name: str) -> bool:
    for batch in rows.select_columns([name]).iter(_BATCH):
        for value in batch[name]:
            if value:
                try:
                    opened({"bytes": value})
                except DataError:
                    return False
                return True
    return False


def decoded_once(dataset: DatasetDict, columns: ImageColumns) -> tuple[DatasetDict, list[str]]:
    """The data with a column ``__pixels__``, and notes on what will be converted. Each image is decoded here, once.

    Raises:
        DataError: images are missing, broken or without a known range of values; counts and first names of each split.
    """
    done, notes, problems = {}, [], []
    for split, rows in dataset.items():
        done[split], seen, names = _looked_at(rows, columns.image)
        problems += image_problems(split, seen, names)
        notes += image_notes(split, seen, names)
    if problems:
        raise DataError("\n".join(problems))
    return DatasetDict(done), notes


def _looked_at(rows: Dataset, column: str) -> tuple[Dataset, list[Seen], list[str]]:
    """The rows with their column of keys, what was seen in each image, and its name."""
    seen = list(mapped(rows, (column,), _look))
    kept = rows.remove_columns(PIXELS) if PIXELS in rows.column_names else rows
    return kept.add_column(PIXELS, [one.pixels for one in seen]), seen, image_names(rows, column)


def mapped(rows: Dataset, columns: Sequence[str], look: Callable[..., Any]) -> Iterator[Any]:
    """``look(stored, ...)`` of each row's images as they are stored, in threads, in order."""
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for batch in rows.select_columns(list(columns)).with_format("arrow").iter(_BATCH * threads):
            found = list(zip(*(batch.column(name).to_pylist() for name in columns), strict=True))
            shares = [found[start : start + _BATCH] for start in range(0, len(found), _BATCH)]
            for share in pool.map(lambda part: [look(*images) for images in part], shares):
                yield from share


def stored_images(rows: Dataset, column: str) -> Iterator[Any]:
    """The images of a column as they are stored, one after the other: {"bytes", "path"} or None."""
    for batch in rows.select_columns([column]).with_format("arrow").iter(_BATCH):
        yield from batch.column(column).to_pylist()


def digest_of_images(rows: Dataset, column: str) -> bytes:
    """A digest of the images of a column, in their order, by content; a row without one counts as a file of nothing."""
    found = hashlib.sha256()
    for one in stored_images(rows, column):
        found.update(hashlib.sha256(b"" if one is None else image_bytes(one)).digest())
    return found.digest()


def image_names(rows: Dataset, column: str) -> list[str]:
    """What to call each image: the end of its path, or its row (counted from 0)."""
    batches = rows.select_columns([column]).with_format("arrow").iter(_BATCH)
    chunks = (chunk for batch in batches for chunk in batch.column(column).chunks)  # files as one array may be too many
    paths = (path for chunk in chunks for path in chunk.field("path").to_pylist())
    return ["/".join(Path(path).parts[-2:]) if path else f"row {row}" for row, path in enumerate(paths)]


def _look(stored: Any) -> Seen:
    if stored is None or (stored.get("bytes") is None and not stored.get("path")):
        return Seen(wrong="no image")
    try:
        picture = decoded(stored)
        if picture.mode in RANGELESS:
            return Seen(picture.mode, wrong=f"numbers without a known range, mode {picture.mode}")
        return Seen(picture.mode, pixel_key(picture), getattr(picture, "is_animated", False))
    except DataError as error:
        return Seen(wrong=reason_of(error))


def reason_of(error: DataError) -> str:
    """What `tasks.pictures` found wrong with an image, without its name, which stands beside it here."""
    given = str(error).partition("Got: ")[2] or str(error)
    return given.partition(". ")[0].partition(": ")[2] or given.rstrip(".")


def pixel_key(picture: Any) -> str:
    """The hash of a picture's size and RGB values, 32 hexadecimal digits."""
    plain = as_rgb(picture)
    state = xxhash.xxh3_128(repr(plain.size).encode())
    state.update(plain.tobytes())
    return state.hexdigest()


def image_problems(split: str, seen: Sequence[Seen], names: Sequence[str]) -> list[str]:
    """What keeps the images of a split from being used, one message for all of them."""
    wrong = [f"{name} ({one.wrong})" for one, name in zip(seen, names, strict=True) if one.wrong]
    if not wrong:
        return []
    what = f"{len(wrong)} of the {len(seen)} images of {split} can't be used"
    return [problem(what, given=first_few(wrong), do="Repair them, or remove their rows")]


def image_notes(split: str, seen: Sequence[Seen], names: Sequence[str]) -> list[str]:
    """What is converted in the images of a split, and which are animated."""
    modes: dict[str, list[str]] = {}
    for one, name in zip(seen, names, strict=True):
        if not one.wrong and one.mode != "RGB":
            modes.setdefault(one.mode, []).append(name)
    notes = []
    if modes:
        found = "; ".join(
            f"{len(files)} {_MODES.get(mode, '16 bit, scaled to 8' if mode.startswith('I;16') else 'otherwise')} "
            f"(mode {mode}), first {files[0]}"
            for mode, files in modes.items()
        )
        count = sum(map(len, modes.values()))
        notes.append(f"{split}: {count} of the {len(seen)} images are converted to RGB: {found}")
    if moving := [name for one, name in zip(seen, names, strict=True) if one.animated]:
        notes.append(
            f"{split}: {len(moving)} images have several frames, of which the first is taken: {first_few(moving)}"
        )
    return notes
