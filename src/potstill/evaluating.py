"""`potstill evaluate`: a finished model on any data, beside a teacher if one is given."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.checks import problem
from potstill.data import load, prepare
from potstill.data.rows import standard_columns, with_labels
from potstill.errors import DataError, ModelError
from potstill.evaluation import fidelity
from potstill.evaluation.outputs import OUTPUTS
from potstill.evaluation.significance import bootstrap, interval
from potstill.labelled import GUESSES
from potstill.metrics import METRICS, keys, primary
from potstill.prediction import load_classifier
from potstill.progress import Progress
from potstill.workbench import label_array, model_path


def evaluate_folder(
    model: Path,
    data: str,
    split: str,
    teacher: Path | None,
    columns: Mapping[str, str | None],
    max_length: int,
    progress: Progress,
) -> list[tuple[str, str]]:
    """Metrics with 95 % intervals, calibration and, beside a teacher, fidelity: (name, value as text).

    Raises `DataError` where the split isn't there or its labels aren't the model's, `ModelError` for models that don't
    fit.
    """
    task, loaded, reader = load_classifier(model)
    name = {"files": {split: data}} if Path(data).is_file() else {"name": data}
    found, notes = load.load_with_notes(load.Source(**name))
    if split not in found:
        raise DataError(problem(f"The data has no split '{split}'", given=", ".join(found), do="Name one with --split"))
    guessed, said = GUESSES[type(task)](found, dict(columns))
    one, seen = guessed.looked_at(type(found)({split: found[split]}))
    for note in [*notes, *said, *seen]:
        progress.say(note)
    labels = prepare.Labels(task.problem, task.names)  # type: ignore[arg-type]
    rows = with_labels(standard_columns(prepare.encode_labels(one, guessed, labels), guessed)[split])
    if not len(rows):
        raise DataError(problem(f"No row of {split} has a label", do="Name another split with --split"))
    truth = label_array(rows, task.problem)

    def logits(which: Any, its_reader: Any, title: str) -> Any:
        limit = task.limit(its_reader, max_length, which)
        encoded = task.encode(rows, its_reader, max_length=max_length if limit is None else limit)
        with progress.stage(title) as step:
            return OUTPUTS[task.problem].predict(which, encoded, task.collator(its_reader), progress=step)

    ours = logits(loaded, reader, "model")
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
        theirs = logits(theirs_model, theirs_reader, "teacher")
        lines += _beside_teacher(ours, theirs, truth, task.problem)
    return lines


def _beside_teacher(ours: Any, theirs: Any, truth: Any, kind: str) -> list[tuple[str, str]]:
    key = primary(kind)
    metric = METRICS[key]
    made = bootstrap(key, kind, ours, theirs, truth)
    lines = [(f"{metric.name}, less teacher", _with_interval(made.difference, made.interval, metric.percent))]
    agreement, kl = fidelity.agreement(ours, theirs, kind), fidelity.kl_to_teacher(ours, theirs, kind)
    if agreement is not None and kl is not None:
        lines += [("Agreement with teacher", f"{100 * agreement:.2f} %"), ("KL to teacher", f"{kl:.4f}")]
    return lines


def _with_interval(value: float, ends: tuple[float, float], percent: bool) -> str:
    scale, digits, unit = (100, 2, " %") if percent else (1, 4, "")
    low, high = (f"{scale * end:.{digits}f}" for end in ends)
    return f"{scale * value:.{digits}f}{unit}  ({low} to {high})"
