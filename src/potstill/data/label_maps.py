"""Label maps before training: their classes, what is wrong with them, and how often each class occurs.

- Names, palette and void ids come from the recipe, else from a ``classes.json`` in the data's folder, which is
  ``{"names": [...], "palette": [[r, g, b], ...], "void": [...]}`` or a list of names; a palette also from the maps
  themselves. Without names, there are as many classes as the highest id says, and that is said.
- Every map is read once. Maps that are broken, of another size than their image, or with ids out of range are told at
  once, with counts and the first names.
- The weight of a class by its frequency is ENet's, 1/ln(1.02 + p), p its share of the pixels of train that aren't void;
  ERFNet and TransKD take the same.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import DatasetDict

from potstill.checks import first_few, problem
from potstill.data.images import ImageColumns, image_names, mapped, reason_of, stored_images
from potstill.errors import DataError
from potstill.tasks.label_maps import MOST_IDS, UNKNOWN, Colour, MapClasses, map_ids
from potstill.tasks.pictures import decoded, opened

CLASSES = "classes.json"
ENET = 1.02
Counts = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class SeenMap:
    """What was found in one map. ids and counts: [n], how many pixels each id has. Sizes: width and height."""

    size: tuple[int, int] = (0, 0)
    image_size: tuple[int, int] = (0, 0)
    ids: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    wrong: str = ""


@dataclass(frozen=True)
class LabelMaps:
    """The classes of some label maps, how many pixels each has in each split ([V]), and what the user has to know."""

    classes: MapClasses
    pixels: Mapping[str, Counts]
    notes: tuple[str, ...]


def read_label_maps(
    dataset: DatasetDict,
    columns: ImageColumns,
    *,
    names: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    void: Sequence[int] | None = None,
    folder: str | Path | None = None,
) -> LabelMaps:
    """The classes of the maps, after every map was read and held against its image.

    Args:
        columns: with a `label_map`.
        names, palette, void: as the recipe gives them; None is not given.
        folder: of the data, where a ``classes.json`` may lie.

    Raises:
        DataError: maps are missing, broken, of another size than their image, or hold ids that are no class's;
            ``classes.json`` can't be read; every problem at once.
    """
    given, notes = _given(names, palette, void, folder)
    column = str(columns.label_map)
    seen = {
        split: list(mapped(rows, (columns.image, column), lambda image, found: _look(image, found, given.palette)))
        for split, rows in dataset.items()
    }
    called = {split: image_names(rows, column) for split, rows in dataset.items()}
    problems = [one for split, found in seen.items() for one in map_problems(split, found, called[split], given)]
    if problems:
        raise DataError("\n".join(problems))
    if not given.palette:
        given = MapClasses(given.names, given.void, _palette_of_maps(dataset, column))
    if not given.names:
        given = _numbered(given, seen)
        shown = f"ids {given.ids[0]} to {given.ids[-1]} as found in the maps"
        notes.append(f"{len(given.names)} classes, {shown}; they have no names: set data.names")
    pixels = {split: _pixels(found, given) for split, found in seen.items()}
    for split, found in seen.items():
        notes += _notes(split, found, called[split], given, pixels[split])
    return LabelMaps(given, pixels, tuple(notes))


def described_classes(folder: str | Path) -> MapClasses:
    """What the ``classes.json`` of a folder says; without one, nothing. Raises `DataError` where it can't be read."""
    return _given(None, None, None, folder)[0]


def save_classes(classes: MapClasses, folder: Path) -> None:
    """Write them as a ``classes.json``, such as `described_classes` reads."""
    told = {"names": classes.names, "palette": classes.palette, "void": classes.void}
    text = json.dumps({key: value for key, value in told.items() if value}, ensure_ascii=False)
    (folder / CLASSES).write_text(text + "\n", encoding="utf-8")


