"""What a finished model says of texts or images: the class names of its config, and its probabilities; of a model of
segmentation, which share of the image each class has, and the map itself."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from potstill.checks import first_few, problem
from potstill.data.label_maps import described_classes
from potstill.errors import DataError, ModelError
from potstill.evaluation.segmentation import predicted_map
from potstill.knowledge import inputs_for
from potstill.labelled import Classified, other_classes, same_classes
from potstill.tasks import ImageClassification, MapClasses, SemanticSegmentation, TextClassification
from potstill.tasks.classification import PROBLEM_TYPES
from potstill.tasks.pictures import decoded
from potstill.tasks.semantic_segmentation import require_whole

AT_ONCE = 32  # rows of a batch
Said = list[tuple[str, float]]
"""Names and what is said of each, the most probable or the largest first."""


def load_classifier(folder: Path) -> tuple[Classified | SemanticSegmentation, PreTrainedModel, Any]:
    """A model that was trained to classify rows or pixels, with the task that its config tells of, and its reader.

    What the ids of label maps mean is read from a ``classes.json`` beside the model, as a run leaves it; without one,
    ids are the numbers of the classes, and none is void.

    A hub id may stand in the folder's place. Raises `ModelError` for a folder without a model, or with a head that was
    never trained, and for a hub id that can't be reached.
    """
    name = str(folder)
    if not (folder / "config.json").is_file() and (folder.exists() or name.count("/") != 1):
        raise ModelError(
            problem(f"{folder} holds no model", given="no config.json", do="Name a folder such as runs/reviews/student")
        )
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        given = str(error).strip().splitlines()[0]
        do = "Name a folder such as runs/reviews/student, or a hub id that this machine can reach"
        raise ModelError(problem(f"'{name}' is neither a model's folder nor a hub id", given=given, do=do)) from error
    names = tuple(str(config.id2label[number]) for number in sorted(config.id2label))
    heads = " ".join(config.architectures or ())
    task: Classified | SemanticSegmentation
    if "ForSemanticSegmentation" in heads:
        task = SemanticSegmentation(_map_classes(folder, names))
    else:
        kinds = {kind: name for name, kind in PROBLEM_TYPES.items()}
        kind = ImageClassification if "ForImageClassification" in heads else TextClassification
        task = kind(kinds.get(config.problem_type or "", "single_label"), names)
    loaded = task.load(folder)
    if loaded.new_parameters:
        raise ModelError(problem(f"{folder} holds no trained classifier", given=", ".join(loaded.new_parameters[:3])))
    return task, loaded.model, task.load_reader(folder)


def _map_classes(folder: Path, names: Sequence[str]) -> MapClasses:
    """What the ids of label maps mean for a model of segmentation."""
    described = described_classes(folder)
    if not described.names:
        return MapClasses(tuple(names))
    if not same_classes(names, described.names, ordered=True):
        given = f"config {list(names)}, classes.json {list(described.names)}"
        do = "Remove the classes.json, or write the names of the config into it, in its order"
        raise other_classes(f"The classes.json in {folder} isn't this model's", given, do)
    return described


def predict(
    folder: Path, shown: Sequence[str], pairs: Sequence[str] | None = None, maps: Path | None = None
) -> list[Said]:
    """For each text, or each path of an image, (name, probability), most probable first; several labels: those above a
    half; regression: the value; segmentation: the share of pixels, the largest first.

    Args:
        folder: of the model.
        shown: texts, or paths of images.
        pairs: the second text of each.
        maps: a folder for what a model of segmentation sees: for each image ``<name>.png``, a label map of its size
            in the colours of the classes.

    Raises `ModelError` for a folder without a model, and when texts and pairs differ in number; `DataError` for a file
    that is no image, for `maps` of anything but a segmentation, for two images whose maps would have one name, and for
    a map that would take the place of an image.
    """
    if pairs and len(pairs) != len(shown):
        given = f"{len(shown)} texts, {len(pairs)} seconds"
        raise ModelError(problem("Every text of a pair needs its second", given=given))
    task, model, reader = load_classifier(folder)
    if isinstance(task, SemanticSegmentation):
        return list(_shares(task, model, reader, shown, pairs, maps))
    if maps is not None:
        do = "Leave out --maps"
        raise DataError(problem("Only models of semantic segmentation give maps", given=type(model).__name__, do=do))
    found: list[Said] = []
    for start in range(0, len(shown), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        batch = task.batch_of(reader, model, shown[part], pairs[part] if pairs else None)
        with torch.inference_mode():
            found += _said(task, model(**inputs_for(model, batch)).logits)
    return found


def _said(task: Classified, logits: torch.Tensor) -> list[Said]:
    """What the logits [B,V] of a classifier say of each row."""
    if task.problem == "regression":
        return [[(task.names[0], float(value))] for value in logits[:, 0]]
    chances = logits.softmax(-1) if task.problem == "single_label" else logits.sigmoid()
    ranked = [sorted(zip(task.names, row.tolist(), strict=True), key=lambda pair: -pair[1]) for row in chances]
    if task.problem == "single_label":
        return ranked
    return [[pair for pair in row if pair[1] > 0.5] or [("none", 1 - row[0][1])] for row in ranked]


def _shares(
    task: SemanticSegmentation,
    model: PreTrainedModel,
    reader: Any,
    files: Sequence[str],
    pairs: Sequence[str] | None,
    maps: Path | None,
) -> Iterator[Said]:
    """The share of the pixels of each image that each class has, those without a pixel left out; maps are written."""
    require_whole(reader)
    names = [f"{Path(file).stem}.png" for file in files]
    if maps is not None:
        _require_room(files, [maps / name for name in names])
        maps.mkdir(parents=True, exist_ok=True)
    for file, name in zip(files, names, strict=True):
        picture = decoded({"path": str(file)})
        batch = task.batch_of(reader, model, [picture], pairs)
        with torch.inference_mode():
            numbers = predicted_map(model(**inputs_for(model, batch)).logits[0], (picture.height, picture.width))
        if maps is not None:
            task.classes.drawn(numbers).save(maps / name)
        pixels = [(called, float((numbers == number).mean())) for number, called in enumerate(task.names)]
        yield sorted((pair for pair in pixels if pair[1]), key=lambda pair: -pair[1])


def _require_room(files: Sequence[str], maps: Sequence[Path]) -> None:
    """Refuse two maps of one name, and a map that would be written over one of the images, by whatever name."""
    if twice := sorted(file.name for file, count in Counter(maps).items() if count > 1):
        do = "Name images of one folder at a time, or one --maps folder for each"
        raise DataError(problem("Several images would have a map of one name", given=first_few(twice), do=do))
    images = {_identity(Path(file)) for file in files} - {None}
    if taken := [str(file) for file in maps if _identity(file) in images]:
        do = "Name another --maps folder"
        raise DataError(problem("A map would take the place of an image", given=first_few(taken), do=do))


def _identity(file: Path) -> tuple[int, int] | None:
    """What a file and all links to it have in common; None where there is no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
