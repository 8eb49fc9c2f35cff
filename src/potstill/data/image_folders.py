"""Folders of images -> rows: one folder a class, or images beside label maps of the same name.

Classes, as datasets' ``imagefolder`` has them; without the first level, all is train::

    train/cat/1.jpg   train/dog/2.png   validation/cat/3.jpg

Label maps, paired by name; without the first level, all is train::

    train/images/a.jpg   train/labels/a.png   validation/images/b.jpg   validation/labels/b.png

- Classes are the folders of all splits, sorted by name. Folders inside a class belong to it.
- Files that are no images by their names are left out, and that is said. Hidden files are passed over. Links are
  followed, but for those that lead back to a folder above.
- Where some folders are called after splits, others beside them that hold images are left out, and that is said; an
  error where the splits have neither classes nor label maps, since then all of these folders may be classes.
- An image without a map, a map without an image, and two files of one name are errors, with counts and names.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from potstill.checks import first_few, problem
from potstill.errors import DataError

SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".pbm", ".jp2"),
    *(".avif",),
)
MAP_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".pgm")
IMAGES, LABELS = "images", "labels"


def read_image_folder(folder: Path, splits: Collection[str]) -> tuple[DatasetDict, list[str]] | None:
    """The rows of a folder of images, and notes on files that were left out; None if it holds no images.

    Args:
        splits: the names, in lower case, that mean a split where a folder is called so.

    Returns:
        splits by the names of their folders, with ``image`` and ``label`` (none where no folder names classes), or
        ``image`` and ``label_map``.

    Raises:
        DataError: images and label maps don't pair, or some splits have classes and others label maps.
    """
    inside = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    parts = {name: path for name, path in inside.items() if name.lower() in splits} or {"train": folder}
    paired = [name for name, part in parts.items() if (part / IMAGES).is_dir() and (part / LABELS).is_dir()]
    if paired and len(paired) < len(parts):
        raise DataError(
            problem(
                f"Some splits in {folder} have {IMAGES} beside {LABELS}, and others haven't",
                given=f"with: {', '.join(paired)}; without: {', '.join(sorted(set(parts) - set(paired)))}",
                do="Give every split both folders, or remove a split",
            )
        )
    notes: list[str] = []
    made = _with_maps(parts, notes) if paired else _with_classes(parts, notes)
    if made is not None and parts.keys() <= inside.keys():
        notes += _beside_splits(folder, made, [path for name, path in inside.items() if name not in parts])
    return None if made is None else (made, notes)


def _beside_splits(folder: Path, made: DatasetDict, others: Sequence[Path]) -> list[str]:
    """A note on folders beside the splits that hold images. Raises `DataError` where all of them may be classes."""
    readable = [path for path in others if os.access(path, os.R_OK | os.X_OK)]
    names = [path.name for path in readable if any(file.suffix.lower() in SUFFIXES for file in _below(path))]
    if names and all(list(rows.features) == ["image"] for rows in made.values()):
        raise DataError(
            problem(
                f"In {folder} some folders of images are called after a split and lie beside others",
                given=f"splits {', '.join(made)}; others {first_few(names)}",
                follows="The others would be left out, and no image would have a class",
                do="Put all of them into a folder train if they are classes, or move the others away",
            )
        )
    return [f"{name}: left out, a folder of images beside the splits that isn't called after one" for name in names]


def _below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files below a folder, through links too, unless they lead to one of the folders above. No hidden ones."""
    here = folder.resolve()
    if here in above:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        do = "Give yourself the right to read it, or move it away"
        raise DataError(problem(f"The folder {folder} can't be read", given=error.strerror, do=do)) from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _below(folder / entry.name, above | {here})
        elif entry.is_file():
            yield folder / entry.name


def _files(folder: Path, suffixes: Sequence[str], split: str, notes: list[str]) -> list[Path]:
    """The images below a folder, sorted; others are noted."""
    found = sorted(_below(folder))
    images = [path for path in found if path.suffix.lower() in suffixes]
    if images and len(images) < len(found):
        others = [path.relative_to(folder).as_posix() for path in found if path.suffix.lower() not in suffixes]
        notes.append(f"{split}: {len(others)} files are left out, no images by their names: {first_few(others)}")
    return images


def _with_classes(parts: Mapping[str, Path], notes: list[str]) -> DatasetDict | None:
    """Rows of images, with the class that the first folder below the split names."""
    listed = {split: _files(part, SUFFIXES, split, notes) for split, part in parts.items()}
    if not any(listed.values()):
        return None
    named = {
        split: [path.relative_to(parts[split]).parts[0] if path.parent != parts[split] else None for path in files]
        for split, files in listed.items()
    }
    classes = sorted({name for names in named.values() for name in names if name is not None})
    features = Features({"image": Image()} | ({"label": ClassLabel(names=classes)} if classes else {}))
    made = {}
    for split, files in listed.items():
        columns: dict[str, list[Any]] = {"image": [str(path.absolute()) for path in files]}
        if classes:
            columns["label"] = [None if name is None else classes.index(name) for name in named[split]]
        made[split] = Dataset.from_dict(columns, features=features)
    return DatasetDict(made)


def _with_maps(parts: Mapping[str, Path], notes: list[str]) -> DatasetDict:
    """Rows of images and their label maps."""
    features = Features({"image": Image(), "label_map": Image()})
    made: dict[str, Dataset] = {}
    problems: list[str] = []
    for split, part in parts.items():
        sides = {
            name: _by_stem(part / name, _files(part / name, suffixes, split, notes), problems)
            for name, suffixes in ((IMAGES, SUFFIXES), (LABELS, MAP_SUFFIXES))
        }
        images, maps = sides[IMAGES], sides[LABELS]
        for what, alone in (
            ("images of {} have no label map", sorted(set(images) - set(maps))),
            ("label maps of {} have no image", sorted(set(maps) - set(images))),
        ):
            if alone:
                do = f"Give {IMAGES}/NAME.jpg and {LABELS}/NAME.png the same name, or remove the odd ones"
                problems.append(problem(f"{len(alone)} {what.format(split)}", given=first_few(alone), do=do))
        both = sorted(set(images) & set(maps))
        columns = {"image": [str(images[stem]) for stem in both], "label_map": [str(maps[stem]) for stem in both]}
        made[split] = Dataset.from_dict(columns, features=features)
    if problems:
        raise DataError("\n".join(problems))
    return DatasetDict(made)


def _by_stem(folder: Path, files: Sequence[Path], problems: list[str]) -> dict[str, Path]:
    """Path below the folder without its ending -> file."""
    found: dict[str, list[Path]] = {}
    for path in files:
        found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path.absolute())
    twice = [" and ".join(path.name for path in paths) for paths in found.values() if len(paths) > 1]
    if twice:
        what = f"{len(twice)} names in {folder} stand for two files"
        problems.append(problem(what, given=first_few(twice), do="Keep one of each"))
    return {stem: paths[0] for stem, paths in found.items()}
