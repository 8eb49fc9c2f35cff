"""What a finished model says of texts or images: the class names of its config, and its probabilities."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from potstill.checks import problem
from potstill.errors import ModelError
from potstill.knowledge import inputs_for
from potstill.labelled import Classified
from potstill.tasks import ImageClassification, TextClassification
from potstill.tasks.classification import PROBLEM_TYPES


def load_classifier(folder: Path) -> tuple[Classified, PreTrainedModel, Any]:
    """A model that was trained to classify, with the task that its config tells of, and its reader.

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
    if any("ForSemanticSegmentation" in head for head in config.architectures or ()):
        raise ModelError(
            problem(
                f"{folder} holds a model of semantic segmentation",
                follows="It answers for every pixel, and this takes models with one answer a row",
                do="Its numbers, files and pictures are made by `potstill run`; the README.md beside it shows its use",
            )
        )
    kinds = {kind: name for name, kind in PROBLEM_TYPES.items()}
    names = tuple(str(config.id2label[number]) for number in sorted(config.id2label))
    of_images = any("ForImageClassification" in head for head in config.architectures or ())
    kind = ImageClassification if of_images else TextClassification
    task = kind(kinds.get(config.problem_type or "", "single_label"), names)
    loaded = task.load(folder)
    if loaded.new_parameters:
        raise ModelError(problem(f"{folder} holds no trained classifier", given=", ".join(loaded.new_parameters[:3])))
    return task, loaded.model, task.load_reader(folder)


def predict(folder: Path, shown: Sequence[str], pairs: Sequence[str] | None = None) -> list[list[tuple[str, float]]]:
    """For each text, or each path of an image, (name, probability), most probable first; several labels: those above a
    half; regression: the value.

    Raises `ModelError` for a folder without a model, and when texts and pairs differ in number; `DataError` for a file
    that is no image.
    """
    if pairs and len(pairs) != len(shown):
        given = f"{len(shown)} texts, {len(pairs)} seconds"
        raise ModelError(problem("Every text of a pair needs its second", given=given))
    task, model, reader = load_classifier(folder)
    batch = task.batch_of(reader, model, shown, pairs)
    with torch.inference_mode():
        logits = model(**inputs_for(model, batch)).logits
    if task.problem == "regression":
        return [[(task.names[0], float(value))] for value in logits[:, 0]]
    chances = logits.softmax(-1) if task.problem == "single_label" else logits.sigmoid()
    ranked = [sorted(zip(task.names, row.tolist(), strict=True), key=lambda pair: -pair[1]) for row in chances]
    if task.problem == "single_label":
        return ranked
    return [[pair for pair in row if pair[1] > 0.5] or [("none", 1 - row[0][1])] for row in ranked]