def map_problems(split: str, seen: Sequence[SeenMap], names: Sequence[str], classes: MapClasses) -> list[str]:
    """What keeps the label maps of a split from being used. Where no class has a name yet, any id may be one's."""
    pairs = list(zip(seen, names, strict=True))
    problems = []
    if wrong := [f"{name} ({one.wrong})" for one, name in pairs if one.wrong]:
        what = f"{len(wrong)} of the {len(seen)} label maps of {split} can't be used"
        problems.append(problem(what, given=first_few(wrong), do="Repair them, or remove them with their images"))
    sizes = [
        f"{name} ({_size(one.size)}, its image {_size(one.image_size)})"
        for one, name in pairs
        if not one.wrong and one.size != one.image_size
    ]
    if sizes:
        what = f"{len(sizes)} of the {len(seen)} label maps of {split} have another size than their image"
        problems.append(problem(what, given=first_few(sizes), do="Give each pixel of the image one of the map"))
    odd: Counter[int] = Counter()
    holders = []
    for one, name in pairs if classes.names else ():
        if unknown := one.ids[classes.lookup[one.ids] == UNKNOWN].tolist():
            odd.update(unknown)
            holders.append(name)
    if odd:
        ids = first_few([f"{number} (in {count} maps)" for number, count in sorted(odd.items())])
        void = f", {', '.join(map(str, classes.void))} void" if classes.void else ", none void"
        problems.append(
            problem(
                f"{len(holders)} of the {len(seen)} label maps of {split} hold ids that are no class's",
                given=f"ids {ids}; maps {first_few(holders)}; there are {len(classes.names)} classes, ids "
                f"{classes.ids[0]} to {classes.ids[-1]}{void}",
                do="Name all classes in data.names, or say with data.void which ids mean no class",
            )
        )
    return problems


def class_weights(pixels: Counts, how: Sequence[float] | Literal["frequency"] | None) -> tuple[float, ...] | None:
    """The weight of each class in the loss of labels.

    Args:
        pixels: [V], how many pixels of train each class has.
        how: the weights themselves; ``frequency``: 1/ln(1.02 + p), p the share of the pixels, between 1.4 and 50.5;
            None: none.

    Raises:
        DataError: not one weight a class, or one below 0 or not finite.

    References:
        Paszke, Chaurasia, Kim and Culurciello, ENet, 2016, https://arxiv.org/abs/1606.02147, section 5.2.
    """
    if how is None:
        return None
    if how == "frequency":
        shares = pixels / max(int(pixels.sum()), 1)
        return tuple((1.0 / np.log(ENET + shares)).tolist())
    weights = tuple(float(weight) for weight in how)
    if len(weights) != len(pixels):
        given = f"{len(weights)} weights, {len(pixels)} classes"
        raise DataError(problem("data.class_weights has one weight for each class", given=given))
    if odd := [weight for weight in weights if not (np.isfinite(weight) and weight >= 0)]:
        raise DataError(problem("A weight in data.class_weights is negative or not finite", given=odd[0]))
    return weights


def _look(image: Any, found: Any, palette: Sequence[Colour]) -> SeenMap:
    if found is None or (found.get("bytes") is None and not found.get("path")):
        return SeenMap(wrong="no map")
    try:
        ids = map_ids(found, palette)
        counts = np.bincount(ids.ravel())
        present = np.flatnonzero(counts)
        return SeenMap(ids.shape[::-1], _upright_size(image), present, counts[present])
    except DataError as error:
        return SeenMap(wrong=reason_of(error))


