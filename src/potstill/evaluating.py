"""`potstill evaluate`: a finished model on any data, beside a teacher if one is given."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill.checks import problem
from potstill.data import load, prepare
from potstill.data.label_maps import described_classes, read_label_maps
from potstill.data.rows import standard_columns, with_labels
from potstill.errors import DataError, ModelError
from potstill.evaluation import fidelity
from potstill.evaluation.outputs import OUTPUTS
from potstill.evaluation.segmentation import pixel_fidelity
from potstill.evaluation.significance import bootstrap, interval
from potstill.labelled import GUESSES, other_classes, same_classes
from potstill.metrics import METRICS, keys, primary
from potstill.prediction import load_classifier
from potstill.progress import Progress
from potstill.tasks import MapClasses, SemanticSegmentation
from potstill.tasks.semantic_segmentation import SegmentationCollator
from potstill.workbench import label_array, model_path


def evaluate_folder(
    model: Path,
    data: str,
    split: str,
    teacher: Path | None,
    columns: Mapping[str, str | None],
    max_length: int,
    progress: Progress,
    void: Sequence[int] | None = None,
) -> list[tuple[str, str]]:
    """Metrics with 95 % intervals, calibration and, beside a teacher, fidelity: (name, value as text).

    Args:
        model, teacher: folders, or hub ids.
        data, split: a packaged sample, a hub id, a folder or a file, and which part of it.
        columns: what the data's columns are, by role, where they can't be guessed.
        max_length: texts are cut to so many tokens.
        progress: shown what is done.
        void: ids of label maps that mean no class; None: as the data says, or else the model's ``classes.json``.

    Raises `DataError` where the split isn't there or its labels aren't the model's, `ModelError` for models that don't
    fit.
    """
    task, loaded, reader = load_classifier(model)
    task, rows = _labelled(task, data, split, columns, void, progress)

    def encoded(which: Any, its_reader: Any) -> Any:
        limit = task.limit(its_reader, max_length, which)
        return task.encode(rows, its_reader, max_length=max_length if limit is None else limit)

    def outputs(which: Any, its_reader: Any, own: Any, title: str) -> Any:
        with progress.stage(title) as step:
            return OUTPUTS[task.problem](which, own, task.collator(its_reader), progress=step)

    own = encoded(loaded, reader)
    truth = label_array(own, task.problem)
    ours = outputs(loaded, reader, own, "model")
    lines = [("rows", f"{len(rows):,} of {split}")]
    for key in keys(task.problem):
        made = interval(key, task.problem, ours, truth)
        lines.append((METRICS[key].name, _with_interval(made.mean, made.interval, METRICS[key].percent)))
    calibrated = fidelity.calibration(ours, truth, task.problem)
    if calibrated is not None:
        lines.append(("Calibration error (ECE)", f"{calibrated['ece']:.4f}"))
    if teacher is not None:
        theirs_task, theirs_model, theirs_reader = load_classifier(Path(model_path(str(teacher))))
        if type(theirs_task) is not type(task) or theirs_task.names != task.names:
            given = f"model {list(task.names)}, teacher {list(theirs_task.names)}"
            raise ModelError(problem("Model and teacher know different classes, or in another order", given=given))
        theirs = outputs(theirs_model, theirs_reader, encoded(theirs_model, theirs_reader), "teacher")
        key = primary(task.problem)
        made = bootstrap(key, task.problem, ours, theirs, truth)
        value = _with_interval(made.difference, made.interval, METRICS[key].percent)
        lines.append((f"{METRICS[key].name}, less teacher", value))
        if isinstance(task, SemanticSegmentation):
            collate = SegmentationCollator(task, reader, theirs_reader)
            with progress.stage("fidelity") as step:
                near = pixel_fidelity(loaded, theirs_model, own, collate, progress=step)
            lines += _near(near["agreement"], near["kl"])
        else:
            agree, kl = (of(ours, theirs, task.problem) for of in (fidelity.agreement, fidelity.kl_to_teacher))
            lines += _near(agree, kl)
    return lines


def _labelled(
    task: Any, data: str, split: str, columns: Mapping[str, str | None], void: Sequence[int] | None, progress: Progress
) -> tuple[Any, Any]:
    """The rows of a split with their labels, by the names that tasks know; and the task, whose label maps are these."""
    name = {"files": {split: data}} if Path(data).is_file() else {"name": data}
    found, notes = load.load_with_notes(load.Source(**name))
    if split not in found:
        raise DataError(problem(f"The data has no split '{split}'", given=", ".join(found), do="Name one with --split"))
    guessed, said = GUESSES[type(task)](found, dict(columns))
    one, seen = guessed.looked_at(type(found)({split: found[split]}))
    for note in [*notes, *said, *seen]:
        progress.say(note)
    if isinstance(task, SemanticSegmentation):
        return _with_maps(task, one, guessed, data, void, progress)
    labels = prepare.Labels(task.problem, task.names)
    rows = with_labels(standard_columns(prepare.encode_labels(one, guessed, labels), guessed)[split])
    if not len(rows):
        raise DataError(problem(f"No row of {split} has a label", do="Name another split with --split"))
    return task, rows


def _with_maps(
    task: SemanticSegmentation, found: Any, columns: Any, data: str, void: Sequence[int] | None, progress: Progress
) -> tuple[SemanticSegmentation, Any]:
    """Rows with label maps, and the task with what their ids mean: as the data says, or else the model."""
    folder = data if Path(data).is_dir() else None
    described = MapClasses(()) if folder is None else described_classes(folder)
    if described.names and not same_classes(task.names, described.names, ordered=True):
        given = f"model {list(task.names)}, data {list(described.names)}"
        do = "Evaluate on maps with the model's classes, in its order"
        raise other_classes("The model doesn't know the classes of the label maps, or in another order", given, do)
    maps = read_label_maps(
        found,
        columns,
        names=task.names,
        palette=described.palette or task.classes.palette,
        void=void if void is not None else described.void or task.classes.void,
    )
    for note in maps.notes:
        progress.say(note)
    (rows,) = found.values()
    return replace(task, classes=maps.classes), columns.standard(rows, ())


def _near(agreement: float | None, kl: float | None) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    if agreement is not None and kl is not None:
        lines += [("Agreement with teacher", f"{100 * agreement:.2f} %"), ("KL to teacher", f"{kl:.4f}")]
    return lines


def _with_interval(value: float, ends: tuple[float, float], percent: bool) -> str:
    scale, digits, unit = (100, 2, " %") if percent else (1, 4, "")
    low, high = (f"{scale * end:.{digits}f}" for end in ends)
    return f"{scale * value:.{digits}f}{unit}  ({low} to {high})"