def _upright_size(image: Any) -> tuple[int, int]:
    """Of the image as it is decoded: the header says it, unless the photograph is turned."""
    picture = opened(image)
    return decoded(image).size if picture.getexif() else picture.size


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _given(
    names: Sequence[str] | None,
    palette: Sequence[Sequence[int]] | None,
    void: Sequence[int] | None,
    folder: str | Path | None,
) -> tuple[MapClasses, list[str]]:
    """What the recipe says, and where it is silent, ``classes.json``."""
    said: dict[str, Any] = {}
    notes = []
    path = Path(folder).expanduser() / CLASSES if folder is not None else None
    if path is not None and path.is_file():
        said = _read_classes(path)
        taken = [key for key, own in (("names", names), ("palette", palette), ("void", void)) if own is None]
        if taken := [key for key in taken if said.get(key)]:
            notes.append(f"{' and '.join(taken)} of the classes: from {path}")
    names = names if names is not None else said.get("names", ())
    palette = palette if palette is not None else said.get("palette", ())
    void = void if void is not None else said.get("void", ())
    problems = []
    if len(set(names)) < len(names):
        problems.append(problem("A class stands twice among the names", given=", ".join(names)))
    if odd := [number for number in void if not 0 <= number < MOST_IDS]:
        problems.append(problem("Void ids lie between 0 and 65535", given=odd))
    if bad := [colour for colour in palette if len(colour) != 3 or not all(0 <= one <= 255 for one in colour)]:
        problems.append(problem("A colour is three numbers between 0 and 255", given=list(bad[0])))
    if problems:
        raise DataError("\n".join(problems))
    colours = tuple((int(r), int(g), int(b)) for r, g, b in palette)
    return MapClasses(tuple(map(str, names)), tuple(sorted(set(void))), colours), notes


def _read_classes(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(problem(f"The file {path} isn't valid JSON", given=str(error))) from error
    found = {"names": found} if isinstance(found, list) else found
    if not isinstance(found, dict) or not all(_fits(key, value) for key, value in found.items()):
        do = 'Write {"names": [...], "palette": [[r, g, b], ...], "void": [...]}, each key optional'
        raise DataError(problem(f"The file {path} doesn't describe classes", do=do))
    return dict(found)


def _fits(key: str, value: Any) -> bool:
    """Whether a key of ``classes.json`` is known, and its value a list of what belongs there."""
    if key == "palette":
        return isinstance(value, list) and all(_numbers(colour) and len(colour) == 3 for colour in value)
    if key == "names":
        return isinstance(value, list) and all(isinstance(name, str) for name in value)
    return key == "void" and _numbers(value)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int for number in value)  # True is none


def _palette_of_maps(dataset: DatasetDict, column: str) -> tuple[Colour, ...]:
    """The palette of the first map, if it has one."""
    for rows in dataset.values():
        for stored in stored_images(rows, column):
            picture = opened(stored)
            flat = (picture.getpalette("RGB") if picture.mode == "P" else None) or []
            return tuple((r, g, b) for r, g, b in zip(flat[::3], flat[1::3], flat[2::3], strict=True))
    return ()


def _numbered(given: MapClasses, seen: Mapping[str, Sequence[SeenMap]]) -> MapClasses:
    """Classes without names, as many as the highest id says."""
    ids = {number for found in seen.values() for one in found for number in one.ids.tolist()} - set(given.void)
    count = sum(number not in given.void for number in range(max(ids, default=0) + 1))
    if not count:
        raise DataError(problem("The label maps show no class", given=f"void ids {given.void}", do="Set data.names"))
    unnamed = MapClasses(tuple(map(str, range(count))), given.void, given.palette)
    return MapClasses(tuple(f"class {number}" for number in unnamed.ids), given.void, given.palette)


def _pixels(seen: Sequence[SeenMap], classes: MapClasses) -> Counts:
    """How many pixels each class has, [V]."""
    total = np.zeros(len(classes.names), np.int64)
    for one in seen:
        numbers = classes.lookup[one.ids]
        np.add.at(total, numbers[numbers >= 0], one.counts[numbers >= 0])
    return total


def _notes(split: str, seen: Sequence[SeenMap], names: Sequence[str], classes: MapClasses, pixels: Counts) -> list[str]:
    notes = []
    empty = [name for one, name in zip(seen, names, strict=True) if not (classes.lookup[one.ids] >= 0).any()]
    if empty:
        notes.append(f"{split}: {len(empty)} label maps hold nothing but void: {first_few(empty)}")
    absent = [name for name, count in zip(classes.names, pixels, strict=True) if not count]
    if split == "train" and absent:
        notes.append(f"{len(absent)} of {len(classes.names)} classes have no pixel in train: {first_few(absent)}")
    return notes
